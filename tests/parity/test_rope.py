# SPDX-License-Identifier: Apache-2.0
"""RoPE and its scaling as config.json spells it, against the functions of transformers that read the same file."""

import json
import math
from typing import Any

import pytest
import torch

import foundling
from foundling.blocks.position import RoPE
from foundling.blocks.rope_scaling import RopeScaling, last_positions
from foundling.errors import ConfigError, GenerationError, WeightsError
from foundling.weights.configs import read_config, write_config
from tests.contract.cases import case, tokens
from tests.rounding import close

transformers = pytest.importorskip("transformers")

LLAMA = dict(
    model_type="llama", vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5,
)  # fmt: skip
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SLOW = [1.0, 1.1, 1.5, 2.0, 2.5, 3.0, 5.0, 9.0]
LONG = {"short_factor": SLOW, "long_factor": [2 * f for f in SLOW]}


def ours(values: dict[str, Any]) -> RoPE:
    c = read_config(LLAMA | values, "config.json")[1]
    return RoPE(c.head_dim, c.rope_theta, c.rope_scaling, max_positions=c.max_seq_len)


def theirs(values: dict[str, Any], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    config = transformers.LlamaConfig(**json.loads(json.dumps(LLAMA | values)))
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    return rotary(torch.zeros(1), torch.arange(length)[None])


SPELLINGS: list[dict[str, Any]] = [
    # no scaling, said in every way
    {},
    {"rope_theta": 500.0},
    {"rope_scaling": None, "rope_theta": 500.0},
    {"rope_scaling": {}},
    {"rope_scaling": {"type": "default"}, "rope_theta": 500.0},
    {"rope_scaling": {"rope_type": "default", "original_max_position_embeddings": 32}},
    {"rope_scaling": {"rope_theta": 300.0}},
    {"rope_scaling": {"rope_type": "default", "factor": 8.0}},
    {"rope_parameters": None, "rope_theta": 500.0},
    {"rope_parameters": {"rope_theta": 700.0}, "rope_theta": 500.0},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 1.0}},
    # linear
    {"rope_scaling": {"type": "linear", "factor": 4.0}},
    {"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 4}, "rope_theta": 500.0},
    {"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 4.0}},
    {"rope_scaling": {"rope_type": "linear", "factor": 4.0, "original_max_position_embeddings": 16}},
    {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": {"rope_type": "default"}},
    {"rope_parameters": {"type": "linear", "factor": 2.0, "rope_theta": 700.0}},
    # dynamic: up to max_position_embeddings
    {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "rope_theta": 500.0},
    # llama3: the original length from all places
    {"rope_parameters": {"rope_type": "llama3", "original_max_position_embeddings": 16} | LLAMA3},
    {"rope_scaling": {"rope_type": "llama3"} | LLAMA3},
    {"rope_scaling": {"rope_type": "llama3"} | LLAMA3, "max_position_embeddings": 128},
    {"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 64} | LLAMA3,
     "original_max_position_embeddings": 16},
    # yarn
    {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_theta": 1e6},
    {"rope_parameters": {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 64}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "truncate": False,
                         "beta_fast": 8, "beta_slow": 2.0, "rope_theta": 300.0}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.25, "beta_fast": None}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.3}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7}},
    {"rope_scaling": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 16}},
    # longrope: a short and a long text, the factor given and computed
    {"rope_scaling": {"rope_type": "longrope", "original_max_position_embeddings": 48} | LONG},
    {"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 16} | LONG},
    {"rope_scaling": {"type": "longrope", "factor": 8.0, "original_max_position_embeddings": 16} | LONG},
    {"rope_scaling": {"type": "longrope", "attention_factor": 1.5} | LONG, "original_max_position_embeddings": 16},
    {"rope_scaling": {"type": "longrope"} | LONG},
]  # fmt: skip


@pytest.mark.parametrize("values", SPELLINGS, ids=lambda v: json.dumps(v)[:60])
@pytest.mark.parametrize("length", [48, 49])
def test_rotations_are_those_of_transformers(values: dict[str, Any], length: int) -> None:
    """What we write back reads the same, here and there."""
    cos, sin = ours(values)(torch.arange(length)[None])
    family, config, inert = read_config(LLAMA | values, "config.json")
    written = write_config(family, config, inert)
    again = {k: v for k, v in written.items() if k.startswith(("rope", "max_position", "original"))}
    assert read_config(written, "config.json")[1] == config
    for expected in (theirs(values, length), theirs(again, length)):
        close(cos[:, 0], expected[0])
        close(sin[:, 0], expected[1])


