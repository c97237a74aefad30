# SPDX-License-Identifier: Apache-2.0
"""Mutated directories, GGUF files, tokenizers, manifests and unfinished runs, given to the commands that read them.

Each case is a process of its own: a fork of a server that has imported everything, so that its limits count from the
fork. It ends with 0 or 2, in one clean line, within a gigabyte and two seconds of processor time.
"""

import functools
import json
import os
import random
import re
import resource
import shutil
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import pytest

from foundling.diffusion.schedule import NoiseSchedule
from foundling.models import build
from foundling.weights.convert.diffusers import save_denoiser
from foundling.weights.convert.hugging_face import export_gguf
from foundling.weights.directory import save
from tests import mutations
from tests.contract.cases import case
from tests.e2e.tools import TINY, corpus, environment, kill_after_checkpoint
from tests.processes import Forked
from tests.text.kinds import tokenizer

SPACE, SECONDS = 1 << 30, 2
"""above what the process takes when it starts; of its processor time"""
RUN_SECONDS = 4
"""that an unfinished run takes more where the mutation changes nothing: it trains, evaluates and reports to its end"""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
NOTE = re.compile("note: |This is an? |reading ")
"""how a line that is no error begins; `raise` tells more"""
NOISE = re.compile("Traceback|Warning|Exception|terminate called|libgomp")
COMMANDS = {
    "text": [["generate", "@", "--prompt", "a cat", "--max-tokens", "4", "--json"], ["generate", "@", "--prompt", "aa"],
             ["inspect", "@"], ["check", "@"], ["import", "@", "%"], ["export", "@", "%"], ["chat", "@"],
             ["export", "@", "%", "--gguf"]],
    "fill": [["fill", "@", "the ___ sat", "--json"], ["inspect", "@", "--json"], ["import", "@", "%"]],
    "other": [["inspect", "@"], ["import", "@", "%"], ["check", "@", "--json"], ["export", "@", "%"]],
    "gguf": [["import", "@", "%"], ["import", "@", "%", "--json"]],
    "run": [["raise", "--out", "@", "--resume"], ["raise", "--out", "@", "--resume", "--json"]],
}  # fmt: skip
"""@ is what was mutated, % a new name"""
GENERATES = ("generate", "chat", "fill")
"""their output is what a model says"""
TEXT_MUTATIONS = [
    mutations.mutate_one, mutations.mutate_one, mutations.swap, mutations.rename, mutations.mutate_tokenizer,
    mutations.mutate_tokenizer, mutations.mutate_template,
    *(mutations.mutate_json_of(f"{name}.json")
      for name in ("config", "generation_config", "foundling", "tokenizer_config")),
]  # fmt: skip


class Base(NamedTuple):
    path: Path
    kind: str


