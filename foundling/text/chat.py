# SPDX-License-Identifier: Apache-2.0
"""Chat templates: Jinja programs of a model directory that turn messages into one text. They run in a
sandbox, in a process of bounded memory and time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from foundling.errors import DataError, FoundlingError, WeightsError
from foundling.limits import RENDERED_CHARS, TEMPLATE_BYTES, TEMPLATE_CHARS, TEMPLATE_SECONDS
from foundling.runtime.limited import LimitedProcess, LimitError

_CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% elif message['content'] %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}" + _CONTENT + "{{ '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Of the tokenizers that are trained here: <|im_start|>role … <|im_end|>"""
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'].capitalize() + ':\n' }}" + _CONTENT + "{% if message['role'] == 'assistant' %}{{ eos_token }}"
    "{% else %}{{ '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
"""For a model that no chat tokens were taught: what begins a text, names of the roles as words, eos_token after an
answer."""
TEMPLATES = {"chatml": CHAT_TEMPLATE, "plain": PLAIN_TEMPLATE}
"""name -> a template that `finetune --chat-template` knows"""


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

    Jinja as transformers sets it up (sandboxed, trimmed blocks, `raise_exception`, `strftime_now`, `tojson`), in a
    process of bounded memory and time. DataError where the template refuses these messages, or they are not JSON;
    WeightsError where it is no template, does what the sandbox forbids, or does not end."""
    if len(template) > TEMPLATE_CHARS.high:
        raise WeightsError(f"the chat template is {len(template):,} characters long, over {TEMPLATE_CHARS.high:,}")
    fields = {
        "tools": tools,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        **(names or {}),
        **more,
    }
    try:
        return _renderer.call([template, {"messages": list(messages), **fields}])
    except LimitError as error:
        raise WeightsError(f"the chat template does not end well: {error}") from None
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, FoundlingError):
            raise
        raise DataError(f"messages and tools must be of texts, numbers, lists and dicts ({_line(error)})") from None


_renderer = LimitedProcess(
    "foundling.text.chat:render_here", memory=TEMPLATE_BYTES.high, seconds=TEMPLATE_SECONDS.high,
    answer=8 * RENDERED_CHARS.high, modules=("jinja2.sandbox", "jinja2.ext"),
)  # fmt: skip


def render_here(values: list[Any]) -> str:
    """render_chat without a bound of its own: [template, fields] -> the text."""
    template, fields = values
    return render_compiled(compile_template(template), fields)


def render_compiled(compiled: Any, fields: Mapping[str, Any]) -> str:
    """DataError and WeightsError as render_chat."""
    import jinja2

    parts, n = list[str](), 0
    try:
        for part in compiled.generate(**fields):
            parts.append(part)
            n += len(part)
            if n > RENDERED_CHARS.high:
                raise WeightsError(f"the chat template renders over {RENDERED_CHARS.high:,} characters")
    except WeightsError:
        raise
    except jinja2.exceptions.SecurityError as error:
        raise WeightsError(f"the chat template does what the sandbox forbids ({_line(error)})") from None
    except (RecursionError, MemoryError) as error:
        raise WeightsError(f"the chat template does not end well: {type(error).__name__}") from None
    except Exception as error:  # it is a program, and may raise anything
        raise DataError(f"the chat template refuses these messages ({_line(error)})") from None
    return "".join(parts)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


@lru_cache(maxsize=8)
def compile_template(template: str, marks: tuple[str, str] = ("", "")) -> Any:
    """`marks` are written before and after each {% generation %} block."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}: marks what the assistant said; rendered as its contents, between `marks`."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            first, last = (nodes.Output([nodes.TemplateData(mark)]) for mark in marks)
            return [first, *body, last]

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, **more)

    environment: Any = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation], optimized=False
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except Exception as error:  # Python's own compiler refuses some too
        raise WeightsError(f"the chat template cannot be read ({_line(error)})") from None
