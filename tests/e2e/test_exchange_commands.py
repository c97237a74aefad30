# SPDX-License-Identifier: Apache-2.0
"""`foundling import`, `export` and `inspect` by their users' door: others' directories come in and ours go out with
equal logits, nothing that runs is taken along, and what is wrong is one line and writes nothing."""

import json
import os
import pickle

import pytest
import torch

import foundling
from foundling.cli import main
from foundling.diffusion.schedule import NoiseSchedule
from foundling.models import build, count_parameters, family
from foundling.text import Tokenizer
from foundling.weights.convert.gguf import load_gguf
from foundling.weights.convert.hugging_face import COMPANIONS
from foundling.weights.directory import load, save
from foundling.weights.keys import links
from foundling.weights.manifest import check
from tests.contract.cases import case
from tests.e2e.test_bad_input import fails, make
from tests.e2e.tools import files
from tests.e2e.tools import foundling as shell
from tests.parity.references import REFERENCES, randomise, tokens

transformers = pytest.importorskip("transformers")
INDEX = "model.safetensors.index.json"


def told(capsys, *args: object) -> dict:
    """What the command prints with --json, having ended with 0."""
    with pytest.raises(SystemExit) as caught:
        main([*map(str, args), "--json"])
    out = capsys.readouterr()
    assert caught.value.code == 0, out.err
    return json.loads(out.out)


def tokenizer() -> Tokenizer:
    return Tokenizer.train(["some text, any text\n"] * 5, 320)


@pytest.fixture
def theirs(tmp_path):
    """A Llama that transformers saved in bfloat16, in shards, with a tokenizer and with what a download may hold."""
    model = randomise(REFERENCES["llama"][0].make()).to(torch.bfloat16)
    folder = tmp_path / "theirs"
    model.save_pretrained(folder, max_shard_size="50KB")
    tokenizer().save(folder)
    make(folder / "chat_template.jinja", "{{ messages }}")
    make(folder / "README.md", "# A card")
    make(folder / "modeling_llama.py", "raise SystemExit('executed')")
    make(folder / "optimizer.pt", pickle.dumps({"a": 1}))
    make(folder / "original" / "params.json", "{}")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": {"AutoModel": "modeling_llama.Llama"}}))
    return folder


def test_there_and_back_with_equal_logits(capsys, tmp_path, theirs) -> None:
    before = files(theirs)
    found = told(capsys, "import", theirs, tmp_path / "ours")
    assert (found["family"], found["dtype"]) == ("llama", "bfloat16")
    assert found["left_out"] == ["modeling_llama.py", "optimizer.pt", "original/"]
    beside = {"README.md", "chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert set(found["kept"]) == beside and files(theirs) == before
    ours = files(tmp_path / "ours")
    assert ours.keys() == beside | {"config.json", "model.safetensors", "foundling.json"}
    assert all(ours[name] == before[name] for name in beside) and b"auto_map" not in ours["config.json"]
    assert check(tmp_path / "ours")["checked"] == len(ours) - 1
    source = json.loads(ours["foundling.json"])["source"]
    assert source["name"] == "theirs" and {n for n in source["files"] if n.endswith(".json")} >= {"config.json", INDEX}

    found = told(capsys, "export", tmp_path / "ours", tmp_path / "back", "--dtype", "float32")
    assert found["dtype"] == "float32" and not (tmp_path / "back" / "foundling.json").exists()
    assert found["parameters"] == count_parameters(load(tmp_path / "back"))["total"]
    both = [transformers.AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32) for d in (theirs, found["out"])]
    x = tokens()
    with torch.inference_mode():
        a, b = (model.eval()(x).logits for model in both)
    assert torch.equal(a, b)
    again = transformers.AutoTokenizer.from_pretrained(found["out"])
    assert again.decode(again("some text")["input_ids"], skip_special_tokens=True) == "some text"


def test_an_edited_model_card_is_no_damage(capsys, tmp_path, theirs) -> None:
    make(theirs / "LICENSE", "free")
    told(capsys, "import", theirs, tmp_path / "ours")
    (tmp_path / "ours" / "README.md").write_text("# My own card")
    (tmp_path / "ours" / "LICENSE").unlink()
    found = told(capsys, "check", tmp_path / "ours")
    assert found["ok"] and not found["problems"] and sorted(found["edited"]) == ["LICENSE", "README.md"]
    with pytest.raises(SystemExit) as caught:
        main(["check", str(tmp_path / "ours")])
    out = capsys.readouterr().out
    assert not caught.value.code and "edited or removed, and no part of the model: LICENSE, README.md" in out
    for command in ("import", "export"):
        told(capsys, command, tmp_path / "ours", tmp_path / command)
        assert (tmp_path / command / "README.md").read_text() == "# My own card"
    assert told(capsys, "check", tmp_path / "import")["edited"] == []


