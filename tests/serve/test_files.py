# SPDX-License-Identifier: Apache-2.0
"""/v1/files over real HTTP and through the official client: what is stored, refused, kept apart and kept."""

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from foundling.errors import BusyError, DataError, OutputError
from foundling.serve import files, run
from foundling.serve.errors import APIError
from foundling.serve.files import FileStore, StoredFile
from foundling.serve.job_options import JobOptions
from foundling.serve.jobs import ServerState, jobs_router
from foundling.serve.keys import ANYONE
from foundling.serve.uploads import ExampleLines
from tests.serve import raw
from tests.serve.commands import Clients, Serving, chats, refusal, served
from tests.serve.servers import save_model, serving

KEYS = ("key-of-anna-1", "key-of-ben-22")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return save_model(folder / "base")


@pytest.fixture(scope="module")
def server(base: Path, folder: Path):
    with served(base, folder / "state", KEYS) as clients:
        yield clients


def upload(
    http: httpx2.Client, data: bytes, name: str = "a.jsonl", purpose: str | None = "fine-tune"
) -> httpx2.Response:
    fields = {} if purpose is None else {"purpose": purpose}
    return http.post("/v1/files", files={"file": (name, data)}, data=fields)


def test_the_official_client_uploads_lists_reads_and_deletes(server: Clients) -> None:
    anna, ben = (server.client(key) for key in KEYS)
    data = chats()
    stored = anna.files.create(file=("my chats.jsonl", data), purpose="fine-tune")
    assert (stored.bytes, stored.filename, stored.purpose) == (len(data), "my chats.jsonl", "fine-tune")
    assert stored.status == "processed" and stored.object == "file"
    assert anna.files.retrieve(stored.id) == stored
    assert anna.files.content(stored.id).read() == data
    others = [anna.files.create(file=(f"{n}.jsonl", chats(8)), purpose="fine-tune").id for n in range(2)]
    assert [one.id for one in anna.files.list()] == [others[1], others[0], stored.id]
    assert [one.id for one in anna.files.list(limit=1, order="asc").data] == [stored.id]
    assert [one.id for one in anna.files.list(limit=1)] == [others[1], others[0], stored.id]  # page by page
    assert anna.files.list(purpose="batch").data == []

    assert ben.files.list().data == []
    for call in (ben.files.retrieve, ben.files.content, ben.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(stored.id)
    assert anna.files.delete(stored.id).deleted
    with pytest.raises(openai.NotFoundError):
        anna.files.retrieve(stored.id)
    for one in others:
        anna.files.delete(one)


GOOD = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
FAULTS = {
    "not JSON": (GOOD + b"{\n", 2, "not JSON"),
    "not UTF-8": (GOOD * 2 + b'{"text": "\xff"}\n', 3, "not UTF-8"),
    "no object": (b"[1]\n", 1, "not an object"),
    "NaN": (b'{"text": "a", "n": NaN}\n', 1, "NaN"),
    "other keys": (GOOD + b'{"question": 1}', 2, "'question'"),
    "no answer": (b'\n\n{"messages": [{"role": "user", "content": "a"}]}', 3, "assistant"),
    "a role": (b'{"messages": [{"role": "king", "content": "a"}]}', 1, "king"),
    "two forms": (GOOD + b'{"text": "a"}\n', 2, "one form"),
    "no text": (b'{"prompt": "a", "completion": {"b": 1}}', 1, ""),
    "deep": (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 1, "inside each other"),
    "long": (GOOD + b'{"text": "' + b"a" * (5 << 20) + b'"}', 2, "longer than"),
    "a number of many digits": (b'{"text": "a", "n": ' + b"1" * 10_000 + b"}", 1, "not JSON"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_first_line_with_a_fault_is_named(name: str, server: Clients, folder: Path) -> None:
    data, line, words = FAULTS[name]
    before = sorted((folder / "state" / "files").iterdir())
    with server.http(KEYS[0]) as http:
        message = refusal(upload(http, data), 400)
    assert message.startswith(f"line {line}: ") and words in message and len(message) < 1000
    assert sorted((folder / "state" / "files").iterdir()) == before


def test_lines_are_checked_as_they_come() -> None:
    whole = chats(20)
    for step in (1, 7, 100, len(whole)):
        lines = ExampleLines()
        for at in range(0, len(whole), step):
            lines.write(whole[at : at + step])
        assert lines.finish() == "chat" and lines.n_examples == 20
    lines = ExampleLines()
    lines.write(GOOD + b"nonsense\n")
    assert lines.fault is not None  # before the rest is there
    with pytest.raises(DataError, match=r"^line 2: "):
        lines.finish()
    with pytest.raises(DataError, match="no line"):
        ExampleLines().finish()


NAMES = ["../../etc/passwd", "/etc/passwd", "..", "a\\b", 'a"b', "x" * 256, "ü✓.jsonl", "%2e%2e%2f", "file-1.jsonl;rm"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_name_is_a_value_and_never_a_path(name: str, server: Clients, folder: Path) -> None:
    with server.http(KEYS[1]) as http:
        stored = upload(http, GOOD * 8, name)
        assert stored.status_code == 200, stored.text
        file_id = stored.json()["id"]
        assert set(path.name for path in (folder / "state" / "files").iterdir()) == {
            f"{file_id}.json",
            f"{file_id}.jsonl",
        }
        assert http.delete(f"/v1/files/{file_id}").status_code == 200
    assert list((folder / "state" / "files").iterdir()) == []


@pytest.mark.parametrize("file_id", ["..", "%2e%2e", "..%2f..%2fbase%2fconfig.json", "a" * 5000, "%00", "*", "file-"])
def test_an_id_is_looked_up_and_never_a_path(file_id: str, server: Clients) -> None:
    with server.http(KEYS[0]) as http:
        for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content", f"/v1/fine_tuning/jobs/{file_id}"):
            assert http.get(path).status_code == 404


def test_forms_that_are_none_are_refused(server: Clients) -> None:
    with server.http(KEYS[0]) as http:
        assert "purpose" in refusal(upload(http, GOOD, purpose=None), 400)
        assert "'batch'" in refusal(upload(http, GOOD, purpose="batch"), 400)
        assert "characters" in refusal(upload(http, GOOD, "x" * 1000), 400)
        assert "multipart" in refusal(http.post("/v1/files", json={"purpose": "fine-tune"}), 400)
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        for body in (b"", b"--x\r\n", b"nonsense", b"--x\r\n\r\n\r\n--x--\r\n", b"--x\r\nA:" + b"b" * 100_000):
            refusal(http.post("/v1/files", content=body, headers=kind), 400)
        twice = [("file", ("a", GOOD)), ("file", ("b", GOOD))]
        assert "one file" in refusal(http.post("/v1/files", files=twice, data={"purpose": "fine-tune"}), 400)
        more = {"purpose": "fine-tune", "expires_after": "1"}
        assert "'expires_after'" in refusal(http.post("/v1/files", files={"file": ("a", GOOD)}, data=more), 400)
        assert "no line" in refusal(upload(http, b"\n \n"), 400)
        assert http.get("/v1/files", params={"limit": 0}).status_code == 400
        assert "after" in refusal(http.get("/v1/files", params={"after": "file-x"}), 400)
        assert "metadata" in refusal(http.get("/v1/files", params={"metadata": "x"}), 400)


@pytest.mark.slow
def test_an_acknowledged_upload_outlives_a_kill_and_a_torn_one_leaves_nothing(base: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    serving = Serving(base, "--state", state)
    stored = serving.client().files.create(file=("a.jsonl", chats()), purpose="fine-tune")
    serving.kill()
    directory = state / "files"
    (directory / "file-torn.part").write_bytes(GOOD)  # as a killed upload leaves it
    (directory / "file-unrecorded.jsonl").write_bytes(GOOD)
    (directory / "file-damaged.json").write_text("{")
    with Serving(base, "--state", state) as serving:
        client = serving.client()
        assert client.files.list().data == [stored]
        assert client.files.content(stored.id).read() == chats()
        assert {path.name for path in directory.iterdir()} == {
            f"{stored.id}.json", f"{stored.id}.jsonl", "file-damaged.json"
        }  # fmt: skip
        assert all(path.stat().st_mode & 0o077 == 0 for path in (directory, directory / f"{stored.id}.jsonl"))


def test_without_a_state_directory_the_routes_say_so(base: Path) -> None:
    with served(base) as clients, clients.http() as http:
        assert "--state" in refusal(upload(http, GOOD), 501)
        assert "--state" in refusal(http.get("/v1/files"), 501)
        assert "--state" in refusal(http.get("/v1/fine_tuning/jobs/a/events"), 501)


def test_limits_of_a_key_and_of_all_count_what_is_under_way(tmp_path: Path) -> None:
    options = JobOptions(tmp_path, max_files=2, max_key_bytes=3 * len(GOOD), max_bytes=4 * len(GOOD))
    store = FileStore(tmp_path / "files", options)

    async def run() -> list[str]:
        met = []
        async with store.receive("anna") as first, store.receive("anna") as second:
            try:
                async with store.receive("anna"):
                    pass
            except APIError as error:
                met.append(error.message)
            first.write(GOOD * 2)
            store.count(first)
            second.write(GOOD)
            store.count(second)
            second.write(GOOD)
            try:
                store.count(second)
            except APIError as error:
                met.append(error.message)
            async with store.receive("ben") as third:
                third.write(GOOD)
                try:
                    store.count(third)
                except APIError as error:
                    met.append(error.message)
        return met

    met = asyncio.run(run())
    assert "2 files" in met[0] and "bytes" in met[1] and "no place" in met[2]
    assert list((tmp_path / "files").iterdir()) == []  # none was acknowledged


def test_an_upload_without_a_record_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(tmp_path, JobOptions(tmp_path))

    def fail(path: Path, value: Any) -> None:
        raise OutputError(f"{path}: cannot be written")

    monkeypatch.setattr(files, "write_json", fail)

    async def run() -> None:
        async with store.receive("anna") as receiver:
            receiver.write(GOOD)
            with pytest.raises(APIError) as met:
                receiver.store_as("a.jsonl")
            assert met.value.status == 503

    asyncio.run(run())
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    ServerState(JobOptions(tmp_path))
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert all((tmp_path / name).stat().st_mode & 0o077 == 0 for name in ("files", "jobs"))


def test_a_client_that_does_not_read_a_file_or_sends_none_is_not_waited_for(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "LATE", 0.1)
    state = ServerState(JobOptions(tmp_path))
    stored = StoredFile("file-1", ANYONE.owner, "a.jsonl", 64 << 20, 0.0, "chat", 8)
    with open(state.files.path(stored), "wb") as file:
        file.truncate(stored.bytes)  # more than the buffers of both sides hold
    state.files.add(stored)
    with (
        serving({"base": base}, routers=lambda server: [jobs_router(server, state)], request_timeout=0.2) as live,
        raw.connect(live) as reads, raw.connect(live) as sends,
    ):  # fmt: skip
        reads.sendall(raw.request("/v1/files/file-1/content", method="GET", live=live))
        form = raw.request("/v1/files", b"--x", "Content-Length: 1000000", live=live)
        sends.sendall(form.replace(b"application/json", b"multipart/form-data; boundary=x"))
        raw.wait_for(lambda: len(live.lines) == 2 and not live.server.n_connections(), 20)
        assert live.guard.n_running == 0


def test_a_second_server_does_not_use_the_same_state(tmp_path: Path) -> None:
    first = ServerState(JobOptions(tmp_path / "state"))
    with pytest.raises(BusyError, match="another process is writing here; wait for it or choose another --state"):
        ServerState(JobOptions(tmp_path / "state"))
    assert first.files.files == {}
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another --state"):
        ServerState(JobOptions(tmp_path / "file" / "state"))
    del first
    ServerState(JobOptions(tmp_path / "state"))


def test_a_client_that_leaves_leaves_nothing(server: Clients, folder: Path) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for cut in (10, 200):
        with socket.create_connection((host, int(port))) as raw:
            body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + GOOD * 100
            head = (
                f"POST /v1/files HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEYS[0]}\r\n"
                f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            raw.sendall(head.encode() + body[:-cut])
    for _ in range(200):
        if not list((folder / "state" / "files").glob("*.part")):
            break
        time.sleep(0.02)
    assert not list((folder / "state" / "files").glob("*.part"))
    assert httpx2.get(f"{server.url}/health").json() == {"status": "ok"}
