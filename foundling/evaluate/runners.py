# SPDX-License-Identifier: Apache-2.0
"""Run a task: by the log-probabilities of given continuations, by generation, or over texts that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from foundling.contracts.records import Result
from foundling.decode import plain
from foundling.decode.prompts import pad_prompts
from foundling.decode.request import Completion, Request, build_sampling, sample_seed
from foundling.errors import ConfigError, DataError, GenerationError
from foundling.evaluate.intervals import interval_of
from foundling.evaluate.task import Continuation, GeneratedText, Task
from foundling.text import Tokenizer
from foundling.text.framing import Framing
from foundling.weights.directory import weights_hash
from foundling.weights.text_spec import text_spec

BATCH_SIZE = 64
_LOGIT_ROWS = 256  # positions whose logits are held at once


def loglikelihood(
    model: Any,
    text: Framing | Tokenizer,
    task: Task[Any],
    *,
    batch_size: int = BATCH_SIZE,
    subject: str = "model",
    model_hash: str | None = None,
) -> Result:
    """Scores each example by the log-probabilities of its continuations, given its prompt.

    Prompt and continuation are tokenized together; from the first token that differs from the prompt's own, all count,
    so that no character of the continuation goes uncounted where a token spans the border. `model_hash` saves hashing
    the weights. Raises ConfigError for a task without continuations, GenerationError for a model that does not predict
    the next token, DataError for an example that is longer than the model reads.
    """
    if task.continuations is None:
        raise ConfigError(f"task {task.name!r} has no continuations to compare; give them, or run it by generation")
    framing = frame(model, text)
    texts = [list(task.continuations(example)) for example in task.examples]
    pairs = [
        encode_pair(framing, task.prompt(example), option)
        for example, options in zip(task.examples, texts, strict=True)
        for option in options
    ]
    found = iter(continuation_logprobs(model, pairs, batch_size=batch_size))
    scores = []
    for example, options in zip(task.examples, texts, strict=True):
        answers = [Continuation(text, sum(logprobs := next(found)), len(logprobs)) for text in options]
        scores.append(float(task.score(example, answers)))
    return result_of(task, scores, subject, model_hash or weights_hash(model), loglikelihood)


def generate(
    model: Any,
    text: Framing | Tokenizer,
    task: Task[Any],
    *,
    max_tokens: int,
    seed: int = 0,
    stop_strings: Sequence[str] = (),
    batch_size: int = BATCH_SIZE,
    subject: str = "model",
    model_hash: str | None = None,
    **sampling: Any,
) -> Result:
    """Scores what the model generates for each example's prompt. `sampling`: fields of decode's Sampling; by default
    the likeliest token is taken (temperature 0)."""
    answers = complete(
        model,
        text,
        [task.prompt(example) for example in task.examples],
        max_tokens=max_tokens,
        seed=seed,
        stop_strings=stop_strings,
        batch_size=batch_size,
        **({"temperature": 0.0} | sampling),
    )
    return judge(task, answers, subject=subject, model_hash=model_hash or weights_hash(model))


def judge(
    task: Task[Any], answers: Sequence[GeneratedText], *, subject: str = "model", model_hash: str | None = None
) -> Result:
    """Scores texts that are there already, one an example, whoever wrote them."""
    if len(answers) != len(task.examples):
        raise DataError(f"task {task.name!r} has {len(task.examples)} examples and got {len(answers)} answers")
    scores = [float(task.score(example, answer)) for example, answer in zip(task.examples, answers, strict=True)]
    return result_of(task, scores, subject, model_hash, judge)


def complete(
    model: Any,
    text: Framing | Tokenizer,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    seed: int = 0,
    stop_strings: Sequence[str] = (),
    batch_size: int = BATCH_SIZE,
    **sampling: Any,
) -> list[GeneratedText]:
    """A text for each prompt, until an end that the model or its tokenizer declares. Prompt i draws by
    sample_seed(seed, i), whatever the batch."""
    framing = frame(model, text)
    values = build_sampling(None, sampling)
    never = dict.fromkeys(framing.unnamed_rows(), float("-inf"))
    values = replace(values, logit_bias=never | dict(values.logit_bias))
    stop = (*framing.ends, *framing.stops(stop_strings))
    requests = [
        Request(ids, max_tokens, values, sample_seed(seed, i), stop, stop_strings, framing.answer(ids))
        for i, ids in enumerate(map(framing.prompt, prompts))
    ]
    answers = list[Completion]()
    with torch.compiler.set_stance("force_eager"):
        for start in range(0, len(requests), batch_size):
            answers += plain.complete(model, requests[start : start + batch_size])
    return [GeneratedText(answer.text or "", answer.finish_reason == "length") for answer in answers]


def frame(model: Any, text: Framing | Tokenizer) -> Framing:
    """How this model's texts are framed: as its directory says, or by the tokenizer alone."""
    return text if isinstance(text, Framing) else Framing(text, text_spec(model))


