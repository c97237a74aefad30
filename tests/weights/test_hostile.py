# SPDX-License-Identifier: Apache-2.0
"""What a directory may say that is not true: refused by file and key, at no cost, nothing executed."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from foundling.adapt.heads import HeadOptions, add_head
from foundling.errors import FoundlingError, WeightsError
from foundling.limits import JSON_DEPTH
from foundling.models import build
from foundling.runtime.files import read_json, write_json
from foundling.runtime.rng import generator
from foundling.weights.directory import load, save, weights_hash
from foundling.weights.manifest import check
from tests.contract.cases import case
from tests.rounding import close

INDEX = "model.safetensors.index.json"


@pytest.fixture
def whole(tmp_path):
    return save(case("llama").tiny(), tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    return save(case("llama").tiny(), tmp_path / "sharded", max_shard_bytes=60_000)


def change(file, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refused(directory, *parts: str) -> None:
    with pytest.raises(FoundlingError) as caught:
        load(directory)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_shards_load_as_one(sharded) -> None:
    shards = sorted(p.name for p in sharded.glob("*.safetensors"))
    assert len(shards) > 2 and shards[0].startswith("model-00001-of-000")
    assert weights_hash(load(sharded)) == weights_hash(case("llama").tiny())
    assert check(sharded)["checked"] == len(shards) + 2
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM.from_pretrained(sharded)
    x = torch.randint(0, 60, (1, 9))
    ours = load(sharded)
    close(ours.logits(ours(x).hidden), theirs(x).logits)
    theirs.save_pretrained(sharded.parent / "theirs", max_shard_size="50KB")
    assert (sharded.parent / "theirs" / INDEX).exists()
    assert weights_hash(load(sharded.parent / "theirs")) == weights_hash(ours)


@pytest.mark.parametrize(
    "place",
    ["../model/model.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "x.bin", 3, None, ["a.safetensors"]],
)
def test_an_index_that_leaves_its_folder(sharded, whole, place) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = place
    (sharded / INDEX).write_text(json.dumps(index))
    refused(sharded, INDEX, "model.norm.weight", repr(place))


def test_an_index_that_is_wrong(sharded) -> None:
    index = json.loads((sharded / INDEX).read_text())
    places, good = index["weight_map"], (sharded / INDEX).read_text()
    name, shard = next(iter(places.items()))
    other = next(s for s in places.values() if s != shard)
    for wrong, parts in (
        ({**places, name: other}, [shard, name]),
        ({**places, "ghost": shard}, [shard, "ghost"]),
        ({**places, name: "model-00099-of-00099.safetensors"}, ["model-00099-of-00099"]),
        ({}, ["weight_map"]),
        ({str(i): f"{i}.safetensors" for i in range(5000)}, ["5000 shards"]),
    ):
        (sharded / INDEX).write_text(json.dumps({"weight_map": wrong}))
        refused(sharded, *parts)
    (sharded / INDEX).write_text(good)
    (sharded / shard).unlink()
    refused(sharded, INDEX, shard)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"model_type": "mystery"}, ["config.json", "model_type", "mystery"]),
        ({"num_hidden_layers": 1 << 12}, ["config.json", "n_layers", "tensors"]),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, ["config.json", "quantised ('awq')"]),
        ({"num_hidden_layers": 1 << 24}, ["config.json", "n_layers", "out of range"]),
        ({"num_hidden_layers": 1 << 62}, ["config.json", "n_layers", "out of range"]),
        ({"num_hidden_layers": -3}, ["config.json", "n_layers"]),
        ({"hidden_size": 1 << 24}, ["model.safetensors", "asks for"]),
        ({"vocab_size": 1 << 21, "hidden_size": 1 << 24}, ["model.safetensors", "asks for"]),
        ({"hidden_size": "wide"}, ["config.json", "d_model", "wide"]),
        ({"tie_word_embeddings": "maybe"}, ["config.json", "tie_embeddings", "maybe"]),
        ({"rms_norm_eps": float("nan")}, ["config.json", "norm_eps"]),
        ({"rope_theta": float("inf"), "rope_parameters": None}, ["config.json", "rope_theta"]),
        ({"num_attention_heads": 0}, ["config.json"]),
        ({"rope_scaling": 3}, ["config.json", "rope_scaling"]),
    ],
)
def test_a_configuration_that_lies(whole, values: dict, parts: list[str]) -> None:
    change(whole / "config.json", **values)
    refused(whole, *parts)


def test_parts_that_are_not_there(tmp_path) -> None:
    directory = save(case("mixtral").tiny(), tmp_path / "m")
    change(directory / "config.json", num_local_experts=1 << 23)
    refused(directory, "config.json", "n_experts", "tensors")
    for name, key, field in (
        ("t5", "num_layers", "n_layers"),
        ("t5", "num_decoder_layers", "n_decoder_layers"),
        ("unet", "layers_per_block", "n_blocks"),
    ):
        directory = save(case(name).tiny(), tmp_path / field)
        change(directory / "config.json", **{key: 1 << 12})
        refused(directory, "config.json", field, "tensors")


def test_counts_of_what_is_shared_or_stacked_are_no_lies(tmp_path) -> None:
    """More layers than tensors, where layers share theirs; more experts, where one tensor holds them all."""
    for name, more in (
        ("albert", {"n_layers": 48, "masked": False}),
        ("llama4", {"n_layers": 1, "moe_period": 1, "rope_period": 1, "n_experts": 24}),
    ):
        model = build(name, **case(name).fields() | more).eval()
        directory = save(model, tmp_path / name)
        assert weights_hash(load(directory)) == weights_hash(model)


def test_a_base_model_that_nobody_else_has_is_saved_again(tmp_path) -> None:
    save(case("s4").tiny(tie_embeddings=False), tmp_path / "s4")
    file = tmp_path / "s4" / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k != "head.weight"}, file)
    base = load(tmp_path / "s4")
    assert base.head is None and not base.capabilities.generates
    assert load(save(base, tmp_path / "again")).head is None


def test_tensors_that_say_something_twice_or_have_no_rows(tmp_path) -> None:
    model = case("bert").tiny(pooled=True, masked=False)
    add_head(model, HeadOptions("classify", ("a", "b", "c")), generator("head"))
    file = save(model, tmp_path / "m") / "model.safetensors"
    good = load_file(file)
    norm = "bert.embeddings.LayerNorm"
    for more, says in (
        ({f"{norm}.gamma": good[f"{norm}.weight"]}, "gamma"),
        ({"embeddings.LayerNorm.weight": good[f"{norm}.weight"]}, "the same tensor"),
        ({"classifier.weight": torch.tensor(1.0)}, "a row for each label"),
    ):
        save_file(good | {k: v.clone() for k, v in more.items()}, file)
        refused(tmp_path / "m", says)


def test_inert_keys_with_dots_and_deep_ones(whole, tmp_path) -> None:
    change(whole / "config.json", **{"task.x": 1, "task": 2})
    again = json.loads((save(load(whole), tmp_path / "again") / "config.json").read_text())
    assert again["task.x"] == 1 and again["task"] == 2
    for depth in (900, JSON_DEPTH.high):
        deep = ', "deep": ' + '{"a":' * depth + "0" + "}" * (depth + 1)
        (whole / "config.json").write_text(json.dumps(again)[:-1] + deep)
        refused(whole, "config.json", str(JSON_DEPTH.high))
    (whole / "config.json").write_text(json.dumps(again)[:-1] + deep.replace('{"a":', "", 1)[:-1])
    load(whole)


def test_a_file_may_be_as_large_as_the_limit(tmp_path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"a": 1}')
    assert read_json(file, max_bytes=8) == {"a": 1}
    with pytest.raises(WeightsError, match="over"):
        read_json(file, max_bytes=7)


def test_a_mapping_that_is_none(tmp_path) -> None:
    directory = save(case("clip").tiny(), tmp_path / "clip")
    config = json.loads((directory / "config.json").read_text())
    flat = {f"text_config.{key}": value for key, value in config["text_config"].items()}
    (directory / "config.json").write_text(json.dumps(config | flat | {"text_config": 3, "text_config.odd": 1}))
    assert weights_hash(load(directory)) == weights_hash(case("clip").tiny())


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, '{"a":' * 50_000, "1" * 10_000, '{"model_type": "llama"}', "\ud800", "null"]
)
def test_a_configuration_that_is_none(whole, text: str) -> None:
    (whole / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(whole, "config.json")


def test_files_that_are_none(whole, tmp_path) -> None:
    (whole / "config.json").rename(tmp_path / "config")
    os.mkfifo(whole / "config.json")  # would wait for ever
    refused(whole, "config.json", "not a file")
    (whole / "config.json").unlink()
    (whole / "config.json").mkdir()
    refused(whole, "config.json")
    (whole / "config.json").rmdir()
    (tmp_path / "config").rename(whole / "config.json")
    (whole / "model.safetensors").unlink()
    os.mkfifo(whole / "model.safetensors")
    refused(whole, "no model.safetensors")


def header(file) -> tuple[dict, bytes]:
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write(file, head: dict | bytes, data: bytes, size: int | None = None) -> None:
    raw = head if isinstance(head, bytes) else json.dumps(head).encode()
    file.write_bytes((len(raw) if size is None else size).to_bytes(8, "little") + raw + data)


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": [1 << 40]},
        {"shape": [-64]},
        {"shape": [1 << 63, 2]},
        {"shape": "64"},
        {"dtype": "F128"},
        {"dtype": "I32"},
        {"dtype": "I64"},
        {"data_offsets": [0, 1 << 50]},
        {"data_offsets": [64, 0]},
        {"data_offsets": [0, 256]},
        {"data_offsets": None},
    ],
)
def test_a_header_that_lies_about_a_tensor(whole, entry: dict) -> None:
    file = whole / "model.safetensors"
    head, data = header(file)
    head[NORM] |= entry
    write(file, head, data)
    refused(whole, "model.safetensors")


def test_a_header_that_lies_about_itself(whole) -> None:
    file = whole / "model.safetensors"
    head, data = header(file)
    for size in (0, 7, 1 << 20, 1 << 27, 1 << 40, (1 << 64) - 1):
        write(file, head, data, size)
        refused(whole, "model.safetensors")
    for raw in (b"", b"{}", b"[]", b"[" * 100_000, b'{"a":' * 20_000, b"\xff\xfe", b"{" + b" " * 1000):
        write(file, raw, data)
        refused(whole, "model.safetensors")


def test_a_pickle_is_named_and_not_opened(whole, tmp_path) -> None:
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    (whole / "model.safetensors").unlink()
    (whole / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(whole, "pytorch_model.bin is a pickle")
    (whole / "pytorch_model.bin").rename(whole / "model.safetensors")  # under the right name too
    refused(whole, "model.safetensors", "damaged")
    assert not (tmp_path / "executed").exists()


def test_tensors_missing_extra_or_ill_shaped(whole) -> None:
    file = whole / "model.safetensors"
    tensors = load_file(file)
    for changed, parts in (
        ({k: v for k, v in tensors.items() if k != NORM}, ["lacks tensor", NORM]),
        (tensors | {"model.nrom.weight": torch.ones(3)}, ["unknown tensor 'model.nrom.weight'", NORM]),
        (tensors | {NORM: torch.ones(5)}, [NORM, "[5]", "[64]"]),
        (tensors | {NORM: torch.ones(64, dtype=torch.int64)}, [NORM, "I64"]),
        (tensors | {NORM: torch.ones(64, dtype=torch.bool)}, [NORM, "BOOL"]),
    ):
        save_file(changed, file)
        refused(whole, "model.safetensors", *parts)


def test_a_head_that_is_not_the_embedding_is_kept(tmp_path) -> None:
    model = case("gpt2").tiny(tie_embeddings=False)
    directory = save(model, tmp_path / "m")
    change(directory / "config.json", tie_word_embeddings=True)
    again = load(directory)
    assert not again.config.tie_embeddings and weights_hash(again) == weights_hash(model)
    with torch.no_grad():
        model.head.weight.copy_(model.embedding.weight)
    directory = save(model, tmp_path / "same")
    change(directory / "config.json", tie_word_embeddings=True)
    tied = load(directory)
    assert tied.config.tie_embeddings and tied.head.weight is tied.embedding.weight
    with pytest.raises(WeightsError, match="no such"):
        load(tmp_path / "nowhere")


def test_what_is_said_twice(whole, sharded) -> None:
    """Of two equal keys one would be taken, here perhaps another than elsewhere."""
    file = whole / "model.safetensors"
    head, data = header(file)
    entry = json.dumps(head[NORM])
    text = json.dumps(head)
    write(file, f'{text[:-1]}, "{NORM}": {entry}}}'.encode(), data)
    assert len(load_file(file)) == len(head) - ("__metadata__" in head)  # the library takes it
    refused(whole, "model.safetensors", f"key '{NORM}' is there twice")
    for name, directory in (("config.json", whole), (INDEX, sharded)):
        text = (directory / name).read_text()
        key = json.loads(text).popitem()[0]
        (directory / name).write_text(f'{text.rstrip()[:-1]}, "{key}": 1}}')
        refused(directory, name, f"key '{key}' is there twice")
    for name in ("foundling.json", "tokenizer_config.json", "generation_config.json"):
        (sharded / name).write_text('{"a": {"b\x1b[2J": 1, "b\x1b[2J": 2}}'.replace("\x1b", "\\u001b"))
        with pytest.raises(WeightsError, match="is there twice") as caught:
            read_json(sharded / name)
        assert "\x1b" not in str(caught.value)


def test_a_listed_file_is_hashed_within_what_is_on_the_disk(whole) -> None:
    with open(whole / "padding.bin", "wb") as file:
        file.truncate(1 << 40)
    os.mkfifo(whole / "pipe")
    names = ["padding.bin", "pipe", "n" * 30_000, "../x", "x\x1b[2J\n\ud800", "a\0b"]
    manifest = json.loads((whole / "foundling.json").read_text())
    manifest["files"] |= dict.fromkeys(names, "0" * 64)
    (whole / "foundling.json").write_text(json.dumps(manifest))
    found = check(whole)
    assert found["checked"] == 2 + len(names) and not any("\x1b" in p or "\n" in p for p in found["problems"])
    sparse, pipe, long, outside, strange, nul = found["problems"]
    assert sparse == "padding.bin: sparse, 0 of 1,099,511,627,776 bytes exist; not hashed"
    assert pipe == "pipe: missing" and outside == "../x: points outside the directory" and len(long) < 300
    assert strange == "x␛[2J␊\\ud800: missing" and nul == "a␀b: missing"


def test_names_that_are_no_text_come_back_from_json(tmp_path) -> None:
    value = {"data\udcff": "\x9b\u202e数", "n": [1.5, None]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "\\udcff" in (tmp_path / "a.json").read_text() and "数" in (tmp_path / "a.json").read_text()
