# SPDX-License-Identifier: Apache-2.0
"""What is beyond a limit, or of another type, is refused by the name of its argument, before anything is allocated."""

import ast
import functools
import json
import math
import os
from collections import Counter, namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import foundling
from foundling import limits
from foundling.cli import main
from foundling.decode.request import Request
from foundling.errors import ConfigError, FoundlingError, GenerationError, OutputError, WeightsError
from foundling.models import configuration, family
from foundling.plan.budget import Budget
from foundling.recipes import recipe
from foundling.runtime.device import Runtime, available_threads
from foundling.runtime.files import is_shallow, require_space
from foundling.text import Tokenizer
from foundling.text.growth import check_growth
from foundling.weights.convert import hugging_face
from foundling.weights.directory import load, save
from tests.contract.cases import case
from tests.text.kinds import KINDS, tokenizer

HUGE = 10**20


def test_no_limit_has_two_values() -> None:
    tree = ast.parse(Path(limits.__file__).read_text(encoding="utf-8"))
    names = [target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]  # pyright: ignore
    assert len(names) > 30 and [name for name, n in Counter(names).items() if n > 1] == []


def test_every_limit_says_what_it_counts() -> None:
    table = {name: value for name, value in vars(limits).items() if isinstance(value, limits.Limit)}
    assert len(table) > 30
    for name, limit in table.items():
        assert limit.unit and limit.low <= limit.high, name
        assert limit.check(limit.high, "x") == limit.high and limit.check(limit.low, "x") == limit.low
        for value in (limit.high + 1, limit.low - 1, True, "4", 4.0, None, math.nan, 10**10_000):
            with pytest.raises(ConfigError, match=r"^'x' is .*; expected a whole number, at least") as caught:
                limit.check(value, "'x'")
            assert len(str(caught.value)) < 400 and f"({limit.unit}" in str(caught.value)


def test_whole_numbers_of_other_libraries_are_whole_numbers() -> None:
    assert limits.SEED.check(np.int64(7), "x") == 7 and limits.SEED.check(torch.tensor(7), "x") == 7
    for value in (np.float64(7), torch.tensor(7.0), np.bool_(True)):
        with pytest.raises(ConfigError):
            limits.SEED.check(value, "x")


MODEL = case("llama").tiny()


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (dict(seed="x"), "seed is 'x'"),
        (dict(seed=-1), "seed is -1"),
        (dict(seed=1 << 63), "seed is"),
        (dict(seed=True), "seed is True"),
        (dict(seed=0.5), "seed is 0.5"),
        (dict(n=0), "n is 0"),
        (dict(n=HUGE), "n is"),
        (dict(n="2"), "n is '2'"),
        (dict(max_tokens=HUGE), "max_tokens is"),
        (dict(max_tokens="3"), "max_tokens is '3'"),
        (dict(max_tokens=True), "max_tokens is True"),
        (dict(tokens=["a text"]), "the prompt is a text"),
        (dict(tokens="a text"), "the prompts are 'a text'"),
        (dict(tokens=7), "the prompts are 7"),
        (dict(tokens=[7]), "the prompt is 7"),
        (dict(tokens=[[1.5]]), "the prompt contains an id that is 1.5"),
        (dict(tokens=[[True]]), "the prompt contains an id that is True"),
        (dict(tokens=[["a"]]), "the prompt contains the text 'a'"),
        (dict(tokens=[[-1]]), "the prompt contains an id that is -1"),
        (dict(tokens=[[1 << 70]]), "the prompt contains an id that is"),
        (dict(tokens=[[[1]]]), "the prompt contains an id that is"),
        (dict(tokens=[None]), "the prompt is None"),
        (dict(stop=[-1]), "stop contains an id that is -1"),
        (dict(stop=[True]), "stop contains an id that is True"),
        (dict(stop=[1.0]), "stop contains an id that is 1.0"),
        (dict(stop=5), "stop is 5"),
        (dict(stop_strings=[3], decode=str), "stop_strings is"),
        (dict(stop_strings=3, decode=str), "stop_strings is 3"),
        (dict(decode="utf-8"), "decode is 'utf-8'"),
        (dict(processors=[3]), "processors is"),
        (dict(processors=3), "processors is 3"),
        (dict(logprobs=1001), "logprobs"),
        (dict(logprobs=True), "logprobs"),
        (dict(temperature=math.nan), "temperature is nan"),
        (dict(temperature="hot"), "temperature is 'hot'"),
        (dict(temperature=10**400), "temperature is"),
        (dict(top_k=1 << 40), "top_k is"),
        (dict(top_p="0.9"), "top_p is '0.9'"),
        (dict(bad_words="ab"), "bad_words is 'ab'"),
        (dict(bad_words=[3]), "bad_words is"),
        (dict(logit_bias=[3]), "logit_bias is"),
        (dict(logit_bias={3: 10**400}), "logit_bias of 3"),
        (dict(beams=HUGE), "beams is"),
        (dict(beams="4"), "beams is '4'"),
        (dict(draft_tokens=10**9), "draft_tokens is"),
        (dict(length_penalty=math.inf, beams=2), "length_penalty is inf"),
        (dict(sampling={"temperature": 1}), "sampling is"),
    ],
)
def test_what_generate_is_asked(arguments: dict[str, Any], names: str) -> None:
    with pytest.raises(GenerationError) as caught:
        foundling.generate(MODEL, **({"tokens": [[1]], "max_tokens": 2} | arguments))
    assert str(caught.value).startswith(names) and "\n" not in str(caught.value), caught.value


