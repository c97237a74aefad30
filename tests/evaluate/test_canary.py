# SPDX-License-Identifier: Apache-2.0
"""Canaries against a server whose model stays, changes, or answers by chance."""

import json
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import pytest

from foundling.errors import DataError, GenerationError
from foundling.evaluate.canary import ALPHA, ASKED, PROMPTS, canary
from foundling.evaluate.intervals import wilson
from foundling.evaluate.recorded import Recorded
from foundling.evaluate.upstream import Upstream
from tests.evaluate.servers import Seen, chat, echo, serving

KEYS = {text: key for key, text in PROMPTS.items()}


class Model:
    """Answers with its version; canaries of `chance` with another answer every second time."""

    def __init__(self) -> None:
        self.version: Callable[[str], str] = lambda key: "v1"
        self.fingerprint, self.chance, self.times = "fp_1", set[str](), dict[str, int]()

    def __call__(self, seen: Seen, n: int) -> Any:
        key = KEYS[seen.body["messages"][0]["content"]]
        assert seen.body["temperature"] == 0
        self.times[key] = self.times.get(key, 0) + 1
        odd = " (odd)" if key in self.chance and self.times[key] % 2 else ""
        return chat(f"{key} by {self.version(key)}{odd}", system_fingerprint=self.fingerprint)


def test_canaries_report_a_model_that_changes_under_its_name(tmp_path: Path) -> None:
    model, file = Model(), tmp_path / "canaries.json"
    with serving(model) as server:
        subject = Upstream(server.url, "m")
        first = canary(subject, file)
        assert (first.verdict, first.exit_code, first.stable, first.since) == ("recorded", 0, len(PROMPTS), None)
        assert len(server.requests) == ASKED * len(PROMPTS)
        same = canary(Recorded(tmp_path / "answers.jsonl", subject), file)  # recorded answers are passed by
        assert (same.verdict, same.changed, same.p_value, same.exit_code) == ("same", [], 1.0, 0)
        assert len(server.requests) == (ASKED + 1) * len(PROMPTS) and not (tmp_path / "answers.jsonl").exists()

        model.version, model.fingerprint = lambda key: "v2" if key in ("sum", "poem") else "v1", "fp_2"
        changed = canary(Upstream(server.url, "m"), file)
        assert (changed.verdict, changed.exit_code, changed.changed) == ("changed", 1, ["sum", "poem"])
        # without a difference among 36 answers, Wilson's upper end is 0.0964: two of twelve by chance
        p = wilson(0.0, 36)[1] ** 3
        assert changed.p_value == pytest.approx(sum(comb(12, i) * p**i * (1 - p) ** (12 - i) for i in range(2, 13)))
        assert changed.p_value < ALPHA and changed.last_same == same.last_same
        assert changed.backend == ("reported: m-2026-01-01 fp_1", "reported: m-2026-01-01 fp_2")
        again = canary(Upstream(server.url, "m"), file)
        assert again.since == changed.since and again.verdict == "changed"
        model.version = lambda key: "v1"
        assert canary(Upstream(server.url, "m"), file).since is None
        other = canary(Upstream(server.url, "other"), file)
        assert other.verdict == "recorded"
    checks = next(iter(json.loads(file.read_text())["subjects"].values()))["checks"]
    assert [check["verdict"] for check in checks] == ["recorded", "same", "changed", "changed", "same"]


def test_answers_by_chance_are_no_change(tmp_path: Path) -> None:
    model, file = Model(), tmp_path / "canaries.json"
    model.chance = {"story", "poem", "code"}
    with serving(model) as server:
        subject = Upstream(server.url, "m", workers=1)
        first = canary(subject, file)
        assert first.stable == 9 and first.unstable == ["story", "poem", "code"]
        assert canary(subject, file).verdict == "same"
        model.version = lambda key: "v2" if key == "sum" else "v1"
        one = canary(subject, file)  # of an endpoint with 3 of 36 answers by chance, one canary is no proof
        assert (one.verdict, one.changed) == ("same", ["sum"]) and one.p_value > ALPHA
        model.version = lambda key: "v2"
        assert canary(subject, file).verdict == "changed"
        model.version, model.chance = lambda key: "v1", {"story", "poem", "code", "json"}
        flips = canary(subject, file)
        assert flips.changed == [] and flips.verdict == "same" and "json" in flips.unstable


def test_log_probabilities_move(tmp_path: Path) -> None:
    shift = 0.0

    def answer(seen: Seen, n: int) -> Any:
        text = seen.body["prompt"]
        if not seen.body.get("echo"):
            return chat("", choices=[{"text": " ok", "finish_reason": "stop"}])
        return echo([text[:-3], " ok", "."], [None, -1.0 - shift, -1.0])

    with serving(answer) as server:
        subject = Upstream(server.url, "m", chat=False)
        assert canary(subject, tmp_path / "c.json", chat=False).verdict == "recorded"
        shift = 0.01
        small = canary(subject, tmp_path / "c.json", chat=False)
        assert small.verdict == "same" and small.largest_logprob_change == pytest.approx(0.01)
        shift = 0.5
        moved = canary(subject, tmp_path / "c.json", chat=False)
        assert moved.verdict == "changed" and len(moved.changed) == len(PROMPTS)
        assert moved.largest_logprob_change == pytest.approx(0.5)


def test_files_that_are_no_record_are_refused(tmp_path: Path) -> None:
    file, subject = tmp_path / "c.json", Upstream("http://127.0.0.1:9", "m")
    for text in ("[]", "{", "{}", '{"canaries": 1}', '{"canaries": 1, "subjects": {"m": {}}}'):
        file.write_text(text)
        with pytest.raises(DataError, match="no record of canaries"):
            canary(subject, file)
    file.write_text(json.dumps({"canaries": 1, "subjects": {}, "prompts": {"sum": "1 + 1"}}))
    with pytest.raises(DataError, match="other canaries"):
        canary(subject, file)
    with pytest.raises(GenerationError, match="recorded answers alone"):
        canary(Recorded(tmp_path / "a.jsonl", name="m"), file)
