# SPDX-License-Identifier: Apache-2.0
"""Chat templates: Jinja programs of a model directory that turn messages into one text. They run in a sandbox."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from foundling.errors import DataError, WeightsError

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% elif message['content'] %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Of the tokenizers that are trained here: <|im_start|>role … <|im_end|>"""
MAX_TEMPLATE, MAX_RENDERED = 1 << 20, 1 << 24
"""characters of a template, and of what it may render"""
SECONDS = 5.0
"""that rendering may take"""
MAX_RANGE = 100_000
WIDE = re.compile(r"\*|\d{5}")
"""a format that pads to a width from outside, or to a large one"""


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    add_generation_prompt: bool = True,
    names: Mapping[str, str] | None = None,
    **more: Any,
) -> str:
    """The text of the messages, [{"role", "content", …}]. `names`: the special tokens that templates use (bos_token …).

    Jinja as transformers sets it up (sandboxed, trimmed blocks, `raise_exception`, `strftime_now`, `tojson`). DataError
    where the template refuses these messages, WeightsError where it is no template or does not end."""
    import jinja2

    compiled = _compiled(template)
    fields = {
        "tools": tools,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        **(names or {}),
        **more,
    }
    parts, n = list[str](), 0
    end = _running.end = time.monotonic() + SECONDS
    try:
        for part in compiled.generate(messages=list(messages), **fields):
            parts.append(part)
            n += len(part)
            if n > MAX_RENDERED or time.monotonic() > end:
                raise WeightsError(f"the chat template renders over {MAX_RENDERED:,} characters or {SECONDS:g} s")
    except WeightsError:
        raise
    except jinja2.exceptions.SecurityError as error:
        raise WeightsError(f"the chat template does what the sandbox forbids ({_line(error)})") from None
    except (RecursionError, MemoryError) as error:
        raise WeightsError(f"the chat template does not end ({type(error).__name__})") from None
    except Exception as error:  # it is a program, and may raise anything
        raise DataError(f"the chat template refuses these messages ({_line(error)})") from None
    return "".join(parts)


_running = threading.local()


def _range(*bounds: int) -> Iterator[int]:
    numbers = range(*bounds)
    if len(numbers) > MAX_RANGE:
        raise WeightsError(f"the chat template loops over {len(numbers):,} numbers, at most {MAX_RANGE:,} are allowed")
    for i in numbers:
        if time.monotonic() > _running.end:
            raise WeightsError(f"the chat template takes over {SECONDS:g} s")
        yield i


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if len(template) > MAX_TEMPLATE:
        raise WeightsError(f"the chat template is {len(template):,} characters long, over {MAX_TEMPLATE:,}")

    class Sandbox(ImmutableSandboxedEnvironment):
        """Products that would fill the memory are refused. (Filters that pad a text are not bounded.)"""

        intercepted_binops = frozenset({"*", "**", "%"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sized = [len(x) for x in (left, right) if isinstance(x, str | list | tuple)]
            numbers = [abs(x) for x in (left, right) if isinstance(x, int)]
            if operator == "**" or (operator == "%" and isinstance(left, str) and WIDE.search(left)):
                raise WeightsError(f"the chat template uses '{operator}', which the sandbox forbids here")
            if operator == "*" and max([*sized, 1]) * max([*numbers, 1]) > MAX_RENDERED:
                raise WeightsError(f"the chat template makes a text or number of over {MAX_RENDERED:,}")
            return super().call_binop(context, operator, left, right)

    class Generation(Extension):
        """{% generation %}: marks what the assistant said; rendered as its contents."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, **more)

    environment: Any = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation], optimized=False
    )
    environment.filters["tojson"] = tojson
    environment.globals["range"] = _range
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except Exception as error:  # Python's own compiler refuses some too
        raise WeightsError(f"the chat template cannot be read ({_line(error)})") from None
