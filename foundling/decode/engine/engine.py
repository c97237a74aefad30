# SPDX-License-Identifier: Apache-2.0
"""The engine: requests come and go between steps, and every step computes for all of them at once."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foundling.blocks.position import short_limit
from foundling.decode.engine.block_manager import BlockManager, count_blocks
from foundling.decode.engine.native_runner import NativeRunner, block_bytes
from foundling.decode.engine.scheduler import ScheduledChunk, Scheduler, Sequence
from foundling.decode.engine.torch_runner import BLOCK_SIZE, TorchRunner
from foundling.decode.native.build import NativeUnavailable, is_built
from foundling.decode.native.decoder import DecoderProgram, unsupported_reason
from foundling.decode.native.program import FORMS
from foundling.decode.request import Completion, Request, check_generates, check_request
from foundling.decode.sequence_state import SequenceState, choose_next_tokens, token_logprobs
from foundling.decode.speculative import Draft, PromptLookupProposer, verify_draft
from foundling.errors import GenerationError
from foundling.limits import CACHE_BYTES, LOOKUP, SEQUENCES, STEP_TOKENS, shown
from foundling.runtime.mode import evaluation_mode

logger = logging.getLogger("foundling")
NOT_BUILT = "native code is not built for this machine yet"
_announced = set[str]()


@dataclass(frozen=True)
class EngineOptions:
    """`native`: True uses native code, and compiles it if need be; False uses torch; None uses native code where it is
    built already, else torch. `weights`: the type of native weights ('float32', 'bfloat16', 'int8', 'int4'), which
    compiles native code too; None keeps the model's own type. `deterministic`: the same seed gives the same tokens,
    whatever else is in the batch. Native code is so anyway, at no cost; torch, whose rounding depends on shapes, then
    serves one request at a time. `lookup`: how many tokens ahead to propose by prompt lookup."""

    weights: str | None = None
    native: bool | None = None
    deterministic: bool = False
    max_num_seqs: int = 32
    """sequences running at once"""
    max_step_tokens: int = 256
    """tokens computed in one step; a longer prompt is prefilled in chunks"""
    memory: int = 1 << 30
    """bytes for keys and values; saved states of recurrent families take up to a quarter more"""
    share_prefixes: bool = True
    lookup: int = 0

    def __post_init__(self) -> None:
        if self.weights is not None and self.weights not in FORMS:
            raise GenerationError(f"weights '{self.weights}' are unknown; use {', '.join(FORMS)}")
        for name, limit in (("max_num_seqs", SEQUENCES), ("max_step_tokens", STEP_TOKENS), ("memory", CACHE_BYTES),
                            ("lookup", LOOKUP)):  # fmt: skip
            limit.check(getattr(self, name), name, GenerationError)
        if self.max_step_tokens < self.max_num_seqs:
            raise GenerationError(
                f"max_num_seqs is {self.max_num_seqs}, max_step_tokens {self.max_step_tokens}; expected at least one "
                "sequence, and one token per step for each"
            )


class RequestOutput(NamedTuple):
    """What a step did for one request."""

    request_id: int
    new_tokens: list[int]
    completion: Completion | None
    """once it has finished"""


class Engine:
    """`add` requests and `step` while the engine is `busy`; `cancel` at any time between steps."""

    def __init__(self, model: Any, options: EngineOptions | None = None) -> None:
        """Raises GenerationError for options that this model or machine cannot serve."""
        check_generates(model)
        self.model, self.options = model, options or EngineOptions()
        self.reads_source = model.capabilities.reads_source
        self.request_ids = itertools.count()
        self.active: dict[int, tuple[SequenceState, Sequence]] = {}
        self.pending_outputs: list[RequestOutput] = []
        runner = self._native_runner()
        self.native = runner is not None
        if runner is None:
            if self.options.weights not in (None, _weights_of(model)):
                raise GenerationError(f"weights '{self.options.weights}' need native code: {self.reason}")
            n_blocks = self._count_blocks(TorchRunner.block_bytes(model))
            runner = TorchRunner(model, n_blocks, self.options.max_num_seqs, self.options.memory // 4)
        self.runner: NativeRunner | TorchRunner = runner
        one_at_a_time = self.options.deterministic and not self.native
        share = self.options.share_prefixes and not (one_at_a_time or self.reads_source)
        count_resumable = runner.count_resumable if isinstance(runner, TorchRunner) and runner.recurrent else None
        self.blocks = BlockManager(runner.n_blocks, runner.block_size)
        max_num_seqs = 1 if one_at_a_time else self.options.max_num_seqs
        self.scheduler = Scheduler(
            self.blocks, max_num_seqs, self.options.max_step_tokens, share=share, count_resumable=count_resumable
        )
        can_truncate = not runner.recurrent and not self.reads_source
        self.lookup = PromptLookupProposer() if self.options.lookup and can_truncate else None
        self.n_steps = self.n_proposed = self.n_accepted = 0

    def _native_runner(self) -> NativeRunner | None:
        """None where torch computes; `self.reason` then says why."""
        options, self.reason = self.options, ""
        if options.native is False:
            self.reason = "it is turned off"
            return None
        form: Any = options.weights or _weights_of(self.model)
        self.reason = unsupported_reason(self.model) or ("" if form in FORMS else f"it does not support {form}")
        if not self.reason:
            try:
                if not (options.native or options.weights or is_built()):
                    self.reason = NOT_BUILT
                    _announce_once(f"{NOT_BUILT}, the engine uses torch; EngineOptions(native=True) builds it, once")
                    return None
                program = DecoderProgram(self.model, form, options.max_step_tokens)
                return NativeRunner(program, self._count_blocks(block_bytes(self.model, form)))
            except NativeUnavailable as error:
                self.reason = str(error)
        if options.native:
            raise GenerationError(f"native code is not available: {self.reason}")
        return None

    def _count_blocks(self, block_bytes: int) -> int:
        """As many as memory allows, up to what all sequences could fill. For a family without keys a block takes no
        memory, and the engine counts its tokens in blocks all the same."""
        longest = count_blocks(min(self.model.config.max_seq_len, 1 << 20), BLOCK_SIZE) * self.options.max_num_seqs
        return min(longest, max(1, self.options.memory // max(1, block_bytes)))

    def add(self, request: Request) -> int:
        """Its request_id. Raises GenerationError for a request that the engine can never serve."""
        self._check(request)
        request_id = next(self.request_ids)
        # processors of the request may fail here: nothing is allocated for it yet
        state = SequenceState(request, [self.model.config.start_id] if self.reads_source else None)
        with torch.inference_mode(), evaluation_mode(self.model):
            tokens = self.runner.add_sequence(request_id, request.prompt, request.adapter)
        sequence = Sequence(request_id, tokens, cache_salt=(request.adapter or "").encode())
        if request.prompt_logprobs is not None:  # the whole prompt must be computed: share no blocks
            state.completion.prompt_logprobs, state.completion.prompt_top_logprobs = [None], [{}]
            sequence.cache_salt = b"\0alone %d" % request_id
        self.active[request_id] = (state, sequence)
        self.scheduler.add(sequence)
        return request_id

    def _check(self, request: Request) -> None:
        if not isinstance(request, Request):
            raise GenerationError(f"the request is {shown(request)}; expected a Request")
        check_request(self.model, request)
        if self.reads_source and request.prompt_logprobs is not None:
            raise GenerationError("an encoder-decoder does not predict its source: omit prompt_logprobs")
        short = short_limit(self.model)
        if short is not None and len(request.prompt) > short:
            raise GenerationError(
                f"the prompt is {len(request.prompt)} tokens; the engine reads a prompt in parts, and longrope scaling "
                f"rotates one of more than {short} as a whole: use generate(model, …)"
            )
        length = request.max_tokens + (1 if self.reads_source else len(request.prompt))
        needed = count_blocks(length, self.blocks.block_size)
        if needed > self.blocks.n_blocks:
            raise GenerationError(
                f"{length} tokens of prompt and completion need {needed} blocks, the engine has "
                f"{self.blocks.n_blocks}; give it more memory or request fewer tokens"
            )
        bank = getattr(self.model, "adapter_bank", None)
        if request.adapter is not None and request.adapter not in (bank.names if bank else ()):
            known = ", ".join(bank.names) if bank else "none: load some with load_adapters"
            raise GenerationError(f"adapter '{request.adapter}' is unknown; known adapters: {known}")

    def cancel(self, request_id: int) -> Completion | None:
        """Ends a request before the next step; its completion so far, or None if it had finished."""
        if request_id not in self.active:
            return None
        state, _ = self.active[request_id]
        self._remove(request_id)
        try:
            state.finish("cancelled")
        except Exception as error:  # the request's own `decode`
            _fail(state.completion, error)
        return state.completion

    @property
    def busy(self) -> bool:
        """Whether a step has something to compute or to return."""
        return bool(self.active or self.pending_outputs)

    def step(self) -> list[RequestOutput]:
        """Computes once for all active requests; their outputs, and those that a caller of `stream` left pending."""
        outputs, self.pending_outputs = self.pending_outputs, []
        return outputs + self._step()

    @torch.inference_mode()
    def _step(self) -> list[RequestOutput]:
        if self.lookup:
            self._propose_drafts(self.lookup)
        chunks = self.scheduler.schedule()
        if not chunks:
            assert not self.active, "a sequence waits and nothing can be scheduled"
            return []
        self.n_steps += 1
        for request_id, (_, sequence) in self.active.items():
            if not sequence.blocks:
                self.runner.release_state(request_id)
        n_logits = [self._count_logits(chunk) for chunk in chunks]
        with evaluation_mode(self.model):
            logits = self.runner.forward(chunks, n_logits).split(n_logits)
        sampled = [i for i, chunk in enumerate(chunks) if chunk.is_last and not chunk.sequence.n_draft]
        tokens = dict[int, int | Exception]()
        if sampled:
            states = [self.active[chunks[i].sequence.request_id][0] for i in sampled]
            with _single_thread(self.native):
                last = torch.cat([logits[i][-1:] for i in sampled])
                tokens = dict(zip(sampled, _choose_or_fail(states, last), strict=True))
        outputs = [self._update(chunk, logits[i], tokens.get(i)) for i, chunk in enumerate(chunks)]
        return [output for output in outputs if output is not None]

    def _count_logits(self, chunk: ScheduledChunk) -> int:
        """The last token and each draft token of a chunk need logits; all tokens do where the request asks for
        log-probabilities of its prompt."""
        request = self.active[chunk.sequence.request_id][0].request
        if request.prompt_logprobs is not None and chunk.start < len(request.prompt):
            return chunk.n_tokens
        return 1 + chunk.sequence.n_draft if chunk.is_last else 0

    def _propose_drafts(self, lookup: PromptLookupProposer) -> None:
        """Appends draft tokens to the decoding sequences, as far as the step's token budget allows."""
        budget = self.options.max_step_tokens - len(self.scheduler.running)
        for sequence in self.scheduler.running:
            state = self.active[sequence.request_id][0]
            max_tokens = min(self.options.lookup, state.request.max_tokens - state.position - 1, budget)
            if sequence.n_uncomputed == 1 and state.position and max_tokens > 0:
                draft = lookup.find(sequence.tokens, max_tokens)
                sequence.tokens += draft
                sequence.n_draft = len(draft)
                budget -= len(draft)

    def _update(self, chunk: ScheduledChunk, logits: Tensor, token: int | Exception | None) -> RequestOutput | None:
        """Counts the computed tokens and appends the sampled token, or the accepted draft tokens and the one after
        them. The request's own code (processors, decode) may raise: then this request ends, and no other."""
        sequence, request_id = chunk.sequence, chunk.sequence.request_id
        state, n_draft, n_accepted = self.active[request_id][0], sequence.n_draft, 0
        if state.request.prompt_logprobs is not None:
            self._add_prompt_logprobs(state, chunk, logits)
        if not chunk.is_last:
            self.scheduler.on_computed(sequence, chunk.n_tokens)
            if self.scheduler.count_resumable and sequence.n_computed % self.blocks.block_size == 0:
                n_whole = sequence.n_computed // self.blocks.block_size
                self.runner.save_state(request_id, sequence.block_hashes[n_whole - 1])
            return None
        before = state.position
        draft = sequence.tokens[len(sequence.tokens) - n_draft :]
        del sequence.tokens[len(sequence.tokens) - n_draft :]
        sequence.n_draft = 0
        try:
            if isinstance(token, Exception):
                raise token
            if token is None:
                n_accepted = verify_draft(state, Draft(draft, None), logits)
                self.n_proposed, self.n_accepted = self.n_proposed + n_draft, self.n_accepted + n_accepted
            else:
                state.append_token(token, logits[-1])
            state.append_forced_tokens()
        except Exception as error:
            _fail(state.completion, error)
            n_accepted = 0
        new = state.completion.tokens[before:]
        sequence.tokens += new
        if state.finished:
            state.completion.n_shared = sequence.n_shared
            self._remove(request_id)
        else:
            self.scheduler.on_computed(sequence, chunk.n_tokens - n_draft + n_accepted)
        return RequestOutput(request_id, new, state.completion if state.finished else None)

    def _add_prompt_logprobs(self, state: SequenceState, chunk: ScheduledChunk, logits: Tensor) -> None:
        """A preempted sequence computes its prompt again; the log-probabilities are added once."""
        prompt, completion = state.request.prompt, state.completion
        assert completion.prompt_logprobs is not None and completion.prompt_top_logprobs is not None
        n_known, end = len(completion.prompt_logprobs), min(chunk.start + chunk.n_tokens + 1, len(prompt))
        if n_known < end:
            rows = logits[n_known - chunk.start - 1 : end - chunk.start - 1]
            targets = list(prompt[n_known:end])
            for logprob, top in token_logprobs(rows, targets, state.request.prompt_logprobs or 0):
                completion.prompt_logprobs.append(logprob)
                completion.prompt_top_logprobs.append(top)

    def _remove(self, request_id: int) -> None:
        _, sequence = self.active.pop(request_id)
        self.scheduler.finish(sequence)
        self.runner.remove_sequence(request_id)

    def stream(self, requests: Iterable[Request]) -> Generator[RequestOutput]:
        """Adds all requests and steps until they have finished. Outputs carry the index in `requests` as request_id.
        Those of other requests stay pending for the next `step`."""
        index_of = dict[int, int]()
        try:
            for i, request in enumerate(requests):
                index_of[self.add(request)] = i
            while index_of:
                own = [output for output in self.pending_outputs if output.request_id in index_of]
                self.pending_outputs = [o for o in self.pending_outputs if o.request_id not in index_of]
                if not own:
                    if not any(request_id in self.active for request_id in index_of):
                        return  # cancelled by another caller
                    self.pending_outputs += self._step()
                for output in own:
                    yield output._replace(request_id=index_of[output.request_id])
                    if output.completion is not None:
                        del index_of[output.request_id]
        finally:
            for request_id in index_of:
                self.cancel(request_id)

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        """All completions, in the order of the requests."""
        requests = list(requests)
        finished = {o.request_id: o.completion for o in self.stream(requests) if o.completion is not None}
        return [finished[i] for i in range(len(requests))]


