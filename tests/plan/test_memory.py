# SPDX-License-Identifier: Apache-2.0
"""Memory foreseen against memory that real steps take and autograd really keeps."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from foundling.adapt.quantize import quantize
from foundling.models import build, count_parameters, family
from foundling.plan.memory import (
    _saved,
    _saved_by_all_layers,
    activation_bytes,
    estimate_training_memory,
    largest_fit,
    serving_bytes,
)
from foundling.train.options import OptimOptions

DECODERS = ("llama", "gpt2", "mixtral", "mamba2")


def sized(name: str, **changes: int) -> dict:
    return family(name).module.sized(512, changes.get("seq_len", 192), changes.get("d", 64), changes.get("layers", 3))


@pytest.mark.parametrize(
    ("name", "layers"),
    [*((name, 5) for name in DECODERS), ("gemma2", 10), pytest.param("jamba", 16, marks=pytest.mark.slow)],
)
def test_activations_are_those_that_autograd_keeps(name: str, layers: int) -> None:
    """Counted at 128 and 256 tokens of layers that differ, without memory, held against a real forward pass over 3 rows
    of 192 through all of them."""
    fields = sized(name, layers=layers)
    model, kept = build(name, **fields), {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randint(0, 512, (3, 192))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = model(tokens, documents=torch.zeros_like(tokens))
    real = sum(t.untyped_storage().nbytes() for t in kept.values())
    assert activation_bytes(name, fields, 3, 192, "float32", False) == pytest.approx(real, rel=0.03)
    assert activation_bytes(name, fields, 3, 192, "float32", True) < real * (0.5 if name in DECODERS else 0.8)
    del out


def test_layers_that_are_alike_are_counted_by_two_of_them() -> None:
    """In bfloat16 too, where each saves its weights in that type, however long the text is."""
    fields = sized("llama", layers=6)
    with FakeTensorMode():
        model = build("llama", **fields)
        for precision in ("float32", "bfloat16"):
            everything = _saved(model, 3, 192, precision, model.layers)
            assert _saved_by_all_layers(model, 3, 192, precision) == everything
            assert activation_bytes("llama", fields, 3, 192, precision, False) == pytest.approx(everything, rel=0.01)


def test_a_configuration_may_hold_another() -> None:
    config = sized("llama") | {"rope_scaling": {"kind": "linear", "factor": 2.0}}
    assert activation_bytes("llama", config, 3, 192, "float32", False) == activation_bytes(
        "llama", sized("llama"), 3, 192, "float32", False
    )


def test_parts_by_hand() -> None:
    """A GPT-2 of one matrix shape group known by arithmetic: 12 d² a layer, moments of AdamW and of Muon."""
    fields = family("gpt2").module.sized(512, 128, 64, 2)
    n = 512 * 64 + 128 * 64 + 2 * (12 * 64 * 64 + 13 * 64) + 2 * 64
    adamw = estimate_training_memory(
        "gpt2", fields, micro_batch_size=2, seq_len=128, optim=OptimOptions("adamw"), process=0
    )
    muon = estimate_training_memory("gpt2", fields, micro_batch_size=2, seq_len=128, process=0)
    assert adamw.weights == adamw.gradients == 4 * n and adamw.optimizer == 8 * n and adamw.update == 0
    assert muon.optimizer == 8 * n - 4 * 2 * 12 * 64 * 64
    assert muon.update == 3 * 4 * 2 * 4 * 64 * 64, "two more copies, and the result, of the largest group: q, k, v, o"
    assert adamw.logits == 4 * (256 * 512 + 256 * 64 + 512 * 64)
    assert adamw.peak == max(adamw.activations + adamw.logits, adamw.gradients) + 12 * n
    half = estimate_training_memory("gpt2", fields, micro_batch_size=2, seq_len=128, ranks=2, process=0)
    outside = 512 * 64 + 128 * 64 + 2 * 64
    assert half.weights == 2 * n + 4 * n and n - outside == 2 * (12 * 64 * 64 + 13 * 64), (
        "both layers are whole at once"
    )
    assert half.gradients == 2 * n and half.activations == muon.activations


def test_the_largest_fit_is_the_largest() -> None:
    fields = sized("llama", layers=6)
    ask = {"batch_size": 16, "seq_len": 192, "process": 0}
    whole = largest_fit("llama", fields, memory_bytes=1 << 40, **ask)
    assert whole is not None and whole[:2] == (16, False)
    rows, twice, found = largest_fit("llama", fields, memory_bytes=whole[2].peak - 1, **ask) or pytest.fail("fits")
    assert (rows, twice) == (8, False) and found.accumulates
    single = estimate_training_memory("llama", fields, micro_batch_size=1, seq_len=192, accumulates=True, process=0)
    assert largest_fit("llama", fields, memory_bytes=single.peak - 1, **ask)[1] is True  # pyright: ignore
    assert largest_fit("llama", fields, memory_bytes=found.weights, **ask) is None


@pytest.mark.parametrize("name", DECODERS)
def test_serving_is_what_a_cache_and_quantised_weights_take(name: str) -> None:
    model = build(name, **sized(name))
    said = serving_bytes(name, sized(name), rows=2, seq_len=48)
    cache = model.new_cache(2, 48)
    assert said["cache"] == sum(t.numel() * 4 for slots in cache.tensors for slot in slots for t in slot)
    assert said["float32"] == 4 * count_parameters(model)["total"] == 2 * said["bfloat16"]
    quantize(model)
    held = {t.data_ptr(): t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]}
    assert said["int8"] == sum(held.values()) < said["float32"]


def test_an_encoder_has_no_cache() -> None:
    said = serving_bytes("bert", sized("bert"), rows=2, seq_len=48)
    assert said["cache"] == 0 and said["float32"] == 4 * count_parameters(build("bert", **sized("bert")))["total"]
