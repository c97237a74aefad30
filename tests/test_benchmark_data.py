# SPDX-License-Identifier: Apache-2.0
"""Data of the benchmarks: what is unpacked, written, and counted as right."""

import io
import json
import tarfile
import zipfile

import pytest

from benchmarks import fetch
from benchmarks.baselines import begun, entity_f1, spans
from benchmarks.chat_task import right, upstream
from benchmarks.datasets import detokenized, is_test, part_of_speech, read, write
from benchmarks.fetch import deb_data, unpack


def tar(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for path, type_, link in (("package/a.txt", tarfile.REGTYPE, ""), (name, kind, target)):
            info = tarfile.TarInfo(path)
            info.type, info.linkname, info.size = type_, link, 2 if type_ == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"ab"))
    return out.getvalue()


@pytest.mark.parametrize("name", ["../out.txt", "package/../../out.txt"])
def test_nothing_is_unpacked_outside_the_folder(tmp_path, name) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    with pytest.raises(tarfile.FilterError):
        unpack(tar(name), "npm", inside)
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(name, "ab")
    unpack(wheel.getvalue(), "pypi", inside)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_links_and_what_is_too_large_are_left_out(tmp_path, monkeypatch) -> None:
    unpack(tar("package/link", tarfile.SYMTYPE, "/etc/passwd"), "npm", tmp_path)
    assert [path.name for path in (tmp_path / "package").iterdir()] == ["a.txt"]
    monkeypatch.setattr(fetch, "MAX_BYTES", 3)
    with pytest.raises(SystemExit, match="4 bytes unpacked, allowed are 3"):
        unpack(tar("package/b.txt"), "npm", tmp_path)


def test_the_data_of_a_deb_is_its_third_member(tmp_path) -> None:
    def member(name: str, content: bytes) -> bytes:
        return (
            f"{name:16}{0:<12}{0:<6}{0:<6}{644:<8}{len(content):<10}`\n".encode() + content + b"\n" * (len(content) % 2)
        )

    data = tar("usr/share/doc/x")
    members = [("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.gz", data)]
    deb = b"!<arch>\n" + b"".join(member(*m) for m in members)
    assert deb_data(deb) == data
    unpack(deb, "debian", tmp_path)
    assert (tmp_path / "usr/share/doc/x").read_bytes() == b"ab"


def test_an_answer_is_right_when_it_is_the_record() -> None:
    item = {"answer": {"name": "fig", "version": "2.1", "section": "text", "about": 'letters, "large"'}}
    good = json.dumps(item["answer"])
    assert right(good, item) and right(f" {good}\n", item) and right(json.dumps(item["answer"], indent=2), item)
    other = item["answer"] | {"version": "2.1-3"}
    turned = dict(reversed(item["answer"].items()))
    wrong = [f"```json\n{good}\n```", good + good, good[:-1], "", "[" * 100_000, json.dumps(other), json.dumps(turned)]
    assert not any(right(answer, item) for answer in wrong)


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.3-4", "2.3"), ("1:2.3+dfsg1-4+b1", "2.3"), ("2.0~git2019-1", "2.0"), ("3.1", "3.1"), ("1.0-rc1-2", "1.0-rc1")],
)  # fmt: skip
def test_upstream_versions(version, expected) -> None:
    assert upstream(version) == expected


def test_tags_of_brown() -> None:
    tags = ["np$-tl", "fw-nn", "dod*", "ppss+bez", "--", "*", "nil", "jj-tl-hl"]
    expected = ["noun", "noun", "verb", "pronoun", "punctuation", "adverb", "other", "adjective"]
    assert [part_of_speech(tag) for tag in tags] == expected
    assert detokenized(["``", "Yes", "''", ",", "he", "said", "(", "twice", ")", "."]) == '"Yes", he said (twice).'


def test_spans_and_their_f1() -> None:
    truth = ["B-NAME", "I-NAME", "B-NAME", "O", "B-NAME"]
    assert spans(truth) == {(0, 2), (2, 3), (4, 5)}
    answer = begun(["NAME", "NAME", "NAME", "O", "NAME"])
    assert answer == ["B-NAME", "I-NAME", "I-NAME", "O", "B-NAME"]
    assert entity_f1([truth], [answer]) == pytest.approx(2 * 1 / (3 + 2))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".conll"])
def test_files_are_read_as_they_were_written(tmp_path, suffix) -> None:
    rows = [{"text": 'two\nlines, "quoted"\u2028', "label": "a"}, {"text": "ü", "label": "b"}]
    if suffix == ".conll":
        rows = [{"words": ["A", "b"], "tags": ["x", "y"]}, {"words": ["c"], "tags": ["z"]}]
    write(tmp_path / f"x{suffix}", rows)
    assert read(tmp_path / f"x{suffix}") == rows


def test_a_fifth_is_held_out() -> None:
    assert 0.17 < sum(is_test(str(n)) for n in range(2000)) / 2000 < 0.23
