# SPDX-License-Identifier: Apache-2.0
"""JSON values against a JSON Schema, by jsonschema. Runs in the process of verify/structured.py.

Other than in jsonschema, patterns are those of ECMA-262, as the standard has it, and run in llguidance, whose engine
takes time linear in the text; a number is a multiple by its decimals. A pattern that llguidance cannot have, with
look-around for one, is read as one of Python, which can take forever.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from foundling.decode.constrain.formats import FORMATS
from foundling.decode.constrain.patterns import translate_pattern
from foundling.decode.constrain.schema_keywords import draft_of
from foundling.errors import DataError, GenerationError
from foundling.limits import shown

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class StoppedError(Exception):
    """A check takes more than it may: it says nothing of the answer."""


def check_value(value: Any, schema: Any, *, constrains: bool) -> tuple[bool, str]:
    """Whether the value follows the schema, and why not. `constrains`: an answer was constrained to the schema, so that
    each keyword is one of decode/constrain/schema_keywords.py. Then formats are checked too, and `items` may be a list
    where no draft is named. DataError for an invalid schema, or one that refers to another document."""
    from jsonschema.exceptions import SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        validator_class = _answer_validator(draft_of(schema)) if constrains else _validator(schema)
    except SchemaError as error:
        raise DataError(f"the schema is invalid: {one_line(error.message)} at {error.json_path}") from None
    except (re.error, RecursionError) as error:
        raise DataError(f"the schema is invalid: {one_line(str(error))}") from None
    if constrains and isinstance(schema, dict):
        schema = {key: part for key, part in schema.items() if key != "$schema"}
    # an empty registry: what is not in the schema cannot be resolved, and nothing is fetched
    validator = validator_class(schema, registry=Registry())
    try:
        error = next(iter(validator.iter_errors(value)), None)
    except Unresolvable as error:
        raise DataError(f"the schema refers to {shown(error.ref)}, which is not in it; add it under $defs") from None
    except RecursionError:
        return False, "the schema refers to itself without end, or the value is too deep"
    except re.error as error:
        raise DataError(f"a pattern of the schema is no regular expression: {error}") from None
    return (True, "") if error is None else (False, f"{error.json_path}: {one_line(error.message)}")


def _validator(schema: Any) -> Any:
    from jsonschema import Draft202012Validator, validators

    base = validators.validator_for(schema, default=Draft202012Validator)
    base.check_schema(schema)
    return validators.extend(base, KEYWORDS)


@cache
def _answer_validator(draft: int) -> Any:
    """By the draft that the schema names, with formats."""
    from jsonschema import Draft6Validator, Draft7Validator, Draft201909Validator, Draft202012Validator, validators

    drafts = {6: Draft6Validator, 7: Draft7Validator, 2019: Draft201909Validator, 2020: Draft202012Validator}
    earlier, latest = Draft201909Validator.VALIDATORS, drafts[2020].VALIDATORS

    def items(validator: Any, rule: Any, instance: Any, schema: Any) -> Iterator[Any]:
        yield from (earlier if isinstance(rule, list) else latest)["items"](validator, rule, instance, schema) or ()

    def additional_items(validator: Any, rule: Any, instance: Any, schema: Any) -> Iterator[Any]:
        if isinstance(schema.get("items"), list):
            yield from earlier["additionalItems"](validator, rule, instance, schema) or ()

    both = {"items": items, "additionalItems": additional_items} if draft == 2020 else {}
    # beside no other schemas, the only place where it is supported, it is additionalProperties
    more = {"format": _format, "unevaluatedProperties": _additional_properties}
    return validators.extend(drafts[draft], {**KEYWORDS, **both, **more})


def _multiple_of(validator: Any, divisor: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """By the decimal numbers that JSON has: 0.3 is a multiple of 0.1, which floating-point division denies."""
    if validator.is_type(instance, "number") and Fraction(repr(instance)) % Fraction(repr(divisor)):
        yield _error(f"{instance!r} is not a multiple of {divisor!r}")


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    if validator.is_type(instance, "string") and not has_match(pattern, instance):
        yield _error(f"{instance!r} does not match {pattern!r}")


def _format(validator: Any, name: str, instance: Any, schema: Any) -> Iterator[Any]:
    if validator.is_type(instance, "string") and not has_match(FORMATS[name], instance, whole=True):
        yield _error(f"{instance!r} is not a {name}")


def _pattern_properties(validator: Any, patterns: dict[str, Any], instance: Any, schema: Any) -> Iterator[Any]:
    if validator.is_type(instance, "object"):
        for pattern, rule in patterns.items():
            for name, value in instance.items():
                if has_match(pattern, name):
                    yield from validator.descend(value, rule, path=name, schema_path=pattern)


def _additional_properties(validator: Any, rule: Any, instance: Any, schema: dict[str, Any]) -> Iterator[Any]:
    if not validator.is_type(instance, "object"):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, value in instance.items():
        if name in named or any(has_match(pattern, name) for pattern in patterns):
            continue
        if rule is False:
            yield _error(f"Additional properties are not allowed ({name!r} was unexpected)")
        else:
            yield from validator.descend(value, rule, path=name)


KEYWORDS = {
    "multipleOf": _multiple_of,
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
}
"""keyword -> (validator, its value, instance, schema) -> errors"""


def _error(message: str) -> Exception:
    from jsonschema.exceptions import ValidationError

    return ValidationError(message)


def has_match(pattern: str, text: str, *, whole: bool = False) -> bool:
    """Whether a text has a match, or with `whole` is one. re.error for an invalid pattern."""
    return _search(pattern, whole)(text)


@lru_cache(256)
def _search(pattern: str, whole: bool) -> Callable[[str], bool]:
    from llguidance import LLMatcher

    try:
        translated = translate_pattern(pattern, "pattern", whole=whole)
    except GenerationError:
        compiled = re.compile(pattern)
        return lambda text: compiled.search(text) is not None
    matcher = LLMatcher(bytes_tokenizer(), LLMatcher.grammar_from_regex(translated), log_level=0)

    def search(text: str) -> bool:
        here, data = matcher.deep_copy(), text.encode(errors="surrogatepass")
        n = here.try_consume_tokens(list(data))
        if here.is_error():
            raise StoppedError(f"a pattern takes too much: {one_line(here.get_error())}")
        return n == len(data) and here.is_accepting()

    return search


@cache
def bytes_tokenizer() -> LLTokenizer:
    """Its tokens are the bytes."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def one_line(text: str) -> str:
    return " ".join(text.split("<state>")[0].split())[:300]