def limit(seconds: int) -> None:
    """In the fork, before the command begins."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + SPACE, held + SPACE))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


def text_model(root: Path, family: str, kind: str, **fields) -> Base:
    one = tokenizer(kind)
    model = build(family, **case(family).fields() | {"vocab_size": -(-one.vocab_size // 64) * 64} | fields).eval()
    return Base(save(model, root / f"{family} {kind}", tokenizer=one), "fill" if family == "bert" else "text")


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> list[Base]:
    root = tmp_path_factory.mktemp("bases")
    found = [text_model(root, *names) for names in (
        ("llama", "ours"), ("llama", "llama 2"), ("gpt2", "gpt2"), ("t5", "t5"), ("mamba", "metaspace always"),
        ("bert", "bert"))]  # fmt: skip
    sharded = save(case("llama").tiny(vocab_size=384), root / "sharded", tokenizer=tokenizer("ours"),
                   max_shard_bytes=60_000)  # fmt: skip
    pipeline = save_denoiser(case("unet").tiny(), NoiseSchedule(), root / "pipeline")
    others = [save(case(name).tiny(), root / name) for name in ("clip", "mixtral", "bart")]
    (root / "gguf").mkdir()
    export_gguf(found[0].path, root / "gguf" / "m.gguf")
    short = ["--tokens", "1024", *TINY, "--total-steps", "8", "--out", root / "run"]
    arguments = [corpus(root / "data", documents=20), *short]
    kill_after_checkpoint(arguments, root / "run")
    return [*found, Base(sharded, "text"), Base(pipeline, "other"), *(Base(p, "other") for p in others),
            Base(root / "gguf", "gguf"), Base(root / "run", "run")]  # fmt: skip


def mutated(bases: list[Base], scratch: Path, seed: int) -> tuple[str, list[str]]:
    """(which mutation of what, the command that reads it). Seed −1 − i is base i as it is."""
    chance = random.Random(seed)
    base, other = (bases[-1 - seed], bases[0]) if seed < 0 else (chance.choice(bases), chance.choice(bases))
    directory, change = scratch / "it", None
    shutil.copytree(base.path, directory)
    if seed >= 0:
        change = chance.choice(TEXT_MUTATIONS) if base.kind == "text" else mutations.mutate_one
        change(directory, other.path, chance)
    place = directory / "m.gguf" if base.kind == "gguf" else directory
    words = chance.choice(COMMANDS[base.kind])
    command = [str(place) if w == "@" else str(scratch / "new") if w == "%" else w for w in words]
    return f"{getattr(change, '__name__', 'whole')} of {base.path.name}", command


def verdict(command: list[str], done: Any) -> str:
    """What is wrong with how a command ended, or nothing."""
    if done.returncode not in (0, 2):
        return f"exit {done.returncode}"
    shown = done.stderr if command[0] in GENERATES else done.stdout + done.stderr
    if found := CONTROL.search(shown):
        return f"a control character, {found[0]!r}"
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("foundling ")]
    others = [line for line in lines if line not in errors and not NOTE.match(line)]
    if (others and command[0] != "raise") or NOISE.search(done.stderr):
        return f"noise: {others[0]}"
    if done.returncode == 0:
        return "an error, and exit 0" if errors else ""
    if "--json" in command and json.loads(done.stdout).get("exit_code") != 2:
        return "no JSON object"
    if len(errors) > 1 or not (errors or "--json" in command):
        return f"{len(errors)} errors"
    if errors and (len(errors[0]) > 3000 or not errors[0].startswith(f"foundling {command[0]}: ")):
        return f"a line of {len(errors[0])} characters"
    return ""


class Trial:
    """One case, running."""

    def __init__(self, bases: list[Base], scratch: Path, seed: int) -> None:
        self.seed, self.folder = seed, scratch / str(seed)
        self.folder.mkdir()
        self.name, self.command = mutated(bases, self.folder, seed)
        seconds = SECONDS + (RUN_SECONDS if self.command[0] == "raise" else 0)
        before = functools.partial(limit, seconds)
        self.process = Forked(["foundling", *self.command], env=environment(), input="hello\n", before=before)

    def end(self) -> tuple[str, str]:
        """(what is wrong or nothing, the command and its exit code)"""
        out, error = self.process.communicate(120)
        done = CompletedProcess(self.command, self.process.returncode or 0, out, error)
        shutil.rmtree(self.folder)
        wrong = verdict(self.command, done)
        if wrong:
            wrong = f"seed {self.seed}, {self.name}, {self.command[0]}: {wrong}\n{error[-1500:]}"
        return wrong, f"{self.command[0]}: {done.returncode}"


def trials(bases: list[Base], scratch: Path, seeds: Iterable[int]) -> Iterator[tuple[str, str]]:
    """As many at a time as there are processors, all started by one thread: multiprocessing looks at the children of
    others whenever it starts one."""
    running: deque[Trial] = deque()
    for seed in seeds:
        running.append(Trial(bases, scratch, seed))
        if len(running) >= (os.cpu_count() or 1):
            yield running.popleft().end()
    yield from (trial.end() for trial in running)


def try_all(bases: list[Base], scratch: Path, seeds: range) -> Counter[str]:
    results = list(trials(bases, scratch, seeds))
    wrong, counts = [text for text, _ in results if text], Counter(kind for _, kind in results)
    print(counts)
    assert not wrong, f"{len(wrong)} of {len(results)} cases:\n" + "\n".join(wrong)
    return counts


def test_60_cases(bases, tmp_path) -> None:
    """Each base as it is, which is read, and mutations."""
    counts = try_all(bases, tmp_path, range(-len(bases), 60 - len(bases)))
    assert sum(n for kind, n in counts.items() if kind.endswith(": 0")) >= len(bases)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_2000_mutations(bases, tmp_path, part: int) -> None:
    try_all(bases, tmp_path, range(1000 + 200 * part, 1200 + 200 * part))
