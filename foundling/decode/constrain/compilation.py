# SPDX-License-Identifier: Apache-2.0
"""A constraint is compiled in a process of bounded memory and time before it is compiled here."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from foundling.errors import GenerationError
from foundling.limits import CONSTRAINT_BYTES, CONSTRAINT_SECONDS
from foundling.runtime.limited import LimitedProcess, LimitError

if TYPE_CHECKING:
    from llguidance import LLParserLimits, LLTokenizer

    from foundling.decode.constrain.constraint import Constraint

_process = LimitedProcess(
    "foundling.decode.constrain.compilation:compile_here", memory=CONSTRAINT_BYTES.high,
    seconds=CONSTRAINT_SECONDS.high, answer=1 << 16, modules=("llguidance",),
)  # fmt: skip
N_STEPS = 256
"""first tokens that are tried of each grammar, so that one whose steps take too much is refused at once"""


def parser_limits() -> LLParserLimits:
    """What one constraint may take in this process, in llguidance's units: about 20 ms for the largest step."""
    from llguidance import LLParserLimits

    return LLParserLimits(verbose_errors=False)


def check_compiles(constraint: Constraint) -> None:
    """GenerationError for a grammar that is none, or takes more than it may."""
    try:
        error = _process.call(constraint.resolve(lambda _: None))
    except LimitError as limit:
        raise GenerationError(f"{constraint.name} takes too much to compile ({limit}); simplify it") from None
    if error:
        raise GenerationError(f"{constraint.name} cannot be compiled: {error}")


def compile_here(grammar: str) -> str:
    """What the process runs: why the grammar cannot be compiled, or ""."""
    from llguidance import LLMatcher

    matcher = LLMatcher(_byte_tokenizer(), grammar, log_level=0, limits=parser_limits())
    if matcher.is_error():
        return _first_line(matcher.get_error())
    for _ in range(N_STEPS):
        if matcher.is_stopped():
            break
        bits: Any = matcher.compute_bitmask()
        if matcher.is_error():
            return _first_line(matcher.get_error())
        token = next((8 * at + byte.bit_length() - 1 for at, byte in enumerate(bits) if byte), 256)
        if token >= 256:
            break
        matcher.consume_token(token)
    if matcher.is_error():
        return _first_line(matcher.get_error())
    return ""


@cache
def _byte_tokenizer() -> LLTokenizer:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def _first_line(text: str) -> str:
    lines = text.split("<state>")[0].strip().splitlines()
    return " ".join(lines[0].split())[:200] if lines else "unknown error"