def test_in_its_own_process_it_speaks_in_lines(tmp_path, theirs) -> None:
    done = shell("import", theirs, tmp_path / "ours", "--dtype", "float16")
    assert done.returncode == 0 and "llama, " in done.stdout and ", float16" in done.stdout, done.stderr
    assert "not copied: modeling_llama.py" in done.stdout and shell("check", tmp_path / "ours").returncode == 0
    done = shell("inspect", tmp_path / "ours", "--depth", "2")
    assert done.returncode == 0 and "3 × Block" in done.stdout and "GatedMLP" not in done.stdout


@pytest.mark.parametrize("name", ["gpt", "t5", "clip", "unet"])
def test_other_kinds_come_and_go(capsys, tmp_path, name: str) -> None:
    reference = REFERENCES[name][0]
    model = randomise(reference.make())
    model.save_pretrained(tmp_path / "theirs")
    told(capsys, "import", tmp_path / "theirs", tmp_path / "ours")
    told(capsys, "export", tmp_path / "ours", tmp_path / "back")
    again = type(model).from_pretrained(tmp_path / "back").eval()
    with torch.inference_mode():
        assert torch.equal(reference.theirs(model), reference.theirs(again))
    found = told(capsys, "inspect", tmp_path / "back")
    assert found["parameters"]["total"] == sum(p.numel() for p in model.parameters())


def test_a_pipeline_keeps_its_schedule(capsys, tmp_path) -> None:
    model, schedule = case("unet").tiny(), NoiseSchedule(n_steps=50, kind="cosine")
    foundling.save_denoiser(model, schedule, tmp_path / "a")
    found = told(capsys, "export", tmp_path / "a", tmp_path / "b")
    assert found["family"] == "unet" and found["left_out"] == []
    assert not (tmp_path / "b" / "foundling.json").exists()
    told(capsys, "import", tmp_path / "b", tmp_path / "c", "--dtype", "bfloat16")
    again, read = foundling.load_denoiser(tmp_path / "c")
    assert read == schedule and check(tmp_path / "c")["ok"]
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p.to(torch.bfloat16).float(), q)
    assert told(capsys, "inspect", tmp_path / "c")["dtypes"] == {"BF16": count_parameters(model)["total"]}


def test_one_file_for_llama_cpp_and_back(capsys, tmp_path) -> None:
    model = case("llama").tiny(vocab_size=320)
    save(model, tmp_path / "m", tokenizer=tokenizer())
    found = told(capsys, "export", tmp_path / "m", tmp_path / "m.gguf", "--gguf")
    assert (found["dtype"], found["kept"]) == ("float32", ["tokenizer.json"])
    for p, q in zip(model.parameters(), load_gguf(tmp_path / "m.gguf").parameters(), strict=True):
        assert torch.equal(p, q)
    small = told(capsys, "export", tmp_path / "m", tmp_path / "small.gguf", "--gguf", "--dtype", "int4")
    assert small["dtype"] == "int4"
    assert (tmp_path / "small.gguf").stat().st_size < (tmp_path / "m.gguf").stat().st_size / 2
    assert told(capsys, "import", tmp_path / "m.gguf", tmp_path / "back")["dequantized"] == {}
    found = told(capsys, "import", tmp_path / "small.gguf", tmp_path / "small")
    assert found["dequantized"] == {"Q4_0": 14, "Q8_0": 2} and found["dtype"] == "float32"
    with pytest.raises(SystemExit):
        main(["import", str(tmp_path / "small.gguf"), str(tmp_path / "again")])
    assert "\ndequantized: 14 tensors of Q4_0, 2 tensors of Q8_0\n" in capsys.readouterr().out
    assert torch.equal(load(tmp_path / "back").head.weight, model.head.weight)
    before = (tmp_path / "m.gguf").read_bytes()
    assert "exists" in fails(capsys, "export", tmp_path / "m", tmp_path / "m.gguf", "--gguf")
    assert (tmp_path / "m.gguf").read_bytes() == before
    save(case("gpt2").tiny(), tmp_path / "gpt2")
    assert "not for gpt2" in fails(capsys, "export", tmp_path / "gpt2", tmp_path / "g.gguf", "--gguf")
    assert not (tmp_path / "g.gguf").exists()


