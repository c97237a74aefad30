# SPDX-License-Identifier: Apache-2.0
"""What a judge prefers, as an evaluation: the answers of one evaluation against those of another, so that they compare,
are drawn and are read as any evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from foundling.contracts.records import EvaluationRecord, Item, Result
from foundling.errors import MismatchError
from foundling.evaluate.compare import without_seed
from foundling.evaluate.judge import UNREAD, Compared, win_rate

SCORES = {"a": 1.0, "tie": 0.5, "b": 0.0}


class Pair(NamedTuple):
    """Two answers to one item."""

    task: str
    id: str
    prompt: str
    a: str
    b: str


def pairs_of(a: EvaluationRecord, b: EvaluationRecord, limit: int | None = None) -> list[Pair]:
    """Of the items with generated answers that both have; of each task those among its first `limit` items.
    MismatchError where the prompts of an item differ, and where there is no pair."""
    pairs = []
    for task in a.items:
        others = {item["id"]: item for item in b.items.get(task, [])}
        for item in a.items[task][:limit]:
            other = others.get(item["id"])
            if other is None or "choices" in item:
                continue
            if other["prompt"] != item["prompt"]:
                raise MismatchError(
                    f"task {task!r}, item {item['id']!r}: the prompts differ; evaluate both on one task"
                )
            pairs.append(Pair(task, item["id"], item["prompt"], item["answer"], other["answer"]))
    if not pairs:
        raise MismatchError("the evaluations have no generated answers to the same items; evaluate both on one task")
    return pairs


def judged_record(
    a: EvaluationRecord,
    b: EvaluationRecord,
    pairs: Sequence[Pair],
    compared: Sequence[Compared],
    *,
    judge: str,
    hashes: Mapping[str, str],
    settings: Mapping[str, Any],
    command: str = "",
) -> EvaluationRecord:
    """An evaluation of a's subject: for each task the share of answers that are preferred to b's, a tie for a half.
    Pairs whose verdict could not be read have no score. A task that ran with several seeds stays one task of `compare`:
    its name still ends with the seed. `judge`, `hashes`: of the subject that judged; `settings`: what
    decides its verdicts beside it."""
    results, items = list[Result](), dict[str, list[Item]]()
    for task in dict.fromkeys(pair.task for pair in pairs):
        rows = [(pair, one) for pair, one in zip(pairs, compared, strict=True) if pair.task == task]
        read = [(pair, SCORES[one.winner]) for pair, one in rows if one.winner]
        if not read:
            continue
        base = without_seed(task)
        name = f"{base}, preferred to {b.subject}{task[len(base) :]}"
        rate = win_rate([one for _, one in rows])
        items[name] = [
            Item(id=pair.id, prompt=f"{pair.prompt}\n\n[{b.subject} answers]\n{pair.b}", target="", answer=pair.a,
                 score=score) for pair, score in read
        ]  # fmt: skip
        own = next((result.hashes for result in a.results if result.task == task), {})
        results.append(
            Result(
                name, "win rate", rate.value, rate.n, a.subject, rate.low, rate.high, rate.interval,
                scores=[score for _, score in read],
                hashes=_hashes(own, hashes, [(p.id, p.prompt, p.b) for p, _ in rows], settings),
                figures={"position bias": rate.position_bias[:3], UNREAD: (float(rate.unparsed), None, None)},
            )
        )  # fmt: skip
    unread = sum(one.winner is None for one in compared)
    notes = [f"{unread:,} of {len(pairs):,} pairs had a verdict that could not be read"] if unread else []
    return EvaluationRecord(
        a.subject, datetime.now(UTC).isoformat(timespec="seconds"), command, results, items,
        {"judge": judge, **settings}, about=dict(a.about), notes=notes,
    )  # fmt: skip


def _hashes(
    own: Mapping[str, str], judge: Mapping[str, str], items: list[tuple[str, str, str]], settings: Mapping[str, Any]
) -> dict[str, str]:
    """What has to be equal so that two such figures compare: items and the answers that they are preferred to, the
    judge and how it was asked, template and backend of judge and subject."""
    hashes = {"model": own["model"]} if "model" in own else {}
    if "model" in judge:
        hashes["judge"] = judge["model"]
    hashes |= {"task": _digest(items), "prompt": _digest(sorted(settings.items()))}
    for name in ("template", "backend"):
        parts = [own.get(name, ""), judge.get(name, "")]
        if any(parts):
            hashes[name] = _digest(parts) if name == "template" else "; judge: ".join(parts)
    return hashes


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=True).encode()).hexdigest()
