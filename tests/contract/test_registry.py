# SPDX-License-Identifier: Apache-2.0
"""The registry: its table says what the families' own maps say, and recognising a directory imports one family."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from foundling.models import FAMILIES, family, recognise

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"


def test_the_table_says_what_each_family_says() -> None:
    for name, entry in FAMILIES.items():
        table = family(name).module.CONFIG
        assert (entry.type_key, entry.model_type) == (table.type_key, table.model_type), name
    assert len({(entry.type_key, entry.model_type) for entry in FAMILIES.values()}) == len(FAMILIES)


def test_unknown_configurations_are_no_family() -> None:
    for values in ({}, {"model_type": "llama5"}, {"model_type": None}, {"model_type": ["llama"]}):
        assert recognise(values) is None
    assert recognise({"_class_name": "UNet2DModel"}) == family("unet")


def modules_after(program: str) -> set[str]:
    """Which families a process has imported after it ran the program."""
    program += "; import json, sys; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = {entry.module for entry in FAMILIES.values()}
    return modules & set(json.loads(out.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("program", "imported"),
    [
        ("import foundling.models", set()),
        (f"import foundling; foundling.load({str(GOLDEN / 'llama')!r})", {"foundling.models.decoder.llama"}),
    ],
)
def test_one_family_is_imported(program: str, imported: set[str]) -> None:
    assert modules_after(program) == imported
