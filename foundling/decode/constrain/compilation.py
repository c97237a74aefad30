# SPDX-License-Identifier: Apache-2.0
"""A constraint is compiled in a process of bounded memory and time before it is compiled here."""

from __future__ import annotations

import json
import random
from functools import cache, lru_cache
from queue import LifoQueue
from typing import TYPE_CHECKING

from foundling.decode.constrain.schema_references import References, path_of
from foundling.errors import GenerationError
from foundling.limits import CONSTRAINT_BYTES, CONSTRAINT_SECONDS
from foundling.runtime.limited import LimitedProcess, LimitError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    from foundling.decode.constrain.constraint import Constraint

N_PROCESSES = 2
"""so that one grammar that takes long delays no others; the second is started when both are needed"""
_processes = LifoQueue[LimitedProcess]()
for _ in range(N_PROCESSES):
    _processes.put(LimitedProcess(
        "foundling.decode.constrain.compilation:compile_here", memory=CONSTRAINT_BYTES.high,
        seconds=CONSTRAINT_SECONDS.high, answer=1 << 16, modules=("llguidance",),
    ))  # fmt: skip
N_STEPS = (192, 64, 192, 64, 64, 64)
"""bytes of answers of each grammar that are tried, so that one whose steps take too much is refused at once"""
STEP_FUEL, STEP_ITEMS, ROW_ITEMS = 200_000, 50_000, 2_000
"""of the lexer and of the parser for one mask, about 14 and 3 ms of a processor core, and of the parser for one byte"""
COMPILATION_FUEL, LEXER_STATES, GRAMMAR_SYMBOLS = 1_000_000, 250_000, 500_000
"""of the lexer for its first states, about 20 ms · of one constraint, about 1 kB each · of one grammar"""
CLOSING = frozenset(b'"]}')
ONE_OF = "oneOf constraints are not supported"
"""how llguidance refuses alternatives that may hold together"""


def parser_limits() -> LLParserLimits:
    """What one constraint may take in this process, in llguidance's units."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        step_lexer_fuel=STEP_FUEL, step_max_items=STEP_ITEMS, max_items_in_row=ROW_ITEMS,
        initial_lexer_fuel=COMPILATION_FUEL, max_lexer_states=LEXER_STATES, max_grammar_size=GRAMMAR_SYMBOLS,
        verbose_errors=False,
    )  # fmt: skip


def check_compiles(constraint: Constraint) -> None:
    """GenerationError for a grammar that is invalid, or takes more than it may."""
    try:
        error = _error_of(constraint.resolve(lambda _: None))
    except LimitError as limit:
        raise GenerationError(f"{constraint.name} takes too much to compile ({limit}); simplify it") from None
    if ONE_OF in error and constraint.kind in ("json_schema", "tools"):
        raise GenerationError(
            f"oneOf at {', '.join(_places_of_one_of(constraint)[:3])} is not supported: that exactly one alternative "
            "holds is sure only where they differ in type or in a constant property that all require; use anyOf"
        )
    if error:
        raise GenerationError(f"{constraint.name} cannot be compiled: {error}")


def _places_of_one_of(constraint: Constraint) -> list[str]:
    source = json.loads(constraint.source)
    schemas = source["tools"] if constraint.kind == "tools" else {"": source}
    nodes = [(name, *item) for name, schema in schemas.items() for item in References(schema).places.items()]
    return [
        name + path_of((*path, "oneOf")) for name, path, node in nodes if isinstance(node, dict) and "oneOf" in node
    ]


@lru_cache(16)
def _error_of(grammar: str) -> str:
    """What `compile_here` says. The command line checks a constraint before it loads a model, which checks it again."""
    process = _processes.get()
    try:
        return process.call(grammar)
    finally:
        _processes.put(process)


def compile_here(grammar: str) -> str:
    """What the process runs: why the grammar cannot be compiled, or ""."""
    from llguidance import LLMatcher

    matcher = LLMatcher(_byte_tokenizer(), grammar, log_level=0, limits=parser_limits())
    if matcher.is_error():
        return _first_line(matcher.get_error())
    for seed, n_steps in enumerate(N_STEPS):
        if error := _walk(matcher.deep_copy(), random.Random(seed), n_steps):
            return _first_line(error)
    return ""


def _walk(matcher: LLMatcher, draw: random.Random, n_steps: int) -> str:
    """An error that an answer of random bytes meets. A long one closes nothing that it need not close."""
    for _ in range(n_steps):
        bits = matcher.compute_bitmask()
        allowed = [8 * at + bit for at, byte in enumerate(bits[:32]) if byte for bit in range(8) if byte >> bit & 1]
        if matcher.is_error() or not allowed:
            break
        inner = [byte for byte in allowed if byte not in CLOSING] if n_steps == max(N_STEPS) else []
        matcher.consume_token(draw.choice(inner or allowed))
        if matcher.is_stopped():
            break
    return matcher.get_error()


@cache
def _byte_tokenizer() -> LLTokenizer:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def _first_line(text: str) -> str:
    lines = text.split("<state>")[0].strip().splitlines()
    return " ".join(lines[0].split())[:200] if lines else "unknown error"
