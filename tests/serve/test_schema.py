# SPDX-License-Identifier: Apache-2.0
"""Requests that schemathesis makes from the OpenAPI schema, valid and not: each gets a documented answer, never 500."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from foundling.serve.job_options import JobOptions
from foundling.serve.jobs import ServerState, jobs_router
from foundling.serve.playground import playground_router
from tests.serve.servers import KEY, Live, serving

CONFORM: list[Any] = [
    status_code_conformance, content_type_conformance, response_headers_conformance, response_schema_conformance
]  # fmt: skip


@pytest.fixture(scope="module")
def every_route(directories, tmp_path_factory: pytest.TempPathFactory):
    """A server with all routes; what it computes is short."""
    state = ServerState(JobOptions(Path(tmp_path_factory.mktemp("state"))))

    def routers(server: Any) -> list[Any]:
        return [jobs_router(server, state), playground_router(server)]

    with serving({"tiny": directories["tiny"]}, keys=[KEY], routers=routers, max_tokens=16, max_n=4,
                 shutdown_seconds=5) as live:  # fmt: skip
        yield live


def narrowed(schema: dict[str, Any]) -> dict[str, Any]:
    """The same with the model that is there, so that more than its name is looked at."""
    schema = copy.deepcopy(schema)
    for body in schema["components"]["schemas"].values():
        if "model" in body.get("properties", {}):
            body["properties"]["model"] = {"const": "tiny"}
            body["required"] = sorted({*body.get("required", []), "model"})
    return schema


def ask_all(live: Live, n_examples: int, seed: int = 0) -> Counter[tuple[str, int]]:
    """Asks every operation; (operation, status) -> how often it came."""
    counts = Counter[tuple[str, int]]()
    for schema in (live.app.openapi(), narrowed(live.app.openapi())):
        for result in schemathesis.openapi.from_dict(schema).get_all_operations():
            operation: Any = result.ok()
            documented = {int(status) for status in operation.definition.raw["responses"]}
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                ask_operation(live, operation, mode, documented, n_examples, seed, counts)
    return counts


def ask_operation(
    live: Live, operation: Any, mode: Any, documented: set[int], n_examples: int, seed: int, counts: Counter
) -> None:
    @hypothesis.seed(seed)
    @settings(max_examples=n_examples, database=None, suppress_health_check=list(HealthCheck), derandomize=False)
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        response = case.call(base_url=live.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
        status, where = response.status_code, f"{operation.label}: {response.status_code} {response.text[:300]}"
        counts[operation.label, status] += 1
        assert status in documented and status != 500, where
        if status >= 400:
            error = response.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}, where
            assert error["message"] and "\n" not in error["message"] and "Traceback" not in error["message"], where
            assert status not in (429, 503) or int(response.headers["retry-after"][0]) >= 1, where
        case.validate_response(response, checks=CONFORM)

    try:
        run()
    except hypothesis.errors.Unsatisfiable:  # an operation without parameters has nothing that could be wrong
        assert mode == GenerationMode.NEGATIVE


@pytest.mark.slow
def test_every_answer_is_a_documented_one(every_route: Live) -> None:
    counts = ask_all(every_route, 4)
    assert len({label for label, _ in counts}) > 15
    assert {status for _, status in counts} >= {200, 400, 404}


@pytest.mark.slow
def test_every_answer_of_many_is_a_documented_one(every_route: Live, capsys: pytest.CaptureFixture[str]) -> None:
    counts = ask_all(every_route, 25, seed=1)
    statuses = Counter[int]()
    for (_, status), n in counts.items():
        statuses[status] += n
    with capsys.disabled():
        print(f"\n{sum(statuses.values()):,} requests of {len({label for label, _ in counts})} operations: {statuses}")
    assert counts["POST /v1/chat/completions", 200] and counts["POST /v1/completions", 200]
