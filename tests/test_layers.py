# SPDX-License-Identifier: Apache-2.0
"""Imports point down the layers, no package is empty, files are short and signed, and nothing executes a file.

The rules read the syntax tree, so that an import inside a function, under TYPE_CHECKING, or by a string handed to
importlib or kept in a lazy table counts like one at the top of the file.
"""

import ast
import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "foundling"

LAYERS = {
    "errors": 0, "limits": 0, "config": 0, "runtime": 0, "contracts": 0,
    "blocks": 1, "text": 1, "media": 1, "diffusion": 1, "report": 1,
    "models": 2, "adapt": 2, "data": 2, "objectives": 2,
    "weights": 3,
    "train": 4,
    "plan": 5, "decode": 5, "interpret": 5,
    "verify": 6,
    "retrieve": 7,
    "evaluate": 8,
    "recipes": 9,
    "serve": 10,
    "cli": 11,
}  # fmt: skip
# They import lazily from every layer. What they must not do is import torch: see the tests in subprocesses.
ENTRY_POINTS = {"__init__", "__main__"}
MAX_LINES = 400
MAX_FUNCTION_LINES = 60


# --- reading ---------------------------------------------------------------------------------------------------------


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(path: Path, root: Path) -> str:
    """root/blocks/norm.py -> foundling.blocks.norm; a package's __init__.py is the package."""
    parts = ["foundling", *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root: Path) -> dict[str, Path]:
    return {module_name(path, root): path for path in sorted(root.rglob("*.py"))}


def package_of(name: str) -> str | None:
    """foundling.blocks.norm -> blocks"""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else None


def docstrings(tree: ast.Module) -> set[ast.AST]:
    """Strings that stand alone as statements: docstrings, and comments on attributes."""
    statements = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
    return {value for value in statements if isinstance(value, ast.Constant)}


def imports(path: Path, root: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """(line, module) for everything of foundling that the file reaches for, wherever and however it does."""
    yield from stated_imports(path, root, known)
    tree = tree_of(path)
    prose = docstrings(tree)
    for node in ast.walk(tree):
        # a module's name in a table of lazy imports; "foundling.json" is a file and no module of ours
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            name = re.fullmatch(r"(foundling(?:\.\w+)+)(?::\w+)?", node.value)
            if name and (package_of(name[1]) in LAYERS or name[1] in known):
                yield node.lineno, name[1]
        # `import foundling` and then foundling.train…
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "foundling" and node.attr[:2] != "__":
            yield node.lineno, f"foundling.{node.attr}"


def stated_imports(path: Path, root: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """The import statements, and import_module(…) or __import__(…) of a text that can be read here."""
    here = module_name(path, root)
    package = here if path.name == "__init__.py" else here.rpartition(".")[0]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("foundling."):
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = absolute("." * node.level + (node.module or ""), package)
            if base.split(".")[0] != "foundling":
                continue
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if base == "foundling":  # a package, a leaf, or what __init__ imports lazily from any layer
                    if not alias.name.startswith("__"):
                        yield node.lineno, inner
                else:
                    yield node.lineno, inner if inner in known else base
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__") and node.args:
            text = beginning(node.args[0])
            if text.startswith("."):
                given = [*node.args[1:], *(k.value for k in node.keywords if k.arg == "package")]
                text = absolute(text, (beginning(given[0]) if given else "") or package)
            if text.split(".")[0] == "foundling":
                yield node.lineno, text


def absolute(name: str, package: str) -> str:
    dots = len(name) - len(name.lstrip("."))
    if not dots:
        return name
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - dots + 1], *filter(None, [name[dots:]])])


