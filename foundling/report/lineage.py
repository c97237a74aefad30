# SPDX-License-Identifier: Apache-2.0
"""The ecosystem graph of models as lines, JSON, Graphviz's DOT, a drawing and a page: pure functions of a Graph.

Fields follow Bommasani et al. 2023 ("Ecosystem Graphs", section 3): data sets, models and applications as nodes, what
each depends on as edges, with licence, access, size and date. What nobody stated is "not stated"."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from markupsafe import Markup

from foundling.errors import render
from foundling.report import units
from foundling.report.layers import drawing
from foundling.report.pages import styled_page

Kind = Literal["data", "model", "adapter", "judge", "evaluation", "application"]
NOT_STATED = "not stated"
OPEN_LICENCES = frozenset(
    ["apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0"]
    + ["cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "odbl", "odc-by", "pddl", "gfdl"]
    + ["unlicense", "psf-2.0", "python-2.0", "unicode-3.0"]
)
"""by their SPDX names: whoever has the thing may use it for anything"""


_VERBS = {"used by": "uses", "evaluated in": "evaluates"}
"""relations that read from the source, as a reader of the target has them"""


@dataclass(frozen=True)
class Node:
    id: str
    """SHA-256 of what it is; of an application its name"""
    kind: Kind
    name: str
    licence: str | None = None
    access: str = NOT_STATED
    """open, restricted, closed, or not stated"""
    size: dict[str, float] = field(default_factory=dict)
    """parameters, bytes, documents, tasks, items"""
    created: str | None = None
    present: bool = True
    """False: named by what descends from it, while its directory was not given"""
    places: tuple[str, ...] = ()
    """directories that hold it"""
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Edge:
    source: str
    """what was there first"""
    target: str
    relation: str
    """how the target comes from the source: trained on, finetuned from, …"""


@dataclass(frozen=True)
class Graph:
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    notes: tuple[str, ...] = ()
    """what could not be read"""


def access_of(licence: str | None) -> str:
    """What a licence says of who may use the thing: open for the licences in OPEN_LICENCES, restricted for those that
    exclude uses or users, else not stated."""
    name = (licence or "").strip().lower()
    if name in OPEN_LICENCES:
        return "open"
    return "restricted" if "-nc" in name or "-nd" in name or "openrail" in name else NOT_STATED


def joined(nodes: Iterable[Node], edges: Iterable[Edge], notes: Iterable[str] = ()) -> Graph:
    """The graph with one node an id: of several the one that is present, with the places of all. An edge from a node
    to itself is left out, with a note."""
    by_id, words = dict[str, Node](), list(notes)
    for node in nodes:
        other = by_id.get(node.id)
        if other is None:
            by_id[node.id] = node
            continue
        first, second = (other, node) if other.present or not node.present else (node, other)
        kind = "judge" if "judge" in (first.kind, second.kind) and not first.present else first.kind
        by_id[node.id] = replace(
            first, kind=kind, places=tuple(dict.fromkeys(first.places + second.places)),
            licence=first.licence or second.licence, size=first.size or second.size,
            access=first.access if first.access != NOT_STATED else second.access,
        )  # fmt: skip
    edges = list(dict.fromkeys(edges))
    words += [f"{by_id[e.source].name} names itself as what it comes from" for e in edges if e.source == e.target]
    return Graph(tuple(by_id.values()), tuple(e for e in edges if e.source != e.target), tuple(dict.fromkeys(words)))


def size_words(node: Node) -> str:
    """135 M parameters, 269 MB"""
    words = [
        units.size(value) if name == "bytes" else f"{units.count(value)} {name}" for name, value in node.size.items()
    ]
    return ", ".join(words) or NOT_STATED


def short_id(node: Node) -> str:
    return node.id[:12] if node.kind != "application" else ""


def rows(graph: Graph) -> list[tuple[str, str, str, str, str, str, str]]:
    """(kind, name, hash, licence, access, size, comes from) of each node, what was there first above."""
    names = {node.id: node.name for node in graph.nodes}
    order = {node: i for i, node in enumerate(in_order(graph))}
    before = dict[str, list[str]]()
    for edge in graph.edges:
        words = f"{_VERBS.get(edge.relation, edge.relation)} {names[edge.source]}"
        before.setdefault(edge.target, []).append(words)
    return [
        (
            node.kind + ("" if node.present else ", not given"), node.name, short_id(node), node.licence or NOT_STATED,
            node.access, size_words(node),
            "; ".join(before.get(node.id, ["–"])),
        )
        for node in sorted(graph.nodes, key=lambda node: order[node.id])
    ]  # fmt: skip


def in_order(graph: Graph) -> list[str]:
    """Ids with sources before targets; what lies on a cycle in the order of the graph."""
    waiting, done = {node.id: set[str]() for node in graph.nodes}, list[str]()
    for edge in graph.edges:
        waiting[edge.target].add(edge.source)
    while waiting:
        free = [name for name, sources in waiting.items() if not sources & waiting.keys()] or [next(iter(waiting))]
        done += free
        for name in free:
            del waiting[name]
    return done


def as_json(graph: Graph) -> dict[str, object]:
    return asdict(graph)


def dot(graph: Graph) -> str:
    """For Graphviz."""
    shapes = {"data": "cylinder", "evaluation": "note", "application": "component", "judge": "hexagon"}
    lines = ["digraph lineage {", "  rankdir=LR;", '  node [fontname="Helvetica", fontsize=10];']
    for node in graph.nodes:
        label = "\n".join([node.name, f"{node.kind} {short_id(node)}".strip(), size_words(node), node.access])
        style = "solid" if node.present else "dashed"
        lines.append(
            f"  {_quoted(node.id)} [label={_quoted(label)}, shape={shapes.get(node.kind, 'box')}, style={style}];"
        )
    for edge in graph.edges:
        lines.append(
            f"  {_quoted(edge.source)} -> {_quoted(edge.target)} [label={_quoted(edge.relation)}, fontsize=9];"
        )
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    shown = render.terminal(text, lines=True).replace("\t", " ").replace("\\", "\\\\").replace('"', '\\"')
    return '"' + shown.replace("\n", "\\n") + '"'


def lineage_svg(graph: Graph) -> str:
    """The drawing: from left to right in time. Its colours are variables of the page, or dark on light without one."""
    boxes = {
        node.id: (
            node.kind, node.present, node.name, " · ".join(filter(None, [node.kind, short_id(node)])),
            size_words(node) if node.size else f"size {NOT_STATED}",
_terms(node),
        )
        for node in graph.nodes
    }  # fmt: skip
    return drawing(boxes, [(edge.source, edge.target, edge.relation) for edge in graph.edges])


def _terms(node: Node) -> str:
    if node.licence is None and node.access == NOT_STATED:
        return f"licence and access {NOT_STATED}"
    return f"{node.licence or f'licence {NOT_STATED}'}, {node.access}"


def lineage_html(graph: Graph) -> str:
    """One page with the drawing and the table. It runs no script and loads nothing."""
    shared = replace(graph, nodes=tuple(replace(node, places=()) for node in graph.nodes))  # paths are the user's own
    kinds = ["data set" if node.kind == "data" else node.kind for node in graph.nodes]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return styled_page(
        "lineage.html.j2", graph=graph, rows=rows(graph), svg=Markup(lineage_svg(graph)), counts=counts,
        data=Markup(render.html(json.dumps(as_json(shared), indent=1), lines=True, limit=0)),
    )  # fmt: skip
