# SPDX-License-Identifier: Apache-2.0
"""Who may ask: keys, cookies and pages of other sites."""

import json
import logging
import re
from typing import Any

import pytest

from foundling.cli import main
from foundling.errors import ConfigError
from foundling.serve.login import FORM
from foundling.serve.options import ServeOptions
from foundling.serve.run import check_exposure
from tests.serve.servers import KEY, Live, serving

SECRET = "fk-never-in-a-log-or-an-error"


@pytest.fixture(scope="module")
def locked(directories):
    """A server that needs a key."""
    with serving({"tiny": directories["tiny"]}, keys=[KEY, SECRET], max_logprobs=5, max_body=1 << 20) as live:
        yield live


def routes(live: Live) -> list[tuple[str, str]]:
    """(method, path) of every route, with a name in the place of each parameter."""
    seen, routes = [], [*live.app.routes]
    while routes:
        route: Any = routes.pop()
        if hasattr(route, "original_router"):
            routes += route.original_router.routes
            continue
        path = re.sub(r"\{[^}]*\}", "tiny", route.path)
        seen += [(method, path) for method in route.methods - {"HEAD"}]
    described = {(m.upper(), path) for path, methods in live.app.openapi()["paths"].items() for m in methods}
    assert {(m, re.sub(r"\{[^}]*\}", "tiny", path)) for m, path in described} <= set(seen)
    return seen


# --- keys ------------------------------------------------------------------------------------------------------------


def test_every_route_but_health_needs_a_key(locked: Live) -> None:
    every = routes(locked)
    assert ("POST", "/v1/chat/completions") in every and ("GET", "/health") in every and len(every) > 10
    for method, path in [*every, ("GET", "/nothing"), ("GET", "/v1/models/"), ("OPTIONS", "/v1/models"), ("HEAD", "/")]:
        body = {} if method == "POST" else None
        for key in ("", "wrong-key-wrong-key", KEY[:-1], KEY + "x"):
            reply = locked.http(method, path, body, key=key)
            if path == "/health":
                assert (reply.status, reply.json()) == (200, {"status": "ok"})
            elif path == "/login":
                assert reply.status in (400, 429)  # it is there to get a cookie with a key
            else:
                assert reply.status == 401 and reply.headers["www-authenticate"] == "Bearer", (method, path)
                assert b"tiny" not in reply.body and KEY.encode() not in reply.body
        if (method, path) not in (("POST", "/login"), ("POST", "/v1/models/tiny/unload")):
            assert locked.http(method, path, body).status not in (401, 403), (method, path)
    for header in ("", "Bearer", f"Basic {KEY}", KEY, f"Bearer  {KEY} {KEY}", "Bearer é"):
        assert locked.http("GET", "/v1/models", key="", headers={"Authorization": header}).status == 401
    assert locked.http("GET", f"/v1/models?api_key={KEY}&key={KEY}", key="").status == 401
    assert locked.http("GET", "/v1/models", key=SECRET).status == 200


