# SPDX-License-Identifier: Apache-2.0
"""What becomes of jobs where a disk is full, a process is killed or a server is started again. Real directories, keys
and models; no training."""

import asyncio
import errno
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foundling.errors import BusyError, ConfigError, DataError, OutputError
from foundling.runtime.files import lock
from foundling.serve import job_child, job_runner
from foundling.serve.errors import APIError
from foundling.serve.job_models import JobModels
from foundling.serve.job_options import JobOptions
from foundling.serve.job_runner import JobRunner, child_environment
from foundling.serve.job_store import Job, JobStore
from foundling.serve.key_file import KeyFile
from foundling.serve.keys import KeyStore
from foundling.serve.models import GenerativeModel, Price
from foundling.serve.options import ServeOptions
from foundling.serve.pool import ModelPool
from foundling.serve.server import Server
from tests.serve.servers import save_model
from tests.serve.test_job_store import a_job, filled, full_disk


def a_server(keys: KeyFile | None = None) -> Server:
    options = ServeOptions(port=0)
    return Server(options, ModelPool(options, {"base": Price(1.0, 2.0)}), KeyStore([], keys))


def run(store: JobStore, use: Callable[[JobRunner], Awaitable[Any]], server: Server | None = None) -> Any:
    """What `use` returns, of a runner in an event loop of its own."""

    async def main() -> Any:
        runner = JobRunner(server or a_server(), store)
        try:
            return await use(runner)
        finally:
            await runner.stop()

    return asyncio.run(main())


async def until(condition: Callable[[], Any]) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came")


# --- the queue -------------------------------------------------------------------------------------------------------


def test_a_job_that_cannot_go_on_lets_the_others_go_on(tmp_path: Path) -> None:
    store, (broken, whole) = filled(tmp_path, 2)
    events = store.folder(broken) / "events.jsonl"
    events.unlink()
    events.mkdir()  # nothing can be appended there

    async def use(runner: JobRunner) -> None:
        runner.start()
        await until(lambda: whole.status == "running")
        assert broken.open and runner._waiting() == {broken.id}

    run(store, use)
    assert broken.open and whole.open


def test_what_is_no_fault_of_a_job_never_fails_it(tmp_path: Path) -> None:
    """Restarts of the server, a full disk, a process that somebody ends: however often, the job waits."""
    store, (job,) = filled(tmp_path, 1)

    async def use(runner: JobRunner) -> None:
        for code in [job_child.AGAIN, 130, 143] * 10:
            assert await runner._begin(job)
            await runner._judge(job, code, 0)
        assert runner._waiting() == {job.id} and job.open and job.n_crashes == 0

    run(store, use)
    again = JobStore(tmp_path / "jobs", JobOptions(tmp_path))
    for _ in range(20):
        run(again, lambda runner: runner._begin(again.jobs[job.id]))
    assert again.jobs[job.id].status == "running"


def test_a_process_that_is_killed_again_and_again_fails_its_job_unless_it_gets_on(tmp_path: Path) -> None:
    store, (job, other) = filled(tmp_path, 2)

    async def use(runner: JobRunner) -> None:
        for step in range(2 * job_runner.MAX_CRASHES):
            await runner._judge(job, -9, step + 1)
        assert job.open
        for n in range(1, job_runner.MAX_CRASHES):
            await runner._judge(other, -9, 0)
            assert other.open and other.n_crashes == n
        await runner._judge(other, -9, 0)

    run(store, use)
    assert other.status == "failed" and other.error and "10 times" in other.error["message"]


def test_what_could_not_be_stored_has_not_happened(tmp_path: Path) -> None:
    store, (job,) = filled(tmp_path, 1)

    async def use(runner: JobRunner) -> None:
        with full_disk(4), pytest.raises(APIError) as met:
            await runner.cancel(job)
        assert met.value.status == 503 and job.open
        await runner.cancel(job)

    run(store, use)
    assert JobStore(tmp_path / "jobs", JobOptions(tmp_path)).jobs[job.id].status == "cancelled"


