# SPDX-License-Identifier: Apache-2.0
"""The state of one completion in progress. Plain decoding, speculation and the engine share it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from foundling.decode.detokenize import incremental_decoder
from foundling.decode.processors import ForcingState, LogitsProcessorState, build_processors
from foundling.decode.request import Completion, FinishReason, Request
from foundling.decode.sampling import choose_tokens
from foundling.errors import GenerationError


class SequenceState:
    """Holds the completion so far and the states of its logits processors, and decides when it is finished."""

    def __init__(self, request: Request, context: Sequence[int] | None = None) -> None:
        """`context`: the ids before the completion where they are not the prompt (an encoder-decoder's start id)."""
        self.request, self.completion = request, Completion([])
        before = request.prompt if context is None else context
        processors = [*build_processors(request.sampling), *request.processors]
        self.processor_states: list[LogitsProcessorState] = [processor.start(before) for processor in processors]
        self.n_logits = 0
        """of the model's rows; known after the first token"""
        self.forcing = [state for state in self.processor_states if isinstance(state, ForcingState)]
        self.params = request.sampling.params
        if request.logprobs is not None:
            self.completion.logprobs, self.completion.top_logprobs = [], []
        if request.stop_strings:
            assert request.decode is not None
            self.completion.text, self.decoder = "", incremental_decoder(request.decode)
            self.overlap = max(map(len, request.stop_strings))

    @property
    def position(self) -> int:
        """The number of tokens in the completion, which is the index of the next one."""
        return len(self.completion.tokens)

    @property
    def finished(self) -> bool:
        return self.completion.finish_reason is not None

    def process_logits(self, logits: Tensor) -> Tensor:
        """(V,) float32 → (V,), after all processors."""
        for state in self.processor_states:
            logits = state.apply(logits)
        return logits

    def append_token(self, token: int, logits: Tensor | None) -> None:
        """Appends the token drawn after the model's `logits` (V,), or finishes if it is a stop id. None for a token
        that is forced, where the request wants no log-probabilities."""
        request, completion = self.request, self.completion
        if token in request.stop or token in request.stop_tokens:
            if request.logprobs is not None:
                assert logits is not None
                completion.end = (token, *token_logprobs(logits[None], [token], request.logprobs)[0])
            self.finish("end" if token in request.stop else "stop")
            return
        completion.tokens.append(token)
        self.n_logits = self.n_logits if logits is None else len(logits)
        for state in self.processor_states:
            state.accept(token)
        if request.logprobs is not None:
            assert logits is not None
            ((logprob, top),) = token_logprobs(logits[None], [token], request.logprobs)
            completion.logprobs.append(logprob)  # pyright: ignore
            completion.top_logprobs.append(top)  # pyright: ignore
        if request.stop_strings:
            self._check_stop_strings(token)
        if not self.finished and any(state.complete() for state in self.forcing):
            self.finish("end")
        if not self.finished and len(completion.tokens) == request.max_tokens:
            self.finish("length")

    def append_forced_tokens(self) -> None:
        """Appends the tokens that a processor forces, which would be drawn whatever the logits are. None where the
        request wants log-probabilities, which need the logits."""
        if self.request.logprobs is not None:
            return
        for state in self.forcing:
            while not self.finished and (tokens := state.forced()):
                for token in tokens:
                    if self.finished or not self._allows(token):
                        return
                    self.append_token(token, None)

    def _allows(self, token: int) -> bool:
        """Whether no other processor forbids a token that one forces."""
        if len(self.processor_states) == 1:
            return True
        others = torch.zeros(self.n_logits)
        for state in self.processor_states:
            if state not in self.forcing:
                others = state.apply(others)
        return bool(others[token] > -math.inf)

    def finish(self, reason: FinishReason, *, cuts_text: bool = False) -> None:
        """`cuts_text`: `Completion.text` is what it is, shorter than that of its tokens."""
        self.completion.finish_reason = reason
        if self.request.decode is not None and not cuts_text:
            self.completion.text = self.request.decode(self.completion.tokens)

    def _check_stop_strings(self, token: int) -> None:
        """A string may span tokens, and a token may contain more than the end of the string."""
        previous = len(self.completion.text or "")
        self.completion.text = text = self.decoder.append(token)
        # an incomplete character decodes to U+FFFD, which the next token may replace: search a little further back
        start = max(0, previous - self.overlap - 8)
        matches = [at for s in self.request.stop_strings if (at := text.find(s, start)) >= 0]
        if matches:
            self.completion.text = text[: min(matches)]
            self.finish("stop", cuts_text=True)


def token_logprobs(logits: Tensor, tokens: Sequence[int], n_top: int) -> list[tuple[float, dict[int, float]]]:
    """(n, V) logits and the n tokens that followed → each token's log-probability and the n_top most likely ids. A
    virtual token of a soft prompt is never predicted: −∞."""
    # log_softmax adds up so many float32 numbers that it is off by some 1e-5 on a CPU, always to one side
    logprobs = logits.float() - logits.float().logsumexp(-1, keepdim=True)
    at, last = torch.tensor(tokens, device=logits.device)[:, None], logits.shape[-1] - 1
    chosen = logprobs.gather(-1, at.clamp_max(last)).masked_fill(at > last, -math.inf)[:, 0].tolist()
    values, ids = logprobs.topk(min(n_top, logits.shape[-1]), dim=-1)
    top = [dict(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
    return list(zip(chosen, top, strict=True))


def choose_next_tokens(sequences: Sequence[SequenceState], logits: Tensor) -> list[int]:
    """(B, V) logits, one row per sequence → one token each, after processors and sampling. Does not append them."""
    logits = process_logits(sequences, logits.float())
    return choose_tokens(
        logits,
        [s.params for s in sequences],
        [s.request.seed for s in sequences],
        [s.position for s in sequences],
    )


def process_logits(sequences: Sequence[SequenceState], logits: Tensor) -> Tensor:
    """(B, V) float32 → (B, V) after each row's processors. Raises GenerationError where they forbid every token."""
    if not any(s.processor_states for s in sequences):
        return logits
    logits = torch.stack([s.process_logits(row) for s, row in zip(sequences, logits, strict=True)])
    if bool(torch.isneginf(logits.amax(-1)).any()):
        raise GenerationError("every token is forbidden here: constraints, bad_words and logit_bias exclude each other")
    return logits
