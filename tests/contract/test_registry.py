# SPDX-License-Identifier: Apache-2.0
"""The registry: its table says what the families' own maps say, and recognising a directory imports one family."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from foundling.config import hints
from foundling.errors import ConfigError
from foundling.models import FAMILIES, MAY_BE_ZERO, configuration, family, recognise
from tests.contract.cases import case

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


@pytest.mark.parametrize("name", [name for name in FAMILIES if "n_kv_heads" in hints(family(name).config)])
def test_heads_that_share_no_key_value_heads_are_refused(name: str) -> None:
    found, fields = family(name), case(name).fields()
    with pytest.raises(ConfigError, match=r"n_heads 4 is not a multiple of n_kv_heads 3"):
        configuration(found, fields | {"n_heads": 4, "n_kv_heads": 3}, where=name)
    if "head_dim" in fields and name != "mamba2":
        with pytest.raises(ConfigError, match="5 channels of each head are rotated; rotary positions need pairs"):
            configuration(found, fields | {"head_dim": 5}, where=name)
    elif "head_dim" not in fields:
        with pytest.raises(ConfigError, match=r"d_model 50 is not a multiple of n_heads 4"):
            configuration(found, fields | {"d_model": 50, "n_heads": 4, "n_kv_heads": 2}, where=name)


def test_whole_numbers_that_may_be_zero_are_named() -> None:
    """Each is a field of some family; what is 0 by default is among them."""
    named, zero = set[str](), set[str]()
    for name in FAMILIES:
        config = family(name).config
        named |= hints(config).keys()
        defaults = {field: getattr(config, field, None) for field in hints(config)}
        zero |= {field for field, value in defaults.items() if type(value) is int and value == 0}
    assert zero <= MAY_BE_ZERO <= named
    llama = case("llama").fields()
    with pytest.raises(ConfigError, match="'n_layers' is 0, out of range"):
        configuration(family("llama"), llama | {"n_layers": 0}, where="llama")
