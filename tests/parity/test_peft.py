# SPDX-License-Identifier: Apache-2.0
"""peft loads our adapters on models of transformers, and we load its, with equal outputs."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import foundling
from foundling.adapt.added import adapter_tensors
from foundling.adapt.lora import LAYERS, LoRA, LoRAOptions, lora
from foundling.errors import WeightsError
from foundling.runtime.rng import generator
from foundling.weights.adapter_layout import CONFIG, FILE
from tests.parity.references import REFERENCES, Reference, randomise
from tests.rounding import bound, close

peft = pytest.importorskip("peft")
TIGHT = bound(depth=32)
"""each product becomes two: the weights and their adapter"""
QUICK = ("llama", "gpt2", "bert", "mixtral")
SHAPES = {"llama": 1, "gpt2": 1}
"""which of a family's references, where not the first"""
PATTERNS = {
    # the mixer of transformers multiplies by dt_proj.weight itself, past an adapter; peft refuses out_proj of Mamba
    "mamba": f"{LAYERS},!*.dt,!*.o",
    "jamba": f"{LAYERS},!*.dt",
}
NAMES = [
    "albert", "bart", "bert", "bloom", "distilbert", "gemma3", "gpt", "gpt2", "gpt_neox", "gpt_oss", "jamba", "llama",
    "llama4", "mamba", "mixtral", "modernbert", "olmo2", "opt", "phi3", "qwen2", "qwen3", "qwen3_moe", "roberta", "t5",
]  # fmt: skip


def draw(named: dict[str, torch.nn.Parameter]) -> None:
    """Adapters that change the outputs by about as much as there is of them."""
    for name, p in named.items():
        p.data.copy_(torch.randn(p.shape, generator=generator(name)) * 0.4 * p.shape[-1] ** -0.5)


def wrapped(theirs: Any, directory: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for patterns of parameters among modules
        return peft.PeftModel.from_pretrained(theirs, str(directory)).eval()


def reference(name: str, path: Path) -> tuple[Reference, Any]:
    of = REFERENCES[name][SHAPES.get(name, 0)]
    theirs = randomise(of.make()).eval()
    theirs.save_pretrained(path)
    return of, theirs


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in NAMES])
@torch.no_grad()
def test_adapters_pass_both_ways(name: str, tmp_path: Path) -> None:
    of, theirs = reference(name, tmp_path / "base")
    ours = foundling.load(tmp_path / "base")
    before = of.ours(ours)
    names = lora(ours, LoRAOptions(PATTERNS.get(name, LAYERS), rank=3, alpha=5.0), generator("lora"))
    draw(adapter_tensors(ours))
    foundling.save_adapter(ours, tmp_path / "ours")
    outputs = of.ours(ours)
    assert (outputs - before).norm() > 0.02 * before.norm()
    adapted = wrapped(theirs, tmp_path / "ours")
    close(of.theirs(adapted), outputs, TIGHT)
    assert torch.equal(of.ours(foundling.load(tmp_path / "ours")), outputs), "and back, bit by bit"

    draw({n: p for n, p in adapted.named_parameters() if "lora_" in n})
    adapted.save_pretrained(str(tmp_path / "theirs"))
    again = foundling.load(tmp_path / "base")
    assert foundling.load_adapter(again, tmp_path / "theirs") == names
    close(of.ours(again), of.theirs(adapted), TIGHT)


SETTINGS: dict[str, dict[str, Any]] = {
    "regex": {"target_modules": r".*layers\.[02]\.self_attn\.(q|v)_proj"},
    "all-linear": {"target_modules": "all-linear"},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True, "lora_dropout": 0.1},
    "layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "patterns": {
        "target_modules": ["q_proj", "k_proj", "down_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 5},
        "alpha_pattern": {"down_proj": 3, r".*\.1\.self_attn\.k_proj": 7, "^model.layers.0.self_attn.q_proj": 2},
    },
}


