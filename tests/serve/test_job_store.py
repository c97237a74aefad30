# SPDX-License-Identifier: Apache-2.0
"""The records and events of fine-tuning jobs in a real directory: nothing torn, nothing lost, nothing beyond limits."""

import json
import math
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from foundling.serve.errors import APIError
from foundling.serve.files import FileStore
from foundling.serve.job_log import JobLog
from foundling.serve.job_options import JobOptions
from foundling.serve.job_store import Job, JobStore
from tests.serve.commands import chats


def a_job(n: int, **more: Any) -> Job:
    values = ("anna", float(n), "base", "/models/base", "chat", "lora", "file-1", None, None, 0, {"n_epochs": "auto"})
    return Job(f"ftjob-{n:024d}", *values, **more)


def filled(tmp_path: Path, n: int, **options: Any) -> tuple[JobStore, list[Job]]:
    """A store with n jobs that wait."""
    (tmp_path / "data").write_bytes(chats(8))
    store = JobStore(tmp_path / "jobs", JobOptions(tmp_path, **options))
    jobs = [a_job(number) for number in range(n)]
    for job in jobs:
        store.create(job, {"train.jsonl": tmp_path / "data"})
        store.jobs[job.id] = job
    return store, jobs


@contextmanager
def full_disk(n_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes: a write takes what fits, and the next one fails."""
    before, writes_none = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # a module that is written in part would fail every later import
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = writes_none


def test_records_and_events_come_back_as_they_were(tmp_path: Path) -> None:
    store, jobs = filled(tmp_path, 3)
    jobs[1].status = "running"
    store.save(jobs[1])
    jobs[0].status = "cancelled"
    store.save(jobs[0])
    store.add_event(jobs[1], "once", key="once")
    store.add_event(jobs[1], "once", key="once")
    with open(store.folder(jobs[1]) / "events.jsonl", "ab") as file:
        file.write(b'{"object": "fine_tu')  # as a killed process leaves it
    unfinished = tmp_path / "jobs" / "ftjob-unacknowledged"
    unfinished.mkdir()
    (unfinished / "train.jsonl").write_bytes(b"")
    again = JobStore(tmp_path / "jobs", JobOptions(tmp_path))
    assert again.jobs == {job.id: job for job in jobs} and not unfinished.exists()
    assert [event["message"] for event in again.events(jobs[1])[0]] == [
        f"Created fine-tuning job: {jobs[1].id}",
        "once",
    ]
    again.add_event(jobs[1], "twice")
    assert len(again.events(jobs[1])[0]) == 3
    assert again.next() == jobs[1]  # what was begun, before what waits
    assert again.next({jobs[1].id}) == jobs[2]
    assert (again.folder(jobs[2]) / "train.jsonl").read_bytes() == chats(8)


def test_a_full_disk_leaves_no_part_of_an_event(tmp_path: Path) -> None:
    store, (job,) = filled(tmp_path, 1)
    path = store.folder(job) / "events.jsonl"
    before = path.read_bytes()
    with full_disk(len(before) + 20), pytest.raises(APIError) as met:
        store.add_event(job, "too much")
    assert met.value.status == 503 and path.read_bytes() == before
    store.add_event(job, "again")
    assert [event["message"] for event in store.events(job)[0]][1:] == ["again"]


def test_who_has_read_events_gets_those_that_are_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, (job,) = filled(tmp_path, 1)
    first, offset = store.events(job)
    store.add_event(job, "once", key="once")
    with open(store.folder(job) / "events.jsonl", "ab") as file:
        file.write(b'{"object": "fine_tu')  # as one that is being written
    new, end = store.events(job, offset)
    assert len(first) == 1 and [event["message"] for event in new] == ["once"] and store.events(job, end) == ([], end)
    monkeypatch.setattr(store, "events", lambda job: pytest.fail("the file is read for each event"))
    store.add_event(job, "once", key="once")
    store.add_event(job, "more")


def test_events_that_are_none_are_passed_over(tmp_path: Path) -> None:
    store, (job,) = filled(tmp_path, 1)
    with open(store.folder(job) / "events.jsonl", "ab") as file:
        file.write(b'{"object": "fine_tu\n\xff\xfe\n[1]\n{"type": "metrics"}\n' + b"\0" * 100 + b"\n")
    store.add_event(job, "after it")
    assert [event["message"] for event in store.events(job)[0]] == [f"Created fine-tuning job: {job.id}", "after it"]
    assert JobLog(store, job).step == 0


def test_a_loss_that_is_no_number_is_null(tmp_path: Path) -> None:
    store, (job,) = filled(tmp_path, 1)
    run = store.folder(job) / "model" / "run"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("train:\n  total_steps: 2\n")
    lines = [
        {"step": 1, "loss": math.nan, "tokens": 10, "lr": 0.1, "seconds": 1.0, "validation_loss": math.inf},
        {"step": 2, "loss": 1.5, "tokens": 20, "lr": 0.1, "seconds": 2.0},
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = JobLog(store, job)
    log.read()
    told = [event for event in store.events(job)[0] if event["type"] == "metrics"]
    assert [event["data"]["train_loss"] for event in told] == [None, 1.5] and told[0]["data"]["valid_loss"] is None
    assert json.dumps(told, allow_nan=False) and (log.step, log.tokens) == (2, 20)
    assert (JobLog(store, job).step, JobLog(store, job).tokens) == (2, 20)


def test_a_step_that_could_not_be_told_is_told_later(tmp_path: Path) -> None:
    store, (job,) = filled(tmp_path, 1)
    run = store.folder(job) / "model" / "run"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("train:\n  total_steps: 1\n")
    (run / "log.jsonl").write_text('{"step": 1, "loss": 1.0, "tokens": 10, "lr": 0.1, "seconds": 1.0}\n')
    log = JobLog(store, job)
    with full_disk((store.folder(job) / "events.jsonl").stat().st_size + 20), pytest.raises(APIError):
        log.read()
    log.read()
    assert [event["data"]["step"] for event in store.events(job)[0] if event["type"] == "metrics"] == [1]


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    store, (job,) = filled(tmp_path, 1)
    aside = ".job.json.1.foundling.tmp"
    (store.folder(job) / aside).touch()
    files = tmp_path / "files"
    files.mkdir()
    (files / aside).touch()
    JobStore(tmp_path / "jobs", store.options)
    FileStore(files, store.options)
    assert not (store.folder(job) / aside).exists() and list(files.iterdir()) == []


def test_ended_jobs_make_place_for_new_ones(tmp_path: Path) -> None:
    store, jobs = filled(tmp_path, 3, max_jobs=3, max_open_jobs=2)
    with pytest.raises(APIError, match="3 jobs that wait") as met:
        store.make_place("anna")
    assert met.value.status == 429
    for job in jobs:
        job.status = "succeeded" if job is jobs[0] else "failed"
    jobs[0].served_as = "ft"
    assert store.make_place("anna") == [jobs[1]] and jobs[1].id not in store.jobs  # the oldest without a model
    store.creating["new"] = a_job(9)
    assert store.make_place("anna") == [jobs[2]]
    store.creating["newer"] = a_job(10, status="failed")
    with pytest.raises(APIError, match="delete a model"):
        store.make_place("anna")
