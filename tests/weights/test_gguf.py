# SPDX-License-Identifier: Apache-2.0
"""GGUF against the library that defines it, and against transformers' reader of it; hostile files in one line."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import foundling
from foundling.blocks.position import RopeScaling
from foundling.errors import OutputError, WeightsError
from foundling.text import Tokenizer
from foundling.weights.convert.gguf import load_gguf, save_gguf
from foundling.weights.convert.gguf_file import open_gguf
from foundling.weights.convert.hugging_face import export_gguf
from tests.contract.cases import case
from tests.rounding import close

IDS = torch.tensor([[3, 9, 27, 17, 51, 25, 11]])


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {}),
        ("llama", dict(n_kv_heads=1)),
        ("llama", dict(tie_embeddings=True, rope_theta=5e5)),
        ("llama", dict(head_dim=64)),
        ("llama", dict(rope_scaling=RopeScaling("llama3", 8.0))),
        ("llama", dict(rope_scaling=RopeScaling("linear", 4.0))),
        ("mixtral", {}),
        ("qwen3", dict(n_kv_heads=1)),
        ("olmo2", {}),
        ("gemma2", dict(tie_embeddings=True)),
        ("gemma3", dict(rope_scaling=RopeScaling("linear", 8.0))),
    ],
)
def test_a_round_trip_is_bitwise(tmp_path: Path, name: str, fields: dict) -> None:
    """All but Gemma's norms, which llama.cpp keeps with 1 added."""
    model = case(name).tiny(**fields)
    again = load_gguf(save_gguf(model, tmp_path / "m.gguf"))
    kept = {f: v for f, v in vars(model.config).items() if f not in ("balance_weight",)}
    assert vars(again.config).items() >= kept.items()
    for (one, a), (other, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        added = name.startswith("gemma") and one.endswith("norm.weight")
        assert one == other and torch.equal((a + 1) - 1 if added else a, b), one


def test_a_mistral_without_window_is_read_as_the_llama_that_it_is(tmp_path: Path) -> None:
    model = case("mistral").tiny(window=None)
    again = load_gguf(save_gguf(model, tmp_path / "m.gguf"))
    assert type(again).__name__ == "Llama"
    with torch.no_grad():
        close(model.logits(model(IDS).hidden), again.logits(again(IDS).hidden))


@pytest.mark.parametrize(("name", "key"), [("mistral", None), ("phi3", 8)])
def test_a_window_that_llama_cpp_does_not_apply_is_named(tmp_path: Path, name: str, key: int | None) -> None:
    """Texts up to its length are computed alike, so it is written."""
    foundling.save(case(name).tiny(window=8), tmp_path / "m")
    (line,) = export_gguf(tmp_path / "m", tmp_path / "m.gguf")["left_out"]
    assert line.startswith("window of 8 tokens: llama.cpp does not apply it; texts up to that length")
    assert open_gguf(tmp_path / "m.gguf").values.get(f"{name}.attention.sliding_window") == key
    foundling.save(case(name).tiny(window=case(name).tiny().config.max_seq_len), tmp_path / "wide")
    assert export_gguf(tmp_path / "wide", tmp_path / "wide.gguf")["left_out"] == []


def test_values_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    for value, weights, message in (
        (float("nan"), "float32", "holds 1 NaN or infinite values"),
        (float("inf"), "int8", "holds 1 NaN or infinite values"),
        (3.4e38, "bfloat16", r"holds 3\.4e\+38, beyond BF16 \(3\.38953e\+38\)"),
        (70_000.0, "float16", r"holds 70000, beyond F16 \(65504\)"),
    ):
        model = case("llama").tiny()
        with torch.no_grad():
            model.layers[1].ffn.down.weight[3, 5] = value
        with pytest.raises(WeightsError, match=message) as caught:
            save_gguf(model, tmp_path / "m.gguf", weights=weights)
        assert "'layers.1.ffn.down.weight'" in str(caught.value) and not list(tmp_path.iterdir())


def test_the_type_of_a_key_is_the_fields(tmp_path: Path) -> None:
    """llama.cpp refuses a whole number where it reads a float."""
    file = save_gguf(case("llama").tiny(rope_theta=10_000, norm_eps=1), tmp_path / "m.gguf")
    fields = gguf.GGUFReader(file).fields
    for key in ("rope.freq_base", "attention.layer_norm_rms_epsilon"):
        assert fields[f"llama.{key}"].types == [gguf.GGUFValueType.FLOAT32], key
    assert fields["llama.block_count"].types == [gguf.GGUFValueType.UINT32]
    assert load_gguf(file).config.rope_theta == 10_000


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("gemma2", dict(tie_embeddings=False), "gemma2 has never a head apart"),
        ("olmo2", dict(tie_embeddings=True), "olmo2 has always a head apart"),
        ("gemma2", dict(tie_embeddings=True, query_scale=144), "computes with query_scale 32; this has 144"),
        ("gemma2", dict(tie_embeddings=True, score_cap=None), "always has score_cap"),
        ("gemma3", dict(rope_scaling=RopeScaling("llama3", 8.0)), "does not scale rotary positions as llama3"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_not_written(
    tmp_path: Path, name: str, fields: dict, message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        save_gguf(case(name).tiny(**fields), tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {}),
        ("qwen3", dict(head_dim=128)),
        ("gemma2", dict(head_dim=256, query_scale=256, tie_embeddings=True)),
        ("gemma3", dict(head_dim=256, query_scale=256, tie_embeddings=True, period=6)),
    ],
)
def test_transformers_reads_the_same_model(tmp_path: Path, name: str, fields: dict) -> None:
    """Its reader undoes the order of rotary pairs, and Gemma's added 1, by its own code. It takes the size of a head
    from the published models."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = case(name).tiny(vocab_size=320, n_kv_heads=1, **fields)
    tokenizer = Tokenizer.train(["some text, any text\n"] * 5, 320)
    save_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").eval()
    with torch.no_grad():
        a, b = model.logits(model(IDS).hidden), theirs(IDS).logits
    close(a, b)


@pytest.mark.parametrize("weights", ["bfloat16", "float16", "int8", "int4"])
def test_rounded_weights_are_near(tmp_path: Path, weights: str) -> None:
    model = case("llama").tiny()
    again = load_gguf(save_gguf(model, tmp_path / "m.gguf", weights=weights))
    bound = {"bfloat16": 2**-8, "float16": 2**-11, "int8": 1 / 200, "int4": 1 / 7}[weights]
    params = {name: p.detach() for name, p in again.named_parameters()}
    for name, p in ((name, p.detach()) for name, p in model.named_parameters()):
        if p.ndim == 1:
            assert torch.equal(p, params[name])
        else:
            assert float((p - params[name]).abs().max()) <= bound * float(p.abs().max()), name
            assert weights.startswith("float") or not torch.equal(p, params[name])


def test_the_tokenizers_vocabulary_goes_along(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["some text, any text\n"] * 5, 320)
    save_gguf(case("llama").tiny(vocab_size=384), tmp_path / "m.gguf", tokenizer=tokenizer)
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == 384 and tokens[tokenizer.eos] == "<|endoftext|>"
    for text in ("some text", "naïve"):
        for i in tokenizer.encode(text):
            assert tokens[i] == tokenizer.backend.id_to_token(i)
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos


def written(path: Path, change) -> Path:
    """A whole file, changed in its fields or tensors."""
    save_gguf(case("llama").tiny(), path)
    reader = gguf.GGUFReader(path)
    fields = {n: f.contents() for n, f in reader.fields.items() if n.startswith("llama.")}
    tensors = {t.name: np.array(t.data) for t in reader.tensors}
    arch = change(fields, tensors) or "llama"
    path.unlink()
    writer = gguf.GGUFWriter(path, arch)
    for name, value in fields.items():
        kinds = {str: writer.add_string, float: writer.add_float32, list: writer.add_array}
        kinds.get(type(value), writer.add_uint32)(name, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, t: "mamba", "architecture is 'mamba'"),
        (lambda f, t: f.pop("llama.block_count") and None, "lacks 'llama.block_count'"),
        (lambda f, t: f.update({"llama.block_count": 4_000_000_000}), "the file holds"),
        (lambda f, t: f.update({"llama.block_count": 1}), "unknown tensor"),
        (lambda f, t: f.update({"llama.embedding_length": 4_000_000_000}), "expected"),
        (lambda f, t: f.update({"llama.attention.head_count": 0}), "llama|zero|positive|n_heads"),
        (lambda f, t: f.update({"llama.rope.scaling.type": "yarn"}), "scaled"),
        (lambda f, t: f.update({"llama.rope.scaling.factor": 0.5}), "scaled as 'linear' by 0.5 are not"),
        (lambda f, t: f.update({"llama.rope.scaling.factor": "2"}), "rope.scaling.factor' is '2'; expected one number"),
        (lambda f, t: f.update({"llama.rope.scaling.type": 4}), "'llama.rope.scaling.type' is 4; expected a text"),
        (lambda f, t: f.update({"llama.block_count": "2"}), "'llama.block_count' is '2'; expected a whole number"),
        (lambda f, t: f.update({"llama.block_count": 2.0}), "'llama.block_count' is 2.0; expected a whole number"),
        (lambda f, t: f.update({"llama.rope.freq_base": "1"}), "'llama.rope.freq_base' is '1'; expected one number"),
        (lambda f, t: f.update({"llama.attention.causal": "1"}), "'llama.attention.causal' is '1'; expected one"),
        (lambda f, t: f.update({"llama.expert_count": "0"}), "'llama.expert_count' is '0'; expected a whole number"),
        (lambda f, t: f.update({"llama.attention.head_count": [1, 2]}), "array.*; expected a whole number"),
        (lambda f, t: f.update({"llama.rope.scaling.factor": float("nan")}), "scaled as 'linear' by nan are not"),
        (lambda f, t: f.update({"llama.rope.dimension_count": 4}), "'llama.rope.dimension_count' is 4; only"),
        (lambda f, t: f.update({"llama.attention.causal": 0}), "'llama.attention.causal' is 0; only True"),
        (lambda f, t: f.update({"llama.logit_scale": 0.5}), "'llama.logit_scale' is not known here"),
        (lambda f, t: f.update({"llama.attention.layer_norm_rms_epsilon": float("nan")}), "'norm_eps' is nan"),
        (lambda f, t: f.update({"llama.rope.freq_base": -1.0}), "'rope_theta' is -1.0"),
        (lambda f, t: t.pop("blk.1.attn_q.weight") is None, "lacks tensor 'blk.1.attn_q.weight'"),
        (lambda f, t: t.pop("token_embd.weight") is None, "lacks 'token_embd.weight'"),
        (lambda f, t: t.update({"more.weight": t["output_norm.weight"]}), "unknown tensor 'more.weight'"),
        (lambda f, t: t.update({"output_norm.weight": t["output_norm.weight"][:8]}), "expected"),
        (lambda f, t: t.update({"rope_freqs.weight": t["output_norm.weight"]}), "scales rotary"),
    ],
)
def test_what_is_no_llama_is_refused_in_one_line(tmp_path: Path, change, message: str) -> None:
    path = written(
        tmp_path / "m.gguf", lambda f, t: (lambda said: said if isinstance(said, str) else None)(change(f, t))
    )
    with pytest.raises(WeightsError, match=message) as caught:
        load_gguf(path)
    assert "\n" not in str(caught.value) and "m.gguf" in str(caught.value)


def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    whole = save_gguf(case("llama").tiny(), tmp_path / "m.gguf").read_bytes()
    for place in (0, 3, 10, 100, 400, len(whole) // 2, len(whole) - 5):
        (tmp_path / "cut.gguf").write_bytes(whole[:place])
        with pytest.raises(WeightsError) as caught:
            load_gguf(tmp_path / "cut.gguf")
        assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match="no such file"):
        load_gguf(tmp_path / "none.gguf")
    with pytest.raises(OutputError, match="exists"):
        save_gguf(case("llama").tiny(), tmp_path / "m.gguf")
    with pytest.raises(WeightsError, match="for llama"):
        save_gguf(case("gpt2").tiny(), tmp_path / "g.gguf")
    headless = case("llama").tiny()
    headless.head = None
    with pytest.raises(WeightsError, match="needs the head"):
        save_gguf(headless, tmp_path / "g.gguf")
    with pytest.raises(WeightsError, match="use float32"):
        save_gguf(case("llama").tiny(), tmp_path / "g.gguf", weights="int3")
    with pytest.raises(WeightsError, match="multiples of 32"):
        save_gguf(case("llama").tiny(d_ff=100), tmp_path / "g.gguf", weights="int4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.gguf", "m.gguf"], "nothing half-written is left"
    assert foundling
