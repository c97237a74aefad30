# SPDX-License-Identifier: Apache-2.0
"""Configurations: what fits comes back the same, what does not is named."""

import os
import tracemalloc
from dataclasses import dataclass
from typing import Literal

import pytest

from foundling.config import dump_yaml, from_dict, load_yaml, nearest, parse_scalar, to_dict
from foundling.errors import ConfigError
from foundling.models import FAMILIES, configuration, family
from foundling.models.decoder.llama import LlamaConfig
from tests.contract.cases import case


@dataclass(frozen=True)
class Example:
    n_layers: int
    rate: float = 0.1
    kind: Literal["a", "b"] = "a"
    name: str = "x"


def test_round_trip_through_yaml(tmp_path) -> None:
    config = Example(3, 2e-5, "b", "é: [x]")
    file = tmp_path / "c.yaml"
    file.write_text(dump_yaml(config), encoding="utf-8")
    assert from_dict(Example, load_yaml(file)) == config
    assert to_dict(config)["rate"] == 2e-5


def test_a_name_of_any_length_costs_nothing() -> None:
    """Compared with the known names, one of two million letters took a third of a second and 100 MB."""
    assert "did you mean 'n_layers'" in nearest("n_layer", ["n_layers"])
    assert nearest("n_layers" + "_" * 193, ["n_layers" + "_" * 192]).startswith("known: ")
    tracemalloc.start()
    with pytest.raises(ConfigError) as caught:
        from_dict(Example, {"x" * 2_000_000: 1})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(str(caught.value)) < 300 and "2,000,002 characters" in str(caught.value) and peak < 20e6


def test_scalars_are_numbers_as_people_write_them() -> None:
    assert [parse_scalar(text) for text in ("4", "3e-3", "b", "", "true")] == [4, 3e-3, "b", None, True]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"n_layer": 3}, "unknown key 'n_layer'; did you mean 'n_layers'"),
        ({"n_layers": "three"}, "'n_layers' is 'three', expected int"),
        ({"n_layers": True}, "'n_layers' is True, expected int"),
        ({"n_layers": 3, "kind": "c"}, "'kind' is 'c'"),
        ({}, "missing key 'n_layers'"),
    ],
)
def test_what_does_not_fit_is_named(values: dict, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Example, values, where="example")
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_family_refuses_contradictions() -> None:
    fields = dict(vocab_size=64, d_model=64, n_layers=1, n_heads=4, n_kv_heads=3, head_dim=16, d_ff=64)
    with pytest.raises(ConfigError, match="n_heads 4 is not a multiple of n_kv_heads 3"):
        from_dict(LlamaConfig, fields)


SIZES = {"vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "n_groups", "patch_size", "head_dim"}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_size_that_is_not_positive_is_named(name: str) -> None:
    fields = to_dict(case(name).tiny().config)
    found = SIZES & fields.keys()
    assert found
    for field in found:
        for value in (0, -1, 0.0):
            with pytest.raises(
                ConfigError, match=rf"^config\.json: '{field}' is -?\d+(\.0)?, (out of range|expected a whole number)"
            ) as caught:
                configuration(family(name), fields | {field: value}, where="config.json")
            assert "\n" not in str(caught.value)
    assert to_dict(configuration(family(name), fields, where="config.json")) == fields


def test_yaml_cannot_make_objects(tmp_path) -> None:
    file = tmp_path / "bomb.yaml"
    file.write_text(f"x: !!python/object/apply:os.mkdir ['{tmp_path / 'executed'}']\n")
    with pytest.raises(ConfigError, match="not YAML"):
        load_yaml(file)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &a [x, x]\nb: *a\n", r"line 2 has the alias \*a; write the value out"),
        ("a: &a {b: 1}\nc: {<<: *a}\n", r"line 2 has the alias \*a"),
        ("data: {field: a}\nseed: 1\ndata: {}\n", "line 3 has the key 'data' a second time"),
        ("optim: {betas: [0, 1], 'betas': [0, 1]}\n", "line 1 has the key 'betas' a second time"),
        ("data: {field: a}\n\x1b[2J: 1\n", "not YAML"),
    ],
)
def test_yaml_that_hides_what_it_says(tmp_path, text: str, says: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_yaml(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_a_page_of_aliases_is_refused_before_it_grows(tmp_path) -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (tmp_path / "laughs.yaml").write_text("\n".join(["a0: &a0 x", *levels]))
    with pytest.raises(ConfigError, match=r"line 2 has the alias \*a0"):
        load_yaml(tmp_path / "laughs.yaml")
    assert [parse_scalar(text) for text in ("*a", "{a: 1, a: 2}")] == ["*a", "{a: 1, a: 2}"]
    shared = [1, 2]
    (tmp_path / "ours.yaml").write_text(dump_yaml({"a": shared, "b": shared}))
    assert load_yaml(tmp_path / "ours.yaml") == {"a": [1, 2], "b": [1, 2]}


def test_a_recipe_is_a_file(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", "/dev/stdin", tmp_path / "pipe", tmp_path):
        with pytest.raises(ConfigError, match="not a file"):
            load_yaml(path)
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="too large for a recipe"):
        load_yaml(tmp_path / "large")


def test_yaml_reads_what_it_wrote(tmp_path) -> None:
    """YAML 1.1 takes 1e-05 for text."""
    values = {"a": 1e-05, "b": -2.5e30, "c": 1e22, "d": "1e5x", "e": 3, "f": float("1e-300"), "g": "12e"}
    values |= {text: text for text in ("1e6", "5e6", "-1E+3", "12e4", "1.e6", "1.5e6", ".5e3", "1_0e6", "1e6 ")}
    (tmp_path / "x.yaml").write_text(dump_yaml(values) + "h: 1e5\n")
    assert load_yaml(tmp_path / "x.yaml") == {**values, "h": 1e5}
