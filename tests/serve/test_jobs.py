# SPDX-License-Identifier: Apache-2.0
"""/v1/fine_tuning/jobs through the official client: a real run in its own process, served at its end, kept over a
SIGKILL of the server."""

import json
import random
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.serve.commands import Clients, Serving, chats, refusal, served
from tests.serve.raw import wait_for
from tests.serve.servers import save_model

KEYS = ("key-of-anna-1", "key-of-ben-22")
KILLS = 8
SMALL = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 8}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return save_model(folder / "base", max_seq_len=128)


@pytest.fixture(scope="module")
def server(base: Path, folder: Path):
    with served(base, folder / "state", KEYS) as clients:
        yield clients


def upload(client: openai.OpenAI, data: bytes | None = None) -> str:
    return client.files.create(file=("a.jsonl", chats() if data is None else data), purpose="fine-tune").id


def wait(client: openai.OpenAI, job_id: str, status: str = "") -> Any:
    """The job once it has that status, or has ended."""
    end = time.monotonic() + 600
    while (job := client.fine_tuning.jobs.retrieve(job_id)).status != status and job.status in ("queued", "running"):
        assert time.monotonic() < end, job
        time.sleep(0.05)
    return job


def messages(client: openai.OpenAI, job_id: str) -> list[str]:
    """Of all events, the oldest first, read page by page."""
    return [event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=3)][::-1]


def places(text: str, folder: Path) -> list[str]:
    """Which paths of this machine a text names."""
    return [place for place in (str(folder), "/tmp", "site-packages", "Traceback") if place in text]


