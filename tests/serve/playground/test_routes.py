# SPDX-License-Identifier: Apache-2.0
"""What the page asks of the server beyond the public routes, and its files."""

import base64
import json
import re
from importlib.resources import files

import numpy as np
import pytest
import torch

from foundling.interpret.look import look_at
from foundling.serve.playground import login_page, static_files
from tests.serve.playground.conftest import next_logits, paged
from tests.serve.servers import KEY, Live

STATIC = files("foundling.serve").joinpath("static")


def test_files_have_their_types_and_are_asked_for_again(site: Live) -> None:
    types = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for name, file in static_files().items():
        reply = site.http("GET", "/" if name == "index.html" else f"/static/{name}")
        assert (reply.status, reply.body) == (200, file.content), name
        assert reply.headers["content-type"].partition(";")[0] == types[name.rpartition(".")[2]]
        assert reply.headers["cache-control"] == "no-cache" and reply.headers["x-content-type-options"] == "nosniff"
        again = site.http("GET", f"/static/{name}", headers={"If-None-Match": reply.headers["etag"]})
        assert (again.status, again.body) == (304, b"")
    for name in (
        "../playground.py",
        "..%2fplayground.py",
        "%2e%2e/app.py",
        "none.js",
        "",
        "style.css/",
        "login.html%00",
    ):
        assert site.http("GET", f"/static/{name}").status in (400, 404), name