LOOSE: Any = SimpleNamespace(
    Engine=foundling.Engine, EngineOptions=foundling.EngineOptions, Request=Request, load=load,
    RunRequest=recipe.Request, Budget=Budget, fill=foundling.fill,
)  # fmt: skip
"""without types: what a type checker would find is tried here"""


def test_prompts_of_other_libraries_are_prompts() -> None:
    prompts: list[Any] = [[[1, 2]], np.array([[1, 2]]), torch.tensor([[1, 2]]), [(1, 2)], [np.array([1, 2])]]
    answers = [foundling.generate(MODEL, p, max_tokens=3, temperature=0)[0].tokens for p in prompts]
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: LOOSE.EngineOptions(max_num_seqs=HUGE), "max_num_seqs is"),
        (lambda: LOOSE.EngineOptions(max_num_seqs="4"), "max_num_seqs is '4'"),
        (lambda: LOOSE.EngineOptions(max_step_tokens=1.5), "max_step_tokens is 1.5"),
        (lambda: LOOSE.EngineOptions(memory=-1), "memory is -1"),
        (lambda: LOOSE.EngineOptions(lookup=True), "lookup is True"),
        (lambda: LOOSE.Engine(MODEL).add([1]), "the request is [1]"),
        (lambda: LOOSE.Request("text", 3), "the prompt is a text"),
        (lambda: foundling.build("llama", n_layers=100_000), "'n_layers' is 100000"),
        (lambda: foundling.build("llama", d_model="64"), "'d_model' is '64'"),
        (lambda: foundling.build("llama", d_model=64.0), "'d_model' is 64.0"),
        (lambda: foundling.build("llama", vocab_size=640_000_000), "'vocab_size' is 640000000"),
        (lambda: LOOSE.load("x", dtype="float32"), "dtype is 'float32'"),
        (lambda: LOOSE.load("x", dtype=torch.int8), "dtype is torch.int8"),
        (lambda: LOOSE.load("x", device="mars"), "device is 'mars'"),
        (lambda: save(MODEL, "x", max_shard_bytes=0), "max_shard_bytes is 0"),
        (lambda: LOOSE.RunRequest("x", 5), "the budget is 5"),
        (lambda: LOOSE.RunRequest("x", given=3), "given is 3"),
        (lambda: LOOSE.RunRequest("x", licence=3), "the licence is 3"),
        (lambda: LOOSE.Budget("hours", 3), "the unit of a budget is 'hours'"),
        (lambda: LOOSE.Budget("tokens", "3"), "--tokens '3'"),
        (lambda: LOOSE.Budget("tokens", 1e308), "--tokens 1e+308"),
        (lambda: LOOSE.fill(case("bert").tiny(), [1.5], 1), "the text contains an id that is 1.5"),
        (lambda: LOOSE.fill(case("bert").tiny(), [1], 1, n=HUGE), "n is"),
        (lambda: LOOSE.fill(case("bert").tiny(), [1], 1, exclude=[-1]), "mask or exclude"),
    ],
)
def test_what_the_rest_of_the_library_is_asked(call: Any, names: str) -> None:
    with pytest.raises(FoundlingError) as caught:
        call()
    assert names in str(caught.value) and "\n" not in str(caught.value), caught.value


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"model": {"fields": {"n_layers": 100_000}}}, "'n_layers' is 100000"),
        ({"model": {"fields": {"d_model": 1e300}}}, "'d_model' is 1e+300"),
        ({"train": {"batch_size": 10**12}}, "'batch_size' is 1000000000000"),
        ({"train": {"batch_size": 1 << 20, "seq_len": 1 << 20}}, "'batch_size' × 'seq_len'"),
        ({"train": {"total_steps": HUGE}}, "'total_steps'"),
        ({"data": {"vocab_size": 640_000_000}}, "'vocab_size' is 640000000"),
        ({"runtime": {"threads": 100_000}}, "'threads' is 100000"),
        ({"runtime": {"threads": -1}}, "'threads' is -1"),
        ({"runtime": {"threads": 0}}, "'threads' is 0"),
        ({"seed": -1}, "'seed' is -1"),
        ({"seed": 1 << 63}, "'seed'"),
        ({"schedule": {"warmup_steps": -1}}, "'warmup_steps' is -1"),
    ],
)
def test_what_a_run_is_asked(given: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe.Request("builtin:stdlib", given=given)
    assert names in str(caught.value) and "\n" not in str(caught.value), caught.value


@pytest.mark.parametrize(
    "command",
    [
        "generate DIR --n 100000000000000000000", "generate DIR --seed -1", "raise --n-layers 100000",
        "raise --batch-size 1e12", "raise --vocab-size 640000000", "raise --threads 100000", "raise --threads -1",
        "raise --seed 9223372036854775808", "plan memory --n-layers 100000 --d-model 64",
        "plan memory --n-layers 2 --d-model 64 --ranks 100000000", "raise --tokens 1e308", "plan run --tokens nan",
        "raise --model.n-kv-heads 1e12", "raise --model.n-kv-heads 1000000000000", "plan --model.d-ff 0",
    ],
)  # fmt: skip
def test_the_command_line_refuses_at_once(command: str, capsys, tmp_path) -> None:
    arguments = command.replace("DIR", str(tmp_path)).split()
    out = ["--out", str(tmp_path / "o")] if arguments[0] == "raise" else []
    with pytest.raises(SystemExit) as caught:
        main([*arguments, *out])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1 and "reading" not in error, error
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("value", ["4096", 1e9, 64.0, 10**400, True, [64], None])
def test_sizes_of_a_file_are_whole_numbers(value: Any, tmp_path: Path) -> None:
    directory = save(MODEL, tmp_path / "m")
    values = json.loads((directory / "config.json").read_text())
    for key in ("hidden_size", "num_hidden_layers", "vocab_size"):
        (directory / "config.json").write_text(json.dumps(values | {key: value}))
        with pytest.raises(WeightsError) as caught:
            load(directory)
        assert "config.json" in str(caught.value) and len(str(caught.value)) < 500


def test_a_number_may_still_be_whole_where_any_is_allowed() -> None:
    fields = MODEL.config.__dict__ | {"rope_theta": 10_000}
    assert configuration(family("llama"), fields, where="x").rope_theta == 10_000


def test_depth_is_counted_before_json_is_parsed() -> None:
    """Whatever the interpreter's limit of recursion, and brackets in strings do not count."""
    at = limits.JSON_DEPTH.high
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        for depth in (1, at, at + 1, 900, 20_000):
            assert is_shallow(opening * depth + b"0" + closing * depth) == (depth <= at)
            assert is_shallow(opening * depth) == (depth <= at)  # not closed
    assert is_shallow(b'["' + b"[" * 1000 + b'\\"' + b"{" * 1000 + b'"]')
    assert is_shallow(b"[" + b"[[]]," * 10_000 + b"0]")


def test_tokenizers_in_use_grow_a_text_little_and_others_are_refused(tmp_path: Path) -> None:
    for kind in KINDS:
        check_growth(tokenizer(kind).backend, kind)
    tokenizer("llama 2").save(tmp_path)
    file = tmp_path / "tokenizer.json"
    table = json.loads(file.read_text())
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    bytes_again = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    for part, key, step in (("normalizer", "normalizers", double), ("decoder", "decoders", double),
                            ("pre_tokenizer", "pretokenizers", bytes_again)):  # fmt: skip
        for times, fine in ((8, True), (34, False), (5000, False)):
            file.write_text(json.dumps(table | {part: {"type": "Sequence", key: [step] * times}}))
            if fine:
                assert Tokenizer.load(tmp_path)
            else:
                with pytest.raises(WeightsError, match=f"tokenizer.json: its {part} makes more than 1,024"):
                    Tokenizer.load(tmp_path)


@pytest.mark.parametrize("asked", ["", "4096"])
def test_threads_of_a_large_machine_are_within_the_limit(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(2048)), raising=False)
    assert Runtime(threads=available_threads()).threads == limits.THREADS.high