@pytest.mark.slow  # some fifteen seconds of a processor: its process imports, plans, trains and evaluates
def test_a_job_trains_reports_and_is_served_to_its_owner(server: Clients, folder: Path) -> None:
    anna, ben = (server.client(key) for key in KEYS)
    train, valid = upload(anna), upload(anna, chats(10, "no"))
    job = anna.fine_tuning.jobs.create(
        model="base", training_file=train, validation_file=valid, suffix="mine", seed=5, metadata={"a": "b"},
        method={"type": "supervised", "supervised": {"hyperparameters": {
            "n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 2.0}}},
    )  # fmt: skip
    assert job.status == "queued" and job.fine_tuned_model is None and job.metadata == {"a": "b"} and job.seed == 5
    assert job.method and job.method.supervised and job.method.supervised.hyperparameters
    assert job.method.supervised.hyperparameters.n_epochs == 2 and job.hyperparameters.learning_rate_multiplier == 2.0
    anna.files.delete(train)  # the job has its own link
    with server.http(KEYS[0]) as http, http.stream("GET", f"/v1/fine_tuning/jobs/{job.id}/events?stream=true") as live:
        lines = [line.removeprefix("data: ") for line in live.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    assert events[-1]["message"].startswith("New fine-tuned model: ft:base:mine:")
    done = wait(anna, job.id)
    assert done.status == "succeeded" and done.finished_at and done.trained_tokens and done.error is None
    assert done.fine_tuned_model == f"ft:base:mine:{job.id[-8:]}"
    loss = done.model_extra["foundling"]["evaluation"]
    assert loss["held_out_loss"] < loss["base_held_out_loss"]

    steps = [event["data"] for event in events if event["type"] == "metrics"]
    total = steps[0]["total_steps"]
    assert [one["step"] for one in steps] == list(range(1, total + 1))
    assert steps[-1]["train_loss"] < steps[0]["train_loss"] and steps[-1]["seconds_left"] == 0
    assert steps[-1]["tokens"] == done.trained_tokens
    assert [event["message"] for event in events] == messages(anna, job.id)
    (checkpoint,) = anna.fine_tuning.jobs.checkpoints.list(job.id).data
    assert checkpoint.step_number == total and checkpoint.metrics.full_valid_loss == loss["held_out_loss"]

    chat: Any = {"model": done.fine_tuned_model, "messages": [{"role": "user", "content": "1: Rome"}], "max_tokens": 4}
    reply = anna.chat.completions.create(**chat)
    assert reply.choices[0].message.content and reply.usage and reply.usage.model_extra["cost"] > 0
    assert done.fine_tuned_model in [one.id for one in anna.models.list()]
    assert [one.id for one in ben.models.list()] == ["base"]
    for call in (
        lambda: ben.chat.completions.create(**chat), lambda: ben.fine_tuning.jobs.retrieve(job.id),
        lambda: ben.fine_tuning.jobs.cancel(job.id), lambda: ben.fine_tuning.jobs.list_events(job.id),
        lambda: ben.models.delete(done.fine_tuned_model),
        lambda: ben.fine_tuning.jobs.create(model="base", training_file=valid),
        lambda: ben.post(f"/models/{done.fine_tuned_model}/unload", cast_to=object),
    ):  # fmt: skip
        with pytest.raises(openai.NotFoundError):
            call()
    with server.http(KEYS[1]) as http:  # nothing tells a model of another key from none
        told = [
            http.post("/v1/completions", json={"model": name, "prompt": "a"})
            .json()["error"]["message"]
            .replace(name, "")
            for name in (str(done.fine_tuned_model), f"ft:base:mine:{'0' * 8}")
        ]
    assert told[0] == told[1]
    assert ben.fine_tuning.jobs.list().data == [] and [one.id for one in anna.fine_tuning.jobs.list()] == [job.id]
    with server.http(KEYS[0]) as http:
        for path in ("", f"/{job.id}", f"/{job.id}/events?limit=100", f"/{job.id}/checkpoints"):
            assert not places(http.get(f"/v1/fine_tuning/jobs{path}").text, folder)
    with pytest.raises(openai.BadRequestError, match="succeeded already"):
        anna.fine_tuning.jobs.cancel(job.id)
    with pytest.raises(openai.BadRequestError, match="started with"):
        anna.fine_tuning.jobs.create(model=str(done.fine_tuned_model), training_file=valid)

    assert anna.models.delete(str(done.fine_tuned_model)).deleted
    with pytest.raises(openai.NotFoundError):
        anna.chat.completions.create(**chat)
    assert anna.fine_tuning.jobs.retrieve(job.id).fine_tuned_model is None
    assert not (folder / "state" / "jobs" / job.id / "model").exists()


def test_one_job_runs_at_a_time_and_each_can_be_cancelled(server: Clients) -> None:
    client = server.client(KEYS[1])
    data = upload(client)
    first, second = (client.fine_tuning.jobs.create(model="base", training_file=data, method=SMALL) for _ in range(2))
    assert wait(client, first.id, "running").status == "running"
    assert client.fine_tuning.jobs.retrieve(second.id).status == "queued"
    assert client.fine_tuning.jobs.cancel(second.id).status == "cancelled"
    assert client.fine_tuning.jobs.cancel(first.id).status == "cancelled"
    for job in (first, second):
        done = client.fine_tuning.jobs.retrieve(job.id)
        assert done.status == "cancelled" and done.finished_at and done.fine_tuned_model is None
        assert messages(client, job.id)[-1] == "Fine-tuning job cancelled"
    with pytest.raises(openai.BadRequestError, match="cancelled already"):
        client.fine_tuning.jobs.cancel(first.id)
    opened = [client.fine_tuning.jobs.create(model="base", training_file=data, method=SMALL) for _ in range(4)]
    with pytest.raises(openai.RateLimitError, match="4 jobs"):
        client.fine_tuning.jobs.create(model="base", training_file=data)
    for job in reversed(opened):
        client.fine_tuning.jobs.cancel(job.id)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": "other"}, "other"),
    "a path": ({"model": "../base"}, "../base"),
    "no file": ({"training_file": "file-x"}, "file-x"),
    "a path for a file": ({"training_file": "../../base/config.json"}, "config.json"),
    "epochs": ({"hyperparameters": {"n_epochs": 1_000_000}}, "n_epochs"),
    "no epochs": ({"hyperparameters": {"n_epochs": -1}}, "n_epochs"),
    "a fraction": ({"hyperparameters": {"batch_size": 1.5}}, "batch_size"),
    "a giant rate": ({"hyperparameters": {"learning_rate_multiplier": 1e308}}, "learning_rate_multiplier"),
    "both": ({"hyperparameters": {}, "method": SMALL}, "not both"),
    "dpo": ({"method": {"type": "dpo"}}, "supervised"),
    "a suffix": ({"suffix": "../x"}, "suffix"),
    "a suffix of markup": ({"suffix": "<b>"}, "suffix"),
    "a seed": ({"seed": 1 << 40}, "seed"),
    "metadata": ({"metadata": {"a": 1}}, "metadata"),
    "much metadata": ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    "integrations": ({"integrations": [{"type": "wandb"}]}, "integrations"),
    "another field": ({"command": "rm"}, "command"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_job_cannot_be(name: str, server: Clients, folder: Path) -> None:
    body, words = WRONG[name]
    with server.http(KEYS[0]) as http:
        form = {"files": {"file": ("a", chats(8))}, "data": {"purpose": "fine-tune"}}
        data = http.post("/v1/files", **form).json()["id"]
        before = sorted((folder / "state" / "jobs").iterdir())
        answer = http.post("/v1/fine_tuning/jobs", json={"model": "base", "training_file": data} | body)
        assert words in refusal(answer, 404 if name.startswith(("no model", "a path", "no file")) else 400)
        assert sorted((folder / "state" / "jobs").iterdir()) == before
        http.delete(f"/v1/files/{data}")


def test_too_few_examples_and_two_kinds_are_refused(server: Clients) -> None:
    client = server.client(KEYS[0])
    few, enough = upload(client, chats(7)), upload(client, chats(8))
    texts = upload(client, b"".join(json.dumps({"text": f"text {n}"}).encode() + b"\n" for n in range(8)))
    with pytest.raises(openai.BadRequestError, match="7 examples"):
        client.fine_tuning.jobs.create(model="base", training_file=few)
    with pytest.raises(openai.BadRequestError, match="another kind"):
        client.fine_tuning.jobs.create(model="base", training_file=enough, validation_file=texts)
    for file_id in (few, enough, texts):
        client.files.delete(file_id)


def test_a_job_that_would_read_too_much_is_refused(base: Path, tmp_path: Path) -> None:
    data = chats(8)
    with served(base, tmp_path, max_job_bytes=4 * len(data)) as clients:
        client = clients.client()
        file_id = upload(client, data)
        method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 5}}}
        with pytest.raises(openai.BadRequestError, match=f"have {5 * len(data):,} .* limit is {4 * len(data):,}"):
            client.fine_tuning.jobs.create(model="base", training_file=file_id, method=method)
        job = client.fine_tuning.jobs.create(model="base", training_file=file_id)  # three epochs
        client.fine_tuning.jobs.cancel(job.id)


# --- slow: whole runs ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_outlives_kills_at_any_point_and_ends_once(base: Path, tmp_path: Path) -> None:
    """The server is killed while it takes the job, plans, trains, publishes and loads; the job ends succeeded, with
    every step told once, and the weights of a run that nobody disturbed."""
    chance, state, delays = random.Random(0), tmp_path / "state", []
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 50, "batch_size": 4}}}
    serving = Serving(base, "--state", state)
    client = serving.client()
    data = upload(client)
    job = client.fine_tuning.jobs.create(model="base", training_file=data, seed=3, method=method)
    killed = 0
    while True:
        delay = chance.choice([0.0, chance.uniform(0, 2), chance.uniform(0, 12)]) if killed < KILLS else 600.0
        end = time.monotonic() + delay
        while time.monotonic() < end and client.fine_tuning.jobs.retrieve(job.id).status in ("queued", "running"):
            time.sleep(0.05)
        if killed >= KILLS:
            break
        serving.kill()
        killed += 1
        delays.append(delay)
        serving = Serving(base, "--state", state)
        client = serving.client()
        assert client.files.content(data).read() == chats()
    done = wait(client, job.id)
    told = [event for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert done.status == "succeeded", (delays, done.error)
    steps = [event.data["step"] for event in told if event.type == "metrics"][::-1]  # pyright: ignore
    assert steps == sorted(set(steps)) and steps[-1] == told[2].data["total_steps"]  # pyright: ignore
    ends = [event.message for event in told if event.type == "message"]
    assert len(ends) == len(set(ends)) == 4
    assert client.chat.completions.create(
        model=str(done.fine_tuned_model), messages=[{"role": "user", "content": "1: Rome"}], max_tokens=2
    ).choices  # fmt: skip
    whole = client.fine_tuning.jobs.create(model="base", training_file=data, seed=3, method=method)
    assert wait(client, whole.id).status == "succeeded"
    hashes = [
        json.loads((state / "jobs" / one / "model" / "foundling.json").read_text())["weights_hash"]
        for one in (job.id, whole.id)
    ]
    assert hashes[0] == hashes[1]
    serving.kill()
    with Serving(base, "--state", state) as serving:  # the models are served again, without being trained again
        client = serving.client()
        names = {f"ft:base::{one[-8:]}" for one in (job.id, whole.id)}
        wait_for(lambda: names <= {one.id for one in client.models.list()}, 60)
        assert [one.status for one in client.fine_tuning.jobs.list()] == ["succeeded"] * 2
        assert client.fine_tuning.jobs.retrieve(job.id) == done


@pytest.mark.slow
def test_a_stopped_server_lets_the_job_save_and_goes_on_with_it(base: Path, tmp_path: Path) -> None:
    serving = Serving(base, "--state", tmp_path)
    client = serving.client()
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 50, "batch_size": 4}}}
    job = client.fine_tuning.jobs.create(model="base", training_file=upload(client), method=method)
    wait_for(lambda: "metrics" in {event.type for event in client.fine_tuning.jobs.list_events(job.id)}, 600)
    code, error = serving.stop()
    assert code == 0 and "Traceback" not in error
    assert list((tmp_path / "jobs" / job.id / "model" / "run" / "checkpoints").glob("step-*"))
    with Serving(base, "--state", tmp_path) as serving:
        assert wait(serving.client(), job.id).status == "succeeded"


