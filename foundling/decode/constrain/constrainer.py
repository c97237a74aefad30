# SPDX-License-Identifier: Apache-2.0
"""The constraints of one model: its tokenizer as llguidance reads it, and the compiled processors."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from tokenizers import decoders

from foundling.decode.constrain.compilation import check_compiles, parser_limits
from foundling.decode.constrain.constraint import Constraint
from foundling.decode.constrain.processor import ConstraintProcessor
from foundling.decode.constrain.vocabulary import Vocabulary
from foundling.decode.detokenize import SpellingDecoder
from foundling.errors import GenerationError
from foundling.limits import CONSTRAINTS
from foundling.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer


REFUSED_SECONDS = 60
"""that a refusal is valid for: a machine under load may have refused what it compiles later"""


class Refusal(NamedTuple):
    message: str
    until: float
    """in the seconds of time.monotonic"""


class Constrainer:
    """Compiles constraints for one model; any thread may ask. The vocabulary is read at the first constraint: about
    0.2 s for 50,000 tokens and 1 s for 250,000 (benchmarks/structured_speed.py)."""

    def __init__(self, tokenizer: Tokenizer, n_rows: int, ends: Sequence[int]) -> None:
        """`n_rows`: the width of the model's logits. `ends`: the ids that end an answer, which a request gives as
        `stop`. Raises GenerationError where the model has a logit for none of them."""
        self.tokenizer, self.n_rows, self.ends = tokenizer, n_rows, tuple(dict.fromkeys(ends))
        if not any(i < n_rows for i in self.ends):
            raise GenerationError(f"none of the ids that end an answer ({self.ends}) is among the {n_rows} logits")
        self.lock, self.vocabulary_lock = threading.Lock(), threading.RLock()
        self.processors: OrderedDict[Constraint, Future[ConstraintProcessor | Refusal]] = OrderedDict()

    @property
    def vocabulary(self) -> Vocabulary:
        with self.vocabulary_lock:
            return self._vocabulary

    @property
    def ll_tokenizer(self) -> LLTokenizer:
        with self.vocabulary_lock:
            return self._ll_tokenizer

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer, self.n_rows, self.ends)

    @cached_property
    def _ll_tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        ends = [i for i in self.ends if i < self.n_rows]
        return LLTokenizer(TokenizerWrapper(self.vocabulary), n_vocab=self.n_rows, eos_token=ends)

    def processor(self, constraint: Constraint) -> ConstraintProcessor:
        """Compiled now, or before for an equal constraint; a constraint that is being compiled delays no other, and is
        compiled once. GenerationError for one that cannot be compiled, or that takes more memory or time than a
        constraint may, without another attempt within REFUSED_SECONDS."""
        future, is_new = self._look_up(constraint)
        if is_new:
            try:
                check_compiles(constraint)
                future.set_result(self._compile(constraint))
            except GenerationError as error:
                future.set_result(Refusal(str(error), time.monotonic() + REFUSED_SECONDS))
            except BaseException as error:
                with self.lock:
                    self.processors.pop(constraint, None)
                future.set_exception(error)
                raise
        result = future.result()
        if isinstance(result, Refusal):
            raise GenerationError(result.message)
        return result

    def compiled(self, constraint: Constraint) -> ConstraintProcessor | None:
        """Of an equal constraint that was compiled before; None without one. It never waits for a compilation."""
        with self.lock:
            future = self.processors.get(constraint)
        if future is None or not future.done() or future.exception():
            return None
        result = future.result()
        return None if isinstance(result, Refusal) else result

    def _look_up(self, constraint: Constraint) -> tuple[Future[ConstraintProcessor | Refusal], bool]:
        """Where the processor is or will be, and whether the caller has to compile it."""
        with self.lock:
            future = self.processors.get(constraint)
            result = future.result() if future and future.done() and not future.exception() else None
            if future is None or (isinstance(result, Refusal) and result.until < time.monotonic()):
                future, is_new = Future[ConstraintProcessor | Refusal](), True
                self.processors[constraint] = future
            else:
                is_new = False
            self.processors.move_to_end(constraint)
            if len(self.processors) > CONSTRAINTS.high:
                self.processors.popitem(last=False)
            return future, is_new

    def _compile(self, constraint: Constraint) -> ConstraintProcessor:
        from llguidance import LLMatcher

        grammar = constraint.resolve(self._write_mark)
        matcher = LLMatcher(self.ll_tokenizer, grammar, log_level=0, limits=parser_limits())
        if matcher.is_error():
            raise GenerationError(
                f"{constraint.name} cannot be compiled: {' '.join(matcher.get_error().split())[:200]}"
            )
        processor = ConstraintProcessor(matcher, self.n_rows, self.ends)
        if processor.initial_mask.error:
            raise GenerationError(f"{constraint.name} cannot be begun: {processor.initial_mask.error}")
        return processor

    def _write_mark(self, text: str) -> str | None:
        """A special token as a grammar names it, by its id; None where it is not one."""
        token = self.tokenizer.backend.token_to_id(text)
        return f"<[{token}]>" if token is not None and token in self.tokenizer.special and token < self.n_rows else None

    def decoder(
        self, constraint: Constraint, decode: Callable[[list[int]], str], begins_anew: bool
    ) -> Callable[[list[int]], str]:
        """Ids of an answer to its text, as the grammar saw it: `decode`, the tokenizer's own for this prompt, where
        that gives it (see `decodes_as`). Marks of the constraint that are special tokens are written out."""
        texts = (*constraint.marks, *(constraint.reasoning or ()))
        ids = {self.tokenizer.backend.token_to_id(text): text for text in texts if text}
        marks = {i: text for i, text in ids.items() if i is not None and i in self.tokenizer.special}
        if marks:
            return SpellingDecoder(self.vocabulary.spell, self.vocabulary.hidden, marks)
        return decode if self.decodes_as(begins_anew) else self.spelling

    @property
    def spelling(self) -> SpellingDecoder:
        """`decode`, as a request takes it: it decodes a token at a time too."""
        return SpellingDecoder(self.vocabulary.spell, self.vocabulary.hidden)

    def decodes_as(self, begins_anew: bool) -> bool:
        """Whether the tokenizer's own decoding of a continuation gives the same text as `decode`. `begins_anew`:
        nothing stands before the answer, whose first space a tokenizer may then drop."""
        own = isinstance(self.tokenizer.backend.decoder, decoders.ByteLevel)
        return not self.tokenizer.cleans and (own or (self.vocabulary.spells_spaces and not begins_anew))

    def decode(self, ids: Sequence[int], marks: Mapping[int, str] | None = None) -> str:
        """The text of a constrained answer, exactly as the grammar saw it: the bytes of its tokens, without special
        ones but for `marks` (id -> text). Other than `Tokenizer.decode` it removes no space, at the beginning or before
        a full stop."""
        return SpellingDecoder(self.vocabulary.spell, self.vocabulary.hidden, marks or {})(ids)