def test_a_deletion_that_could_not_be_stored_has_not_happened(tmp_path: Path) -> None:
    store, (job, removed) = filled(tmp_path, 2)
    for one in (job, removed):
        one.status, one.served_as = "succeeded", one.model_name
    store.remove(removed)

    async def use(runner: JobRunner) -> None:
        with full_disk(4), pytest.raises(APIError) as met:
            await runner.delete_model(job)
        assert met.value.status == 503 and not job.deleted
        with pytest.raises(APIError):
            await runner.delete_model(removed)
        assert not store.folder(removed).exists()

    run(store, use)


def test_a_model_that_is_loaded_delays_no_other_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, (done, other) = filled(tmp_path, 2)
    result = {"actual": {"loss": 1.0}, "baselines": {"before": 2.0}, "tokens": 5, "steps": 1}
    monkeypatch.setattr(job_runner, "read_manifest", lambda folder: {"result": result})

    async def use(runner: JobRunner) -> None:
        loads, go = asyncio.Event(), asyncio.Event()

        async def spawn(job: Job) -> asyncio.subprocess.Process:
            return await asyncio.create_subprocess_exec("true")

        async def load(job: Job) -> bool:
            loads.set()
            return await go.wait()

        monkeypatch.setattr(runner, "_spawn", spawn)
        monkeypatch.setattr(runner.models, "load", load)
        training = asyncio.create_task(runner._train(done))
        await loads.wait()
        await asyncio.wait_for(runner.cancel(other), 5)
        assert done.open
        go.set()
        await training

    run(store, use)
    assert (done.status, other.status) == ("succeeded", "cancelled")


def test_jobs_that_come_at_once_pass_no_limit(tmp_path: Path) -> None:
    store, _ = filled(tmp_path, 0, max_open_jobs=4, max_queue=6)

    async def use(runner: JobRunner) -> list[Any]:
        jobs = [replace(a_job(n), owner=("anna", "ben")[n % 2]) for n in range(100)]
        data = {"train.jsonl": tmp_path / "data"}
        return await asyncio.gather(*(runner.submit(job, data) for job in jobs), return_exceptions=True)

    refused = [one for one in run(store, use) if one is not None]
    assert len(refused) == 94 and {error.status for error in refused} == {429}
    assert sorted(job.owner for job in store.jobs.values()) == ["anna"] * 3 + ["ben"] * 3 and not store.creating
    assert JobStore(tmp_path / "jobs", JobOptions(tmp_path)).jobs == store.jobs


def test_a_job_that_could_not_be_stored_is_none(tmp_path: Path) -> None:
    store, _ = filled(tmp_path, 0)

    async def use(runner: JobRunner) -> None:
        with pytest.raises(APIError):
            await runner.submit(a_job(1), {"train.jsonl": tmp_path / "removed meanwhile"})
        assert not store.jobs and not store.creating and list(store.directory.iterdir()) == []
        waiting = asyncio.create_task(runner.submit(a_job(2), {"train.jsonl": tmp_path / "data"}))
        await asyncio.sleep(0)
        waiting.cancel()  # its client has gone: the job is stored whole all the same
        await until(lambda: store.jobs)

    run(store, use)
    assert JobStore(tmp_path / "jobs", JobOptions(tmp_path)).jobs == store.jobs


def test_what_an_ended_job_needs_no_more_is_removed_at_the_start(tmp_path: Path) -> None:
    store, (job,) = filled(tmp_path, 1)
    job.status = "failed"
    store.save(job)
    (store.folder(job) / "model").mkdir()

    async def use(runner: JobRunner) -> None:
        runner.start()
        await until(lambda: not (store.folder(job) / "model").exists())

    run(store, use)
    assert {path.name for path in store.folder(job).iterdir()} == {"job.json", "events.jsonl"}