def test_the_page_loads_nothing_of_others_and_parses_no_text(site: Live) -> None:
    policy = site.http("GET", "/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "style-src 'self';" in policy
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    for file in [*STATIC.iterdir(), *STATIC.joinpath("label").iterdir()]:
        if file.is_dir():
            continue
        text = file.read_text("utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser", text
        )
        hosts = set(re.findall(r"(?:https?:)?//([\w.-]+\.\w+)", text)) - {"www.w3.org"}
        assert not hosts and len(text.splitlines()) <= 400, file.name
    page = (STATIC / "index.html").read_text("utf-8")
    assert "<style" not in page and not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=", page)
    loaded = {name for name in re.findall(r'href="/static/([\w.]+\.js)"', page)} | {"main.js"}
    assert loaded == {file.name for file in STATIC.iterdir() if file.name.endswith(".js")}


def test_the_logits_after_some_tokens(site: Live) -> None:
    served, ids = site.model("plain"), [5, 9, 300, 7]
    answer = site.post("/playground/next", model="plain", tokens=ids, n=6).json()
    expected = next_logits(served, ids)
    logits = np.frombuffer(base64.b64decode(answer["logits"]), "<f4")
    torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-5, rtol=1e-5)
    assert answer["position"] == 4
    assert [one["id"] for one in answer["top"]] == expected.topk(6).indices.tolist()
    assert answer["top"][0]["logprob"] == pytest.approx(float(expected.log_softmax(-1).max()), abs=1e-5)
    assert answer["ends"] == list(served.framing.ends)
    assert '"prompt_tokens": 4, "completion_tokens": 0' in site.lines[-1]
    # as prompts of answers are: in parts, between the steps of others, and what was computed before is there again
    engine, long = served.worker.engine, [5, 9, 300, 7] * 200
    for n_steps in (-(-len(long) // engine.options.max_step_tokens), 1):
        before = engine.n_steps
        answer = site.post("/playground/next", model="plain", tokens=long, n=1).json()
        assert engine.n_steps == before + n_steps
    assert answer["top"][0]["id"] == int(next_logits(served, long).argmax())


def test_what_happened_inside(site: Live) -> None:
    served, ids = site.model("plain"), [5, 9, 300, 7]
    answer = site.post("/playground/look", model="plain", tokens=ids, layer=0).json()
    record = look_at(served.model, served.tokenizer, ids, layer=0, name="plain").as_json()
    attending = answer.pop("attending")
    assert attending == [0, 1] and answer["ids"] == ids and answer["lens"] == json.loads(json.dumps(record["lens"]))
    for head, expected in zip(answer["heads"], record["heads"], strict=True):
        weights = np.frombuffer(base64.b64decode(head["weights"]), "<f4").reshape(4, 4)
        assert [head["layer"], head["head"], head["kinds"]] == [expected[k] for k in ("layer", "head", "kinds")]
        np.testing.assert_allclose(weights, expected["rows"], atol=5.1e-5)  # `rows` has four digits
    assert site.post("/playground/look", model="plain", tokens=ids).json()["heads"][0]["layer"] == 1


def test_answers_are_checked_against_schemas(site: Live) -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    for text, valid, reason in (  # as the server itself checks what it constrains
        ('```json\n{"a": 1}\n```', False, "no JSON"), ('{"a": 1, "b": 2, "b": 3}', True, ""),
        ('{"a": 1}', True, ""), ('{"a": "b"}', False, "integer"), ('{"a": 1', False, "no JSON"), ("", False, "empty"),
    ):  # fmt: skip
        answer = site.post("/playground/check", schema=schema, text=text).json()
        assert answer["valid"] is valid and reason in answer["reason"]
    assert site.post("/playground/check", schema={"type": "nothing"}, text="1").status == 400


def test_bad_requests_are_refused_in_words(site: Live, directories) -> None:
    for path, body, says in (
        ("next", {"model": "plain", "tokens": []}, "tokens"),
        ("next", {"model": "plain", "tokens": [320]}, "the model has 320"),
        ("next", {"model": "plain", "tokens": [-1]}, "tokens"),
        ("next", {"model": "plain", "tokens": [1] * 2049}, "reads at most 2,048"),
        ("next", {"model": "plain", "tokens": [1] * 40_000}, "tokens"),
        ("next", {"model": "none", "tokens": [1]}, "there is no model 'none'"),
        ("next", {"model": "plain", "tokens": [1], "n": 10**6}, "n"),
        ("next", {"model": "plain", "tokens": [1], "more": 1}, "more"),
        ("look", {"model": "plain", "tokens": [1] * 257}, "tokens"),
        ("look", {"model": "plain", "tokens": [1], "layer": 7}, "no such layer attends"),
        ("check", {"schema": 3, "text": ""}, "schema"),
    ):
        reply = site.http("POST", f"/playground/{path}", body)
        assert 400 <= reply.status < 500 and says in reply.json()["error"]["message"], (path, body, reply.body)
    with paged({"recurrent": directories["recurrent"], "translator": directories["translator"]}) as other:
        assert other.post("/playground/next", model="recurrent", tokens=[3]).status == 200
        for path, model, says in (
            ("look", "recurrent", "has no attention"), ("look", "translator", "reads a source"),
            ("next", "translator", "reads a source"),
        ):  # fmt: skip
            reply = other.post(f"/playground/{path}", model=model, tokens=[3])
            assert reply.status == 400 and says in reply.json()["error"]["message"]


def test_a_cap_on_logprobs_holds_for_the_page(models) -> None:
    with paged(models, max_logprobs=3) as site:
        answer = site.post("/playground/next", model="plain", tokens=[5], n=40).json()
        assert len(answer["top"]) == 3 and answer["logits"] is None
        reply = site.post("/playground/look", model="plain", tokens=[5])
        assert reply.status == 400 and "--max-logprobs 1000" in reply.json()["error"]["message"]
    with paged(models, max_logprobs=0) as site:
        assert site.post("/playground/next", model="plain", tokens=[5]).status == 400


def test_everything_but_the_form_is_behind_the_key(models) -> None:
    with paged(models, keys=[KEY]) as site:
        page = site.http("GET", "/", key="")
        assert page.status == 401 and page.body == login_page()[0] and page.headers["cache-control"] == "no-store"
        assert "script-src 'sha256-" in page.headers["content-security-policy"]
        for name in static_files():
            assert site.http("GET", f"/static/{name}", key="").status == 401, name
        for path in ("next", "look", "check"):
            assert site.http("POST", f"/playground/{path}", {}, key="").status == 401
        assert site.http("GET", "/").status == 200
