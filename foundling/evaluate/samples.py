# SPDX-License-Identifier: Apache-2.0
"""Free samples of a model, and what tasks make of them beside an n-gram model's and held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from foundling.contracts.records import Result
from foundling.decode.engine.engine import EngineOptions
from foundling.decode.request import sample_seed
from foundling.evaluate.baselines.ngram import ByteNGram
from foundling.evaluate.local import LocalModel
from foundling.evaluate.runners import judge
from foundling.evaluate.subject import Decoding, GeneratedText, GenerateRequest
from foundling.evaluate.task import Task
from foundling.evaluate.tasks import N_SAMPLES


def sample_texts(
    model: Any,
    tokenizer: Any,
    *,
    max_tokens: int,
    n: int = N_SAMPLES,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[GeneratedText]:
    """n texts that begin with the tokenizer's opening token alone, in one batch; each draws by a seed of its own."""
    subject = LocalModel(model, tokenizer, engine=EngineOptions(native=False, max_num_seqs=n), model_hash="")
    decoding = Decoding(max_tokens=max_tokens, temperature=temperature, top_p=top_p)
    requests = [GenerateRequest("", replace(decoding, seed=sample_seed(seed, i))) for i in range(n)]
    return [text for _, text in sorted(subject.generate(requests))]


def ngram_texts(ngram: ByteNGram, samples: Sequence[GeneratedText], temperature: float = 1.0) -> list[GeneratedText]:
    """A text of the n-gram model for each sample, of at most its length in bytes; sample i draws by seed i."""
    texts = []
    for i, n_bytes in enumerate(_lengths(samples)):
        drawn = ngram.sample(i, n_bytes, temperature)
        texts.append(GeneratedText(drawn.decode(errors="replace"), cut=len(drawn) >= n_bytes))
    return texts


def held_out_texts(documents: Sequence[str], samples: Sequence[GeneratedText]) -> list[GeneratedText]:
    """The beginning of a held-out document for each sample, cut to its length in bytes."""
    return [
        GeneratedText(documents[i % len(documents)].encode()[:n_bytes].decode(errors="ignore"), cut=True)
        for i, n_bytes in enumerate(_lengths(samples))
    ]


def judge_samples(
    tasks: Sequence[Task[Any]],
    samples: Sequence[GeneratedText],
    *,
    ngram: ByteNGram | None = None,
    held_out: Sequence[str] = (),
    temperature: float = 1.0,
    model_hash: str | None = None,
) -> list[Result]:
    """What each task makes of the samples and, at the same lengths, of texts of the n-gram model and of held-out
    documents: a Result for each task and subject ("model", "ngram", "held_out")."""
    if not tasks:
        return []
    subjects = {"model": list(samples)}
    if ngram is not None:
        subjects["ngram"] = ngram_texts(ngram, samples, temperature)
    if held_out:
        subjects["held_out"] = held_out_texts(held_out, samples)
    return [
        judge(task, texts, subject=subject, model_hash=model_hash if subject == "model" else None)
        for task in tasks
        for subject, texts in subjects.items()
    ]


def _lengths(samples: Sequence[GeneratedText]) -> list[int]:
    return [max(1, len(sample.text.encode())) for sample in samples]
