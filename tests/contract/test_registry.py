# SPDX-License-Identifier: Apache-2.0
"""The registry: its table says what the families' own maps say, and recognising a directory imports one family."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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


def test_one_family_is_imported() -> None:
    """What a fresh interpreter has imported of the families, after importing all of them and after loading one."""
    program = f"""
import json, sys
import foundling, foundling.models
before = list(sys.modules)
foundling.load({str(GOLDEN / "llama")!r})
print(json.dumps([before, list(sys.modules)]))
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = {entry.module for entry in FAMILIES.values()}
    before, after = (modules & set(names) for names in json.loads(out.stdout.splitlines()[-1]))
    assert before == set() and after == {"foundling.models.decoder.llama"}
