# SPDX-License-Identifier: Apache-2.0
"""The constraints of one model: its tokenizer as llguidance reads it, and the compiled processors."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

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


class Constrainer:
    """Compiles constraints for one model; any thread may ask. The vocabulary is read at the first constraint: about
    0.2 s for 50,000 tokens and 1 s for 250,000 (benchmarks/structured_speed.py)."""

    def __init__(self, tokenizer: Tokenizer, n_rows: int, ends: Sequence[int]) -> None:
        """`n_rows`: the width of the model's logits. `ends`: the ids that end an answer, which a request gives as
        `stop`. Raises GenerationError where the model has a logit for none of them."""
        self.tokenizer, self.n_rows, self.ends = tokenizer, n_rows, tuple(dict.fromkeys(ends))
        if not any(i < n_rows for i in self.ends):
            raise GenerationError(f"none of the ids that end an answer ({self.ends}) is among the {n_rows} logits")
        self.lock = threading.Lock()
        self.processors: OrderedDict[Constraint, ConstraintProcessor] = OrderedDict()
        """the most recently used last"""

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer, self.n_rows, self.ends)

    @cached_property
    def ll_tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        ends = [i for i in self.ends if i < self.n_rows]
        return LLTokenizer(TokenizerWrapper(self.vocabulary), n_vocab=self.n_rows, eos_token=ends)

    def processor(self, constraint: Constraint) -> ConstraintProcessor:
        """Compiled now, or before for an equal constraint; compiling one delays no other. GenerationError for one that
        cannot be compiled, or that takes more memory or time than a constraint may."""
        processor = self.compiled(constraint)
        if processor is None:
            check_compiles(constraint)
            processor = self._compile(constraint)
            with self.lock:
                self.processors[constraint] = processor
                self.processors.move_to_end(constraint)
                if len(self.processors) > CONSTRAINTS.high:
                    self.processors.popitem(last=False)
        return processor

    def compiled(self, constraint: Constraint) -> ConstraintProcessor | None:
        """The processor of an equal constraint that was compiled before; None without one, and where its lexer is full.
        It never waits for a compilation."""
        with self.lock:
            processor = self.processors.get(constraint)
            if processor is None or processor.full:
                return None
            self.processors.move_to_end(constraint)
            return processor

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
