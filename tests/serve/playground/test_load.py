# SPDX-License-Identifier: Apache-2.0
"""What the page asks beside chats does not hold them up, and models whose settings or prompts are not plain."""

import asyncio
import http.client
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

import foundling
from foundling.adapt.soft import prompt_tuning
from foundling.decode.request import Request
from foundling.limits import CHECKS
from foundling.runtime.rng import generator
from foundling.serve import compiling, playground
from foundling.serve.worker import EngineWorker
from foundling.text import Tokenizer
from foundling.weights.adapters import save_adapter
from tests.serve import raw
from tests.serve.playground.conftest import paged, set_options, visit
from tests.serve.servers import Live


def wait_for(worker: EngineWorker, n_open: int) -> None:
    for _ in range(500):
        if worker.n_open == n_open:
            return
        time.sleep(0.01)
    raise AssertionError(f"{worker.n_open} are open, not {n_open}")


def test_calls_wait_in_the_queue_and_leave_it_with_their_client(site: Live) -> None:
    worker, release = site.model("plain").worker, threading.Event()
    blocking = asyncio.run_coroutine_threadsafe(worker.call(release.wait), site.loop)
    before, worker.max_queue = worker.max_queue, 2
    try:
        wait_for(worker, 1)
        client = http.client.HTTPConnection(site.host, site.port)
        body = json.dumps({"model": "plain", "tokens": [5]})
        client.request("POST", "/playground/look", body, {"Content-Type": "application/json"})
        wait_for(worker, 2)
        for path in ("next", "look"):
            reply = site.post(f"/playground/{path}", model="plain", tokens=[5])
            assert reply.status == 429 and reply.headers["retry-after"], reply.body
        client.close()
        wait_for(worker, 1)
    finally:
        worker.max_queue = before
        release.set()
    assert blocking.result(60)
    wait_for(worker, 0)
    assert site.post("/playground/next", model="plain", tokens=[5]).status == 200


def test_who_leaves_is_charged_for_what_has_begun(site: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()

    def paused(function: Any) -> Any:
        def wait(*args: Any, **options: Any) -> Any:
            begun.set()
            go.wait(60)
            return function(*args, **options)

        return wait

    runner = site.model("plain").worker.engine.runner
    for path, place, name in (("next", runner, "forward"), ("look", playground, "look_at")):
        begun.clear()
        go.clear()
        with monkeypatch.context() as patch:
            patch.setattr(place, name, paused(getattr(place, name)))
            n_lines = len(site.lines)
            with raw.connect(site) as leaving:
                body = json.dumps({"model": "plain", "tokens": [7, 7, 5]}).encode()
                leaving.sendall(raw.request(f"/playground/{path}", body, live=site))
                assert begun.wait(60)
            raw.wait_for(lambda n=n_lines: len(site.lines) > n)
            line = json.loads(site.lines[-1])
            assert (line["route"], line["status"], line.get("prompt_tokens")) == (f"/playground/{path}", 499, 3)
            go.set()
        wait_for(site.model("plain").worker, 0)


def test_between_two_calls_the_engine_takes_a_step(site: Live) -> None:
    """So that many of them hold up nobody's answer."""
    worker, release, steps = site.model("plain").worker, threading.Event(), list[int]()

    async def consume() -> None:
        async for _ in worker.stream([Request([5, 9, 300], 40)]):
            pass

    async def mix() -> None:
        waiting = asyncio.create_task(worker.call(release.wait))
        await asyncio.sleep(0)
        answer = asyncio.create_task(consume())
        await asyncio.sleep(0)
        calls = [worker.call(lambda: steps.append(worker.engine.n_steps)) for _ in range(6)]
        tasks = [asyncio.create_task(call) for call in calls]
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(waiting, answer, *tasks)

    site.call(mix)
    assert len(steps) == 6 and steps == sorted(set(steps)), "a token is computed after each call"


def test_calls_end_with_their_model(models) -> None:
    with paged({"plain": models["plain"]}) as site:
        worker, release = site.model("plain").worker, threading.Event()
        asyncio.run_coroutine_threadsafe(worker.call(release.wait), site.loop)
        wait_for(worker, 1)
        with ThreadPoolExecutor() as pool:
            reply = pool.submit(site.post, "/playground/next", model="plain", tokens=[5])
            wait_for(worker, 2)
            worker.close()
            release.set()
            assert reply.result(60).status == 503


def test_a_check_that_takes_long_holds_up_other_checks_alone(site: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    go, waiting, check = threading.Event(), site.server.compiler.answers, compiling.matches_constraint
    monkeypatch.setattr(compiling, "matches_constraint", lambda *args: go.wait(60) and check(*args))
    monkeypatch.setattr(compiling, "CHECKS", CHECKS._replace(high=2))
    with ThreadPoolExecutor() as pool:
        checks = [pool.submit(site.post, "/playground/check", schema=True, text="1") for _ in range(2)]
        raw.wait_for(lambda: waiting.n_waiting == 2)
        third = site.post("/playground/check", schema=True, text="1")
        assert third.status == 429 and third.headers["retry-after"]
        answer = site.post("/v1/completions", model="plain", prompt="the model", max_tokens=3)
        assert answer.status == 200
        go.set()
        assert [one.result(60).json() for one in checks] == [{"valid": True, "reason": ""}] * 2


@pytest.mark.slow
def test_settings_and_virtual_tokens_of_a_model(browser: Browser, models, tmp_path, watch) -> None:
    """Penalties of the model's own are named where the page leaves them out; the ids of a soft prompt, which /tokenize
    gives with those of a text, are not put before them again."""
    shutil.copytree(models["plain"], tmp_path / "strict")
    settings = json.loads((tmp_path / "strict" / "generation_config.json").read_text())
    settings |= {"repetition_penalty": 1.2, "suppress_tokens": [7]}
    (tmp_path / "strict" / "generation_config.json").write_text(json.dumps(settings))
    model = foundling.load(models["plain"])
    prompt_tuning(model, 3, generator("x"), Tokenizer.load(models["plain"]).encode("the model"))
    save_adapter(model, tmp_path / "soft", base=models["plain"])
    with paged({"strict": tmp_path / "strict", "soft": tmp_path / "soft"}) as site:
        answer = site.post("/playground/next", model="strict", tokens=[5]).json()
        assert answer["also"] == ["repetition_penalty 1.2", "suppress_tokens"]
        context = browser.new_context()
        page = context.new_page()
        watch.follow(page)
        visit(page, site.url)
        set_options(page)
        page.fill("#draft", "the model")
        page.click("#show-next")
        expect(page.locator("#inspector > [role=status]")).to_contain_text("repetition_penalty 1.2, suppress_tokens")
        context.close()
        read = site.post("/tokenize", model="soft", prompt="the model reads").json()
        ids = [token["id"] for token in read["tokens"]]
        virtual = list(site.model("soft").framing.spec.virtual)
        assert len(virtual) == 3 and ids[:3] == virtual
        common = {"model": "soft", "max_tokens": 6, "temperature": 0}
        answers = [site.post("/v1/completions", prompt=p, **common).json() for p in ("the model reads", ids, ids[3:])]
        assert [one["usage"]["prompt_tokens"] for one in answers] == [len(ids)] * 3
        assert len({one["choices"][0]["text"] for one in answers}) == 1