MOE = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 16}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("mixtral", {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}),
        ("mixtral", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 700.0}}),
        ("gpt_oss", {"rope_theta": 700.0}),
        ("gpt_oss", {"rope_theta": 700.0, "rope_scaling": None}),
        ("gpt_oss", {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}),
        ("gpt_oss", {"rope_scaling": {"rope_type": "default"}, "rope_theta": 700.0}),
        ("gpt_oss", {"rope_parameters": {"rope_theta": 700.0}}),
        ("gpt_oss", {}),
    ],
)
def test_experts_rotate_as_in_transformers(kind: str, values: dict[str, Any]) -> None:
    values = LLAMA | MOE | values | {"model_type": kind}
    family, config, inert = read_config(values, "config.json")
    assert read_config(write_config(family, config, inert), "config.json")[1] == config
    there = family.module.CONFIG.architecture.removesuffix("ForCausalLM")
    module = getattr(transformers.models, kind)
    rotary = getattr(getattr(module, f"modeling_{kind}"), f"{there}RotaryEmbedding")(
        getattr(transformers, f"{there}Config")(**json.loads(json.dumps(values)))
    )
    cos, sin = (part[..., :8] for part in rotary(torch.zeros(1), torch.arange(40)[None]))
    found = [part[:, 0, :, :8] for part in family.model(config).rope(torch.arange(40)[None])]
    close(found[0], cos)
    close(found[1], sin)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_scaling": {"factor": 8.0}}, "names no rope_type"),
        ({"rope_scaling": {"type": "proportional", "factor": 8.0}}, "'proportional' is not supported; supported: def"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}, "'mrope' is not supported"),
        ({"rope_scaling": {"type": "default", "mrope_section": [2, 3, 3]}}, "'default' is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 8.0, "mrope_section": [2]}}, "'mrope_section' of rope_type"),
        ({"rope_scaling": {"type": "linear"}}, "'linear' needs 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor is 0.5; expected a number of at least 1"),
        ({"rope_scaling": {"type": "linear", "factor": "much"}}, "'factor' is 'much'"),
        ({"rope_scaling": {"type": "linear", "factor": True}}, "'factor' is True"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}, "needs 'high_freq_factor'"),
        ({"rope_scaling": {"type": "yarn", "factor": 8.0, "beta_fast": 1, "beta_slow": 2}}, "beta_slow is 2.0 and bet"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": float("inf")}}, "factor is inf"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": math.nan}}, "attention_factor is nan"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 8.0, "short_factor": SLOW}}, "needs 'long_factor'"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": SLOW, "long_factor": [0.0] * 8}}, "not above 0"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": SLOW, "long_factor": 8}}, "'long_factor' is 8"),
        ({"rope_scaling": {"type": "yarn", "factor": math.e, "mscale": 1, "mscale_all_dim": -10}}, "cannot be read"),
        ({"rope_scaling": {"type": ["yarn"], "factor": 2.0}}, "cannot be read"),
        ({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": "long"}}, "cannot be read"),
        ({"rope_scaling": [8]}, "rope_scaling is [8], expected a mapping"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
    ],
)  # fmt: skip
def test_what_would_rotate_otherwise_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError) as caught:
        read_config(LLAMA | values, "a/config.json")
    assert message in str(caught.value) and "a/config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_factors_of_another_width_are_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="short_factor holds 8 numbers, 32 rotated channels need 16"):
        RoPE(32, 1e4, RopeScaling("longrope", 2.0, short_factor=tuple(SLOW), long_factor=tuple(SLOW)))
    foundling.save(case("llama").tiny(), tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_scaling": {"type": "longrope"} | LONG}))
    with pytest.raises(WeightsError, match=r"config.json: .*8 numbers, 32 rotated"):
        foundling.load(tmp_path / "m")


def test_last_positions_by_hand() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [3, 4, 0, 1, 2, 3]])
    assert last_positions(positions).tolist() == [[2, 2, 2, 1, 1, 0], [4, 4, 3, 3, 3, 3]]


LONGROPE = dict(
    kind="longrope", factor=4.0, original_max_seq_len=16, short_factor=(1.0, 2.0) * 8, long_factor=(3.0, 5.0) * 8
)