def called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def beginning(node: ast.AST) -> str:
    """The text of a string, or what an f-string or a sum begins with, up to its last whole name."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr) and node.values:
        return beginning(node.values[0]).rstrip(".")
    if isinstance(node, ast.BinOp):
        return beginning(node.left).rstrip(".")
    return ""


# --- rules: each returns what is wrong, one line a finding -----------------------------------------------------------


def upward_imports(root: Path) -> list[str]:
    """Imports that go up or sideways, and packages that are on no layer."""
    known, found = modules(root), []
    for name, path in known.items():
        package = package_of(name)
        if package is None or package in ENTRY_POINTS:
            continue
        if package not in LAYERS:
            found.append(f"{name}: '{package}' is in no layer; give it one in LAYERS (tests/test_layers.py)")
            continue
        for line, target in imports(path, root, known):
            other = package_of(target)
            at = f"{path.relative_to(root.parent)}:{line}"
            if other not in LAYERS:
                found.append(f"{at}: {target} is no package; import a thing from the package that defines it")
            elif package == other:
                continue
            elif package == "errors":
                found.append(f"{at}: errors imports {target}; it imports nothing of ours")
            elif LAYERS[package] == 0 and LAYERS[other] == 0:
                continue  # leaves: errors below the others, which the search for cycles sees to
            elif LAYERS[other] >= LAYERS[package]:
                way = "up" if LAYERS[other] > LAYERS[package] else "sideways"
                found.append(
                    f"{at}: {package} (layer {LAYERS[package]}) imports {way}: {target} (layer {LAYERS[other]})"
                )
    return sorted(set(found))


def cycles(root: Path) -> list[str]:
    """Import cycles between the modules of one package, or between the leaves of layer 0."""
    known = modules(root)
    below: dict[str, set[str]] = {}
    for name, path in known.items():
        if (package := package_of(name)) is None or package in ENTRY_POINTS:
            continue
        targets = {target for _, target in stated_imports(path, root, known)} - {name}
        below[name] = {t for t in targets if t in known and (package_of(t) == package or LAYERS.get(package) == 0)}
    found, done = [], set()

    def walk(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append(" -> ".join([*trail[trail.index(name) :], name]))
        elif name not in done:
            for target in sorted(below.get(name, ())):
                walk(target, [*trail, name])
            done.add(name)

    for name in below:
        walk(name, [])
    return found


def empty_packages(root: Path) -> list[str]:
    """Packages in which no module says anything: only docstrings, imports, `pass`."""

    def has_content(path: Path) -> bool:
        idle = (ast.Import, ast.ImportFrom, ast.Pass)
        prose = docstrings(tree_of(path))
        body = tree_of(path).body
        return any(not isinstance(s, idle) and not (isinstance(s, ast.Expr) and s.value in prose) for s in body)

    packages = {path.parent for path in root.rglob("*.py")}
    return [
        f"{package.relative_to(root.parent)}: a package without content; it appears with its first real use"
        for package in sorted(packages)
        if not any(has_content(path) for path in package.rglob("*.py"))
    ]


LOADERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
METHODS = {
    "eval", "exec", "builtins.eval", "builtins.exec", "torch.load", "torch.save",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load",
}  # fmt: skip
SWITCHES = {"allow_pickle", "trust_remote_code"}


def executions(root: Path) -> list[str]:
    """Ways to run what a file says: pickles, torch.load, eval, exec."""
    found = []
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(tree_of(path)):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names if a.name.split(".")[0] in LOADERS]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module] if node.module.split(".")[0] in LOADERS else []
                names += [f"{node.module}.{a.name}" for a in node.names if f"{node.module}.{a.name}" in METHODS]
            elif isinstance(node, ast.Call):
                if (function := ast.unparse(node.func)) in METHODS:
                    names = [f"{function}("]
                names += [f"{k.arg}=" for k in node.keywords if k.arg in SWITCHES and ast.unparse(k.value) != "False"]
            found += [f"{path.relative_to(root.parent)}:{getattr(node, 'lineno', 0)}: {name}" for name in names]
    return found


PRINTS = {"cli/stdio.py", "recipes/progress.py"}
"""What writes to the terminal, through the renderer of untrusted text."""


def prints(root: Path) -> list[str]:
    """Ways past cli/stdio.py: untrusted text would reach the terminal, and a closed or full stream would raise."""
    found = []
    for path in sorted(root.rglob("*.py")):
        nodes = [] if path.relative_to(root).as_posix() in PRINTS else list(ast.walk(tree_of(path)))
        asked = {id(n.value) for n in nodes if isinstance(n, ast.Attribute) and n.attr == "isatty"}
        for node in nodes:
            name = called(node) if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Attribute) and id(node) not in asked and ast.unparse(node) in STREAMS:
                name = ast.unparse(node)
            if name in ("print", "input", "print_exc", "print_stack", "print_exception", *STREAMS):
                line = getattr(node, "lineno", 0)
                found.append(f"{path.relative_to(root.parent)}:{line}: {name}; use say or note of cli/stdio.py")
    return found


READS = {"len", "isinstance", "all", "any", "sizeof", "is_contiguous", "foundling_op_size", "foundling_rows_size"}


def working_assertions(root: Path) -> list[str]:
    """Assertions that call what may do something: `python -O` leaves them out."""
    return [
        f"{path.relative_to(root.parent)}:{node.lineno}: assert … {called(call)}()"
        for path in sorted(root.rglob("*.py"))
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Assert)
        for call in ast.walk(node.test)
        if isinstance(call, ast.Call) and called(call) not in READS
    ]


LONG = set[str]()
"""path:name of functions that may be longer; none is"""


def long_functions(root: Path) -> list[str]:
    """A function reads from top to bottom; one that does not fit on a page does two things."""
    return [
        f"{path.relative_to(root.parent)}:{node.lineno}: {node.name} has {length} lines, at most {MAX_FUNCTION_LINES}"
        for path in sorted(root.rglob("*.py"))
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
        and f"{path.relative_to(root).as_posix()}:{node.name}" not in LONG
    ]


STREAMS = {f"sys.{name}" for name in ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")}


def tracked() -> list[Path]:
    """What git tracks or would; without git, what is neither hidden nor built."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if listing.returncode == 0:
            return [p for name in listing.stdout.split("\0") if name and (p := ROOT / name).is_file()]
    built = {"build", "dist", "runs", "__pycache__"}

    def visit(folder: Path) -> Iterator[Path]:
        for path in sorted(folder.iterdir()):
            hidden = path.name.startswith(".") and path.name not in (".ci", ".github", ".gitignore")
            if hidden or path.name in built or path.name.endswith(".egg-info"):
                continue
            if path.is_dir() and not path.is_symlink():
                yield from visit(path)
            elif path.is_file():
                yield path

    return list(visit(ROOT))