def test_keys_are_in_no_log_and_no_error(locked: Live, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    text = "a-text-of-the-request"
    for key in (SECRET, "wrong-" + SECRET):
        locked.http("POST", "/v1/completions", {"model": "tiny", "prompt": text, "max_tokens": 2}, key=key)
        locked.http("POST", "/v1/completions", {"model": SECRET + "é", "prompt": text}, key=key)
        locked.http("GET", f"/v1/models/{SECRET}", key=key)
        locked.http("POST", "/login", {"key": key}, key="")
        reply = locked.http("POST", "/v1/chat/completions", {"model": "tiny", text: SECRET}, key=key)
        assert SECRET.encode() not in reply.body
    locked.line(reply)
    log = "\n".join(locked.lines) + caplog.text
    assert '"key": "key 2"' in log and SECRET not in log and text not in log


def test_other_machines_need_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org"):
        with pytest.raises(ConfigError, match="--api-key"):
            check_exposure(ServeOptions(host=host), has_keys=False)
        check_exposure(ServeOptions(host=host), has_keys=True)
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        check_exposure(ServeOptions(host=host), has_keys=False)


def test_the_command_refuses_to_be_open(directories, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["serve", str(directories["tiny"]), "--host", "0.0.0.0", "--port", "0"])
    assert stop.value.code == 2 and "give --api-key or --keys" in capfd.readouterr().err


# --- pages -----------------------------------------------------------------------------------------------------------


def cookie_of(reply: Any) -> tuple[str, set[str]]:
    value, *flags = reply.headers["set-cookie"].split("; ")
    return value, {flag.lower() for flag in flags}


def test_a_page_logs_in_for_a_cookie_that_no_script_can_read(locked: Live) -> None:
    reply = locked.http("POST", "/login", {"key": KEY}, key="")
    cookie, flags = cookie_of(reply)
    assert reply.status == 200 and {"httponly", "samesite=strict", "path=/"} <= flags and "secure" not in flags
    assert KEY not in cookie and reply.headers["cache-control"] == "no-store"
    with_cookie = {"Cookie": f"other=1; {cookie}"}
    assert locked.http("GET", "/v1/models", key="", headers=with_cookie).status == 200
    assert locked.http("GET", "/v1/models", key="", headers={"Cookie": cookie[:-1]}).status == 401
    form = locked.http("POST", "/login", f"key={KEY}".encode(), key="", headers={"Content-Type": FORM})
    assert form.status == 303 and form.headers["location"] == "/" and cookie_of(form)[0] != cookie
    over_tls = locked.http("POST", "/login", {"key": KEY}, key="", headers={"X-Forwarded-Proto": "https"})
    assert "secure" in cookie_of(over_tls)[1]
    out = locked.http("POST", "/logout", b"", key="", headers=with_cookie)
    assert out.status == 200 and "max-age=0" in cookie_of(out)[1]
    assert locked.http("GET", "/v1/models", key="", headers=with_cookie).status == 401


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"key": 5}', b'{"key": ""}', b'{"key": ["a"]}', b"\xff\xfe", b"key=", b"[" * 9000],
)  # fmt: skip
def test_what_is_no_key_logs_nobody_in(directories, body: bytes) -> None:
    with serving({}, keys=[KEY]) as live:
        for kind in ("application/json", FORM, "text/plain"):
            reply = live.http("POST", "/login", body, key="", headers={"Content-Type": kind})
            assert reply.status in (400, 413) and "set-cookie" not in reply.headers, reply
        assert live.http("POST", "/login", b'{"key": "\\ud800"}', key="").status == 401


def test_keys_cannot_be_guessed_at_the_login() -> None:
    with serving({}, keys=[KEY]) as live:
        statuses = [live.http("POST", "/login", {"key": f"guess-number-{i}"}, key="").status for i in range(12)]
        assert statuses == [401] * 10 + [429] * 2
        assert live.http("POST", "/login", {"key": KEY}, key="").status == 429  # a right guess is not told apart
        assert int(live.http("POST", "/login", {"key": KEY}, key="").headers["retry-after"]) <= 60


@pytest.mark.parametrize("server", ["live", "locked"])
def test_pages_of_other_sites_cannot_ask(server: str, request: pytest.FixtureRequest) -> None:
    """By a name that they point here (DNS rebinding), or across origins."""
    live: Live = request.getfixturevalue(server)
    own = f"{live.host}:{live.port}"
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
    for host in (own, f"localhost:{live.port}", "LOCALHOST", f"[::1]:{live.port}"):
        assert live.http("GET", "/v1/models", headers={"Host": host}).status == 200
    for host in ("evil.example", f"evil.example:{live.port}", "localhost.evil.example", "127.0.0.1.evil.example",
                 "evil.example:localhost", "localhost@evil.example", "0.0.0.0", "127.0.0.1:1:1"):  # fmt: skip
        for path in ("/v1/models", "/", "/health", "/metrics"):
            assert live.http("GET", path, headers={"Host": host}).status == 403
    for origin in ("http://evil.example", "null", f"http://{own}.evil.example", "http://", own, "file://", "x"):
        reply = live.http("POST", "/v1/completions", body, headers={"Origin": origin})
        assert reply.status == 403 and "access-control-allow-origin" not in reply.headers
        preflight = live.http("OPTIONS", "/v1/completions", headers={
            "Origin": origin, "Access-Control-Request-Method": "POST"})  # fmt: skip
        assert preflight.status == 403 and "access-control-allow-origin" not in preflight.headers
    assert live.http("POST", "/v1/completions", body, headers={"Origin": f"http://{own}"}).status == 200
    # what a form of another page can send without asking first
    for kind in ("text/plain", FORM, "multipart/form-data; boundary=x"):
        reply = live.http("POST", "/v1/completions", json.dumps(body).encode(), headers={"Content-Type": kind})
        assert reply.status == 400


def test_every_answer_forbids_what_a_page_does_not_need(live: Live) -> None:
    for method, path in (("GET", "/v1/models"), ("GET", "/nothing"), ("POST", "/v1/completions"), ("GET", "/health")):
        headers = live.http(method, path, b"" if method == "POST" else None).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert "server" not in headers
