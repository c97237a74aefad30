# SPDX-License-Identifier: Apache-2.0
"""What config.json may say, on GPT-2 and Llama of transformers; equal outputs are in test_exchange."""

import json

import pytest
import torch

import foundling
from foundling.errors import GenerationError, WeightsError
from tests.parity.references import REFERENCES, randomise
from tests.rounding import close

transformers = pytest.importorskip("transformers")

GPT2 = dict(n_embd=48, n_head=3, n_layer=2, n_positions=40, vocab_size=97)
LLAMA = dict(hidden_size=48, num_attention_heads=4, num_key_value_heads=1, head_dim=12, intermediate_size=64)


def reference(kind: str, fields: dict):
    torch.manual_seed(3)
    if kind == "gpt2":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields, attn_pdrop=0.1))
    else:
        rope = {"rope_type": "default", "rope_theta": 5000.0}
        config = transformers.LlamaConfig(
            **fields, vocab_size=97, num_hidden_layers=3, max_position_embeddings=64, rope_parameters=rope
        )
        model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():  # scaled so that a difference shows: the usual 0.02 hides RoPE and GQA mistakes
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * (0.25 if p.ndim > 1 else 0.5) + (0 if p.ndim > 1 else 1))
    return model.eval()


def test_inert_keys_survive_a_round_trip(tmp_path) -> None:
    reference("gpt2", GPT2).save_pretrained(tmp_path / "a")
    foundling.save(foundling.load(tmp_path / "a"), tmp_path / "b")
    before, after = (json.loads((tmp_path / d / "config.json").read_text()) for d in "ab")
    assert after["attn_pdrop"] == 0.1
    for key in before.keys() - {"transformers_version"}:
        assert after[key] == before[key] or (key == "n_inner" and before[key] is None), key


def test_version_4_configuration_reads_the_same(tmp_path) -> None:
    theirs = reference("llama", LLAMA)
    theirs.save_pretrained(tmp_path / "a")
    x = torch.randint(0, 64, (1, 9))
    expected = foundling.load(tmp_path / "a")(x).hidden
    file = tmp_path / "a" / "config.json"
    config = json.loads(file.read_text())
    nested = config.pop("rope_parameters")
    file.write_text(json.dumps(config | {"rope_theta": nested["rope_theta"], "torch_dtype": "float32"}))
    assert torch.equal(foundling.load(tmp_path / "a")(x).hidden, expected)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4, "factor": 8.0}},
        {"model_type": "mystery"},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 4},
        {"vocab_size": 98},
        {"hidden_size": "many"},
    ],
)
def test_what_would_compute_something_else_is_refused(change: dict, tmp_path) -> None:
    reference("llama", LLAMA).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(WeightsError if "hidden_size" not in change else ValueError) as caught:
        foundling.load(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_base_model_without_head_loads_where_the_head_is_tied(tmp_path) -> None:
    theirs = reference("gpt2", GPT2)
    theirs.transformer.save_pretrained(tmp_path)
    ours = foundling.load(tmp_path)
    x = torch.randint(0, 64, (2, 17))
    close(ours.logits(ours(x).hidden), theirs(x).logits)


@torch.inference_mode()
def test_an_untied_base_model_reads_and_predicts_nothing(tmp_path) -> None:
    theirs = reference("llama", LLAMA).model
    theirs.save_pretrained(tmp_path / "a")
    ours = foundling.load(tmp_path / "a")
    x = torch.randint(0, 64, (2, 17))
    close(ours(x).hidden, theirs(x).last_hidden_state)
    with pytest.raises(GenerationError, match="no head"):
        foundling.generate(ours, [[1, 2]], max_tokens=2)
    foundling.save(ours, tmp_path / "b")
    back, info = transformers.AutoModel.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert type(back) is type(theirs) and not info["missing_keys"] and not info["unexpected_keys"]
    assert back.config.architectures == ["LlamaModel"]
    for (key, a), (_, b) in zip(theirs.state_dict().items(), back.state_dict().items(), strict=True):
        assert torch.equal(a, b), key


def test_what_releases_of_llama_4_leave_unsaid(tmp_path) -> None:
    """Empty lists and numbers in place of yes; lists that no period gives are refused."""
    theirs = randomise(REFERENCES["llama4"][0].make())
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    first = foundling.load(tmp_path)
    file.write_text(json.dumps(config | {"no_rope_layers": [], "moe_layers": None, "attn_temperature_tuning": 4}))
    assert foundling.load(tmp_path).config == first.config
    for change in ({"no_rope_layers": [1, 1, 1, 1]}, {"moe_layers": [0, 3]}, {"layer_types": ["full_attention"] * 4}):
        file.write_text(json.dumps(config | change))
        with pytest.raises(WeightsError, match=next(iter(change))):
            foundling.load(tmp_path)