@pytest.mark.slow
def test_a_model_that_got_worse_is_not_served(base: Path, tmp_path: Path) -> None:
    with Serving(base, "--state", tmp_path, "--evaluate-jobs", "0.01") as serving:
        client = serving.client()
        job = client.fine_tuning.jobs.create(model="base", training_file=upload(client), method=SMALL)
        done = wait(client, job.id)
        assert done.status == "failed" and done.error and done.error.code == "evaluation_failed"
        assert done.fine_tuned_model is None and "held-out loss" in done.error.message
        judged = done.model_extra["foundling"]["evaluation"]
        assert judged["passed"] is False and judged["max_ratio"] == 0.01
        assert [one.id for one in client.models.list()] == ["base"]
        assert not (tmp_path / "jobs" / job.id / "model").exists()


@pytest.mark.slow
def test_all_weights_are_trained_where_asked_and_a_good_model_is_served(base: Path, tmp_path: Path) -> None:
    with Serving(base, "--state", tmp_path, "--evaluate-jobs", "--job-method", "full") as serving:
        client = serving.client()
        texts = b"".join(json.dumps({"text": f"text {n} " * 5}).encode() + b"\n" for n in range(40))
        job = client.fine_tuning.jobs.create(model="base", training_file=upload(client, texts))
        done = wait(client, job.id)
        assert done.status == "succeeded" and done.model_extra["foundling"]["evaluation"]["passed"] is True
        assert (tmp_path / "jobs" / job.id / "model" / "model.safetensors").exists()
        answer = client.completions.create(model=str(done.fine_tuned_model), prompt="text", max_tokens=4)
        assert answer.choices[0].text


@pytest.mark.slow
def test_a_run_that_fails_fails_its_job_in_one_line_without_places(base: Path, tmp_path: Path) -> None:
    with Serving(base, "--state", tmp_path) as serving:
        client = serving.client()
        data = upload(client, chats(1) * 20)  # equal lines count once, which only the run sees
        done = wait(client, client.fine_tuning.jobs.create(model="base", training_file=data).id)
        assert done.status == "failed" and done.error and done.error.code == "invalid_request"
        assert "too few to learn from" in done.error.message and data in done.error.message
        assert not places(done.error.message, tmp_path) and "\n" not in done.error.message
