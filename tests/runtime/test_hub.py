# SPDX-License-Identifier: Apache-2.0
"""Models of the hub, from a hub on loopback: what is downloaded, what is refused, and in which words."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import foundling
from foundling.errors import ConfigError, FoundlingError, WeightsError
from foundling.runtime import hub as hub_module
from foundling.runtime.caches import cache_directory
from foundling.runtime.hub import local_directory, parse, pinned, place_name, resolve, weights_in
from foundling.text import Tokenizer
from foundling.weights.convert.hugging_face import COMPANIONS, export_model, import_model
from foundling.weights.inspect import inspect
from tests.contract.cases import case
from tests.e2e.tools import files
from tests.hub import TOKEN, Hub, serving

PACKAGE = Path(foundling.__file__).parent
TEXTS = ["a few words of text, and some more of them", "the loss falls and rises again"] * 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small llama, as transformers would have pushed them."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), Tokenizer.train(TEXTS, 320)
    tiny = case("llama").tiny(vocab_size=320)
    export_model(foundling.save(tiny, folder / "own", tokenizer=tokenizer), folder / "published")
    return files(folder / "published")


@pytest.fixture(scope="module")
def sharded(model: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("sharded")
    foundling.save(case("llama").tiny(), folder / "model", max_shard_bytes=30_000)
    return {name: data for name, data in files(folder / "model").items() if name != "foundling.json"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    with serving(monkeypatch, tmp_path / "cache") as hub:
        yield hub


def refused(place: str, error: type[FoundlingError] = WeightsError) -> str:
    with pytest.raises(error) as caught:
        foundling.load(place)
    text = str(caught.value)
    assert "\n" not in text and place in text and TOKEN not in text and "signature" not in text
    return text


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


CODE = {
    "modeling_evil.py": b"raise SystemExit('code ran')", "pytorch_model.bin": b"\x80\x04.", "handler.py": b"",
    "original/params.json": b"{}", "consolidated.safetensors": b"x", "onnx/model.onnx": b"x",
    "model.fp16.safetensors": b"x",
}  # fmt: skip


def test_only_the_data_of_a_model_is_downloaded_and_once(hub: Hub, model, caplog) -> None:
    commit = hub.add("org/tiny", model | CODE)
    loaded = foundling.load("hf://org/tiny")
    directory = local_directory("hf://org/tiny")
    assert files(directory) == model and directory.name == commit
    assert torch.equal(loaded.embedding.weight, foundling.load(directory).embedding.weight)
    total = sum(len(data) for name, data in model.items() if name != "config.json") / 1e3
    assert f"downloading hf://org/tiny at {commit[:12]}: {len(model) - 1} files, {total:.1f} kB" in caplog.messages
    assert any(line.startswith("  model.safetensors: ") and line.endswith("/s") for line in caplog.messages)
    before = len(hub.downloads())
    assert Tokenizer.load("hf://org/tiny").encode("a few words") and inspect("hf://org/tiny")["family"] == "llama"
    assert len(hub.downloads()) == before and pinned("hf://org/tiny") == f"hf://org/tiny@{commit}"


def test_sharded_weights_and_the_single_file_that_is_preferred(hub: Hub, sharded) -> None:
    hub.add("org/sharded", sharded)
    assert len([name for name in sharded if name.endswith(".safetensors")]) > 2
    loaded = foundling.load("hf://org/sharded")
    assert foundling.load(local_directory("hf://org/sharded")).config == loaded.config
    assert files(local_directory("hf://org/sharded")) == sharded
    names = [*sharded, "model.safetensors", "unet/diffusion_pytorch_model.safetensors", "model.fp16.safetensors"]
    assert weights_in(names) == ["model.safetensors", "unet/diffusion_pytorch_model.safetensors"]
    assert weights_in(sharded) == ["model.safetensors.index.json"]


def test_shards_are_those_that_the_index_names(hub: Hub, sharded) -> None:
    index = "model.safetensors.index.json"
    renamed = {name.replace("model-0", "model.safetensors-00"): data for name, data in sharded.items()}
    renamed[index] = sharded[index].replace(b"model-0", b"model.safetensors-00")
    hub.add("org/sharded", renamed | {"model-00001-of-00002.safetensors": b"of an earlier model"})
    foundling.load("hf://org/sharded")
    assert files(local_directory("hf://org/sharded")) == renamed
    hub.add("org/lost", {k: v for k, v in renamed.items() if not k.startswith("model.safetensors-000001")})
    assert "the index names model.safetensors-000001-of-" in refused("hf://org/lost")
    hub.add("org/evil", renamed | {index: b'{"weight_map": {"a": "../../x.safetensors"}}'})
    with pytest.raises(WeightsError, match="damaged, its weight_map names no safetensors beside it"):
        foundling.load("hf://org/evil")


def test_a_revision_is_a_branch_or_a_commit_and_a_branch_moves(hub: Hub, model) -> None:
    first = hub.add("org/tiny", model)
    card = {"README.md": b"second"}
    second = hub.add("org/tiny", model | card)
    third = hub.add("org/tiny", model | {"README.md": b"third"}, branch="v3")
    for revision, commit in ((f"@{first}", first), ("", second), ("@v3", third)):
        snapshot = resolve(f"hf://org/tiny{revision}")
        assert snapshot.commit == commit and snapshot.place == f"hf://org/tiny@{commit}"
    blobs = [path for path in hub.downloads() if path.startswith("/cdn/")]
    assert len(blobs) == 1, "equal weights are kept once"
    fourth = hub.add("org/tiny", model | {"README.md": b"fourth"})
    assert resolve("hf://org/tiny").commit == fourth


def test_a_commit_in_the_cache_needs_no_network(hub: Hub, model, monkeypatch) -> None:
    commit = hub.add("org/tiny", model)
    foundling.load("hf://org/tiny")
    asked = len(hub.requests)
    foundling.load(f"hf://org/tiny@{commit}")
    assert len(hub.requests) == asked
    hub.close()
    text = refused("hf://org/tiny")
    assert "no connection to the hub" in text and "HF_HUB_OFFLINE=1 uses what is in the cache" in text
    offline(monkeypatch)
    assert resolve("hf://org/tiny").commit == commit
    assert "not in the cache" in refused("hf://org/other") and "not in the cache" in refused("hf://org/tiny@v2")


def test_a_snapshot_of_another_library_is_completed(hub: Hub, model, monkeypatch) -> None:
    """transformers downloads what it needs, such as config.json and the weights."""
    from huggingface_hub import hf_hub_download

    commit = hub.add("org/tiny", model)
    for name in ("config.json", "model.safetensors"):
        hf_hub_download("org/tiny", name, revision=commit)
    with monkeypatch.context() as patch:
        offline(patch)
        assert resolve(f"hf://org/tiny@{commit}").commit == commit, "without a network, what is there"
    before = len(hub.downloads())
    assert Tokenizer.load(f"hf://org/tiny@{commit}").encode("a few words")
    assert not any(path.startswith("/cdn/") for path in hub.downloads()[before:]), "what is there is not downloaded"
    asked = len(hub.requests)
    assert files(local_directory(f"hf://org/tiny@{commit}")) == model and len(hub.requests) == asked
    (local_directory(f"hf://org/tiny@{commit}") / "tokenizer.json").unlink()
    assert files(local_directory(f"hf://org/tiny@{commit}")) == model
    (marker,) = cache_directory("hub").iterdir()
    marker.write_text("{")
    assert files(local_directory(f"hf://org/tiny@{commit}")) == model


def test_a_branch_that_moves_during_a_download_is_followed(hub: Hub, model, monkeypatch) -> None:
    def ask_and_move(repository: str, revision: str) -> Any:
        info = ask(repository, revision)
        if len(hub.repositories["org/tiny"].commits) < moves:
            hub.add("org/tiny", model | {"config.json": model["config.json"] + b" " * len(hub.requests)})
        return info

    ask, moves = hub_module.model_info, 2
    hub.add("org/tiny", model)
    monkeypatch.setattr(hub_module, "model_info", ask_and_move)
    assert resolve("hf://org/tiny").commit == hub.repositories["org/tiny"].branches["main"]
    moves = 9
    assert "the repository is changing; try again, or name a commit" in refused("hf://org/tiny")


def test_a_place_is_pinned_without_a_download(hub: Hub, model, monkeypatch) -> None:
    commit = hub.add("org/tiny", model)
    assert pinned("hf://org/tiny") == f"hf://org/tiny@{commit}" == pinned(f"hf://org/tiny@{commit}")
    assert not hub.downloads()
    with pytest.raises(WeightsError, match="no such repository"):
        pinned("hf://org/missing")
    foundling.load("hf://org/tiny")
    offline(monkeypatch)
    assert pinned("hf://org/tiny") == f"hf://org/tiny@{commit}"


def test_half_a_snapshot_is_not_taken_for_a_whole_one(hub: Hub, sharded, monkeypatch) -> None:
    hub.add("org/sharded", sharded)
    directory = local_directory("hf://org/sharded")
    next(directory.glob("model-00002-*")).unlink()
    with monkeypatch.context() as patch:
        offline(patch)
        assert "not in the cache" in refused("hf://org/sharded")
    foundling.load("hf://org/sharded")


def test_what_is_refused_is_refused_in_one_line(hub: Hub, model, monkeypatch) -> None:
    assert "no such repository" in refused("hf://org/missing")
    hub.add("org/tiny", model)
    assert "no revision 'v9'" in refused("hf://org/tiny@v9")
    hub.add("org/pickled", {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04."})
    assert "pytorch_model.bin, a pickle, which can execute code" in refused("hf://org/pickled")
    hub.add("org/gguf", {"tiny.Q4_0.gguf": b"GGUF"})
    assert "foundling import FILE.gguf DIR" in refused("hf://org/gguf")
    hub.add("org/damaged", {"config.json": b"{", "model.safetensors": b"x"})
    with pytest.raises(WeightsError, match=r"config\.json: damaged, not JSON"):
        foundling.load("hf://org/damaged")
    hub.add("org/large", {"config.json": b" " * (33 << 20), "model.safetensors": b"x"})
    assert "config.json has 34.6 MB, the limit is 33.6 MB" in refused("hf://org/large")
    hub.add("org/empty", {"README.md": b""})
    assert "no config.json, so this is not a model" in refused("hf://org/empty")
    assert len([path for path in hub.downloads() if path.startswith("/cdn/")]) == 1
    hub.answers["/api/models/org/tiny/revision/main"] = b"<html>log in first</html>"  # a captive portal
    assert "what the hub answers cannot be read; is HF_ENDPOINT one?" in refused("hf://org/tiny")


def test_a_gated_or_private_repository_asks_for_a_token(hub: Hub, model, monkeypatch, caplog) -> None:
    hub.add("org/gated", model, gated=True)
    hub.add("org/private", model, private=True)
    assert "gated" in refused("hf://org/gated") and "HF_TOKEN" in refused("hf://org/gated")
    assert "HF_TOKEN" in refused("hf://org/private")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    foundling.load("hf://org/gated")
    foundling.load("hf://org/private")
    assert TOKEN not in caplog.text
    assert not any("Authorization" in headers for _, path, headers in hub.requests if path.startswith("/cdn/"))


def test_a_dropped_connection_is_resumed(hub: Hub, model, monkeypatch, caplog, capfd) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 10)
    hub.add("org/tiny", model)
    hub.drop = 1
    foundling.load("hf://org/tiny")
    ranges = [headers.get("Range") for _, path, headers in hub.requests if path.startswith("/cdn/")]
    half = len(model["model.safetensors"]) // 2 >> 10 << 10  # whole chunks are kept
    assert ranges == [None, f"bytes={half}-"]
    assert "Trying to resume" in caplog.text and "signature" not in caplog.text
    ours = [record.getMessage() for record in caplog.records if record.name == "foundling"]
    assert any("Trying to resume" in line for line in ours) and "Trying to resume" not in capfd.readouterr().err
    assert files(local_directory("hf://org/tiny")) == model


def test_a_damaged_download_is_noticed_and_not_kept(hub: Hub, model) -> None:
    hub.add("org/tiny", model)
    hub.damage = 1
    text = refused("hf://org/tiny")
    assert "model.safetensors was damaged on its way" in text and "try again" in text
    hub.cut = 1
    assert "try again" in refused("hf://org/tiny")
    foundling.load("hf://org/tiny")
    data = (local_directory("hf://org/tiny") / "model.safetensors").read_bytes()
    assert hashlib.sha256(data).digest() == hashlib.sha256(model["model.safetensors"]).digest()


def test_the_size_is_checked_before_a_download(hub: Hub, model, monkeypatch) -> None:
    hub.add("org/tiny", model)
    monkeypatch.setenv("FOUNDLING_MAX_DOWNLOAD_GB", "0.00001")
    assert "the limit is 1e-05 GB" in refused("hf://org/tiny")
    monkeypatch.setenv("FOUNDLING_MAX_DOWNLOAD_GB", "much")
    with pytest.raises(ConfigError, match="expected a number of gigabytes"):
        foundling.load("hf://org/tiny")
    monkeypatch.delenv("FOUNDLING_MAX_DOWNLOAD_GB")
    usage = type("Usage", (), {"free": 1000})
    with monkeypatch.context() as patch:  # a disk cannot be filled here
        patch.setattr(hub_module.shutil, "disk_usage", lambda path: usage)
        assert "set HF_HOME to another" in refused("hf://org/tiny")
    assert not any(path.startswith("/cdn/") for path in hub.downloads())


def test_an_import_records_where_it_is_from(hub: Hub, model, tmp_path: Path) -> None:
    commit = hub.add("org/tiny", model, branch="main")
    found = import_model("hf://org/tiny@main", tmp_path / "out")
    source = json.loads((tmp_path / "out/foundling.json").read_text())["source"]
    assert source["name"] == f"hf://org/tiny@{commit}"
    assert (source["revision"], source["commit"]) == ("main", commit)
    assert source["files"]["model.safetensors"] == hashlib.sha256(model["model.safetensors"]).hexdigest()
    assert "tokenizer.json" in found["kept"] and foundling.check(tmp_path / "out")["ok"]


MALFORMED = "hf:// hf://name hf://a/b/c hf://a/b@ hf://../b hf://a/b@../x hf://a/b@-x hf://a--b/c hf://a\x1b/c org/name"
MALFORMED += " hf://org/name. hf://org/name- hf://org-/name hf://org./name@v1"


@pytest.mark.parametrize("place", MALFORMED.split(" "))
def test_a_malformed_place_is_named(place: str) -> None:
    with pytest.raises(ConfigError, match="write hf://ORG/NAME"):
        parse(place)


def test_names_of_places() -> None:
    for place in ("hf://org/name.git", "hf://org/name.git@v1"):
        with pytest.raises(ConfigError, match=r"leave out \.git"):
            parse(place)
    assert parse("hf://o/n_")[0] == "o/n_" and parse(f"hf://o/{'n' * 96}") and parse("hf://o/n.gits")
    assert parse(Path("hf://org/name@v1")) == parse("hf://org/name@v1") == ("org/name", "v1")
    assert place_name("runs/notes") == "notes" and place_name("hf://org/name@v1") == "hf://org/name@v1"
    assert pinned("runs/notes") == "runs/notes" and local_directory("hf") == Path("hf")
    assert all(hub_module.SMALL.fullmatch(name) for name in COMPANIONS), "an import copies what is downloaded"


def test_without_a_hub_there_is_one_line(monkeypatch, tmp_path: Path) -> None:
    with serving(monkeypatch, tmp_path / "cache") as hub, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", dead)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", dead)
        assert "is there a network?" in refused("hf://org/tiny") and not hub.requests


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.WARNING, logger="foundling")


def test_nothing_imports_the_hubs_library_unless_a_place_is_named() -> None:
    """Two modules name it, inside functions; a path does not reach these lines."""
    sources = {p.relative_to(PACKAGE).as_posix(): p.read_text(encoding="utf-8") for p in PACKAGE.rglob("*.py")}
    imports = {name: re.findall(r"^( *)from huggingface_hub|^( *)import huggingface_hub", text, re.MULTILINE)
               for name, text in sources.items()}  # fmt: skip
    named = {name: found for name, found in imports.items() if found}
    assert set(named) == {"runtime/hub.py", "weights/push.py"}
    assert all(max(indents) for found in named.values() for indents in found)
    code = (
        "import sys; from foundling.runtime.hub import *; print(local_directory('x'), 'huggingface_hub' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert done.stdout == "x False\n"