Usage = namedtuple("Usage", "total used free")


def test_space_is_checked_with_the_figures(tmp_path: Path) -> None:
    require_space(tmp_path / "new" / "o", 1_000_000, usage=lambda _: Usage(0, 0, 10_000_000))
    with pytest.raises(OutputError, match=r"/o: about 59 MB will be written, 40 MB are free; free some space"):
        require_space(tmp_path / "new" / "o", 50_000_000, usage=lambda _: Usage(0, 0, 40_000_000))
    with pytest.raises(OutputError, match="will be written"):  # the disk of this machine
        require_space(tmp_path / "o", 1 << 62)


@pytest.mark.parametrize("command", ["import DIR OUT/m", "export DIR OUT/m", "export DIR OUT/m.gguf --gguf"])
def test_a_disk_that_is_too_small_is_named_before_it_is_full(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = save(case("llama").tiny(d_ff=4096), tmp_path / "m")
    small = functools.partial(require_space, usage=lambda _: Usage(0, 0, 4_000_000))
    monkeypatch.setattr(hugging_face, "require_space", small)
    with pytest.raises(SystemExit) as caught:
        main(command.replace("DIR", str(directory)).replace("OUT", str(tmp_path / "out")).split())
    error = capsys.readouterr().err
    assert caught.value.code == 2 and "will be written, 4 MB are free" in error, error
    assert not (tmp_path / "out").exists()
