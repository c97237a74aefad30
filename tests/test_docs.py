# SPDX-License-Identifier: Apache-2.0
"""What the documents say is true: their programs run, and the targets, commands and files they name are there.

A fence of Python runs where `<!-- run -->` stands on the line before it. The fences of one file are one program.
"""

import html
import re
import shlex
import subprocess
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import get_args
from urllib.parse import unquote

import pytest

from foundling.cli import COMMANDS, finetune
from foundling.recipes.recipe import PREFERENCE_KINDS, ExampleKind
from tests import processes

ROOT = Path(__file__).resolve().parent.parent
DOCS = [
    p for p in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))) if p.is_file()
]
SHELLS = {"sh", "bash", "shell", "console"}
RUN = "<!-- run -->"


# --- reading ---------------------------------------------------------------------------------------------------------


def fences(text: str) -> Iterator[tuple[int, str, list[str]]]:
    """(index of the opening line, language, lines inside)"""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        if opening := re.match(r"\s*(`{3,}|~{3,})\s*([\w+-]*)", lines[at]):
            mark, language = opening.groups()
            body = list(takewhile(lambda line, mark=mark: line.strip() != mark, lines[at + 1 :]))
            yield at, language, body
            at += len(body) + 1
        at += 1


def program(text: str) -> str:
    """The marked fences, each on its own lines of the document, so that a traceback points into it."""
    lines = text.splitlines()
    kept = [""] * len(lines)
    for at, language, body in fences(text):
        if at and lines[at - 1].strip() == RUN and language == "python":
            kept[at + 1 : at + 1 + len(body)] = body
    return "\n".join(kept).rstrip() + "\n"


def prose(text: str) -> str:
    """The text without its fences."""
    lines = text.splitlines()
    for at, _, body in fences(text):
        lines[at : at + len(body) + 2] = [""] * len(lines[at : at + len(body) + 2])
    return "\n".join(lines)


def invocations(text: str) -> Iterator[list[str]]:
    """The words of every command: in shell fences (of a console, what follows the prompt) and in `code`."""
    lines = [span.replace("\n", " ") for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(text))]
    for _, language, body in fences(text):
        if language in SHELLS:
            joined = "\n".join(body).replace("\\\n", " ").splitlines()
            prompt = re.compile(r"\s*\$ " if language == "console" else r"\s*(?:\$ )?")
            lines += [line[found.end() :] for line in joined if (found := prompt.match(line))]
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.wordchars += ":@%+,{}$…"
        try:
            words = list(lexer)
        except ValueError:  # an apostrophe: no command
            continue
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set(";&|()<>"):
                if command:
                    yield command
                command = []
            elif command or not re.fullmatch(r"\w+=.*", word):  # OMP_NUM_THREADS=1 make test
                command.append(word)


def makefile_targets(makefile: str) -> set[str]:
    return set(re.findall(r"^([A-Za-z][\w-]*):(?!=)", makefile, re.M))


# --- rules: each returns what is wrong, one line a finding -----------------------------------------------------------


def stray_marks(text: str) -> list[str]:
    """Marks that no fence of Python follows: what they were to run would silently not run."""
    starts = {at for at, language, _ in fences(text) if language == "python"}
    return [
        f"line {n}: {RUN} is not followed by ```python"
        for n, line in enumerate(prose(text).splitlines(), 1)
        if re.fullmatch(r"\s*<!--\s*run\s*-->\s*", line, re.I) and (n not in starts or line.strip() != RUN)
    ]


def unknown_targets(text: str, targets: set[str]) -> list[str]:
    named = (word for words in invocations(text) if words[0] == "make" for word in words[1:])
    return [f"make {w}: no such target" for w in named if re.fullmatch(r"[a-z][\w-]*", w) and w not in targets]


def unknown_commands(text: str, commands: set[str]) -> list[str]:
    found = []
    for words in invocations(text):
        if re.search(r"\bpython[\d.]*$", words[0]) and words[1:3] == ["-m", "foundling"]:
            words = words[2:]
        if Path(words[0]).name == "foundling" and len(words) > 1 and "-" != words[1][0] and not words[1].isupper():
            found += [] if words[1] in commands else [f"foundling {words[1]}: no such command"]
    return found


def dangling_links(path: Path, root: Path) -> list[str]:
    """Relative links and images that lead to nothing, or out of the repository."""
    text = re.sub(r"(?<!`)`[^`]+`(?!`)", "", prose(path.read_text(encoding="utf-8")))
    links = re.findall(r"\]\(\s*<?([^)\s>]+)", text)
    links += re.findall(r"^\s*\[[^\]]+\]:\s*<?([^\s>]+)", text, re.M)
    links += [html.unescape(link) for link in re.findall(r"\b(?:src|href|srcset)=[\"']([^\"'\s]+)", text)]
    found = []
    for link in links:
        name = unquote(link.split("#")[0].split("?")[0])
        if not name or re.match(r"[a-z][a-z0-9+.-]*:|//", link, re.I):
            continue
        target = (path.parent / name).resolve()
        if name.startswith("/") or not target.is_relative_to(root) or not target.exists():
            found.append(f"{path.relative_to(root)}: {link} leads to nothing in the repository")
    return found