@pytest.mark.parametrize(
    "setting", [pytest.param(n, marks=[] if n in ("head", "patterns") else pytest.mark.slow) for n in SETTINGS]
)
@torch.no_grad()
def test_settings_of_peft(setting: str, tmp_path: Path) -> None:
    of, theirs = reference("llama", tmp_path / "base")
    adapted = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=6, **SETTINGS[setting])).eval()
    draw({n: p for n, p in adapted.named_parameters() if "lora_" in n})
    adapted.save_pretrained(str(tmp_path / "theirs"))
    ours = foundling.load(tmp_path / "base")
    foundling.load_adapter(ours, tmp_path / "theirs")
    outputs = of.ours(ours)
    close(outputs, of.theirs(adapted), TIGHT)
    # and saved by us, with ranks and scales of its own for each module
    foundling.save_adapter(ours, tmp_path / "ours")
    close(of.theirs(wrapped(adapted.unload(), tmp_path / "ours")), outputs, TIGHT)
    assert torch.equal(of.ours(foundling.load(tmp_path / "ours")), outputs)


@torch.no_grad()
def test_parts_of_a_fused_projection_with_ranks_and_scales_of_their_own(tmp_path: Path) -> None:
    from foundling.adapt.lora import attach

    of, theirs = reference("gpt2", tmp_path / "base")
    ours = foundling.load(tmp_path / "base")
    ranks = {"layers.0.mixer.q": (2, 3.0), "layers.0.mixer.v": (5, 4.0), "layers.1.mixer.k": (1, 1.0)}
    assert attach(ours, ranks) == list(ranks)
    draw(adapter_tensors(ours))
    foundling.save_adapter(ours, tmp_path / "ours")
    outputs = of.ours(ours)
    close(of.theirs(wrapped(theirs, tmp_path / "ours")), outputs, TIGHT)
    again = foundling.load(tmp_path / "ours")
    close(of.ours(again), outputs, TIGHT)
    assert {n: m.rank for n, m in again.named_modules() if isinstance(m, LoRA)} == {n: r for n, (r, _) in ranks.items()}


def test_what_would_compute_something_else_is_refused_by_name(tmp_path: Path) -> None:
    _, theirs = reference("llama", tmp_path / "base")
    adapted = peft.get_peft_model(theirs, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    adapted.save_pretrained(str(tmp_path / "theirs"))
    good = json.loads((tmp_path / "theirs" / CONFIG).read_text())
    model = foundling.load(tmp_path / "base")
    for changes, match in (
        ({"use_dora": True}, "'use_dora' = True is not supported"),
        ({"bias": "lora_only"}, "bias = 'lora_only' trains biases"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' changes the base"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not supported; supported: .*lora"),
        ({"layer_replication": [[0, 2]]}, "'layer_replication'"),
        ({"a_new_key": {"x": 1}}, "'a_new_key'"),
        ({"r": 0}, "r = 0"),
        ({"lora_alpha": "x"}, "lora_alpha = 'x'"),
        ({"alpha_pattern": {"(a+)+$": 3}}, r"alpha_pattern has the key '\(a\+\)\+\$'"),
        ({"alpha_pattern": [3]}, "alpha_pattern is"),
        ({"target_modules": ["q_proj", "v_proj"]}, "lacks tensor '.*v_proj.lora_A.weight'"),
        ({"target_modules": [1]}, "target_modules is"),
    ):
        (tmp_path / "theirs" / CONFIG).write_text(json.dumps(good | changes))
        with pytest.raises(WeightsError, match=match) as caught:
            foundling.load_adapter(model, tmp_path / "theirs")
        assert "\n" not in str(caught.value) and not adapter_tensors(model)
    (tmp_path / "theirs" / CONFIG).write_text(json.dumps(good))
    (tmp_path / "theirs" / FILE).unlink()
    torch.save({}, tmp_path / "theirs" / "adapter_model.bin")
    with pytest.raises(WeightsError, match="pickle"):
        foundling.load_adapter(model, tmp_path / "theirs")
