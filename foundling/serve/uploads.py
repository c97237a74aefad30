# SPDX-License-Identifier: Apache-2.0
"""A file that is received: the form around it, and its lines, each checked as soon as it is there.

Nothing is stored in memory but the line under way. Functions here know no HTTP and no paths."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from foundling.data import convert
from foundling.data.kinds import Kind
from foundling.data.streams import Skip
from foundling.errors import DataError
from foundling.limits import EXAMPLE_CHARS, FILE_NAME_CHARS, FORM_FIELD_BYTES, UPLOADED_LINE_BYTES, shown
from foundling.runtime.files import is_shallow
from foundling.text.tool_calls import finite

_FORMS: dict[str, tuple[set[str], Kind, convert.Convert, dict[str, str]]] = {
    "messages": ({"messages"}, "chat", convert.messages, {"messages": "messages", "tools": "tools"}),
    "completions": ({"prompt", "completion"}, "chat", convert.chat_of_one_turn,
                    {"prompt": "prompt", "answer": "completion"}),
    "texts": ({"text"}, "text", convert.text, {"text": "text"}),
}  # fmt: skip
"""form of a line -> (keys that it has, what it teaches, as finetuning reads it, role -> key)"""
FORMS = '{"messages": […]}, {"prompt": …, "completion": …} or {"text": …}'


class ExampleLines:
    """Checks JSON Lines of examples as they come. After the first fault nothing more is looked at; `finish` raises it,
    as DataError with the number of the line."""

    def __init__(self) -> None:
        self.n_examples = 0
        self.kind: Kind | None = None
        self.fault: DataError | None = None
        self._form, self._line, self._number = "", bytearray(), 0

    def write(self, data: bytes) -> None:
        if self.fault is None:
            *lines, rest = data.split(b"\n")
            for line in lines:
                self._line += line
                self._end_line()
            self._line += rest
            if len(self._line) > UPLOADED_LINE_BYTES.high:
                self._end_line()

    def finish(self) -> Kind:
        """What all lines teach."""
        self._end_line()
        if self.fault is not None:
            raise self.fault
        if self.kind is None:
            raise DataError(f"the file has no line with an example; expected lines of {FORMS}")
        return self.kind

    def _end_line(self) -> None:
        line, self._line = bytes(self._line), bytearray()
        self._number += 1
        if self.fault is None and line.strip():
            if problem := self._problem(line):
                self.fault = DataError(f"line {self._number}: {problem}")
            else:
                self.n_examples += 1

    def _problem(self, line: bytes) -> str | None:
        if len(line) > UPLOADED_LINE_BYTES.high:
            return f"longer than {UPLOADED_LINE_BYTES.high:,} bytes; shorten the example"
        if not is_shallow(line):
            return "it has too many arrays and objects inside each other"
        try:
            row = json.loads(line.decode("utf-8"), parse_constant=finite)
        except UnicodeDecodeError:
            return "it is not UTF-8"
        except (ValueError, RecursionError) as error:
            return f"it is not JSON ({error.args[0] if error.args else error})"
        if not isinstance(row, dict):
            return f"it is not an object; expected {FORMS}"
        form = next((name for name, (keys, *_) in _FORMS.items() if keys <= row.keys()), None)
        if form is None:
            return f"it has the keys {shown(list(row))}; expected {FORMS}"
        if self._form and form != self._form:
            return f"a line of {form} after lines of {self._form}; all lines of a file have one form"
        _, kind, read, columns = _FORMS[form]
        fields = read(row, columns)
        if isinstance(fields, Skip):
            return f"{fields.reason}: {fields.detail}" if fields.detail else fields.reason
        if kind != "text" and len(json.dumps(fields, ensure_ascii=False)) > EXAMPLE_CHARS.high:
            return f"the example has over {EXAMPLE_CHARS.high:,} characters; shorten it"
        self._form, self.kind = form, kind
        return None


class Form:
    """multipart/form-data that comes in parts: small fields, and one file whose bytes go to a function."""

    def __init__(self, content_type: str, fields: Collection[str], on_file: Callable[[bytes], None]) -> None:
        """DataError for another content type. `fields`: the names that may come beside `file`."""
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise DataError("expected multipart/form-data with the fields 'purpose' and 'file'")
        self.allowed, self.on_file = fields, on_file
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        """of the part 'file'; None before it came"""
        self.ended = False
        self._name, self._header, self._value = "", bytearray(), bytearray()
        self._content = bytearray()
        self._disposition = b""
        callbacks: Any = {
            "on_part_begin": self._begin, "on_header_field": lambda d, a, b: self._add(self._header, d[a:b]),
            "on_header_value": lambda d, a, b: self._add(self._value, d[a:b]), "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers, "on_part_data": lambda d, a, b: self._data(d[a:b]),
            "on_part_end": self._end_part, "on_end": lambda: setattr(self, "ended", True),
        }  # fmt: skip
        with _form_errors():
            self._parser = MultipartParser(options[b"boundary"], callbacks)

    def write(self, data: bytes) -> None:
        """DataError for what is no such form."""
        with _form_errors():
            self._parser.write(data)

    def finish(self) -> dict[str, str]:
        """The fields. DataError where the form has no end or no file."""
        if not self.ended:
            raise DataError("the form has no end: send multipart/form-data whole")
        if self.filename is None:
            raise DataError("the form has no part 'file' with a filename")
        return self.fields

    def _begin(self) -> None:
        self._name, self._disposition, self._content = "", b"", bytearray()

    def _add(self, part: bytearray, data: bytes) -> None:
        part += data  # the parser bounds a header

    def _end_header(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name == "file":
            if self.filename is not None:
                raise DataError("the form has two parts 'file'; send one file a request")
            name = options.get(b"filename", b"").decode("utf-8", "replace")
            if not 0 < len(name) <= FILE_NAME_CHARS.high:
                raise DataError(f"the file's name has {len(name):,} characters; expected 1 to {FILE_NAME_CHARS.high}")
            self.filename = name
        elif self._name not in self.allowed:
            raise DataError(f"the form has the field {shown(self._name)}, which is not supported; leave it out")
        elif self._name in self.fields:
            raise DataError(f"the form has the field '{self._name}' twice; send it once")

    def _data(self, data: bytes) -> None:
        if self._name == "file":
            self.on_file(data)
            return
        self._content += data
        if len(self._content) > FORM_FIELD_BYTES.high:
            raise DataError(f"the field '{self._name}' is longer than {FORM_FIELD_BYTES.high:,} bytes")

    def _end_part(self) -> None:
        if self._name != "file":
            self.fields[self._name] = self._content.decode("utf-8", "replace")


@contextmanager
def _form_errors() -> Iterator[None]:
    try:
        yield
    except FormParserError as error:
        raise DataError(f"the body is no multipart/form-data ({error})") from None
