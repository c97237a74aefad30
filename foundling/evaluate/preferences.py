# SPDX-License-Identifier: Apache-2.0
"""Comparisons without people: answers to one prompt are scored by rewards, or by a model that judges pairs (RLAIF; Bai
et al. 2022, "Constitutional AI"; Lee et al. 2023, "RLAIF")."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from foundling.errors import DataError, FoundlingError
from foundling.evaluate.answers import PromptRow, Samples
from foundling.evaluate.judge import Compared, Judge, win_rate
from foundling.evaluate.ranking import MOST_OF_ALL_PAIRS, Pair, cycles, n_rounds, next_pairs, win_shares
from foundling.evaluate.rewards import Rewards
from foundling.evaluate.subject import GenerateRequest, LikelihoodRequest, Refusals, Subject
from foundling.limits import MAX_LINE_BYTES
from foundling.runtime.files import cut_torn_line, output_errors
from foundling.runtime.hub import local_directory

AT_ONCE = 64
"""pairs that a judge is given at once"""


def usable(samples: Samples, *, whole: bool = False) -> list[int]:
    """Places of the answers that can be compared: of equal ones the first, no empty one, with `whole` none that was cut
    at its length."""
    places, seen = list[int](), set[str]()
    for place, answer in enumerate(samples.answers):
        if answer.text.strip() and answer.text not in seen and not (whole and answer.cut):
            seen.add(answer.text)
            places.append(place)
    return places


# --- by rewards -------------------------------------------------------------------------------------------------------


def reward_all(
    rewards: Rewards, samples: Sequence[Samples], path: Path, about: str, on_prompt: Callable[[], None] = lambda: None
) -> list[list[float]]:
    """A reward for each answer, NaN for an empty one. Those that `path` has are not computed again; `about`: which
    rewards these are. The answers of a prompt are scored together, whatever else is, so that rounding is the same each
    time. DataError as Rewards, and for a damaged file."""
    recorded, scored = _read_rewards(path), list[list[float]]()
    with output_errors(path), open(path, "a", encoding="utf-8") as file:
        for one in samples:
            texts = list(dict.fromkeys(answer.text for answer in one.answers if answer.text.strip()))
            key = one.prompt.digest(about, one.prompt.fields, texts)
            if key not in recorded:
                recorded[key] = rewards([one.prompt.fields] * len(texts), texts) if texts else []
                file.write(json.dumps({"key": key, "rewards": recorded[key]}) + "\n")
                file.flush()
            of_text = dict(zip(texts, recorded[key], strict=True))
            scored.append([of_text.get(answer.text, math.nan) for answer in one.answers])
            on_prompt()
    return scored


def identity(rewards: Rewards) -> str:
    """Names and weights, and of a directory its files by size and time: a reward model that was trained anew is
    another one."""
    files = list[Any]()
    for part in rewards.parts:
        with suppress(FoundlingError, OSError):
            folder = local_directory(part.name)
            files += [(part.name, p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.iterdir())]
    return json.dumps([[(part.name, part.weight) for part in rewards.parts], files])


def _read_rewards(path: Path) -> dict[str, list[float]]:
    if path.exists():
        cut_torn_line(path, begin=b'{"key": ', what="reward", max_bytes=MAX_LINE_BYTES)
    recorded = dict[str, list[float]]()
    for number, line in enumerate(path.read_text("utf-8").splitlines() if path.exists() else [], 1):
        try:
            value = json.loads(line)
            recorded[value["key"]] = [float(one) for one in value["rewards"]]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}, line {number}: no recorded rewards; remove the line") from None
    return recorded


# --- by a judge -------------------------------------------------------------------------------------------------------


@dataclass
class Metered(Refusals):
    """A subject whose answers are counted, recorded ones as well: what all of them cost. `alone`: log-probabilities of
    one prompt at a time, for a model that is computed here, whose rounding depends on what else is in a batch."""

    subject: Subject
    alone: bool = False
    n_requests: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0

    def __post_init__(self) -> None:
        self.name = self.subject.name

    @property
    def hashes(self) -> dict[str, str]:
        return self.subject.hashes

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, Any]]:
        for index, answer in self.subject.generate(requests):
            self._count(answer.n_prompt, answer.n_tokens)
            yield index, answer

    def loglikelihood(self, requests: Sequence[LikelihoodRequest]) -> Iterator[tuple[int, Any]]:
        groups = [range(len(requests))]
        if self.alone:
            groups = [list(group) for _, group in groupby(groups[0], key=lambda i: requests[i].prompt)]
        for group in groups:
            for place, answer in self.subject.loglikelihood([requests[i] for i in group]):
                self._count(answer.n_prompt + answer.n_tokens, 0)
                yield group[place], answer

    def _count(self, n_prompt: int, n_new: int) -> None:
        self.n_requests += 1
        self.prompt_tokens += n_prompt
        self.new_tokens += n_new


@dataclass(frozen=True)
class PairJudge:
    """A judge of pairs, each in both orders. `constitution`: principles in place of the judge's criteria, all at once,
    or with `draw` one for each pair, drawn by `seed` and the pair (Bai et al. 2022, section 4.1)."""

    judge: Judge
    constitution: Sequence[str] = ()
    draw: bool = False
    seed: int = 0

    def criteria(self, prompt: PromptRow, a: str, b: str) -> str:
        if not self.constitution:
            return self.judge.criteria
        if self.draw:
            number = int(prompt.digest(self.seed, *sorted((a, b)))[:15], 16) % len(self.constitution)
            return f"Judge by this principle alone: {self.constitution[number]}"
        return "Judge by these principles:\n" + "\n".join(f"- {text}" for text in self.constitution) + "\n"

    def compare(self, pairs: Sequence[tuple[PromptRow, str, str]], on_pair: Callable[[], None]) -> list[Compared]:
        """Verdicts on the pairs, in their order."""
        verdicts = dict[int, Compared]()
        for start in range(0, len(pairs), AT_ONCE):
            groups = dict[str, list[int]]()
            for i in range(start, min(start + AT_ONCE, len(pairs))):
                groups.setdefault(self.criteria(*pairs[i]), []).append(i)
            for criteria, places in groups.items():
                texts = [(pairs[i][0].text, *pairs[i][1:]) for i in places]
                verdicts |= zip(places, replace(self.judge, criteria=criteria).compare_all(texts), strict=True)
                for _ in places:
                    on_pair()
        return [verdicts[i] for i in range(len(pairs))]

    def share(self, one: Compared) -> float:
        """How much of the win the first answer of a pair has. Of written verdicts ½ where the two orders contradict or
        one cannot be read; of log-probabilities σ of the mean of both orders' log-odds, from which a preference for a
        place cancels out."""
        if one.margin is not None:
            return 1 / (1 + math.exp(-max(-700.0, min(700.0, one.margin))))
        return {"a": 1.0, "b": 0.0}.get(one.winner or "", 0.5)


@dataclass
class Judged:
    sizes: list[int]
    """texts of each prompt"""
    outcomes: list[dict[Pair, float]]
    """of each prompt, by number among its texts"""
    pairs: list[tuple[int, Pair, Compared]] = field(default_factory=list)
    """(prompt, pair, verdict), in the order in which they were asked"""

    @property
    def shares(self) -> list[list[float]]:
        """By which the texts of each prompt are ranked."""
        return [win_shares(n, outcomes) for n, outcomes in zip(self.sizes, self.outcomes, strict=True)]


def judge_all(
    judge: PairJudge, groups: Sequence[tuple[PromptRow, Sequence[str]]], on_pair: Callable[[], None] = lambda: None
) -> Judged:
    """A tournament among the texts of each prompt (ranking.next_pairs); a round of all prompts together."""
    judged = Judged([len(texts) for _, texts in groups], [{} for _ in groups])
    for number in range(max(map(n_rounds, judged.sizes), default=0)):
        todo = [(i, pair) for i, n in enumerate(judged.sizes) if number < n_rounds(n)
                for pair in next_pairs(n, judged.outcomes[i], judge.seed)]  # fmt: skip
        pairs = [(groups[i][0], groups[i][1][a], groups[i][1][b]) for i, (a, b) in todo]
        for (i, pair), one in zip(todo, judge.compare(pairs, on_pair), strict=True):
            judged.outcomes[i][pair] = judge.share(one)
            judged.pairs.append((i, pair, one))
    return judged


def judge_figures(judge: PairJudge, judged: Judged, others: Sequence[Compared], meter: Metered) -> dict[str, Any]:
    """What a reader has to know of the judge, over its verdicts in the tournaments and the `others`. DataError where
    none could be read."""
    cost = {"requests": meter.n_requests, "prompt_tokens": meter.prompt_tokens, "new_tokens": meter.new_tokens}
    compared = [*(one for _, _, one in judged.pairs), *others]
    if not compared:
        return {"name": meter.name, "pairs": 0, "cost": cost}
    rate = win_rate(compared)
    if rate.value is None:
        raise DataError(
            f"{meter.name}: none of {len(compared):,} verdicts could be read; use --logprobs, or another judge (what "
            "it wrote is in verdicts.jsonl)"
        )
    in_cycles = [
        len(cycle) > 1 for n, outcomes in zip(judged.sizes, judged.outcomes, strict=True) if n <= MOST_OF_ALL_PAIRS
        for cycle in cycles(n, outcomes)
    ]  # fmt: skip
    return {
        "name": meter.name, "pairs": len(compared),
        "ties": sum(judge.share(one) == 0.5 for one in compared if one.winner), "unread": rate.unparsed,
        "contradicted": sum(one.verdicts[0] == one.verdicts[1] in ("A", "B") for one in compared),
        "in_cycles": sum(in_cycles), "position_bias": rate.position_bias._asdict(), "attacks": rate.attacks,
        "attacks_won": rate.attacks_won, "cost": cost,
    }  # fmt: skip