def test_a_result_that_is_no_number_is_stored(tmp_path: Path) -> None:
    store, (job,) = filled(tmp_path, 1, max_loss_ratio=1.0)
    result = {"actual": {"loss": math.nan}, "baselines": {"before": 2.0}, "tokens": 5, "steps": 1}
    run(store, lambda runner: runner._finish(job, result))
    assert job.status == "failed" and job.evaluation and job.evaluation["held_out_loss"] is None
    assert job.error and "is no number, that of the base model is 2.000" in job.error["message"]
    assert json.dumps(job.as_json(), allow_nan=False)


# --- what a key is charged -------------------------------------------------------------------------------------------


def test_what_was_trained_is_charged_once(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys", create=True)
    keys.create("anna", tokens=100)
    ((_, caller),) = keys.callers()
    store, (done, cancelled) = filled(tmp_path, 2)
    for job in (done, cancelled):
        job.owner = caller.owner
        store.save(job)
    store.add_event(cancelled, "Step 1/9", data={"step": 1, "tokens": 30})
    server = a_server(keys)

    async def use(runner: JobRunner) -> None:
        done.trained_tokens = 100
        await runner._end(done, "succeeded", "The end")
        await runner._end(done, "succeeded", "The end")
        await runner.cancel(cancelled)  # what was computed by then

    run(store, use, server)
    (record,) = keys.records()
    assert (record.prompt_tokens, record.requests, record.dollars) == (130, 2, pytest.approx(130e-6))
    assert server.keys.current(caller).used == 130
    again = JobStore(tmp_path / "jobs", JobOptions(tmp_path)).jobs[done.id]
    run(store, lambda runner: runner._end(again, "succeeded", "The end"), server)
    assert keys.records()[0].prompt_tokens == 130


# --- models in memory ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("job models") / "model")


def served(store: JobStore, jobs: list[Job], model: Path) -> None:
    for job in jobs:
        job.status, job.served_as, job.finished = "succeeded", job.model_name, job.created
        store.save(job)
        shutil.copytree(model, store.folder(job) / "model")


def test_few_models_are_in_memory_and_others_are_loaded_when_they_are_asked_for(tmp_path: Path, model: Path) -> None:
    store, jobs = filled(tmp_path, 3, max_loaded=2)
    served(store, jobs, model)
    server = a_server()

    def loaded() -> list[str]:
        return sorted(one.name for one in server.pool.loaded)

    def get(job: Job) -> GenerativeModel:
        one = server.pool.get(job.model_name, GenerativeModel, "anna")
        assert isinstance(one, GenerativeModel)
        return one

    async def ask(job: Job) -> GenerativeModel:
        with pytest.raises(APIError, match="is being loaded") as met:
            get(job)
        assert (met.value.status, met.value.code) == (503, "model_not_loaded") and met.value.headers
        await until(lambda: job.model_name in loaded())
        return get(job)

    async def use(runner: JobRunner) -> None:
        first, second, third = (job.model_name for job in jobs)
        runner.start()
        await until(lambda: loaded() == [second, third])  # the newest
        assert get(jobs[1])  # used last
        await ask(jobs[0])
        assert loaded() == [first, second]
        await ask(jobs[2])
        assert loaded() == [first, third]
        for job in (jobs[0], jobs[2]):
            get(job).worker.n_open += 1  # requests run: neither is taken from its clients
        assert not await runner.models.load(jobs[1]) and loaded() == [first, third]
        with pytest.raises(APIError, match="cannot be loaded now"):  # as POST /v1/models/NAME/load does
            await server.pool.load(second, "anna")
        get(jobs[0]).worker.n_open -= 1
        await ask(jobs[1])
        assert loaded() == [second, third]
        with pytest.raises(APIError) as met:
            server.pool.get(first, GenerativeModel, "ben")
        assert met.value.status == 404 and first not in runner.models._tasks  # nobody else has it loaded
        await runner.delete_model(jobs[0])
        with pytest.raises(APIError) as met:
            get(jobs[0])
        assert met.value.status == 404
        assert not await runner.models.load(jobs[0]) and not server.pool.entry_of(first)  # by who asked for it before
        get(jobs[2]).worker.n_open -= 1
        await server.pool.close()

    run(store, use, server)


def test_a_model_that_cannot_be_loaded_stops_nothing_and_is_tried_again_later(tmp_path: Path, model: Path) -> None:
    store, jobs = filled(tmp_path, 2)
    served(store, jobs, model)
    (store.folder(jobs[0]) / "model" / "config.json").write_text("{")

    async def use(runner: JobRunner) -> None:
        runner.start()
        await until(lambda: [one.name for one in runner.server.pool.loaded] == [jobs[1].model_name])
        await until(lambda: not runner.models._tasks)
        assert [event["message"] for event in store.events(jobs[0])[0]][-1] == "The model could not be loaded"
        with pytest.raises(APIError):
            runner.server.pool.get(jobs[0].model_name, GenerativeModel, "anna")
        assert not runner.models._tasks  # not for each request
        await runner.server.pool.close()

    run(store, use)


def test_a_name_that_is_taken_stops_nothing(tmp_path: Path) -> None:
    store, (job,) = filled(tmp_path, 1)

    async def use() -> None:
        server = a_server()
        entry = server.pool.add(job.model_name, "nowhere")
        with pytest.raises(ConfigError, match="two models are called"):
            JobModels(server, store).add(job)
        job.status = "succeeded"
        runner = JobRunner(server, store)
        await runner._begin_serving()
        assert entry.owner is None and not runner.models._tasks

    asyncio.run(use())


# --- the process -----------------------------------------------------------------------------------------------------


def test_how_a_process_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for error in (OutputError("full"), BusyError("busy"), OSError(errno.ENOSPC, "full")):
        assert job_child._end(error) == job_child.AGAIN and not job_child.OUTCOME.exists()
    assert job_child._end(DataError("wrong")) == 2 and "wrong" in job_child.OUTCOME.read_text()
    assert job_child._end(RuntimeError("ours")) == 1
    job_child.OUTCOME.unlink()
    job_child.OUTCOME.mkdir()  # it cannot be written
    assert job_child._end(DataError("wrong")) == job_child.AGAIN


def test_what_a_removal_that_was_cut_off_has_left_is_in_no_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, (job,) = filled(tmp_path, 1)
    job_runner._prepare(job, store.folder(job)).close()
    monkeypatch.chdir(store.folder(job))
    job_child.MODEL.mkdir()
    (job_child.MODEL / "model.safetensors").touch()
    found = list[bool]()
    monkeypatch.setattr(job_child, "finetune_model", lambda request, out: found.append(out.exists()))
    monkeypatch.setattr(job_child, "BUSY_SECONDS", 0)
    with lock(job_child.MODEL), pytest.raises(BusyError):  # of a process that still writes there
        job_child._train()
    assert (job_child.MODEL / "model.safetensors").exists()
    job_child._train()
    assert found == [False]


def test_a_process_gets_none_of_the_secrets_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FOUNDLING_API_KEY", "OPENAI_API_KEY", "UPSTREAM_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, f"secret of {name}")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environment = child_environment("/models/base")
    assert "secret" not in str(environment) and environment["OMP_NUM_THREADS"] == "3"
    assert child_environment("hf://owner/model")["HF_TOKEN"] and "PATH" in environment


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_the_wish_to_go_on(tmp_path: Path, model: Path) -> None:
    """A real run whose files may not grow, nor those of Python: it fails for now and not for good."""
    store, (job,) = filled(tmp_path, 1)
    job.base_directory = str(model)
    folder = store.folder(job)
    job_runner._prepare(job, folder).close()
    code = (
        "import resource, runpy\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "runpy.run_module('foundling.serve.job_child', run_name='__main__')"
    )
    with subprocess.Popen(
        [sys.executable, "-B", "-c", code], cwd=folder, env=child_environment(str(model)),
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr
        log = process.stderr.read()  # its stdin stays open meanwhile
        assert process.wait(300) == job_child.AGAIN, log
    assert b"cannot be written" in log and not (folder / "outcome.json").exists()