def text_of(path: Path) -> str | None:
    """None for what is not text."""
    data = path.read_bytes()
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


# --- the package as it stands ----------------------------------------------------------------------------------------


def check(found: list[str]) -> None:
    assert not found, "\n" + "\n".join(found)


def test_imports_point_down() -> None:
    assert len(modules(PACKAGE)) > 4, "the walk found no package"
    check(upward_imports(PACKAGE))


def test_functions_are_short() -> None:
    check(long_functions(PACKAGE))


def test_no_import_cycles() -> None:
    check(cycles(PACKAGE))


def test_no_package_is_empty() -> None:
    check(empty_packages(PACKAGE))


def test_nothing_executes_a_file() -> None:
    check(executions(PACKAGE))


def test_one_place_prints(tmp_path: Path) -> None:
    check(prints(PACKAGE))
    (tmp_path / "cli").mkdir()
    (tmp_path / "cli" / "chat.py").write_text("import sys\nprint(1)\nsys.stderr.write('a')\nsys.stdin.isatty()\n")
    assert len(prints(tmp_path)) == 2


def test_assertions_do_nothing(tmp_path: Path) -> None:
    check(working_assertions(PACKAGE))
    (tmp_path / "a.py").write_text("assert a.pop(0) == len(b)\n")
    assert len(working_assertions(tmp_path)) == 1


def test_files_are_one_idea_long() -> None:
    sources = [p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix not in (".json", ".pyc")]
    lengths = {p: len((text_of(p) or "").splitlines()) for p in sources}
    check([f"{p.relative_to(ROOT)}: {n} lines, over {MAX_LINES}" for p, n in lengths.items() if n > MAX_LINES])


def test_sources_carry_their_licence() -> None:
    line = "SPDX-License-Identifier: " + "Apache-2.0"
    sources = [p for p in tracked() if p.suffix in (".py", ".j2") and p.stat().st_size]  # an empty file says nothing
    assert sources
    check([f"{p.relative_to(ROOT)}: no '{line}' at the top" for p in sources
           if line not in "\n".join(p.read_text(encoding="utf-8").splitlines()[:3])])  # fmt: skip


HOME_PATH = re.compile(r"(?<![\w.~-])/(?:home|root|work)/")


def test_no_file_names_a_home() -> None:
    found = []
    for path in tracked():
        lines = (text_of(path) or "").splitlines()
        found += [f"{path.relative_to(ROOT)}:{n}: {line.strip()[:80]}" for n, line in enumerate(lines, 1)
                  if HOME_PATH.search(line)]  # fmt: skip
    check(found)


@pytest.mark.parametrize("modules", ["foundling", "foundling, foundling.text", "foundling, foundling.cli"])
def test_light_packages_do_not_import_torch(modules: str) -> None:
    code = f"import {modules}, sys; sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


# --- the rules themselves: each catches what is planted --------------------------------------------------------------


def plant(tmp_path: Path, files: dict[str, str]) -> Path:
    root = tmp_path / "foundling"
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return root


SOUND = {
    "__init__.py": "def __getattr__(name):\n    from foundling.train import loop\n    return loop",
    "errors.py": "class FoundlingError(Exception): ...",
    "config.py": "from foundling.errors import FoundlingError",
    "blocks/norm.py": "from ..errors import FoundlingError\nimport torch",
    "models/__init__.py": "from foundling import __version__\nFAMILIES = ['foundling.models.a:A', 'foundling.json']",
    "models/a.py": "from foundling.blocks import norm\nfrom foundling.models import tools",
    "models/tools.py": "'''Used by foundling.train.'''\nX = 1",
    "train/loop.py": "from foundling.models.a import *",
    "blocks/act.py": "relu = max",
    "train/step.py": "N = 1",
}


