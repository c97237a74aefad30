# SPDX-License-Identifier: Apache-2.0
"""Every file under run/ is checked on resume: what is damaged, edited, swapped or gone is made again as it was, or
refused by name with what to do. What the user has put beside it stays."""

import json
import shutil
from pathlib import Path

import pytest

from foundling.errors import ConfigError
from foundling.recipes.kinds import reproduce
from foundling.recipes.start import REPRODUCED
from foundling.weights.manifest import check
from tests.e2e.tools import TINY, corpus, files, foundling, kill_after_checkpoint, weights

STEPS = [*TINY, "--total-steps", "8"]
MINE = b"years of work"


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A run killed after its second checkpoint."""
    root = tmp_path_factory.mktemp("journal")
    kill_after_checkpoint([corpus(root / "data"), "--tokens", "3072", *STEPS, "--out", root / "out"], root / "out")
    for left in root.rglob("*.foundling.tmp"):  # what was being written then; the next command removes it
        left.unlink()
    return root / "out"


@pytest.fixture(scope="module")
def expected(killed: Path) -> str:
    out = killed.parent / "resumed"
    shutil.copytree(killed, out)
    done = resume(out)
    assert done.returncode == 0 and "made again" not in done.stderr, done.stderr
    return weights(out)


def resume(out: Path):
    return foundling("raise", "--resume", "--out", out)


def flip(file: Path, at: float = 0.5) -> None:
    data = bytearray(file.read_bytes())
    data[min(len(data) - 1, int(at * len(data)))] ^= 1
    file.write_bytes(data)


def refused(out: Path, name: str) -> str:
    """The one line by which a resumption is refused; it names the file, what to do, and changes nothing."""
    before = files(out)
    done = resume(out)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    line = done.stderr.splitlines()[-1]
    assert f"run/{name}" in line and ("put the original back" in line), line
    assert files(out) == before
    return line


def edited_recipe(run: Path) -> None:
    file = run / "recipe.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: 1"))


def edited_request(run: Path) -> None:
    file = run / "journal.json"
    file.write_text(file.read_text().replace('"3072', '"4096').replace("3072.0", "4096.0"))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("recipe.yaml", edited_recipe),
        ("recipe.yaml", lambda run: (run / "recipe.yaml").unlink()),
        ("prediction.json", lambda run: (run / "prediction.json").write_text("{}")),
        ("journal.json", edited_request),
        ("journal.json", lambda run: (run / "journal.json").write_text("{}")),
        ("journal.json", lambda run: flip(run / "journal.json")),
        ("log.jsonl", lambda run: flip(run / "log.jsonl", 0)),
    ],
)
def test_what_cannot_be_made_again_is_refused_by_name(killed: Path, tmp_path: Path, name: str, damage) -> None:
    shutil.copytree(killed, tmp_path / "out")
    before = files(tmp_path / "out")
    damage(tmp_path / "out" / "run")
    assert files(tmp_path / "out") != before
    refused(tmp_path / "out", name)


def test_what_can_be_made_again_is(killed: Path, expected: str, tmp_path: Path) -> None:
    """All of it at once: the data, the tokens, the tokenizer, the newest checkpoint and the history."""
    shutil.copytree(killed, tmp_path / "out")
    run = tmp_path / "out" / "run"
    flip(next((run / "corpus").glob("text-*.arrow")))
    flip(run / "tokens" / "train" / "00000.tokens")
    swapped = json.loads((run / "tokenizer" / "tokenizer.json").read_text())
    vocabulary = swapped["model"]["vocab"]
    a, b = list(vocabulary)[-2:]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (run / "tokenizer" / "tokenizer.json").write_text(json.dumps(swapped))
    older, newer = sorted((run / "checkpoints").glob("step-*"))[-2:]
    shutil.rmtree(newer)
    shutil.copytree(older, newer)  # whole, but of another step
    (run / "log.jsonl").unlink()
    done = resume(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for part in ("text-00000.arrow: damaged", "tokenizer.json: damaged or edited; it is made again",
                 "00000.tokens: damaged", f"checkpoint {newer.name}", "log.jsonl is missing"):  # fmt: skip
        assert part in done.stderr, (part, done.stderr)
    assert weights(tmp_path / "out") == expected and check(tmp_path / "out")["ok"]


def test_files_of_the_user_stay(killed: Path, expected: str, tmp_path: Path) -> None:
    """In run/ and in the output; a name that the model needs too is refused before anything is published."""
    out = tmp_path / "out"
    shutil.copytree(killed, out)
    best = out / "run" / "checkpoints" / "step-00000002-best"
    best.mkdir()
    kept = [out / "notes.txt", out / "run" / "mine.txt", best / "state.safetensors"]
    for file in kept:
        file.write_bytes(MINE)
    (out / "README.md").write_bytes(MINE)
    done = resume(out)
    assert done.returncode == 2 and "README.md: is not of this run" in done.stderr and "move it away" in done.stderr
    assert (out / "README.md").read_bytes() == MINE and not (out / "model.safetensors").exists()
    (out / "README.md").rename(out / "mine.md")
    done = resume(out)
    assert done.returncode == 0 and "publishing what was complete" in done.stderr and "holds files" in done.stderr
    assert weights(out) == expected and check(out)["ok"] and (out / "mine.md").read_bytes() == MINE
    assert {path for path in (out / "run").rglob("*") if path.is_file()} == set(kept[1:])
    assert all(file.read_bytes() == MINE for file in kept)

    (out / "run" / "journal.json").write_bytes((killed / "run" / "journal.json").read_bytes())  # of another run
    for content in (None, b'{"mine": 1}'):
        if content:
            (out / "run" / "journal.json").write_bytes(content)
        before = files(out)
        done = resume(out)
        assert done.returncode == 0 and "is complete" in done.stderr and files(out) == before


def test_a_run_that_was_killed_before_it_began_is_no_dead_end(killed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "run").mkdir(parents=True)
    (out / "run" / ".journal.json.4711.foundling.tmp").write_bytes(b"{")
    done = resume(out)
    assert done.returncode == 2 and "start one without --resume" in done.stderr
    done = foundling("raise", killed.parent / "nowhere", "--out", out)
    assert done.returncode == 2 and "nowhere" in done.stderr, done.stderr
    assert {path.name for path in out.iterdir()} == {".lock"}


def test_an_incomplete_manifest_is_not_reproduced(killed: Path, expected: str, tmp_path: Path) -> None:
    manifest = json.loads((killed.parent / "resumed" / "foundling.json").read_text())
    (tmp_path / "model").mkdir()
    for key in REPRODUCED:
        for value in (None, 3 if REPRODUCED[key] is str else "three"):
            values = json.loads(json.dumps(manifest))
            *outer, last = key.split(".")
            inner = values
            for part in outer:
                inner = inner[part]
            inner[last] = value
            if value is None:
                del inner[last]
            (tmp_path / "model" / "foundling.json").write_text(json.dumps(values))
            with pytest.raises(ConfigError, match=f"has no '{key}'"):
                reproduce(tmp_path / "model")


@pytest.mark.slow
def test_every_file_of_a_run_damaged_in_each_way(killed: Path, expected: str, tmp_path: Path) -> None:
    """A flipped byte, a cut, nothing, an empty file, a folder: the same weights, or exit code 2 that names the file."""
    ways = {
        "flipped": lambda file: flip(file),
        "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        "gone": lambda file: file.unlink(),
        "empty": lambda file: file.write_bytes(b""),
        "folder": lambda file: (file.unlink(), file.mkdir()),
    }
    names = [name for name in files(killed / "run") if not name.startswith(".")]
    assert len(names) >= 14
    counts = {"same": 0, "refused": 0}
    for name in names:
        for way, damage in ways.items():
            out = tmp_path / "out"
            shutil.copytree(killed, out)
            damage(out / "run" / name)
            done = resume(out)
            assert "Traceback" not in done.stderr and "internal" not in done.stderr, (name, way, done.stderr)
            if done.returncode == 0:
                assert weights(out) == expected and check(out)["ok"], (name, way)
                counts["same"] += 1
            else:
                line = done.stderr.splitlines()[-1]
                says = [name]
                if way == "folder":  # of a checkpoint or a corpus that cannot be made again, the whole is named
                    says.append(f"run/{Path(name).parent}")
                if name == "journal.json" and way == "gone":
                    says = ["there is no run to resume here"]
                assert done.returncode == 2 and any(part in line for part in says), (name, way, done.stderr)
                counts["refused"] += 1
            shutil.rmtree(out)
    print(counts)