@contextmanager
def _single_thread(enabled: bool) -> Generator[None]:
    """torch's worker threads spin for a while after use, and native code gets its threads late: a millisecond per step
    of GPT-2, whose logits are just long enough for torch to split."""
    n_threads = torch.get_num_threads()
    if enabled:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if enabled:
            torch.set_num_threads(n_threads)


def _choose_or_fail(states: list[SequenceState], logits: Tensor) -> list[int | Exception]:
    """A token for each sequence, or the exception that its processors raised."""
    try:
        return [*choose_next_tokens(states, logits)]
    except Exception:
        tokens: list[int | Exception] = []
        for state, row in zip(states, logits, strict=True):
            try:
                tokens += choose_next_tokens([state], row[None])
            except Exception as error:
                tokens.append(error)
        return tokens


def _fail(completion: Completion, error: Exception) -> None:
    completion.finish_reason, completion.error = "error", str(error) or type(error).__name__
    completion.exception = error


def _weights_of(model: Any) -> str:
    dtype = next(model.parameters()).dtype
    return {torch.float32: "float32", torch.bfloat16: "bfloat16"}.get(dtype, str(dtype).removeprefix("torch."))


def _announce_once(message: str) -> None:
    if message not in _announced:
        _announced.add(message)
        logger.warning(message)
