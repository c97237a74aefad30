# SPDX-License-Identifier: Apache-2.0
"""Generation in its plainest form: prefill, then one step at a time with a cache. The oracle of the faster paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from foundling.blocks.position import short_limit
from foundling.decode.beam import beam_search
from foundling.decode.processors import LogitsProcessor
from foundling.decode.prompts import add_prompt_logprobs, prefill
from foundling.decode.request import (
    Completion,
    Request,
    build_requests,
    build_sampling,
    check_generates,
    check_request,
)  # fmt: skip
from foundling.decode.sampling import Sampling
from foundling.decode.sequence_state import SequenceState, choose_next_tokens
from foundling.decode.speculative import DraftModelProposer, DraftProposer, speculate
from foundling.errors import GenerationError
from foundling.limits import BEAMS, DRAFT_TOKENS, check_number
from foundling.runtime.mode import evaluation_mode


@torch.inference_mode()
def generate(
    model: Any,
    tokens: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    n: int = 1,
    stop: Sequence[int] = (),
    stop_tokens: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    decode: Callable[[list[int]], str] | None = None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    processors: Sequence[LogitsProcessor] = (),
    beams: int = 1,
    length_penalty: float = 1.0,
    draft: Any = None,
    draft_tokens: int = 4,
    on_token: Callable[[list[int]], None] | None = None,
    **sampling_fields: Any,
) -> list[Completion]:
    """Continues each prompt in `tokens` by up to `max_tokens` ids, without the stop id. For an encoder-decoder the
    prompts are its source. Options not described here are those of `Request`. Sampling is either `sampling` or its
    fields by name (temperature, top_k, …).

    `n` completions per prompt, prefilled once: completion j of prompt i is row r = i·n + j, and draws by
    sample_seed(seed, r). `beams` above 1 searches for likely completions instead of sampling (decode/beam.py) and
    returns the n best. `draft`, a smaller model of the same vocabulary or a `DraftProposer`, proposes `draft_tokens` at
    a time; the distribution is unchanged (decode/speculative.py). `on_token` is called at each step with the new id of
    every row, −1 for a finished row. The model runs in evaluation mode, and is left in the mode that it was in.
    Raises GenerationError for an empty prompt, values that are invalid or exclude each other, ids outside the
    vocabulary, or more tokens than the model's max_seq_len.
    """
    check_generates(model)
    requests = build_requests(
        tokens, n, seed, build_sampling(sampling, sampling_fields), max_tokens=max_tokens, stop=stop, decode=decode,
        stop_tokens=stop_tokens, stop_strings=stop_strings, logprobs=logprobs, prompt_logprobs=prompt_logprobs,
        processors=processors,
    )  # fmt: skip
    for request in requests:
        _check_plain(model, request, rereads=beams == 1 and draft is None)
    DRAFT_TOKENS.check(draft_tokens, "draft_tokens", GenerationError)
    _check_beams(requests[0], beams, n, length_penalty, draft is not None or on_token is not None)
    if on_token and draft is not None:
        raise GenerationError("on_token receives one token per step, a draft proposes several: omit one of them")
    sequences = _begin(model, requests)
    proposer = draft if draft is None or isinstance(draft, DraftProposer) else DraftModelProposer(model, draft)
    with evaluation_mode(model, *([proposer.draft_model] if isinstance(proposer, DraftModelProposer) else ())):
        if beams != 1:
            best = beam_search(model, tokens, max_tokens, beams, n, stop, length_penalty)
            return [Completion(row, "length" if len(row) == max_tokens else "end") for row in best]
        if prompt_logprobs is not None:
            for sequence in sequences:
                add_prompt_logprobs(model, sequence.request.prompt, prompt_logprobs, sequence.completion)
        if proposer is not None:
            speculate(model, proposer, sequences, draft_tokens)
        else:
            _step_to_end(model, tokens, n, sequences, max_tokens, on_token)
    return [s.completion for s in sequences]


@torch.inference_mode()
def complete(model: Any, requests: Sequence[Request]) -> list[Completion]:
    """Requests of different prompts and options as one batch; what `Engine.generate` gives for each."""
    check_generates(model)
    for request in requests:
        check_request(model, request, rereads=True)
    sequences = _begin(model, requests)
    with evaluation_mode(model):
        _step_to_end(model, [r.prompt for r in requests], 1, sequences, max(r.max_tokens for r in requests), None)
    return [s.completion for s in sequences]


def _begin(model: Any, requests: Sequence[Request]) -> list[SequenceState]:
    start = [model.config.start_id] if model.capabilities.reads_source else None
    return [SequenceState(request, start) for request in requests]


def _step_to_end(
    model: Any,
    prompts: Sequence[Sequence[int]],
    n: int,
    sequences: list[SequenceState],
    max_tokens: int,
    on_token: Callable[[list[int]], None] | None,
) -> None:
    """One token per step for every unfinished sequence; finished rows leave the cache. Where longrope scaling begins to
    rotate a text as a long one, the texts are read again: a cache holds the rotations of a short one."""
    short = short_limit(model)
    cache, last = prefill(model, prompts, max_tokens)
    if n > 1:
        rows = torch.arange(len(prompts), device=last.device).repeat_interleave(n)
        cache, last = cache.select(rows), last[rows]
    active = list(range(len(sequences)))  # row of the cache → index of its sequence
    while True:
        logits = model.logits(last).float()
        chosen = choose_next_tokens([sequences[i] for i in active], logits)
        if on_token:
            new = dict(zip(active, chosen, strict=True))
            on_token([new.get(i, -1) for i in range(len(sequences))])
        for i, token, row in zip(active, chosen, logits, strict=True):
            sequences[i].append_token(token, row)
        unfinished = [row for row, i in enumerate(active) if not sequences[i].finished]
        if not unfinished:
            return
        if len(unfinished) < len(active):
            cache = cache.select(torch.tensor(unfinished, device=last.device))
            active, chosen = [active[row] for row in unfinished], [chosen[row] for row in unfinished]
        texts = [[*sequences[i].request.prompt, *sequences[i].completion.tokens] for i in active] if short else []
        if any(len(text) - 1 == short for text in texts):
            cache, last = prefill(model, texts, max_tokens - len(sequences[active[0]].completion.tokens))
            continue
        last = model(torch.tensor(chosen, device=last.device)[:, None], cache=cache).hidden[:, -1]


def _check_plain(model: Any, request: Request, *, rereads: bool) -> None:
    check_request(model, request, rereads=rereads)
    if request.prompt_logprobs is not None and model.capabilities.reads_source:
        raise GenerationError("an encoder-decoder does not predict its source: omit prompt_logprobs")


def _check_beams(request: Request, beams: int, n: int, length_penalty: float, drafts_or_streams: bool) -> None:
    BEAMS.check(beams, "beams", GenerationError)
    check_number(length_penalty, "length_penalty", -100, 100, GenerationError)
    if beams == 1:
        return
    samples = request.sampling not in (Sampling(), Sampling(temperature=0))
    if drafts_or_streams or samples or request.processors or request.stop_strings or request.stop_tokens:
        raise GenerationError(
            "beam search does not sample: omit sampling options, processors, stop_strings, stop_tokens, draft and "
            "on_token"
        )
    if request.logprobs is not None or request.prompt_logprobs is not None:
        raise GenerationError("beam search scores whole completions: omit logprobs and prompt_logprobs")
    if n > beams:
        raise GenerationError(f"n is {n} with {beams} beams; request at most {beams}")
