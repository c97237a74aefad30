# SPDX-License-Identifier: Apache-2.0
"""Untrusted text is shown and does nothing: on a terminal, in HTML, in Markdown."""

import html as standard
import json
import os
import re
import subprocess
import unicodedata
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundling.errors.render import (
    BLOCK_LIMIT,
    LIMIT,
    html,
    inert_json,
    markdown,
    markdown_code,
    message,
    shell,
    terminal,
)
from foundling.errors.render import json as as_json

ANY = st.text(alphabet=st.characters(exclude_categories=()), max_size=60)


def acts(character: str) -> bool:
    """Whether a terminal may do something else than draw it: controls, line and paragraph ends, marks that reorder."""
    return unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} or unicodedata.bidirectional(character) in {
        "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI",
    }  # fmt: skip


@given(ANY)
def test_terminal_shows_one_line_that_acts_on_nothing(text):
    shown = terminal(text)
    assert not any(acts(c) for c in shown)
    shown.encode()
    assert terminal(shown) == shown
    assert not any(acts(c) for c in terminal(text, lines=True) if c not in "\n\t")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("layer.0\x1b[2J\x1b[1;1Hok: no byte has changed", "layer.0␛[2J␛[1;1Hok: no byte has changed"),
        ("a\r\nb\tc\x7f\x00", "a␍␊b␉c␡␀"),
        ("\x9b31m", "\\u009b31m"),
        ("abc\u202etxt.exe\udcff", "abc\\u202etxt.exe\\udcff"),
        ("\U000e0041", "\\U000e0041"),
        ("naïve — 数 🎉 e\u0301 क\u094d\u200dष", "naïve — 数 🎉 e\u0301 क\u094d\u200dष"),
        (17, "17"),
    ],
)
def test_by_hand(text, shown):
    assert terminal(text) == shown


WELSH = "\U0001f3f4" + "".join(chr(0xE0000 + ord(c)) for c in "gbwls") + "\U000e007f"


def test_marks_that_move_nothing_stay_in_a_text_and_are_seen_in_a_name():
    text = f"ភាសា\u200bខ្មែរ \u200fעברית\u200e {WELSH}"
    assert terminal(text, lines=True) == text
    assert terminal("a\u200b\u200f") == "a\\u200b\\u200f" and "\\U000e0067" in terminal(WELSH)
    for hidden in (WELSH[1:], WELSH[:-1]):  # tags of no flag
        assert "\\U000e0067" in terminal(hidden, lines=True)
    assert terminal("\u202e\u2066\u200b\x1b", lines=True) == "\\u202e\\u2066\u200b␛"


def test_line_breaks_stay_where_lines_are_asked_for():
    assert terminal("a\r\n\tb\rc\x1b", lines=True) == "a\n\tb␍c␛"


def test_length_is_bounded_and_said():
    for show in (terminal, html, markdown):
        shown = show("x" * 30_000_000)
        assert len(shown) < LIMIT + 60 and f"({30_000_000 - LIMIT:,} characters more" in shown.replace("\\", "")
    assert terminal("x" * LIMIT) == "x" * LIMIT
    assert len(markdown_code("\n" * 10**6)) < BLOCK_LIMIT + 100


def test_containers_are_cut_while_they_are_written():
    bomb = ["x" * 1000] * 9
    for _ in range(9):  # what nine YAML aliases describe: 9**10 strings
        bomb = [bomb] * 9
    assert len(terminal(bomb)) < LIMIT + 60
    assert terminal({"a": [1, 2.5, None], "b": ("x",)}) == "{'a': [1, 2.5, None], 'b': ('x',)}"
    assert terminal([10**5000]) == "<list too large to be shown>" and "int too large" in terminal(10**5000)


@given(ANY)
def test_html_is_the_text_again_once_read(text):
    shown = html(text)
    assert standard.unescape(shown) == terminal(text)
    assert not re.search(r"[<>\"']", shown)


@given(ANY)
def test_markdown_stays_on_one_line_without_markup(text):
    shown = markdown(text)
    assert "\n" not in shown and not any(acts(c) for c in shown)
    assert not re.search(r"[<>]|(?<!\\)(?:\\\\)*(?<!\\)[`*_\[\]|~]", shown), json.dumps(shown)


def test_markdown_links_nothing():
    assert markdown("see https://example.org [x](y) <b>") == "see https&#58;//example.org \\[x\\](y) &lt;b&gt;"


@given(ANY)
def test_nothing_ends_a_code_block_but_its_fence(text):
    lines = markdown_code("```" + text + "\n````\n", "sh").split("\n")
    fence = re.fullmatch(r"(`+)sh", lines[0])[1]
    assert [i for i, line in enumerate(lines) if line.strip().startswith(fence)] == [0, len(lines) - 1]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY, inner, max_size=3),
    max_leaves=9,
)


@given(VALUES, st.sampled_from(["utf-8", "ascii", "latin-1", "utf-16", "cp1252"]))
def test_json_is_one_line_with_the_same_meaning_in_every_encoding(value, encoding):
    text = as_json(value, encoding=encoding)
    assert not any(acts(c) for c in text)
    assert json.loads(text.encode(encoding).decode(encoding)) == value
    assert json.loads(inert_json(json.dumps(value, indent=2, ensure_ascii=False)).encode().decode()) == value


def test_json_of_what_json_lacks():
    value = {"loss": float("nan"), "scores": (float("inf"), 1.5), "path": PurePosixPath("a/b"), "é": "é\x9b\udcff"}
    shown = as_json(value)
    assert shown == '{"loss": null, "scores": [null, 1.5], "path": "a/b", "é": "é\\u009b\\udcff"}'


def test_a_message_keeps_its_end():
    shown = message("a\x1b" + "k" * 30_000_000 + "\n; rename it")
    assert len(shown) < LIMIT + 60 and shown.startswith("a␛k") and shown.endswith("␊; rename it")
    assert message("short\n") == "short␊" and terminal("x" * 9000, limit=0) == "x" * 9000


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "two words",
        "it's",
        "-rf",
        "$(touch x)",
        "`x`; rm -r ~ && \n#",
        "a\tb\x1b[2J'\\",
        "\udcff\x9b",
        "數\u202e",
        "",
    ],
)
def test_a_shell_reads_a_name_as_it_is(name, tmp_path):
    shown = shell(name)
    assert not any(acts(c) for c in shown) and terminal(shown) == shown
    done = subprocess.run(["bash", "-c", f"printf %s {shown}"], capture_output=True, cwd=tmp_path, check=True)
    assert done.stdout == os.fsencode(name.replace("-rf", "./-rf")) and not list(tmp_path.iterdir())
    assert shell("\ud800") == "$'\\077'"  # a half that stands for no byte: ?