def encode_pair(framing: Framing, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
    """The ids of the prompt and those that count. GenerationError where nothing stands before the first that counts."""
    if framing.spec.reads_source:
        return framing.prompt(prompt), framing.tokenizer.encode(continuation)
    before, whole = framing.beginning(prompt), framing.beginning(prompt + continuation)
    same = next((i for i, (a, b) in enumerate(zip(before, whole)) if a != b), min(len(before), len(whole)))
    if not same:
        raise GenerationError("the prompt is empty and the tokenizer has no opening token; give a prompt")
    return whole[:same], whole[same:]


@torch.inference_mode()
def continuation_logprobs(
    model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_size: int = BATCH_SIZE
) -> list[list[float]]:
    """Of each (prompt, continuation) in ids, ln p of every token of the continuation given all before it."""
    can = model.capabilities
    if not can.generates:
        raise GenerationError(
            f"{type(model).__name__} does not predict the next token; see evaluate.perplexity.pseudo_perplexity"
        )
    rows = [([], [model.config.start_id, *after]) if can.reads_source else (list(before), list(after))
            for before, after in pairs]  # fmt: skip
    for before, after in rows:
        if len(before) + len(after) - 1 > model.config.max_seq_len:
            raise DataError(
                f"an example takes {len(before) + len(after) - 1} tokens, the model reads at most "
                f"{model.config.max_seq_len}; shorten its prompt"
            )
    found: list[list[float]] = [[] for _ in pairs]
    order = sorted(range(len(pairs)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    model.eval()
    with torch.compiler.set_stance("force_eager"):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            sources = [pairs[i][0] for i in chosen] if can.reads_source else None
            for i, logprobs in zip(chosen, _batch_logprobs(model, [rows[i] for i in chosen], sources), strict=True):
                found[i] = logprobs
    return found


def _batch_logprobs(
    model: Any, rows: Sequence[tuple[list[int], list[int]]], sources: Sequence[Sequence[int]] | None
) -> list[list[float]]:
    """rows: (what stands before, what counts); where there are sources, the first that "counts" is the start id."""
    device = next(model.parameters()).device
    ids, documents = pad_prompts([[*before, *after][:-1] for before, after in rows], device)
    if sources is None:
        hidden, first = model(ids, documents=documents).hidden, [len(before) for before, _ in rows]
    else:
        read, source_documents = pad_prompts(sources, device)
        memory = model.encode(read, documents=source_documents)
        hidden, first = model(ids, documents=documents, memory=memory).hidden, [1] * len(rows)
    targets = [[*before, *after][at:] for (before, after), at in zip(rows, first, strict=True)]
    counted = torch.cat([hidden[row, at - 1 : at - 1 + len(t)]
                         for row, (at, t) in enumerate(zip(first, targets, strict=True))])  # fmt: skip
    wanted = torch.tensor([token for t in targets for token in t], device=device, dtype=torch.int64)
    logprobs = torch.cat([
        model.logits(part).float().log_softmax(-1).gather(-1, of[:, None])[:, 0]
        for part, of in zip(counted.split(_LOGIT_ROWS), wanted.split(_LOGIT_ROWS), strict=True)
    ]).tolist()  # fmt: skip
    ends = torch.tensor([len(t) for t in targets]).cumsum(0).tolist()
    return [logprobs[end - len(t) : end] for end, t in zip(ends, targets, strict=True)]


def result_of(task: Task[Any], scores: list[float], subject: str, model_hash: str | None, runner: Any) -> Result:
    low, high, method = interval_of(scores)
    return Result(
        task=task.name,
        metric=task.metric,
        value=sum(scores) / len(scores) if scores else None,
        n=len(scores),
        subject=subject,
        low=low,
        high=high,
        interval=method,
        lower_is_better=task.lower_is_better,
        scores=scores,
        hashes={**({"model": model_hash} if model_hash else {}), **task.hashes(runner)},
    )
