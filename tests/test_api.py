# SPDX-License-Identifier: Apache-2.0
"""What is public is listed, documented and there."""

import ast
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import foundling

ROOT = Path(__file__).resolve().parent.parent


def test_the_documented_names_are_the_exported_ones() -> None:
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `(\w+)` \| \S.* \|$", text, flags=re.MULTILINE)
    assert sorted(documented) == foundling.__all__ == sorted(foundling.__all__) == dir(foundling)


def test_every_exported_name_is_there_and_has_a_docstring() -> None:
    for name in foundling.__all__:
        assert (getattr(foundling, name).__doc__ or "").strip(), name


def test_a_public_function_stays_callable_when_the_package_of_its_name_is_imported() -> None:
    """`import foundling.train.x` gives the name `foundling.train` to the package."""
    importlib.import_module("foundling.train.loop")
    packages = [name for name in foundling.__all__ if isinstance(sys.modules.get(f"foundling.{name}"), ModuleType)]
    assert packages == ["train"]
    package: Any = sys.modules["foundling.train"]
    with pytest.raises(TypeError, match=r"^train\(\) missing 5 required positional arguments: 'objective'"):
        package(None)


def test_type_checkers_see_the_same_names() -> None:
    """The imports under TYPE_CHECKING are those of the lazy table."""
    tree = ast.parse((ROOT / "foundling/__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    stated = {a.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert stated == foundling._WHERE and (ROOT / "foundling/py.typed").exists()