def test_a_tokenizer_that_gguf_cannot_say_stays_behind(capsys, tmp_path) -> None:
    import tokenizers

    save(case("llama").tiny(), tmp_path / "m")
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a")).save(str(tmp_path / "m" / "tokenizer.json"))
    found = told(capsys, "export", tmp_path / "m", tmp_path / "m.gguf", "--gguf")
    assert found["kept"] == [] and "tokenizer.json (it has no end-of-text token; " in found["left_out"][0]


# --- inspect ---------------------------------------------------------------------------------------------------------


def hollow(folder, name: str, fields: dict, n_shards: int) -> int:
    """A directory with all the headers of a model and, behind them, holes in place of its numbers. Returns the bytes
    that it would hold in bfloat16."""
    model = build(name, device="meta", **fields)
    model.to(torch.bfloat16)
    folder.mkdir()
    params = dict(model.named_parameters())
    shapes: dict[str, tuple[int, ...]] = {}
    for link in links(family(name).module.KEYS, params, model.config):
        shapes |= dict(zip(link.theirs, link.theirs_shapes(params), strict=True))
    names, total, places = list(shapes), 0, {}
    for shard in range(n_shards):
        file, head, end = folder / f"model-{shard + 1:05d}-of-{n_shards:05d}.safetensors", {}, 0
        for key in names[shard::n_shards]:
            size = 2 * torch.Size(shapes[key]).numel()
            head[key] = {"dtype": "BF16", "shape": list(shapes[key]), "data_offsets": [end, end + size]}
            end, places[key] = end + size, file.name
        raw = json.dumps(head).encode()
        file.write_bytes(len(raw).to_bytes(8, "little") + raw)
        os.truncate(file, 8 + len(raw) + end)
        total += end
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    from foundling.weights.configs import write_config

    config = write_config(family(name), model.config, {}, "bfloat16")
    (folder / "config.json").write_text(json.dumps(config))
    return total


def parts(part: dict) -> dict[str, dict]:
    return {part["name"]: part | {"parts": {k: v for inner in part["parts"] for k, v in parts(inner).items()}}}


