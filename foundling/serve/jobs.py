# SPDX-License-Identifier: Apache-2.0
"""/v1/fine_tuning/jobs, as OpenAI's clients ask, over the recipe of `foundling finetune`."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi import Request as HTTPRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import Field, StringConstraints

from foundling.data.examples import LEAST_EXAMPLES
from foundling.errors import BusyError, ConfigError, OutputError
from foundling.limits import JOB_BATCH_SIZE, JOB_EPOCHS, METADATA
from foundling.runtime.files import lock
from foundling.runtime.hub import is_hub
from foundling.serve.errors import APIError, busy
from foundling.serve.files import FileStore, files_router, owner_of
from foundling.serve.job_options import JobOptions
from foundling.serve.job_runner import DEFAULT_EPOCHS, JobRunner
from foundling.serve.job_store import TRAIN, VALID, Job, JobStore, shown_event
from foundling.serve.models import GenerativeModel
from foundling.serve.pages import Page, page_of
from foundling.serve.pool import check_name
from foundling.serve.protocol import Body, Name, at_most
from foundling.serve.reply import DONE, Usage, event
from foundling.serve.server import Server, record_of
from foundling.serve.streams import HEADERS

FileId = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Suffix = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9._-]*$")]
MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
STREAM_SECONDS = 0.5
"""between two looks for new events"""


class Hyperparameters(Body):
    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=JOB_EPOCHS.high)] = "auto"
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=JOB_BATCH_SIZE.high)] = "auto"
    """rows of a step; examples share rows"""
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0, le=100)] = "auto"
    """of the rate that the method has by default"""


class Supervised(Body):
    hyperparameters: Hyperparameters = Field(default_factory=Hyperparameters)


class Method(Body):
    type: Literal["supervised"]
    supervised: Supervised = Field(default_factory=Supervised)


class JobBody(Body):
    model: Name
    training_file: FileId
    validation_file: FileId | None = None
    suffix: Suffix | None = None
    seed: int | None = Field(None, ge=0, lt=1 << 31)
    method: Method | None = None
    hyperparameters: Hyperparameters | None = Field(None, description="deprecated: use method")
    metadata: Annotated[dict[MetadataKey, MetadataValue], at_most(METADATA.high)] | None = None
    integrations: Annotated[list[Any], Field(max_length=0)] | None = None


class EventQuery(Page):
    stream: bool = False


class ServerState:
    """The directory of a server's files and jobs, which one server at a time uses."""

    def __init__(self, options: JobOptions) -> None:
        """BusyError where another server uses it, OutputError where it cannot be written."""
        self.options, self._lock = options, lock(options.state)
        try:
            self._lock.__enter__()
        except (BusyError, OutputError) as error:
            raise type(error)(str(error).replace("--out", "--state")) from None
        self.files = FileStore(options.state / "files", options)
        self.jobs = JobStore(options.state / "jobs", options)


def jobs_router(server: Server, state: ServerState | None) -> APIRouter:
    """The routes of files and of fine-tuning. Without a state each answers 501."""
    runner = JobRunner(server, state.jobs) if state else None

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        if runner:
            runner.start()
        yield
        if runner:
            await runner.stop()

    def stores() -> tuple[ServerState, JobRunner]:
        if state is None or runner is None:
            raise APIError(501, "this server keeps no files and jobs; start it with --state DIR", code="no_state")
        return state, runner

    router = APIRouter(lifespan=lifespan)
    router.include_router(files_router(server, lambda: stores()[0].files))
    _add_jobs(router, server, stores)
    return router


