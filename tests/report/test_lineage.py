# SPDX-License-Identifier: Apache-2.0
"""The ecosystem graph: what directories say becomes nodes and edges, nothing is dropped or guessed, and the drawing
stands whatever the graph."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as xml
from itertools import pairwise
from pathlib import Path

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundling.errors import ConfigError, DataError
from foundling.evaluate.lineage import lineage
from foundling.evaluate.store import write_evaluation
from foundling.report.layers import HEIGHT, LANE, layout
from foundling.report.lineage import (
    NOT_STATED,
    Edge,
    Graph,
    Node,
    access_of,
    as_json,
    dot,
    in_order,
    joined,
    lineage_html,
    lineage_svg,
    rows,
)
from tests.evaluate.records import evaluation

NASTY = '</script><img src=x onerror=alert(1)>\x1b[2J\u202e"\\\n'
BASE, TUNED, ADAPTER, STUDENT, MERGED, DATA, CHATS = (f"{i:064x}" for i in range(1, 8))


def model(directory: Path, digest: str | None, **manifest: object) -> Path:
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(b"x" * 100)
    about = {"format_version": 1, **({"weights_hash": digest} if digest else {}), **manifest, "files": {"a": "b"}}
    (directory / "foundling.json").write_text(json.dumps(about))
    return directory


def parent(digest: str, name: str = "base") -> dict[str, str]:
    return {"name": name, "weights_hash": digest}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    of_data = {"data_hash": DATA, "licence": "cc-by-4.0"}
    base = model(root / "base", BASE, **of_data, result={"params": 5_000_000, "source_bytes": 1000},
                 recipe={"data": {"source": "notes/"}, "model": {}, "objective": {}})  # fmt: skip
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    model(root / "tuned", TUNED, data_hash=CHATS, parents=[parent(BASE)], recipe={"model": {"weights_hash": BASE}})
    model(root / "lora", ADAPTER, adapter=True, base=BASE, data_hash=CHATS, parents=[parent(BASE)])
    model(root / "student", STUDENT, **of_data, parents=[parent(BASE)], recipe={"objective": {"teacher_hash": BASE}})
    model(
        root / "deep" / "merged", MERGED, merge={"method": "average"}, parents=[parent(BASE), parent("f" * 64, "gone")]
    )
    model(root / "base" / "run" / "checkpoints" / "step-1", None)
    return root


def relations(graph: Graph) -> set[tuple[str, str, str]]:
    names = {node.id: node.name for node in graph.nodes}
    return {(names[e.source], e.relation, names[e.target]) for e in graph.edges}


def test_what_directories_say(runs: Path) -> None:
    graph = lineage([runs])
    assert relations(graph) == {
        ("notes", "trained on", "base"), ("notes", "trained on", "student"), (CHATS[:12], "trained on", "tuned"),
        (CHATS[:12], "trained on", "lora"), ("base", "finetuned from", "tuned"), ("base", "adapter of", "lora"),
        ("base", "distilled from", "student"), ("base", "merged from", "merged"), ("gone", "merged from", "merged"),
    }  # fmt: skip
    by_name = {node.name: node for node in graph.nodes}
    assert len(graph.nodes) == 8 and by_name["lora"].kind == "adapter" and by_name["notes"].kind == "data"
    assert by_name["base"].licence == "apache-2.0" and by_name["base"].access == "open" and by_name["base"].present
    assert by_name["base"].size == {"parameters": 5_000_000, "bytes": 100}
    assert by_name["notes"].licence == "cc-by-4.0" and by_name["notes"].size == {"bytes": 1000}
    assert not by_name["gone"].present and by_name["gone"].licence is None and by_name["gone"].access == NOT_STATED
    assert by_name["tuned"].access == NOT_STATED


def test_a_policy_is_tied_to_the_adapter_that_it_starts_from_and_to_its_reward_model(runs: Path) -> None:
    """It records the merged weights, which no directory has, beside those of the adapter."""
    start = {"name": "lora", "weights_hash": "a" * 64, "adapter": ADAPTER}
    recipe = {"model": {"weights_hash": "a" * 64}, "rollout": {"reward_hashes": {"runs/tuned": TUNED}}}
    model(runs / "policy", "b" * 64, data_hash=CHATS, parents=[start, parent(TUNED, "tuned")], recipe=recipe)
    graph = lineage([runs])
    assert {r for r in relations(graph) if r[2] == "policy"} == {
        ("lora", "finetuned from", "policy"), ("tuned", "rewarded by", "policy"), (CHATS[:12], "trained on", "policy"),
    }  # fmt: skip
    assert len([node for node in graph.nodes if node.kind == "adapter"]) == 1


def test_evaluations_judges_and_applications(runs: Path, tmp_path: Path) -> None:
    record = evaluation({"arc easy": [1, 0], "sums": [1]}, subject="runs/base", model=BASE, judge="e" * 64)
    record.results[1].hashes["task"] = "9" * 64
    record.settings["judge"] = "runs/large"
    write_evaluation(record, tmp_path / "evals" / "first")
    table = tmp_path / "used.json"
    table.write_text(json.dumps({"applications": [
        {"name": "search", "uses": [str(runs / "tuned"), BASE], "access": "closed", "size": {"users": 40}},
    ]}))  # fmt: skip
    graph = lineage([runs, tmp_path / "evals"], [f"helpdesk={runs / 'lora'}", str(table)])
    assert {
        ("base", "evaluated in", "first"), ("large", "judged by", "first"), ("arc easy", "evaluated on", "first"),
        ("sums", "evaluated on", "first"), ("lora", "used by", "helpdesk"), ("tuned", "used by", "search"),
        ("base", "used by", "search"),
    } <= relations(graph)  # fmt: skip
    kinds = {node.name: node.kind for node in graph.nodes}
    assert kinds["large"] == "judge" and kinds["first"] == "evaluation" and kinds["helpdesk"] == "application"
    assert {node.access for node in graph.nodes if node.name == "search"} == {"closed"}
    lines = {row[1]: row for row in rows(graph)}
    assert lines["helpdesk"][6] == "uses lora" and "evaluates base; judged by large" in lines["first"][6]
    assert lines["first"][5] == "2 tasks, 3 items" and lines["large"][0] == "judge, not given"
    many = evaluation({f"t{i}": [1] for i in range(20)}, model=BASE)
    for i, result in enumerate(many.results):
        result.hashes["task"] = f"{i:032x}"
    write_evaluation(many, tmp_path / "many")
    assert ("20 tasks", "evaluated on", "many") in relations(lineage([tmp_path / "many"]))


def test_equal_hashes_are_one_node_and_cycles_stand(tmp_path: Path) -> None:
    for name, digest, of in (("a", BASE, TUNED), ("b", TUNED, BASE), ("copy", BASE, TUNED), ("self", MERGED, MERGED)):
        model(tmp_path / name, digest, parents=[parent(of)])
    graph = lineage([tmp_path])
    assert {node.name: len(node.places) for node in graph.nodes} == {"a": 2, "b": 1, "self": 1}
    assert len(graph.edges) == 2 and "self names itself as what it comes from" in graph.notes
    assert lineage_svg(graph).count("stroke-dasharray") == 1, "the edge that closes the cycle"
    assert sorted(in_order(graph)) == sorted(node.id for node in graph.nodes) and len(rows(graph)) == 3


def test_damaged_directories(runs: Path, tmp_path: Path) -> None:
    (runs / "tuned" / "foundling.json").write_text("{")
    graph = lineage([runs])
    assert "tuned" not in {node.name for node in graph.nodes} and "left out: " in graph.notes[0]
    with pytest.raises(DataError, match="damaged, not JSON"):
        lineage([runs / "tuned"])
    (tmp_path / "empty").mkdir()
    for place, says in (("empty", r"no foundling.json or evaluation.json in it"), ("none", "no such directory")):
        with pytest.raises(DataError, match=says):
            lineage([tmp_path / place])
    for values in ({"parents": [3, {"weights_hash": 4}, {"name": 5}]}, {"parents": "x"}, {"recipe": [], "result": 3},
                   {"data_hash": ["x"], "licence": 4}, {"files": None}, {"result": {"params": "many"}}):  # fmt: skip
        place = model(tmp_path / f"odd{len(list(tmp_path.iterdir()))}", BASE, **values)
        assert lineage([place]).nodes[0].name == place.name


def test_applications_that_are_not_said_right(runs: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    for text, says in (
        ("helpdesk", "expected NAME=DIR"), ("=x", "expected NAME=DIR"), (f"a={tmp_path}", "no directory or hash"),
        ({"applications": 3}, "expected"), ({"applications": [{"name": "x"}]}, '"uses"'),
        ({"applications": [{"name": "x", "uses": ["y"], "colour": 1}]}, "unknown field 'colour'"),
        ({"applications": [{"name": "x", "uses": [3]}]}, "expected a directory or a hash"),
        ({"applications": [{"name": "x", "uses": ["y"], "access": "ours"}]}, "access 'ours'"),
    ):  # fmt: skip
        if isinstance(text, dict):
            table.write_text(json.dumps(text))
            text = str(table)
        with pytest.raises(ConfigError, match=re.escape(says)):
            lineage([runs], [text])


def test_untrusted_text_does_nothing(tmp_path: Path) -> None:
    place = model(tmp_path / "m", NASTY, data_hash=NASTY, licence=NASTY, parents=[parent(NASTY + "x", NASTY)],
                  recipe={"data": {"source": NASTY}})  # fmt: skip
    (place / "README.md").write_text(f"---\nlicense: other\nlicense_name: {json.dumps(NASTY)}\n---\n")
    graph = lineage([place])
    assert all(re.fullmatch("[0-9a-f]{64}", node.id) for node in graph.nodes)
    drawing, page = lineage_svg(graph), lineage_html(graph)
    xml.fromstring(drawing)
    for text in (drawing, page, dot(graph)):
        assert "\x1b" not in text and "\u202e" not in text
    assert "<img" not in page and "<script" not in page and "default-src 'none'" in page
    assert all(line.count('"') % 2 == 0 for line in dot(graph).replace('\\"', "").splitlines())
    assert json.loads(json.dumps(as_json(graph)))["nodes"][0]["name"] == "m"


def test_access_is_what_a_licence_says() -> None:
    assert access_of("MIT") == access_of("cc-by-4.0") == "open" and access_of("cc-by-nc-4.0") == "restricted"
    assert access_of(None) == access_of("ours alone") == NOT_STATED


def test_a_node_that_is_present_wins_over_one_that_is_named() -> None:
    named, present = Node("x", "model", "old name", present=False), Node("x", "model", "new", places=("p",))
    for order in ([named, present], [present, named]):
        assert joined(order, []).nodes == (present,)
    judge = Node("x", "judge", "j", present=False)
    assert joined([named, judge], []).nodes[0].kind == "judge" and joined([present, judge], []).nodes[0].kind == "model"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=30, unique=True))
def test_any_graph_is_laid_out(pairs: list[tuple[int, int]]) -> None:
    """Columns go along the edges, but for those that close a cycle: as few as none in a graph without one; boxes of a
    column do not overlap."""
    ids, links = [f"n{i}" for i in range(12)], [(f"n{a}", f"n{b}", "x") for a, b in pairs if a != b]
    placed = layout(ids, links)
    column = {name: i for i, names in enumerate(placed.columns) for name in names}
    assert sorted(name for names in placed.columns for name in names if name[0] == "n") == sorted(ids)
    for (a, b, _), path, closes in placed.routes:
        assert [column[name] for name in path] == [*range(column[path[0]], column[path[-1]] + 1)]
        assert (path[0], path[-1]) == ((b, a) if closes else (a, b))
    graph = networkx.DiGraph([link[:2] for link in links])
    assert any(closes for *_, closes in placed.routes) == (not networkx.is_directed_acyclic_graph(graph))
    for names in placed.columns:
        ends = [(placed.y[n], placed.y[n] + (LANE if n[0] == "\0" else HEIGHT)) for n in names]
        assert all(a[1] < b[0] for a, b in pairwise(ends))
    nodes = [Node(name, "model", name) for name in ids]
    graph = Graph(tuple(nodes), tuple(Edge(*link) for link in links))
    assert xml.fromstring(lineage_svg(graph)).tag.endswith("svg") and len(in_order(graph)) == 12
