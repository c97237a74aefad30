# SPDX-License-Identifier: Apache-2.0
"""FLOPs and memory of adapted models, by hand and against what autograd keeps."""

import pytest
import torch

from foundling.adapt.lora import LoRA
from foundling.adapt.method import apply
from foundling.adapt.options import AdaptOptions
from foundling.models import build, family
from foundling.plan.flops import training_flops_per_token
from foundling.plan.memory import activation_bytes, estimate_training_memory, stored_bytes
from foundling.runtime.rng import generator
from foundling.train.options import OptimOptions

D, LAYERS, V = 64, 6, 512
FIELDS = family("gpt2").module.sized(V, 192, D, LAYERS)
LAYER = 12 * D * D
"""numbers of the projections of a layer: q, k, v fused, o, up and down"""


def flops(model) -> int:
    return training_flops_per_token(model, 0)


def test_what_is_frozen_costs_no_gradient() -> None:
    model = build("gpt2", device="meta", **FIELDS)
    assert flops(model) == 6 * (LAYERS * LAYER + D * V)
    model.requires_grad_(False)
    assert flops(model) == 2 * (LAYERS * LAYER + D * V), "a forward pass"
    model.layers[4].requires_grad_(True)
    model.layers[5].requires_grad_(True)
    assert flops(model) == 2 * 4 * LAYER + 6 * 2 * LAYER + 4 * D * V
    model.requires_grad_(False)
    model.norm.requires_grad_(True)
    assert flops(model) == 2 * (LAYERS * LAYER + D * V), "nothing below the last norm"


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_by_hand(method) -> None:
    """q, k and v are separate in ours: a is (rank, in) and b (out, rank) of each."""
    rank, model = 4, build("gpt2", device="meta", **FIELDS)
    apply(model, AdaptOptions(method, rank=rank), torch.Generator())
    names = [name for name, m in model.named_modules() if isinstance(m, LoRA)]
    shapes = [(m.in_features, m.out_features) for m in (model.get_submodule(name) for name in names)]
    own = rank * sum(i + o for i, o in shapes)
    assert sum(i * o for i, o in shapes) == LAYERS * LAYER
    assert flops(model) == 4 * (LAYERS * LAYER + D * V) + 6 * own
    stored = stored_bytes(model)
    assert stored.trainable == 4 * own
    estimate = estimate_training_memory(
        "gpt2", FIELDS, micro_batch_size=2, seq_len=128, process=0, optim=OptimOptions("adamw"),
        adapt=AdaptOptions(method, rank=rank),
    )  # fmt: skip
    assert estimate.gradients == 4 * own and estimate.optimizer == 8 * own
    assert estimate.weights == stored.frozen + stored.trainable
    outside = 4 * (V * D + 192 * D + 2 * D + LAYERS * (4 * D + 9 * D))  # embeddings, norms and biases
    per_weight = 4 if method == "lora" else 0.5 + (1 + 4 / 256) / 64
    assert stored.frozen == pytest.approx(outside + per_weight * LAYERS * LAYER, rel=0.01)


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_are_those_that_autograd_keeps(method, precision) -> None:
    """Counted at 128 and 256 tokens on fake tensors, against a real forward pass over 3 rows of 192."""
    fields = family("llama").module.sized(V, 192, D, LAYERS)
    model, saved = build("llama", **fields), dict[int, torch.Tensor]()
    apply(model, AdaptOptions(method), generator("lora"))
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randint(0, V, (3, 192), generator=generator("tokens"))
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), half:
        out = model(tokens, documents=torch.zeros_like(tokens))
    real = sum(t.untyped_storage().nbytes() for t in saved.values())
    assert activation_bytes("llama", fields, 3, 192, precision, False, adapt=AdaptOptions(method)) == pytest.approx(
        real, rel=0.03
    )
    del out


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_two_ranks_share_parameters_but_no_4_bit_weights(method) -> None:
    """Each has a half of all parameters, whole: those outside the layers and those of two layers, and all buffers."""
    adapt = AdaptOptions(method, rank=4)
    two = estimate_training_memory("gpt2", FIELDS, micro_batch_size=2, seq_len=128, process=0, ranks=2, adapt=adapt)
    model = build("gpt2", device="meta", **FIELDS)
    apply(model, adapt, torch.Generator())
    layers = [sum(p.nbytes for p in layer.parameters()) for layer in model.layers]
    outside = sum(p.nbytes for p in model.parameters()) - sum(layers)
    buffers = sum(b.nbytes for b in model.buffers())
    assert buffers > 0 if method == "qlora" else True
    expected = (sum(layers) + outside) / 2 + buffers + outside + 2 * layers[0]
    assert two.weights == pytest.approx(expected, abs=8)
    one = estimate_training_memory("gpt2", FIELDS, micro_batch_size=2, seq_len=128, process=0, adapt=adapt)
    assert two.weights > one.weights / 2
