# SPDX-License-Identifier: Apache-2.0
"""The label server over real HTTP, and the command as a process that is killed."""

from __future__ import annotations

import json
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foundling.data.label_book import LabelBook
from foundling.data.labels import LabelFile, read_items
from foundling.plan.labels import LabelLaw
from tests.e2e.tools import foundling, start
from tests.serve.labelling import Labelling, labelling, write

PAIRS = [{"prompt": f"question {i}", "completions": [f"good {i}", f"bad {i}"]} for i in range(12)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Labelling]:
    with labelling(write(tmp_path / "data.jsonl", PAIRS), tmp_path / "out" / "labels.jsonl") as live:
        yield live


def test_a_judgement_is_on_the_disk_before_it_is_answered(site: Labelling) -> None:
    view = site.item()
    status, answer = site.judge(view, "decision-1", ranking=[[1], [0]])
    assert status == 200 and answer["saved"] == "decision-1" and answer["next"]["at"] == 1
    (line,) = site.lines
    item = next(one for one in site.book.items if one.id == view["item"])
    best = item.completions[line["ranking"][0][0]]
    assert best == view["answers"][1] and [item.completions[i] for i in line["order"]] == view["answers"]
    assert (line["labeller"], line["state"], line["seconds"], line["replaces"]) == ("anna", "judged", 1.5, None)
    assert not {"origin", "chosen", "rejected", "completions"} & {*view}
    again = site.item("?at=0")
    assert again["judgement"] == {"id": "decision-1", "state": "judged", "ranking": [[1], [0]], "text": None}


