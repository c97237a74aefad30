# SPDX-License-Identifier: Apache-2.0
"""Keys of clients: the file, the command that makes it, and a running server that takes changes up."""

import hmac
import json
import sqlite3
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from foundling.errors import ConfigError, DataError
from foundling.serve import keys
from foundling.serve.errors import APIError
from foundling.serve.key_file import KeyFile, digest_of
from foundling.serve.keys import KeyStore
from foundling.serve.quota import Reservations
from tests.e2e.tools import foundling
from tests.processes import SERVER
from tests.serve import raw
from tests.serve.commands import Serving, refusal
from tests.serve.servers import save_model, serving


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.sqlite", create=True)


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_stored_as_a_hash(file: KeyFile) -> None:
    key = file.create("anna", tokens=10)
    assert len(key) > 40 and key.isascii()
    for path in file.path.parent.iterdir():
        data = path.read_bytes()
        assert key.encode() not in data and key.encode()[3:] not in data
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [(digest, caller.name) for digest, caller in file.callers()] == [(digest_of(key), "anna")]
    assert file.create("ben") != key


def test_what_a_file_of_keys_cannot_be(tmp_path: Path) -> None:
    torn, other, text = tmp_path / "torn", tmp_path / "other", tmp_path / "text"
    KeyFile(torn, create=True).create("anna")
    torn.write_bytes(torn.read_bytes()[:5000] + b"\0" * 3000)
    with sqlite3.connect(other) as db:
        db.execute("create table notes (text text)")
    text.write_text("not a database, and longer than a header of one: " * 20)
    for path in (torn, other, text, tmp_path / "none", tmp_path):
        with pytest.raises(DataError) as met:
            KeyFile(path)
        assert "\n" not in str(met.value) and str(path) in str(met.value)
    done = foundling("key", "list", "--keys", torn)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    with pytest.raises(DataError):
        KeyFile(other, create=True)
    with sqlite3.connect(other) as db:  # nothing was put into a database of someone else
        assert [row[0] for row in db.execute("select name from sqlite_master")] == ["notes"]
    with pytest.raises(DataError):
        KeyFile(tmp_path / "no" / "folder", create=True)


def test_names_limits_and_changes(file: KeyFile) -> None:
    digest = digest_of(file.create("anna", requests_per_minute=5))
    for name in ("anna", "", "a" * 200, "a\nb", "a\x1b[2J"):
        with pytest.raises(ConfigError):
            file.create(name)
    wrong: list[dict[str, Any]] = [
        {"tokens": -1},
        {"tokens": 1 << 70},
        {"requests_per_minute": 0},
        {"concurrent": True},
    ]
    for limits in wrong:
        with pytest.raises(ConfigError):
            file.create("ben", **limits)
        with pytest.raises(ConfigError):
            file.change("anna", **limits)
    file.change("anna", tokens=7)
    file.charge(digest, 3, 4, 0.5)
    file.charge(digest, 1, 0, 0.25)
    (record,) = file.records()
    assert (record.tokens, record.requests_per_minute, record.concurrent) == (7, 5, None)
    assert (record.prompt_tokens, record.completion_tokens, record.requests, record.dollars) == (4, 4, 2, 0.75)
    file.change("anna", concurrent=2, lift=["tokens", "requests_per_minute", "name"])
    assert file.records()[0][3:6] == (None, None, 2)
    file.revoke("anna")
    assert file.records()[0].revoked and file.callers() == []
    for change in (lambda: file.change("bob", tokens=1), lambda: file.revoke("bob")):
        with pytest.raises(ConfigError, match="no key 'bob'"):
            change()
    with pytest.raises(ConfigError):  # or its files and jobs would be those of another key
        file.create("anna")


def _charge(path: str, digest: str, n: int, queue: Any) -> None:
    file = KeyFile(Path(path), create=True)
    for _ in range(n):
        file.charge(digest, 1, 2, 0.5)
    queue.put(file.create(f"of process {queue.get()}"))