def test_a_sound_tree_passes(tmp_path: Path) -> None:
    sound = plant(tmp_path, SOUND)
    assert upward_imports(sound) == cycles(sound) == empty_packages(sound) == executions(sound) == []


UP = "blocks (layer 1) imports up: foundling."
BAD = "blocks/bad.py"


@pytest.mark.parametrize(
    ("name", "source", "finding"),
    [
        (BAD, "def f():\n    if True:\n        from foundling.train.loop import x", UP + "train.loop (layer 4)"),
        (BAD, "import foundling.models.a as a", UP + "models.a (layer 2)"),
        (BAD, "from foundling import train", UP + "train"),
        (BAD, "from .. import train", UP + "train"),
        (BAD, "from ..train import loop", UP + "train.loop"),
        ("blocks/deep/bad.py", "from ...train.loop import x", UP + "train.loop"),
        ("blocks/__init__.py", "from ..train import loop", UP + "train.loop"),
        (BAD, "if TYPE_CHECKING:\n    from foundling.train import loop", UP + "train.loop"),
        (BAD, "import importlib\nm = importlib.import_module('foundling.train.loop')", UP + "train.loop"),
        (BAD, "m = import_module(f'foundling.train.{name}')", UP + "train"),
        (BAD, "m = import_module('..train', __package__)", UP + "train"),
        (BAD, "m = import_module('.loop', package='foundling.train')", UP + "train.loop"),
        (BAD, "m = __import__('foundling.train')", UP + "train"),
        (BAD, "LAZY = {'loop': ('foundling.train.loop', 'x')}", UP + "train.loop"),
        (BAD, "import foundling\nfoundling.train.loop.x()", UP + "train"),
        ("models/bad.py", "from foundling.data import pack", "models (layer 2) imports sideways: foundling.data"),
        ("text/bad.py", "import foundling.blocks.norm", "text (layer 1) imports sideways: foundling.blocks.norm"),
        ("train/bad.py", "from foundling import load", "foundling.load is no package"),
        ("train/bad.py", "m = import_module(f'foundling.{name}')", "foundling is no package"),
        ("config.py", "import foundling.blocks.norm", "config (layer 0) imports up"),
        ("errors.py", "from foundling.config import T", "errors imports foundling.config"),
        ("attic/box.py", "X = 1", "'attic' is in no layer"),
    ],
)
def test_a_planted_upward_import_is_caught(tmp_path: Path, name: str, source: str, finding: str) -> None:
    found = upward_imports(plant(tmp_path, {**SOUND, name: source}))
    assert any(finding in line for line in found), found
    assert all(name in line or "no layer" in line for line in found), "what was not planted was found"


def test_a_planted_cycle_is_caught(tmp_path: Path) -> None:
    hidden = plant(tmp_path, {**SOUND, "models/tools.py": "def f():\n    from .a import A\n    return A"})
    assert cycles(hidden) == ["foundling.models.a -> foundling.models.tools -> foundling.models.a"]
    leaves = {"contracts.py": "from foundling import runtime", "runtime.py": "from foundling.contracts import Mask"}
    assert len(cycles(plant(tmp_path / "leaves", {**SOUND, **leaves}))) == 1


def test_a_planted_long_function_is_caught(tmp_path: Path) -> None:
    source = "class A:\n    async def f():\n" + "        x = 1\n" * MAX_FUNCTION_LINES
    assert len(long_functions(plant(tmp_path, {**SOUND, "train/bad.py": source}))) == 1


@pytest.mark.parametrize("source", ["", "'''Soon.'''", "'''Soon.'''\nimport torch\npass\n..."])
def test_a_planted_empty_package_is_caught(tmp_path: Path, source: str) -> None:
    assert len(empty_packages(plant(tmp_path, {**SOUND, "adapt/__init__.py": source}))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x', weights_only=True)",
        "from torch import load",
        "eval('1')",
        "exec('1')",
        "import builtins\nbuiltins.exec('1')",
        "import yaml\nyaml.load(text, Loader)",
        "import numpy\nnumpy.load('x', allow_pickle=True)",
    ],
)
def test_a_planted_execution_is_caught(tmp_path: Path, source: str) -> None:
    assert len(executions(plant(tmp_path, {**SOUND, "data/bad.py": source}))) == 1


def test_what_only_looks_like_execution_passes(tmp_path: Path) -> None:
    source = "model.eval()\nyaml.safe_load('a')\nre.compile('a')\nnp.load(p, allow_pickle=False)\nx = 'eval(x)'"
    assert executions(plant(tmp_path, {**SOUND, "data/fine.py": source})) == []
