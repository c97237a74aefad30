# SPDX-License-Identifier: Apache-2.0
"""Whether a model is still the one that had this name: its answers to fixed prompts, now and the first time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from math import comb
from pathlib import Path
from typing import Any, NamedTuple

from foundling.errors import DataError, GenerationError, WeightsError
from foundling.evaluate.intervals import wilson
from foundling.evaluate.recorded import Recorded
from foundling.evaluate.subject import Decoding, GenerateRequest, LikelihoodRequest, Prompt, Subject
from foundling.runtime.files import read_json, write_json

PROMPTS: dict[str, str] = {
    "sum": "What is 4,817 + 2,956? Answer with the number alone.",
    "product": "Compute 37 * 48 step by step.",
    "unit": "How many minutes are 3.75 hours? Answer in one sentence.",
    "alphabet": "Continue the sequence with five more items: C, F, I, L,",
    "story": "Continue this story by exactly two sentences: The lighthouse keeper opened the letter.",
    "poem": "Write four lines about a bicycle that rhyme.",
    "json": 'Reply with a JSON object with the keys "city" and "country" for the capital of Kenya, and nothing else.',
    "list": "List five mammals that live in the sea as a numbered list.",
    "translate": "Translate into French: The train to the coast leaves at a quarter past seven.",
    "code": "Write a Python function that reverses the words of a sentence. Give the code only.",
    "explain": "Explain in three sentences why the sky is blue.",
    "opinion": "Which is the better pet, a cat or a dog? Decide for one and give a reason in one sentence.",
}
"""Arithmetic, continuation, format, style: texts that tell models apart, none that a model refuses."""
ASKED = 3
"""times that each is asked the first time, and again where its answer differs"""
MAX_TOKENS = 96
ALPHA = 0.02
"""the p-value at which a model counts as changed"""
MIN_CHANGE, SPREADS = 0.05, 10.0
"""A log-probability has changed where it moved by more than this in nats plus this many times the spread of the first
values: kernels and batches move it as well."""
MAX_CHECKS = 10_000
_FORMAT = 1


class CanaryReport(NamedTuple):
    name: str
    verdict: str
    """"recorded" the first time, then "same" or "changed" """
    stable: int
    """canaries that got one answer each of the times they were asked first: these alone count"""
    changed: list[str]
    """stable canaries whose answers, or log-probability, all differ from the recorded"""
    unstable: list[str]
    """canaries that answered both as recorded and in another way: left out"""
    p_value: float
    """of as many changed or more, if nothing but chance changed single answers"""
    recorded: str
    """date of the first answers"""
    since: str | None
    """date of the check that saw the change first; None for none"""
    last_same: str
    """date of the last check without a change"""
    largest_logprob_change: float | None
    """nats; None where the model gives no log-probabilities"""
    backend: tuple[str, str]
    """what the server reported the first time and now"""

    @property
    def exit_code(self) -> int:
        return int(self.verdict == "changed")


def canary(subject: Subject, path: Path, *, chat: bool = True) -> CanaryReport:
    """Asks the canaries and compares with what `path` holds under the subject's name and template; the first time, the
    answers are recorded there. Recorded answers are passed by: the model itself is asked. `chat`: as a conversation.

    One changed answer of a model that is not deterministic proves nothing. So the first time each canary is asked three
    times, and counts where the three answers agree; later one whose answer differs is asked twice more, and has changed
    where no answer is the recorded one. The rate q of chance differences is taken from the first answers, as the upper
    end of its 95 % interval; the p-value is that of k or more of the stable canaries differing three times in a row,
    P(Binomial(n, q³) ≥ k).

    Raises DataError for a file that is no record of canaries, GenerationError for a subject without a model."""
    if isinstance(subject, Recorded):
        if subject.subject is None:
            raise GenerationError(f"{subject.path}: canaries ask the model itself, and here are recorded answers alone")
        return canary(subject.subject, path, chat=chat)
    record, now = _read(path), datetime.now(UTC).isoformat(timespec="seconds")
    name = f"{subject.name} ({subject.hashes.get('template', '')}{'' if chat else ', as a text'})"
    if is_first := name not in record["subjects"]:
        answers = _answers(subject, list(PROMPTS), ASKED, chat)
        logprobs = _logprobs(subject, {key: texts[0] for key, texts in answers.items()}, ASKED, chat)
        backend = subject.hashes.get("backend", "")
        record["subjects"][name] = {
            "date": now, "backend": backend, "answers": answers, "logprobs": logprobs, "checks": []
        }  # fmt: skip
    entry = record["subjects"][name]
    first: dict[str, list[str]] = entry["answers"]
    stable = [key for key, texts in first.items() if len(set(texts)) == 1]
    changed, unstable, largest = list[str](), [key for key in first if key not in stable], None
    if not is_first:
        different, back = _different(subject, stable, first, chat)
        largest, moved = _moved(subject, entry, chat)
        changed = [key for key in stable if key in different or (key in moved and key not in back)]
        unstable += back
    p_value = _chance(first, len(changed), len(stable))
    verdict = "recorded" if is_first else "changed" if changed and p_value <= ALPHA else "same"
    entry["checks"] = [*entry["checks"], {"date": now, "verdict": verdict, "changed": changed}][-MAX_CHECKS:]
    write_json(path, record)
    same = [i for i, check in enumerate(entry["checks"]) if check["verdict"] != "changed"]
    run = entry["checks"][same[-1] + 1 if same else 0 :]
    return CanaryReport(
        subject.name, verdict, len(stable), changed, unstable, p_value, entry["date"],
        run[0]["date"] if run else None, entry["checks"][same[-1]]["date"] if same else entry["date"], largest,
        (entry["backend"], subject.hashes.get("backend", "")),
    )  # fmt: skip


def _different(
    subject: Subject, stable: list[str], first: dict[str, list[str]], chat: bool
) -> tuple[list[str], list[str]]:
    """(canaries none of whose ASKED answers is the recorded one, those of which one is and another is not)"""
    now = _answers(subject, stable, 1, chat)
    different = [key for key in stable if now[key][0] != first[key][0]]
    more = _answers(subject, different, ASKED - 1, chat)
    back = [key for key in different if first[key][0] in more[key]]
    return [key for key in different if key not in back], back


def _chance(first: dict[str, list[str]], k: int, n: int) -> float:
    """P(Binomial(n, q³) ≥ k), with q the upper end of the interval of the share of first answers that differ from the
    most frequent one."""
    n_answers = ASKED * len(first)
    differ = sum(ASKED - max(texts.count(text) for text in texts) for texts in first.values())
    p = wilson(differ / n_answers, n_answers)[1] ** ASKED
    return min(1.0, sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1)))


def _prompt(key: str, chat: bool) -> Prompt:
    return [{"role": "user", "content": PROMPTS[key]}] if chat else PROMPTS[key]


def _answers(subject: Subject, keys: Sequence[str], times: int, chat: bool) -> dict[str, list[str]]:
    requests = [GenerateRequest(_prompt(key, chat), Decoding(MAX_TOKENS)) for key in keys for _ in range(times)]
    answers = dict(subject.generate(requests)) if requests else {}
    texts = [answers[i].text for i in range(len(requests))]
    return {key: texts[i * times : (i + 1) * times] for i, key in enumerate(keys)}


def _logprobs(subject: Subject, texts: dict[str, str], times: int, chat: bool) -> dict[str, list[float]]:
    """Of the recorded texts after their prompts; {} where the subject gives none."""
    keys = [key for key, text in texts.items() if text]
    requests = [LikelihoodRequest(_prompt(key, chat), texts[key]) for key in keys for _ in range(times)]
    try:
        answers = dict(subject.loglikelihood(requests))
    except GenerationError:
        return {}
    values = [answers[i].logprob for i in range(len(requests))]
    return {key: values[i * times : (i + 1) * times] for i, key in enumerate(keys)}


def _moved(subject: Subject, entry: dict[str, Any], chat: bool) -> tuple[float | None, list[str]]:
    """(the largest change, canaries whose change is beyond the spread of the first values)"""
    before: dict[str, list[float]] = entry["logprobs"]
    after = _logprobs(subject, {key: entry["answers"][key][0] for key in before}, 1, chat) if before else {}
    if not after:
        return None, []
    changes = {key: abs(after[key][0] - sum(values) / len(values)) for key, values in before.items()}
    moved = [
        key
        for key, values in before.items()
        if changes[key] > MIN_CHANGE + SPREADS * (max(values) - min(values))
    ]  # fmt: skip
    return max(changes.values()), moved


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"canaries": _FORMAT, "prompts": PROMPTS, "subjects": {}}
    try:
        record = read_json(path)
        if record.get("canaries") != _FORMAT or not isinstance(record["subjects"], dict):
            raise KeyError
        for entry in record["subjects"].values():
            if not all(len(texts) == ASKED for texts in entry["answers"].values()) or entry["checks"] is None:
                raise KeyError
    except (WeightsError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: no record of canaries; give another file, or remove it") from None
    if record["prompts"] != PROMPTS:
        raise DataError(f"{path}: recorded with other canaries; begin a new file")
    return record