@pytest.mark.slow
def test_processes_and_threads_charge_and_create_without_losing_any(tmp_path: Path) -> None:
    path, n = tmp_path / "keys.sqlite", 40
    digest = digest_of(KeyFile(path, create=True).create("anna"))
    queue = SERVER.Queue()
    for number in range(3):
        queue.put(number)
    processes = [SERVER.Process(target=_charge, args=(str(path), digest, n, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    with ThreadPoolExecutor(4) as pool:
        file = KeyFile(path)
        list(pool.map(lambda _: (file.charge(digest, 1, 2, 0.5), file.callers()), range(n)))
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    record = next(record for record in file.records() if record.name == "anna")
    assert (record.prompt_tokens, record.completion_tokens, record.requests) == (4 * n, 8 * n, 4 * n)
    assert len(file.records()) == 4


def _make(path: str, queue: Any) -> None:
    queue.put(KeyFile(Path(path), create=True).create(f"key {time.monotonic_ns()}"))


@pytest.mark.slow
def test_processes_that_make_the_file_at_once_share_it(tmp_path: Path) -> None:
    queue, path = SERVER.Queue(), tmp_path / "keys.sqlite"
    processes = [SERVER.Process(target=_make, args=(str(path), queue)) for _ in range(4)]
    for process in processes:
        process.start()
    made = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(120)
    assert {digest for digest, _ in KeyFile(path).callers()} == {digest_of(key) for key in made}


# --- the store of a server -------------------------------------------------------------------------------------------


def test_every_key_is_compared_whichever_matches(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each comparison is hmac.compare_digest of two digests of one length, and none is left out: the time of a lookup
    depends neither on the key nor on its place."""
    made = [file.create(f"key {n}") for n in range(5)]
    store, compared = KeyStore(["an-api-key-1", "an-api-key-2"], file), list[tuple[int, int]]()

    def compare(a: str, b: str) -> bool:
        compared.append((len(a), len(b)))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(keys, "hmac", type("counted", (), {"compare_digest": staticmethod(compare)}))
    names = ["key 1", "key 2", *(f"key {n}" for n in range(5)), None, None, None]
    tried = ["an-api-key-1", "an-api-key-2", *made, made[0][:-1], "x" * 100_000, None]
    owners = set()
    for name, key in zip(names, tried, strict=True):
        compared.clear()
        caller = store.identify(key)
        assert (caller and caller.name) == name
        assert compared == [(64, 64)] * 7
        owners.add(caller and caller.owner)
    assert len(owners) == 8  # a key of the command line that has the name of one of the file is another owner


def test_a_quota_bounds_what_requests_may_take_together(file: KeyFile) -> None:
    file.create("anna", tokens=100)
    ((_, caller),) = file.callers()
    running = Reservations()
    assert running.reserve(caller, "first", 10, [20, 20]) == [20, 20]
    assert running.reserve(caller, "second", 10, [100, 5]) == [20, 5]  # of the 40 that are left, half for each
    with pytest.raises(APIError, match="may take 85, and this one has a prompt of 15") as met:
        running.reserve(caller, "third", 15, [1])
    assert met.value.code == "insufficient_quota"
    assert running.reserve(caller, "third", 0, []) == []  # nothing is computed
    assert running.reserve(caller, "fourth", 14, [50]) == [1]
    assert running.reserve(caller, "first", 10, [20, 20]) == [20, 20]  # once, however often it is checked
    assert running.reserve(caller._replace(owner="ben"), "of another key", 0, [100]) == [100]
    running.release("first")
    running.release("first")
    assert running.reserve(caller, "fifth", 0, [100]) == [50]
    assert running.reserve(caller._replace(tokens=None), "sixth", 1000, [1000]) == [1000]


def test_a_quota_is_reached_and_raised(file: KeyFile) -> None:
    key = file.create("anna", tokens=10)
    store, running = KeyStore([], file), Reservations()
    caller = store.identify(key)
    assert caller is not None
    running.reserve(store.current(caller), "a", 0, [])
    store.charge(caller, 6, 4, 0.0)
    with pytest.raises(APIError) as met:
        running.reserve(store.current(caller), "b", 0, [])
    assert met.value.status == 429 and met.value.code == "insufficient_quota"
    file.change("anna", tokens=11)
    running.reserve(store.current(caller), "c", 0, [])
    file.revoke("anna")
    with pytest.raises(APIError) as met:
        store.current(caller)
    assert met.value.status == 401


def test_requests_that_run_at_once_do_not_exceed_a_quota(file: KeyFile, directories: dict[str, Path]) -> None:
    """Over real HTTP: sixteen at once of 40 tokens each, of a quota of 60."""
    key = file.create("anna", tokens=60)
    with serving({"tiny": directories["tiny"]}, key_file=file.path) as live:
        body = {"model": "tiny", "prompt": "the cat", "max_tokens": 40, "temperature": 0}
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: live.http("POST", "/v1/completions", body, key=key), range(16)))
        assert {answer.status for answer in answers} == {200, 429}
        for answer in answers:
            if answer.status == 429:
                assert answer.json()["error"]["code"] == "insufficient_quota"
        last = live.http("POST", "/v1/completions", body, key=key)
        while last.status == 200:  # what was reserved and not taken is free again
            assert last.json()["choices"][0]["finish_reason"] == "length"
            last = live.http("POST", "/v1/completions", body, key=key)
    (record,) = file.records()
    assert 58 <= record.prompt_tokens + record.completion_tokens <= 60


def test_a_file_that_is_damaged_while_a_server_runs_keeps_its_keys_known_and_counts_none(
    file: KeyFile, caplog: pytest.LogCaptureFixture
) -> None:
    key = file.create("anna")
    store = KeyStore([], file)
    (file.path.parent / "other").write_bytes(b"nonsense" * 1000)
    (file.path.parent / "other").replace(file.path)
    caller = store.identify(key)
    assert caller is not None and caller.name == "anna"
    with pytest.raises(APIError) as met:
        store.current(caller)
    assert met.value.status == 503 and str(file.path.parent) not in met.value.message
    for _ in range(3):
        store._read()
    assert store.identify(key) == caller
    assert caplog.text.count("cannot be used as a file of keys") == 2  # the quota, and the first of the readings
    file.path.unlink()
    with pytest.raises(DataError):
        file.callers()
    assert not file.path.exists()  # none is made where one was removed


def test_a_key_of_another_file_is_another_owner(tmp_path: Path) -> None:
    """Who is called anna there gets neither the files and jobs of anna here, nor her share of requests."""
    callers = [KeyFile(tmp_path / name, create=True) for name in ("a", "b")]
    owners = []
    for one in callers:
        key = one.create("anna", requests_per_minute=1)
        ((digest, caller),) = one.callers()
        assert digest == digest_of(key) == caller.digest and key not in caller.owner
        owners.append(caller)
    assert owners[0].owner != owners[1].owner
    limiter = keys.Limiter()
    for caller in owners:
        with limiter.enter(caller):
            pass
    with pytest.raises(APIError), limiter.enter(owners[0]):
        pass


def test_a_server_uses_one_connection_and_none_in_the_event_loop(
    file: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = file.create("anna", tokens=100)
    store, opened, connect = KeyStore([], file), [], sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: opened.append(args) or connect(*args, **options))
    monkeypatch.setattr(keys.KeyFile, "callers", lambda self: opened.append("read"))
    caller = store.identify(key)
    assert caller is not None and not opened  # neither read nor opened for a request
    for _ in range(3):
        store.current(caller)
        store.charge(caller, 1, 1, 0.0)
    assert [one for one in opened if one != "read"] == []  # what was opened at the start is used on
    monkeypatch.undo()
    assert file.records()[0].requests == 3


# --- the command, and a server that runs -----------------------------------------------------------------------------


def command(*args: object) -> dict[str, Any]:
    done = foundling("key", *args, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_command_makes_lists_changes_and_revokes(tmp_path: Path) -> None:
    keys_file = ["--keys", tmp_path / "keys.sqlite"]
    made = command("create", "anna", *keys_file, "--tokens", 10, "--concurrent", 2)
    assert made["name"] == "anna" and made["key"].startswith("fk-") and made["tokens"] == 10
    plain = foundling("key", "create", "ben", *keys_file)
    assert plain.stdout.startswith("fk-") and len(plain.stdout.splitlines()) == 1 and "only time" in plain.stderr
    command("change", "anna", *keys_file, "--tokens", 20)
    lifted = command("change", "anna", *keys_file, "--tokens", "none", "--concurrent", 3)
    assert lifted == {"name": "anna", "tokens": None, "concurrent": 3}
    assert command("list", *keys_file)["keys"][0]["tokens"] is None
    command("change", "anna", *keys_file, "--tokens", 20, "--concurrent", 2)
    assert command("revoke", "ben", *keys_file) == {"name": "ben", "revoked": True}
    listed = command("list", *keys_file)["keys"]
    assert [(k["name"], k["tokens"], k["concurrent"], k["revoked"]) for k in listed] == [
        ("anna", 20, 2, False), ("ben", None, None, True)
    ]  # fmt: skip
    shown = foundling("key", "list", *keys_file).stdout
    assert "anna" in shown and "revoked" in shown and made["key"] not in shown
    for wrong in (["create"], ["change", "anna"], ["revoke", "carl"], ["list", "anna"], ["list", "--tokens", "1"],
                  ["create", "anna"], ["create", "x", "--tokens", "-1"]):  # fmt: skip
        done = foundling("key", *wrong, *keys_file)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, wrong


def test_the_command_imports_no_server(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom foundling.cli import main\n"
        f"try:\n    main(['key', 'create', 'anna', '--keys', {str(tmp_path / 'keys')!r}])\n"
        "finally:\n    heavy = {'fastapi', 'starlette', 'torch', 'pydantic'} & set(sys.modules)\n"
        "    assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr


@pytest.mark.slow
def test_a_running_server_takes_changes_up(tmp_path: Path) -> None:
    """A quota is used up by real answers and raised; a key that is revoked is refused soon, and so is one of nobody."""
    base, path = save_model(tmp_path / "base"), tmp_path / "keys.sqlite"
    first = command("create", "anna", "--keys", path, "--tokens", 8)["key"]
    with Serving(base, "--keys", path) as serving, serving.http(first) as http:
        body = {"model": "base", "prompt": "the cat", "max_tokens": 6, "temperature": 0}
        assert http.post("/v1/completions", json=body).status_code == 200
        assert "8 tokens" in refusal(http.post("/v1/completions", json=body), 429)
        assert http.get("/v1/models").status_code == 200
        command("change", "anna", "--keys", path, "--tokens", 1000)
        assert http.post("/v1/completions", json=body).status_code == 200
        used = command("list", "--keys", path)["keys"][0]
        assert used["requests"] == 2 and used["completion_tokens"] == 5 + 6  # the first was cut to what was left

        second = command("create", "ben", "--keys", path)["key"]  # after the server has begun
        with serving.http(second) as other:
            raw.wait_for(lambda: other.get("/v1/models").status_code == 200)
            command("revoke", "ben", "--keys", path)
            raw.wait_for(lambda: other.get("/v1/models").status_code == 401)
            assert "valid key" in refusal(other.post("/v1/completions", json=body), 401)
        with serving.http("fk-" + "x" * 43) as nobody:
            refusal(nobody.get("/v1/models"), 401)
        assert http.get("/v1/models").status_code == 200