def test_a_request_that_comes_twice_is_one_judgement(site: Labelling) -> None:
    """A double click sends two decisions, a lost answer one twice."""
    view = site.item()
    first = site.judge(view, "decision-1", ranking=[[0], [1]])
    assert site.judge(view, "decision-1", ranking=[[0], [1]]) == first
    status, answer = site.judge(view, "decision-2", ranking=[[0], [1]])
    assert status == 409 and answer["error"]["code"] == "stale"
    results, views = list[tuple[int, Any]](), site.item("?at=3")
    threads = [
        threading.Thread(target=lambda n=n: results.append(site.judge(views, f"tab-{n}-decision", ranking=[[0, 1]])))
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(status for status, _ in results) == [200, *[409] * 5] and len(site.lines) == 2


def test_undo_adds_a_line_that_replaces(site: Labelling) -> None:
    def undo(n: int) -> Any:
        status, value, _ = site.http("POST", "undo", {"id": f"undo-number-{n}"})
        assert status == 200
        return value

    assert undo(0) == {"undone": False, "item": None}
    first = site.item()
    site.judge(first, "decision-1", ranking=[[0], [1]])
    site.judge(site.item("?at=0"), "decision-2", ranking=[[0, 1]])
    back = undo(1)
    assert undo(1) == back and back["item"]["at"] == 0
    assert back["item"]["judgement"]["ranking"] == [[0], [1]]
    assert undo(2)["item"]["judgement"]["state"] == "open" and site.item()["at"] == 0
    assert not undo(3)["undone"]
    states = [(line["state"], line["replaces"], line["undoes"]) for line in site.lines]
    assert states == [
        ("judged", None, None), ("judged", "decision-1", None), ("judged", "decision-2", "decision-2"),
        ("open", "undo-number-1", "decision-1"),
    ]  # fmt: skip
    assert site.judge(site.item(), "decision-3", ranking=[[1], [0]])[0] == 200


WRONG = [
    ({"ranking": [[0]]}, 400, "names each of 2 answers once"),
    ({"ranking": [[0], [0]]}, 400, "names each of 2 answers once"),
    ({"ranking": [[0], [1], []]}, 400, "not empty"),
    ({"ranking": [[0], [7]]}, 400, "names each"),
    ({"ranking": [[0], [99]]}, 400, "ranking"),
    ({"ranking": "01"}, 400, "ranking"),
    ({}, 400, "names each"),
    ({"ranking": [[0], [1]], "seconds": -1}, 400, "seconds"),
    ({"ranking": [[0], [1]], "item": "0" * 24}, 404, "no such item"),
    ({"ranking": [[0], [1]], "id": "short"}, 400, "id"),
    ({"ranking": [[0], [1]], "labeller": "ben"}, 400, "labeller"),
    ({"state": "open"}, 400, "state"),
    ({"state": "judged", "text": "a" * (1 << 19)}, 400, "text"),
]


def test_a_judgement_that_does_not_fit_is_refused(site: Labelling) -> None:
    view = site.item()
    for change, status, message in WRONG:
        got, answer = site.judge(view, **({"id": "decision-1"} | change))
        assert got == status and message in answer["error"]["message"], (change, answer)
    assert site.lines == []


def test_other_sites_and_other_users_are_refused(site: Labelling) -> None:
    view = site.item()
    body = {"item": view["item"], "id": "decision-1", "seen": None, "state": "skipped", "seconds": 1}
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        status, answer, _ = site.http("POST", "judge", body, headers=headers)
        assert status == 403 and "error" in answer, headers
    for token in ("", "wrong", site.token[:-1], site.token + "x", "%00", "é".encode().hex()):
        for path in ("", "item", "static/label.js"):
            assert site.http("GET", path, token=token)[0] in (400, 404), (token, path)
        assert site.http("POST", "judge", body, token=token)[0] in (400, 404)
    assert site.http("POST", "judge", b"x" * (5 << 20))[0] == 413
    assert site.http("POST", "judge", b"[" * 1000)[0] == 400
    assert site.http("GET", "item?at=-1")[0] == 400 and site.http("GET", "static/..%2flabel.py")[0] in (400, 404)
    assert site.lines == []
    _, _, headers = site.http("GET", "")
    assert "default-src 'none'" in headers["content-security-policy"] and headers["referrer-policy"] == "no-referrer"


def test_agreement_is_not_shown_while_labelling(site: Labelling) -> None:
    assert site.http("GET", "agreement")[0] == 403
    for n in range(len(PAIRS)):
        assert site.judge(site.item(), f"decision-{n}", ranking=[[0], [1]])[0] == 200
    status, record, _ = site.http("GET", "agreement")
    assert status == 200 and record["labellers"][0]["judged"] == len(PAIRS)
    assert site.item()["item"] is None


def test_a_file_that_is_moved_or_cut_takes_no_judgement(site: Labelling) -> None:
    """It would be written where nobody looks."""
    assert site.judge(site.item(), "decision-1", ranking=[[0], [1]])[0] == 200
    view, whole, aside = site.item(), site.out.read_bytes(), site.out.with_suffix(".moved")
    site.out.rename(aside)
    for n in range(2):  # gone, then another file
        status, answer = site.judge(view, f"decision-{n + 2}", ranking=[[0], [1]])
        assert status == 400 and "moved or removed" in answer["error"]["message"] and aside.read_bytes() == whole
        site.out.write_bytes(whole)
    aside.rename(site.out)
    site.out.write_bytes(b"")
    status, answer, _ = site.http("GET", "item")
    assert status == 400 and "another program has changed it" in answer["error"]["message"]


def test_a_full_disk_is_said_and_nothing_is_half_written(site: Labelling) -> None:
    """The system takes 20 bytes of the second line and no more."""
    assert site.judge(site.item(), "decision-1", ranking=[[0], [1]])[0] == 200
    view, size, before = site.item(), site.out.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        status, answer = site.judge(view, "decision-2", ranking=[[0], [1]])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 400 and "disk is full" in answer["error"]["message"] and site.out.stat().st_size == size
    assert site.judge(view, "decision-2", ranking=[[0], [1]])[0] == 200 and len(site.lines) == 2


def address(process: Any) -> str:
    out = process.folder / "out"
    while " at http://" not in (text := out.read_text() if out.exists() else ""):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return text.partition(" at ")[2].split()[0]


def test_a_killed_labeller_goes_on(tmp_path: Path) -> None:
    """SIGKILL right after an answer, with a torn line behind it, as a process leaves that was killed while it wrote."""
    data, out = write(tmp_path / "data.jsonl", PAIRS), tmp_path / "labels.jsonl"
    process = start("label", data, "--out", out, "--labeller", "anna", "--port", "0")
    live = Labelling(address(process), out, None)  # pyright: ignore[reportArgumentType]
    for n in range(5):
        assert live.judge(live.item(), f"decision-{n}", ranking=[[1], [0]])[0] == 200
    order = live.item("?at=5")["answers"]
    process.send_signal(signal.SIGKILL)
    process.communicate(60)
    assert [line["id"] for line in live.lines] == [f"decision-{n}" for n in range(5)]
    with out.open("a") as file:
        file.write(json.dumps(live.lines[0])[:40])
    process = start("label", data, "--out", out, "--labeller", "anna", "--port", "0")
    again = Labelling(address(process), out, None)  # pyright: ignore[reportArgumentType]
    view = again.item()
    assert again.token != live.token and (view["at"], view["answers"]) == (5, order) and len(again.lines) == 5
    assert again.judge(view, "decision-5", ranking=[[1], [0]])[0] == 200
    process.send_signal(signal.SIGTERM)
    said, error = process.communicate(60)
    assert process.returncode == 0 and "6 of 12 labelled" in said and "Traceback" not in error


def test_the_reports_of_the_command(tmp_path: Path) -> None:
    """Four labellers with files of their own, two of whom want the opposite of the others."""
    rows = [{"prompt": f"question {i}", "completions": [f"kind {i}", f"blunt {i}"]} for i in range(40)]
    data, items = write(tmp_path / "data.jsonl", rows), read_items(tmp_path / "data.jsonl")
    for name, taste in (("anna", "kind"), ("ben", "blunt"), ("carla", "kind"), ("dan", "blunt")):
        book = LabelBook(items, LabelFile(tmp_path / f"{name}.jsonl"), name)
        for n, item in enumerate(items.items):
            place = [item.completions[i].startswith(taste) for i in book.order(item)].index(True) ^ (n % 8 == 0)
            book.judge(item, f"{name}-{n:06d}", None, "judged", ranking=[[place], [1 - place]], seconds=3)
    others = [tmp_path / f"{name}.jsonl" for name in ("ben", "carla", "dan")]
    done = foundling("label", data, "--out", tmp_path / "anna.jsonl", "--agreement", *others, "--json")
    record = json.loads(done.stdout)["agreement"]
    assert record["groups"]["contradict"] and {*map(tuple, record["groups"]["groups"])} == {
        ("anna", "carla"),
        ("ben", "dan"),
    }
    assert any("two groups contradict each other" in line for line in record["sentences"])
    out = tmp_path / "comparisons.jsonl"
    args = ("--out", tmp_path / "anna.jsonl", "--agreement", tmp_path / "carla.jsonl", "--export", out)
    done = foundling("label", data, *args)
    assert done.returncode == 0 and "Cohen's kappa 1.00" in done.stdout, done.stderr
    kind = [json.loads(line)["chosen"].startswith("kind") for line in out.read_text().splitlines()]
    assert len(kind) == 40 and sum(kind) == 35
    curve = tmp_path / "curve.json"
    law = LabelLaw(0.93, 200, 0.9, 1.8, 0.01, 36, 4096, 32, 0.35)
    points = [(n, e, law.accuracy(n, e)) for n in (32, 128, 512, 2048, 4096) for e in (0.0, 0.1, 0.2, 0.35)]
    curve.write_text(json.dumps({"points": [dict(zip(("labels", "wrong", "accuracy"), point)) for point in points]}))
    asked = ("--target", "0.8", "--equal", "0.68", "--price", "0.5", "--curve", curve)
    done = foundling("label", data, "--out", tmp_path / "anna.jsonl", *asked)
    assert done.returncode == 0 and done.stdout.startswith("labellers are right in 80.0%"), done.stderr
    assert "1 a pair: " in done.stdout and "3 a pair: " in done.stdout and " to pay, " in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("{data}", "--out", "{out}"), "give --labeller NAME to label"),
        (("{data}", "--out", "{data}", "--labeller", "a"), "--out is the file of the data"),
        (("{data}", "--out", "{other}", "--labeller", "a"), "is no judgement"),
        (("{data}", "--out", "{out}", "--labeller", "a\nb"), "expected a name"),
        (("{data}", "--out", "{out}", "--labeller", "a", "--export", "x"), "give one of them"),
        (("{missing}", "--out", "{out}", "--labeller", "a"), "cannot be read"),
        (("{empty}", "--out", "{out}", "--labeller", "a"), "nothing to rank"),
        (("{data}", "--out", "{missing}", "--export", "{out}"), "cannot be read"),
        (("{data}", "--out", "{other}", "--agreement"), "is no judgement"),
        (("{data}", "--out", "{out}", "--target", "0.8", "--equal", "0.8", "--curve", "{missing}"), "no curve"),
        (("{data}", "--out", "/dev/null", "--labeller", "a"), "is no file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(args: tuple[str, ...], message: str, tmp_path: Path) -> None:
    names = {
        "data": write(tmp_path / "data.jsonl", PAIRS), "out": tmp_path / "out.jsonl", "missing": tmp_path / "no",
        "other": write(tmp_path / "other.jsonl", [{"id": 3}]),
        "empty": write(tmp_path / "empty.jsonl", [{"prompt": "a", "completions": ["b", "b"]}]),
    }  # fmt: skip
    done = foundling("label", *(arg.format(**names) for arg in args))
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and message in last and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "other.jsonl").read_text() == '{"id": 3}\n'
