# SPDX-License-Identifier: Apache-2.0
"""`foundling lineage` over directories that the library wrote: a base, an adapter, their merge, an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import foundling as library
from foundling.evaluate.store import write_evaluation
from foundling.weights.merged import merge_adapter
from tests.contract.cases import case
from tests.e2e.tools import foundling, weights
from tests.evaluate.records import evaluation


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("lineage") / "runs"
    torch.manual_seed(0)
    library.save(library.build("llama", **case("llama").family.module.sized(320, 64, 32, 2)), root / "base")
    model = library.load(root / "base")
    library.lora(model, library.LoRAOptions(rank=2), torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if name.endswith(".b"):  # zero at first, so that a merge would change nothing
            parameter.data.fill_(0.1)
    library.save_adapter(model, root / "lora")
    merge_adapter(root / "lora", root / "merged")
    write_evaluation(evaluation({"arc easy": [1, 0]}, model=weights(root / "merged")), root / "evals" / "first")
    return root


def test_the_table_and_the_json_object(runs: Path) -> None:
    done = foundling("lineage", runs, "--application", f"helpdesk={runs / 'merged'}")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[1]: line for line in done.stdout.splitlines()[1:]}
    assert {"base", "lora", "merged", "first", "helpdesk"} <= lines.keys()
    assert lines["lora"].endswith("adapter of base") and lines["merged"].endswith("merged from base; merged from lora")
    assert "evaluates merged" in lines["first"] and lines["helpdesk"].endswith("uses merged")
    assert weights(runs / "base")[:12] in lines["base"]
    answer = json.loads(foundling("lineage", runs, "--json", fresh=True).stdout)
    assert len(answer["nodes"]) == 5 and {edge["relation"] for edge in answer["edges"]} == {
        "adapter of", "merged from", "evaluated in", "evaluated on",
    }  # fmt: skip


def test_files_of_each_kind(runs: Path, tmp_path: Path) -> None:
    starts = {".html": "\n\n<!DOCTYPE html>", ".svg": "<svg ", ".dot": "digraph lineage {", ".json": '{"nodes": ['}
    for suffix, start in starts.items():
        out = tmp_path / f"graph{suffix}"
        done = foundling("lineage", runs, "--out", out)
        assert done.returncode == 0 and f"graph: {out}" in done.stdout
        assert out.read_text().lstrip().startswith(start.lstrip()), suffix
        assert str(runs) not in out.read_text() or suffix == ".json", "a page is there to be shown to others"


def test_what_is_refused(runs: Path, tmp_path: Path) -> None:
    for args, says in (
        ((tmp_path,), "name a model, an evaluation, or a folder of them"),
        ((runs, "--out", "graph.png"), "expected a name that ends with .html, .svg, .dot or .json"),
        ((runs, "--application", "x"), "expected NAME=DIR"),
        ((runs, "--out", "/proc/none/graph.svg"), "cannot be written"),
    ):
        done = foundling("lineage", *args)
        assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
