# SPDX-License-Identifier: Apache-2.0
"""The engine: requests come and go between steps, and every step reads for all of them at once."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foundling.decode.answer import Answer, Request, Writing, check_request, check_writes, next_tokens, told
from foundling.decode.engine.native_runner import NativeRunner, page_bytes
from foundling.decode.engine.pages import Pages, pages_for
from foundling.decode.engine.scheduler import Running, Scheduler, Work
from foundling.decode.engine.torch_runner import PAGE_SIZE, TorchRunner
from foundling.decode.native.build import Unavailable
from foundling.decode.native.decoder import DecoderProgram, why_not
from foundling.decode.native.program import FORMS
from foundling.decode.speculative import Guess, LookupGuesser, take_guesses
from foundling.errors import GenerationError


@dataclass(frozen=True)
class EngineOptions:
    """`weights` is a form of decode/native ('float32', 'bfloat16', 'int8', 'int4'), or None for the model's own type.
    `native` False leaves the work to torch, True insists on native code, None takes it where it can be had.
    `deterministic`: same seed, same tokens, whatever else is in the batch. Native code is so anyway, at no cost; torch,
    whose products round as their shapes have it, then answers one request after the other. `lookup` guesses that many
    tokens ahead by what stood in the text before."""

    weights: str | None = None
    native: bool | None = None
    deterministic: bool = False
    max_rows: int = 32
    """answers under way at once"""
    max_step_tokens: int = 256
    """read in one step: a longer prompt is read in pieces"""
    memory: int = 1 << 30
    """bytes for keys and values; states of recurrent families, kept for those who begin alike, take a quarter more"""
    share_prefixes: bool = True
    lookup: int = 0

    def __post_init__(self) -> None:
        if self.weights is not None and self.weights not in FORMS:
            raise GenerationError(f"weights '{self.weights}' are not known; use {', '.join(FORMS)}")
        if self.max_rows < 1 or self.max_step_tokens < self.max_rows:
            raise GenerationError(
                f"max_rows {self.max_rows} and max_step_tokens {self.max_step_tokens}; expected at least one row, and "
                "a token a step for each"
            )
        if not 0 <= self.lookup <= 64:
            raise GenerationError(f"lookup is {self.lookup}; expected 0 (off) to 64 tokens")


class Event(NamedTuple):
    """What a step did to one request."""

    number: int
    tokens: list[int]
    """new ones"""
    answer: Answer | None
    """once it has ended"""


class Engine:
    """`add` requests, `step` until nothing is `busy`; `cancel` at any time between steps."""

    def __init__(self, model: Any, options: EngineOptions | None = None) -> None:
        """GenerationError for options that this model or machine cannot serve."""
        check_writes(model)
        self.model, self.options = model, options or EngineOptions()
        self.encodes = hasattr(model, "encode")
        self.numbers = itertools.count()
        self.under_way: dict[int, tuple[Writing, Running]] = {}
        self.unheard: list[Event] = []
        runner = self._native_runner()
        self.native = runner is not None
        if runner is None:
            if self.options.weights not in (None, _form_of(model)):
                raise GenerationError(f"weights '{self.options.weights}' need native code: {self.reason}")
            pages = self._pages(TorchRunner.page_bytes(model))
            runner = TorchRunner(model, pages, self.options.max_rows, self.options.memory // 4)
        self.runner: NativeRunner | TorchRunner = runner
        alone = self.options.deterministic and not self.native
        share = self.options.share_prefixes and not (alone or self.encodes)
        resume = runner.resume if isinstance(runner, TorchRunner) and runner.recurrent else None
        self.pages = Pages(runner.pages, runner.page_size)
        rows = 1 if alone else self.options.max_rows
        self.scheduler = Scheduler(self.pages, rows, self.options.max_step_tokens, share=share, resume=resume)
        can_cut = not runner.recurrent and not self.encodes
        self.lookup = LookupGuesser() if self.options.lookup and can_cut else None
        self.steps = self.proposed = self.accepted = 0

    def _native_runner(self) -> NativeRunner | None:
        o, self.reason = self.options, ""
        if o.native is False:
            self.reason = "it was turned off"
            return None
        form: Any = o.weights or _form_of(self.model)
        self.reason = why_not(self.model) or ("" if form in FORMS else f"it has no products of {form}")
        if not self.reason:
            try:
                program = DecoderProgram(self.model, form, o.max_step_tokens)
                return NativeRunner(program, self._pages(page_bytes(self.model, form)))
            except Unavailable as error:
                self.reason = str(error)
        if o.native:
            raise GenerationError(f"native code cannot be had: {self.reason}")
        return None

    def _pages(self, page_bytes: int) -> int:
        """As many as memory allows, but no more than all rows could fill; a family without keys has pages of nothing,
        and counts its tokens by them all the same."""
        longest = pages_for(min(self.model.config.max_seq_len, 1 << 20), PAGE_SIZE) * self.options.max_rows
        return min(longest, max(1, self.options.memory // max(1, page_bytes)))

    def add(self, request: Request) -> int:
        """Its number. GenerationError for what cannot be answered, now or ever."""
        check_request(self.model.config, request, encodes=self.encodes)
        if self.encodes and request.prompt_logprobs is not None:
            raise GenerationError("an encoder-decoder does not predict its source: leave prompt_logprobs out")
        length = request.max_tokens + (1 if self.encodes else len(request.prompt))
        if pages_for(length, self.pages.size) > self.pages.count:
            raise GenerationError(
                f"{length} tokens of prompt and answer need {pages_for(length, self.pages.size)} pages, the engine has "
                f"{self.pages.count}; give it more memory or ask for fewer tokens"
            )
        bank = getattr(self.model, "adapter_bank", None)
        if request.adapter is not None and request.adapter not in (bank.names if bank else ()):
            known = ", ".join(bank.names) if bank else "none: load some with load_adapters"
            raise GenerationError(f"adapter '{request.adapter}' is not known; there are {known}")
        number = next(self.numbers)
        # what a request brought along (processors) may fail here: nothing is held for it yet
        writing = Writing(request, [self.model.config.start_id] if self.encodes else None)
        with torch.inference_mode():
            begin = self.runner.begin(number, request.prompt, request.adapter)
        sequence = Running(number, begin, before=(request.adapter or "").encode())
        if request.prompt_logprobs is not None:  # all of the prompt must be read, whoever has read it before
            writing.answer.prompt_logprobs, writing.answer.prompt_alternatives = [None], [{}]
            sequence.before = b"\0alone %d" % number
        self.under_way[number] = (writing, sequence)
        self.scheduler.add(sequence)
        return number

    def cancel(self, number: int) -> Answer | None:
        """Ends a request before the next step; its answer so far, or None if it had ended."""
        if number not in self.under_way:
            return None
        writing, _ = self.under_way[number]
        self._end(number)
        try:
            writing.end("cancelled")
        except Exception as error:  # its own `decode`
            _failed(writing.answer, error)
        return writing.answer

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do or to tell."""
        return bool(self.under_way or self.unheard)

    def step(self) -> list[Event]:
        """Reads once for all that are under way; what they said, and what others' `run` left unheard."""
        events, self.unheard = self.unheard, []
        return events + self._step()

    @torch.inference_mode()
    def _step(self) -> list[Event]:
        if self.lookup:
            self._guess(self.lookup)
        plan = self.scheduler.plan()
        if not plan:
            assert not self.under_way, "somebody waits and nothing can be read"
            return []
        self.steps += 1
        for number, (_, sequence) in self.under_way.items():
            if not sequence.pages:
                self.runner.leave(number)
        wants = [self._want(work) for work in plan]
        parts = self.runner.read(plan, wants).split(wants)
        speak = [i for i, work in enumerate(plan) if work.last and not work.sequence.guesses]
        chosen = dict[int, int | Exception]()
        if speak:
            writings = [self.under_way[plan[i].sequence.number][0] for i in speak]
            with _one_thread(self.native):
                chosen = dict(zip(speak, _each(writings, torch.cat([parts[i][-1:] for i in speak])), strict=True))
        return [event for i, work in enumerate(plan) if (event := self._after(work, parts[i], chosen.get(i)))]

    def _want(self, work: Work) -> int:
        """How many of its tokens' logits: what follows the last one and each guess; all of a prompt only where it is to
        be told."""
        request = self.under_way[work.sequence.number][0].request
        if request.prompt_logprobs is not None and work.start < len(request.prompt):
            return work.count
        return 1 + work.sequence.guesses if work.last else 0

    def _guess(self, lookup: LookupGuesser) -> None:
        """Those who answer propose what may follow, as far as a step has room."""
        left = self.options.max_step_tokens - len(self.scheduler.running)
        for sequence in self.scheduler.running:
            writing = self.under_way[sequence.number][0]
            most = min(self.options.lookup, writing.request.max_tokens - writing.position - 1, left)
            if sequence.unread == 1 and writing.position and most > 0:
                guesses = lookup.look(sequence.tokens, most)
                sequence.tokens += guesses
                sequence.guesses = len(guesses)
                left -= len(guesses)

    def _after(self, work: Work, logits: Tensor, token: int | Exception | None) -> Event | None:
        """Counts what was read; takes what was drawn, or the guesses that hold and what follows them. What a request
        brought along (processors, decode) may fail: then that request ends, and no other."""
        sequence, number = work.sequence, work.sequence.number
        writing, guesses, held = self.under_way[number][0], sequence.guesses, 0
        if writing.request.prompt_logprobs is not None:
            self._tell_prompt(writing, work, logits)
        if not work.last:
            self.scheduler.has_read(sequence, work.count)
            if self.scheduler.resume and sequence.read % self.pages.size == 0:
                self.runner.keep(number, sequence.keys[sequence.read // self.pages.size - 1])
            return None
        before = writing.position
        guessed = sequence.tokens[len(sequence.tokens) - guesses :]
        del sequence.tokens[len(sequence.tokens) - guesses :]
        sequence.guesses = 0
        try:
            if isinstance(token, Exception):
                raise token
            if token is None:
                held = take_guesses(writing, Guess(guessed, None), logits)
                self.proposed, self.accepted = self.proposed + guesses, self.accepted + held
            else:
                writing.take(token, logits[-1])
        except Exception as error:
            _failed(writing.answer, error)
            held = 0
        new = writing.answer.tokens[before:]
        sequence.tokens += new
        if writing.ended:
            self._end(number)
        else:
            self.scheduler.has_read(sequence, work.count - guesses + held)
        return Event(number, new, writing.answer if writing.ended else None)

    def _tell_prompt(self, writing: Writing, work: Work, logits: Tensor) -> None:
        """A sequence that lost its memory reads its prompt again, and tells it once."""
        prompt, answer = writing.request.prompt, writing.answer
        assert answer.prompt_logprobs is not None and answer.prompt_alternatives is not None
        known, end = len(answer.prompt_logprobs), min(work.start + work.count + 1, len(prompt))
        if known < end:
            rows = logits[known - work.start - 1 : end - work.start - 1]
            for own, best in told(rows, list(prompt[known:end]), writing.request.prompt_logprobs or 0):
                answer.prompt_logprobs.append(own)
                answer.prompt_alternatives.append(best)

    def _end(self, number: int) -> None:
        _, sequence = self.under_way.pop(number)
        self.scheduler.finish(sequence)
        self.runner.forget(number)

    def run(self, requests: Sequence[Request]) -> Generator[Event]:
        """Adds all and steps until they have ended; events carry the place in `requests` as their number. What others
        say meanwhile is told by the next `step`."""
        place = dict[int, int]()
        try:
            for i, request in enumerate(requests):
                place[self.add(request)] = i
            while place:
                mine = [event for event in self.unheard if event.number in place]
                self.unheard = [event for event in self.unheard if event.number not in place]
                if not mine:
                    if not any(number in self.under_way for number in place):
                        return  # cancelled from outside
                    self.unheard += self._step()
                for event in mine:
                    yield event._replace(number=place[event.number])
                    if event.answer is not None:
                        del place[event.number]
        finally:
            for number in place:
                self.cancel(number)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """All answers, in order."""
        found: dict[int, Answer] = {}
        for event in self.run(requests):
            if event.answer is not None:
                found[event.number] = event.answer
        return [found[i] for i in range(len(requests))]


@contextmanager
def _one_thread(really: bool) -> Generator[None]:
    """torch's own workers keep their cores for a while after they were used, and native code finds its threads late:
    a millisecond a step of GPT-2, whose logits are just long enough to be split."""
    threads = torch.get_num_threads()
    if really:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if really:
            torch.set_num_threads(threads)


def _each(writings: list[Writing], logits: Tensor) -> Sequence[int | Exception]:
    """A token for each, or why there is none."""
    try:
        return next_tokens(writings, logits)
    except Exception:
        found: list[int | Exception] = []
        for writing, row in zip(writings, logits, strict=True):
            try:
                found += next_tokens([writing], row[None])
            except Exception as error:
                found.append(error)
        return found


def _failed(answer: Answer, error: Exception) -> None:
    answer.finish, answer.error = "error", str(error) or type(error).__name__


def _form_of(model: Any) -> str:
    dtype = next(model.parameters()).dtype
    return {torch.float32: "float32", torch.bfloat16: "bfloat16"}.get(dtype, str(dtype).removeprefix("torch."))