@torch.no_grad()
def test_each_text_of_longrope_is_short_or_long_by_itself() -> None:
    """Rows padded to one length and documents packed in one row are rotated as they are alone."""
    model = case("llama").tiny(rope_scaling=RopeScaling(**LONGROPE))  # pyright: ignore[reportArgumentType]
    x = tokens(1, 30)
    long, short = model(x).hidden, model(x[:, :10]).hidden
    documents = torch.zeros(2, 30, dtype=torch.int64)
    documents[1, 10:] = -1
    padded = model(x.expand(2, -1), documents=documents).hidden
    close(padded[0], long[0])
    close(padded[1, :10], short[0])
    packed = torch.cat((x, x[:, :10]), dim=1)
    apart = model(packed, documents=(torch.arange(40) >= 30).long()[None]).hidden
    close(apart[:, :30], long)
    close(apart[:, 30:], short)


@torch.no_grad()
def test_a_cached_text_does_not_become_a_long_one() -> None:
    model = case("llama").tiny(rope_scaling=RopeScaling(**LONGROPE))  # pyright: ignore[reportArgumentType]
    x = tokens(1, 30)
    cache = model.new_cache(1, 30)
    parts = [model(part, cache=cache).hidden for part in (x[:, :9], x[:, 9:16])]
    close(torch.cat(parts, dim=1), model(x[:, :16]).hidden)
    with pytest.raises(GenerationError, match="beyond 16 tokens in a cache"):
        model(x[:, 16:17], cache=cache)
    cache = model.new_cache(1, 30)
    parts = [model(part, cache=cache).hidden for part in (x[:, :20], x[:, 20:21], x[:, 21:])]
    close(torch.cat(parts, dim=1), model(x).hidden)

    answers = foundling.generate(model, [x[0, :9].tolist(), x[0, :20].tolist()], max_tokens=7, temperature=0)
    assert [len(answer.tokens) for answer in answers] == [7, 7]
    engine = foundling.Engine(model)
    others: list[tuple[Any, dict[str, Any]]] = [
        (engine, {}), (model, {"beams": 2}), (model, {"draft": case("llama").tiny()}),
    ]  # fmt: skip
    for maker, options in others:
        with pytest.raises(GenerationError, match=r"the 16 tokens of a short text .* request at most 7"):
            foundling.generate(maker, [x[0, :9].tolist()], max_tokens=8, **options)
    with pytest.raises(GenerationError, match=r"a prompt of 16 .* of a short text .*; shorten the prompt"):
        foundling.generate(engine, [x[0, :16].tolist()], max_tokens=1)
    assert foundling.generate(engine, [x[0, :9].tolist()], max_tokens=7, temperature=0)[0].tokens == answers[0].tokens
    with pytest.raises(GenerationError, match="prompt is 20 tokens; the engine reads a prompt in parts"):
        foundling.generate(engine, [x[0, :20].tolist()], max_tokens=4)


@torch.no_grad()
def test_an_answer_that_becomes_long_is_read_again() -> None:
    """As transformers' Phi-3 generates: each token follows from the whole text so far, read without a cache."""
    model = case("llama").tiny(rope_scaling=RopeScaling(**LONGROPE))  # pyright: ignore[reportArgumentType]
    x = tokens(1, 30)[0].tolist()
    prompts = [x[:9], x[:16], x[:13], x[:20]]
    found = foundling.generate(model, prompts, max_tokens=10, temperature=0, n=2)
    for row, answer in enumerate(found):
        text = list(prompts[row // 2])
        for _ in range(10):
            text.append(int(model.logits(model(torch.tensor([text])).hidden[0, -1]).argmax()))
        assert answer.tokens == text[-10:]


@torch.no_grad()
def test_dynamic_scaling_ends_with_the_models_length() -> None:
    plain = case("llama").tiny()
    scaled = case("llama").tiny(rope_scaling=RopeScaling("dynamic", 4.0))
    x = tokens(1, 65)
    assert torch.equal(scaled(x[:, :64]).hidden, plain(x[:, :64]).hidden)
    with pytest.raises(GenerationError, match="longer than the 64 tokens"):
        scaled(x)


def test_what_yarn_multiplies_scores_by() -> None:
    """Peng et al. 2023, section 3.4: √(1/t) = 0.1 ln(s) + 1; LongRoPE, section 3.3 of Ding et al. 2024."""
    assert RopeScaling("yarn", math.e**2).gain == pytest.approx(1.2)
    long = RopeScaling("longrope", 16.0, original_max_seq_len=4096)
    assert long.gain == pytest.approx(math.sqrt(1 + math.log(16) / math.log(4096)))
