# SPDX-License-Identifier: Apache-2.0
"""What the page asks beside chats does not hold them up, and models whose settings or prompts are not plain."""

import asyncio
import http.client
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from playwright.sync_api import Browser, expect

import foundling
from foundling.adapt.soft import prompt_tuning
from foundling.decode.request import Request
from foundling.runtime.rng import generator
from foundling.serve.worker import EngineWorker
from foundling.text import Tokenizer
from foundling.weights.adapters import save_adapter
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
        client.request("POST", "/playground/next", body, {"Content-Type": "application/json"})
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


@pytest.mark.slow
def test_one_answer_is_checked_at_a_time(site: Live) -> None:
    """While a check takes all the time that it may, another one is refused, and chats go on."""
    endless = {"type": "string", "pattern": "^(a|a)*$"}
    with ThreadPoolExecutor() as pool:
        for _ in range(50):
            first = pool.submit(site.post, "/playground/check", schema=endless, text=json.dumps("a" * 40 + "b"))
            while (second := site.post("/playground/check", schema=True, text="1")).status == 200 and not first.done():
                continue
            if not first.done():  # else the second one came first
                break
        assert second.status == 429 and second.headers["retry-after"]
        answer = site.post("/v1/completions", model="plain", prompt="the model", max_tokens=3)
        assert answer.status == 200 and not first.done()
        verdict = first.result(60).json()
        assert not verdict["valid"] and "the check was stopped" in verdict["reason"]
    assert site.post("/playground/check", schema=True, text="1").json() == {"valid": True, "reason": ""}


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