def _add_jobs(router: APIRouter, server: Server, stores: Any) -> None:
    @router.post("/v1/fine_tuning/jobs")
    async def create_job(body: JobBody, http: HTTPRequest) -> JSONResponse:
        state, runner = stores()
        return JSONResponse((await _create(server, state, runner, body, http)).as_json())

    @router.get("/v1/fine_tuning/jobs")
    async def list_jobs(query: Annotated[Page, Query()], http: HTTPRequest) -> JSONResponse:
        state, _ = stores()
        return JSONResponse(page_of([job.as_json() for job in state.jobs.of(owner_of(http))], query))

    @router.get("/v1/fine_tuning/jobs/{job_id}")
    async def retrieve_job(job_id: str, http: HTTPRequest) -> JSONResponse:
        state, _ = stores()
        return JSONResponse(state.jobs.get(job_id, owner_of(http)).as_json())

    @router.post("/v1/fine_tuning/jobs/{job_id}/cancel")
    async def cancel_job(job_id: str, http: HTTPRequest) -> JSONResponse:
        state, runner = stores()
        job = state.jobs.get(job_id, owner_of(http))
        await runner.cancel(job)
        return JSONResponse(job.as_json())

    @router.get("/v1/fine_tuning/jobs/{job_id}/events", response_class=Response)
    async def list_events(job_id: str, query: Annotated[EventQuery, Query()], http: HTTPRequest) -> Response:
        state, _ = stores()
        job = state.jobs.get(job_id, owner_of(http))
        if query.stream:
            stream = _event_stream(server, state.jobs, job)
            return StreamingResponse(stream, media_type="text/event-stream", headers=HEADERS)
        events, _ = await asyncio.to_thread(state.jobs.events, job)
        return JSONResponse(page_of([shown_event(one) for one in reversed(events)], query))

    @router.get("/v1/fine_tuning/jobs/{job_id}/checkpoints")
    async def list_checkpoints(job_id: str, query: Annotated[Page, Query()], http: HTTPRequest) -> JSONResponse:
        """The weights that were published; those of other steps serve to resume and are not served."""
        state, _ = stores()
        job = state.jobs.get(job_id, owner_of(http))
        return JSONResponse(page_of([_checkpoint(job)] if job.served_as and not job.deleted else [], query))

    @router.delete("/v1/models/{name}")
    async def delete_model(name: str, http: HTTPRequest) -> JSONResponse:
        state, runner = stores()
        job = next((one for one in state.jobs.of(owner_of(http)) if one.served_as == name and not one.deleted), None)
        if job is None or job.open:
            raise APIError(404, "there is no fine-tuned model of this name", param="model", code="model_not_found")
        await runner.delete_model(job)
        return JSONResponse({"id": name, "object": "model", "deleted": True})


async def _create(server: Server, state: ServerState, runner: JobRunner, body: JobBody, http: HTTPRequest) -> Job:
    caller = record_of(http).caller
    await server.check_quota(http, Usage())
    base: GenerativeModel = server.generative(body.model, http)
    entry = server.pool.entry_of(base.name)
    if entry is None or entry.name != base.name or entry.owner is not None:
        message = f"{base.name} is fine-tuned already; choose a model that the server was started with"
        raise APIError(400, message, param="model")
    if body.method and body.hyperparameters:
        raise APIError(400, "give method or the older hyperparameters, not both", param="hyperparameters")
    files = {name: state.files.get(file_id, caller.owner) for name, file_id in
             ((TRAIN, body.training_file), (VALID, body.validation_file)) if file_id is not None}  # fmt: skip
    train, valid = files[TRAIN], files.get(VALID)
    if train.n_examples < LEAST_EXAMPLES:
        message = f"the file has {train.n_examples} examples; give {LEAST_EXAMPLES} or more"
        raise APIError(400, message, param="training_file")
    if valid and valid.kind != train.kind:
        raise APIError(400, "its examples are of another kind than those of training_file", param="validation_file")
    values = body.hyperparameters or (body.method.supervised.hyperparameters if body.method else Hyperparameters())
    n_bytes = train.bytes * (DEFAULT_EPOCHS if values.n_epochs == "auto" else values.n_epochs)
    if n_bytes > (limit := state.options.max_job_bytes):
        message = f"the epochs of the job have {n_bytes:,} bytes together, the limit is {limit:,}; choose fewer epochs"
        raise APIError(400, message, param="training_file")
    directory = entry.directory if is_hub(entry.directory) else os.path.abspath(entry.directory)
    job = Job(
        f"ftjob-{secrets.token_hex(12)}", caller.owner, time.time(), base.name, directory, train.kind,
        state.options.method, train.id, valid and valid.id, body.suffix or None,
        secrets.randbelow(1 << 31) if body.seed is None else body.seed, values.model_dump(), body.metadata,
    )  # fmt: skip
    try:
        check_name(job.model_name)
    except ConfigError as error:
        raise APIError(400, str(error), param="suffix") from None
    await runner.submit(job, {name: state.files.path(stored) for name, stored in files.items()})
    return job


async def _event_stream(server: Server, jobs: JobStore, job: Job) -> AsyncGenerator[str]:
    """All events, the oldest first, until the job has ended; an error where that takes too long."""
    offset, deadline = 0, time.monotonic() + server.options.request_timeout
    while True:
        ended = not job.open
        events, offset = await asyncio.to_thread(jobs.events, job, offset)
        for one in events:
            yield event(shown_event(one))
        if ended:
            yield DONE
            return
        if server.stopping or time.monotonic() > deadline:
            yield event(busy("the job has not ended; ask for its events again", 5, "timeout", 503).body)
            return
        await asyncio.sleep(STREAM_SECONDS)


def _checkpoint(job: Job) -> dict[str, Any]:
    loss = (job.evaluation or {}).get("held_out_loss")
    return {
        "id": f"ftckpt-{job.id[-8:]}", "object": "fine_tuning.job.checkpoint", "created_at": int(job.finished or 0),
        "fine_tuning_job_id": job.id, "fine_tuned_model_checkpoint": job.served_as, "step_number": job.steps or 0,
        "metrics": {"step": job.steps, "full_valid_loss": loss},
    }  # fmt: skip