# --- the documents as they stand -------------------------------------------------------------------------------------


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def check(found: list[str]) -> None:
    assert not found, "\n" + "\n".join(found)


def run(text: str, name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = folder / f"{name}.py"
    script.write_text(program(text), encoding="utf-8")
    return processes.run([script.name], cwd=folder)


@pytest.mark.parametrize("path", [p for p in DOCS if program(p.read_text(encoding="utf-8")).strip()], ids=ids)
def test_programs_run(path: Path, tmp_path: Path) -> None:
    result = run(path.read_text(encoding="utf-8"), path.stem, tmp_path)
    assert result.returncode == 0, f"{ids(path)} (the line numbers are its own)\n{result.stderr[-4000:]}"


def test_each_kind_of_finetuning_is_named() -> None:
    """In the table of `--as`, and those of comparisons in the examples of --help."""
    text = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")
    table = takewhile(lambda line: line.startswith("|"), text[text.index("| `--as` |") :].splitlines())
    names = {name for line in table for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert names == set(get_args(ExampleKind))
    assert all(name in " ".join(finetune.EXAMPLES) for name in PREFERENCE_KINDS)


def test_contributing_has_programs() -> None:
    assert "class " in program((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", DOCS, ids=ids)
def test_what_is_named_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = makefile_targets((ROOT / "Makefile").read_text(encoding="utf-8"))
    assert "test" in targets
    found = unknown_targets(text, targets) + unknown_commands(text, set(COMMANDS))
    check(stray_marks(text) + found + dangling_links(path, ROOT))


# --- the rules themselves: each catches what is planted --------------------------------------------------------------

PROGRAM = f"""# A document

{RUN}
```python
x = 1
```
```python
raise SystemExit("not marked")
```
   {RUN}
```python
print(x + 1)
```
"""


def test_marked_fences_are_one_program_with_the_lines_of_the_document(tmp_path: Path) -> None:
    assert run(PROGRAM, "sound", tmp_path).stdout == "2\n"
    broken = run(PROGRAM.replace("x + 1", "x + y"), "broken", tmp_path)
    assert broken.returncode == 1 and 'broken.py", line 12' in broken.stderr and "NameError" in broken.stderr


def test_a_mark_that_runs_nothing_is_caught() -> None:
    assert stray_marks(PROGRAM) == []
    for mark, opening in ((RUN, "\n```python"), (RUN, "```py"), (RUN, "```sh"), ("<!--run-->", "```python")):
        assert len(stray_marks(f"text\n{mark}\n{opening}\nx = 1\n```\n")) == 1, (mark, opening)


NAMES = """
`make test ARGS="-k make"` and `make -j2 lint`, make sure; `make TARGET`, `makefile`, `it's`, `foundling/cli`,
`foundling COMMAND --help`, `foundling --version`, `import foundling`, `foundling raise notes/ --minutes 3`.
```sh
make test lint   # make believe
OMP_NUM_THREADS=1 make test && foundling chat runs/a
.venv/bin/python -m foundling raise \\
    --minutes 3
```
```console
$ foundling raise
foundling notes: what is printed is no command
```
```python
foundling.make("cake")
```
"""


@pytest.mark.parametrize(
    "planted",
    [
        "`make cake`",
        "```sh\nmake test cake\n```",
        "```console\n$ cd foundling; A=1 make cake\n```",
        "`foundling cake`",
        "```bash\nmake test && foundling cake --json | head\n```",
        "`.venv/bin/foundling cake`",
        "```sh\n.venv/bin/python3.11 -m foundling cake\n```",
    ],
)
def test_a_name_that_is_not_there_is_caught(planted: str) -> None:
    targets, commands = {"test", "lint"}, {"raise", "chat"}
    assert unknown_targets(NAMES, targets) + unknown_commands(NAMES, commands) == []
    text = NAMES + planted
    assert len(unknown_targets(text, targets) + unknown_commands(text, commands)) == 1
    assert len(unknown_targets(text, set()) + unknown_commands(text, set())) > 5


def test_targets_are_read_from_the_makefile() -> None:
    assert makefile_targets("A := 1\nB ?= x:y\nall: a ## A: b\n.PHONY: no\n$(V)/x: y\n\techo c: d\nlong-one:\n") == {
        "all",
        "long-one",
    }


def test_a_link_to_nothing_is_caught(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a b.png").touch()
    page = tmp_path / "docs" / "page.md"
    sound = ["[a](https://example.org/x)", "[b](#part)", "![c](a%20b.png)", "[d](../docs/page.md#part 'title')"]
    sound += ["`[e](nothing.md)`", "```md\n[f](nothing.md)\n```", '<img src="a%20b.png">', "[g]: page.md"]
    page.write_text("\n".join(sound), encoding="utf-8")
    assert dangling_links(page, tmp_path) == []
    for link in (
        "[a](no.md)",
        "![a](no.png)",
        '<img src="no.png">',
        "[a]: no.md",
        "[a](../../..)",
        "[a](/docs/page.md)",
    ):
        page.write_text("\n".join([*sound, link]), encoding="utf-8")
        assert len(dangling_links(page, tmp_path)) == 1, link