def test_seventy_billion_parameters_are_inspected_by_their_headers(capsys, tmp_path) -> None:
    """138 GB of holes: what read them would not end, or not fit."""
    size = hollow(tmp_path / "big", "llama", family("llama").module.PRESETS["llama-2-70b"], 15)
    found = told(capsys, "inspect", tmp_path / "big")
    assert found["parameters"]["total"] == 68_976_648_192 and found["files"] == 15
    assert found["bytes"]["stored"] == found["bytes"]["bfloat16"] == size == found["tree"]["bytes"]
    layers = parts(found["tree"])[""]["parts"]["layers"]
    assert layers["parts"]["0-79"]["times"] == 80
    attention = layers["parts"]["0-79"]["parts"]["mixer"]
    assert attention["parts"]["k"]["tensors"]["weight"] == {"shape": [1024, 8192], "dtype": "BF16"}
    assert attention["parameters"] == 2 * 8192 * 8192 + 2 * 1024 * 8192
    shallow = told(capsys, "inspect", tmp_path / "big", "--depth", "1")
    assert [part["name"] for part in shallow["tree"]["parts"]] == ["embedding", "layers", "norm", "head"]
    assert sum(part["parameters"] for part in shallow["tree"]["parts"]) == found["parameters"]["total"]


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "bloom", "unet"])
def test_the_tree_counts_every_parameter_once(capsys, tmp_path, name: str) -> None:
    model = case(name).tiny()
    save(model, tmp_path / "m")
    found = told(capsys, "inspect", tmp_path / "m")
    assert found["tree"]["parameters"] == found["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert found["tree"]["bytes"] == found["bytes"]["stored"] == 4 * found["parameters"]["total"]
    if name == "gpt2":
        head = parts(found["tree"])[""]["parts"]["head"]
        assert head["parameters"] == 0 and head["tensors"]["weight"]["tied"] == "embedding.weight"


# --- what is wrong ---------------------------------------------------------------------------------------------------


def refused(capsys, tmp_path, source, *says: str, commands=("import", "export", "inspect")) -> None:
    for command in commands:
        out = [] if command == "inspect" else [tmp_path / "out"]
        line = fails(capsys, command, source, *out)
        assert all(part in line for part in says), line
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_sources_that_are_none(capsys, tmp_path) -> None:
    refused(capsys, tmp_path, tmp_path / "nowhere", "nowhere", "no such model directory")
    refused(capsys, tmp_path, make(tmp_path / "file", "text"), "no such model directory")
    (tmp_path / "empty").mkdir()
    refused(capsys, tmp_path, tmp_path / "empty", "config.json")
    assert "gguf" in fails(capsys, "import", make(tmp_path / "x.gguf", b"GGUF" + b"\0" * 50), tmp_path / "out")
    save(case("llama").tiny(), tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text('{"model_type": "mystery"}')
    refused(capsys, tmp_path, tmp_path / "m", "mystery", commands=("inspect",))
    (tmp_path / "m" / "foundling.json").unlink()
    refused(capsys, tmp_path, tmp_path / "m", "config.json", "mystery", "supported: ")


def test_a_pickle_is_named_and_not_opened(capsys, tmp_path) -> None:
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    folder = save(case("llama").tiny(), tmp_path / "m")
    (folder / "foundling.json").unlink()
    (folder / "model.safetensors").unlink()
    make(folder / "pytorch_model.bin", pickle.dumps(Bomb()))
    refused(capsys, tmp_path, folder, "pytorch_model.bin is a pickle")
    save(case("llama").tiny(), tmp_path / "n")
    make(tmp_path / "n" / "tokenizer.model", pickle.dumps(Bomb()))
    refused(capsys, tmp_path, tmp_path / "n", "tokenizer.model: is a pickle", commands=("import", "export"))
    assert not (tmp_path / "executed").exists()


def test_a_damaged_shard(capsys, tmp_path, theirs) -> None:
    shard = sorted(theirs.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    refused(capsys, tmp_path, theirs, shard.name, "damaged")
    shard.unlink()
    refused(capsys, tmp_path, theirs, INDEX, shard.name)


def test_ours_is_compared_with_its_hashes(capsys, tmp_path) -> None:
    folder = save(case("llama").tiny(), tmp_path / "m")
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    refused(capsys, tmp_path, folder, "model.safetensors: damaged", commands=("import", "export"))


def test_what_exists_is_not_touched(capsys, tmp_path, theirs) -> None:
    make(tmp_path / "thesis" / "thesis.txt", "years of work")
    for command in ("import", "export"):
        assert "exists" in fails(capsys, command, theirs, tmp_path / "thesis")
        assert "exists" in fails(capsys, command, theirs, theirs)
    assert files(tmp_path / "thesis") == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", b"{", "not JSON"),
        ("tokenizer_config.json", b"[]", "not a JSON object"),
        ("merges.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("vocab.txt", b"a" * ((64 << 20) + 1), "over 64 MiB"),
        ("tokenizer.model", b"PK\x03\x04", "is a pickle"),
    ],
)
def test_companions_that_are_not_what_they_seem(capsys, tmp_path, name: str, content: bytes, says: str) -> None:
    folder = save(case("llama").tiny(), tmp_path / "m")
    make(folder / name, content)
    refused(capsys, tmp_path, folder, name, says, commands=("import", "export"))


def test_a_link_out_of_the_directory_is_not_followed(capsys, tmp_path) -> None:
    secret = make(tmp_path / "elsewhere" / "secret", "{}")
    folder = save(case("llama").tiny(), tmp_path / "m")
    (folder / "tokenizer.json").symlink_to(secret)
    refused(capsys, tmp_path, folder, "tokenizer.json", "out of the directory", commands=("import", "export"))
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")  # would wait for ever
    refused(capsys, tmp_path, folder, "tokenizer.json", "not a file", commands=("import", "export"))


def test_a_snapshot_of_the_hubs_cache_is_links(capsys, tmp_path, theirs) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in theirs.iterdir():
        if path.is_file():
            blob = make(tmp_path / "models--a--b" / "blobs" / path.name, path.read_bytes())
            (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    assert "tokenizer.json" in told(capsys, "import", snapshot, tmp_path / "ours")["kept"]
    assert check(tmp_path / "ours")["ok"] and not any(p.is_symlink() for p in (tmp_path / "ours").iterdir())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["import", "a"], "out"),
        (["import", "a", "b", "--dtype", "int8"], "int8"),
        (["export", "a", "b", "--dtype", "int8"], "needs --gguf"),
        (["export", "a", "b", "--gguff"], "did you mean '--gguf'"),
        (["inspect", "a", "--depth", "deep"], "deep"),
        (["inspect", "a", "--depth", "-1"], "--depth -1"),
    ],
)
def test_arguments(capsys, args: list, says: str) -> None:
    assert says in fails(capsys, *args)


def test_nothing_that_runs_is_on_the_list() -> None:
    assert not [name for name in COMPANIONS if name.endswith((".py", ".bin", ".pt", ".pkl", ".so", ".sh"))]
