# SPDX-License-Identifier: Apache-2.0
"""A program in the sandbox can do what programs do, and nothing to this machine."""

import contextlib
import json
import os
import resource
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from foundling.errors import ConfigError, SandboxError
from foundling.verify import interpreter, processes, sandbox
from foundling.verify.sandbox import Outcome, run
from tests.verify.attempts import ATTEMPTS, HARMLESS

BACKENDS = ["bubblewrap", "sandlock"]
ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("attempts.py").read_text(encoding="utf-8")
both = pytest.mark.parametrize("backend", BACKENDS)


# --- escapes ---------------------------------------------------------------------------------------------------------


class Targets:
    """Files, processes and sockets that a program might reach, open to everybody on this machine."""

    def __init__(self) -> None:
        self.folder = folder = Path(tempfile.mkdtemp(prefix="foundling-targets-"))
        self.content = secrets.token_hex(8)
        self.files = [folder / f"file{n}" for n in range(6)]
        for path in self.files:
            path.write_text(self.content, encoding="ascii")
            path.chmod(0o666)
            os.utime(path, (1_000_000_000, 1_000_000_000))
        folder.chmod(0o777)
        self.sleepers = [subprocess.Popen(["sleep", "1000"], start_new_session=True) for _ in range(2)]
        self.server = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.unix, self.datagram = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.abstract = socket.socket(socket.AF_UNIX)
        name = f"foundling-{secrets.token_hex(8)}"
        self.unix.bind(str(folder / "socket"))
        self.datagram.bind(str(folder / "datagram"))
        self.abstract.bind("\0" + name)
        for path in (folder / "socket", folder / "datagram"):
            path.chmod(0o777)
        self.sockets = [self.server, self.udp, self.unix, self.datagram, self.abstract]
        for listener in (self.unix, self.abstract):
            listener.listen()
        for receiver in self.sockets:
            receiver.setblocking(False)
        self.about = {
            "file": str(self.files[0]),
            "lost": [str(path) for path in self.files[1:]],
            "folder": str(folder),
            "content": self.content,
            "process": self.sleepers[0].pid,
            "lost_process": self.sleepers[1].pid,
            "port": self.server.getsockname()[1],
            "udp": self.udp.getsockname()[1],
            "home": str(Path.home()),
            "home_names": sorted(
                {path.name for path in Path.home().iterdir()} - set("/".join(interpreter.readable()).split("/"))
            ),
            "unix": str(folder / "socket"),
            "unix_datagram": str(folder / "datagram"),
            "abstract": name,
        }
        self.before = self.state()

    def state(self) -> dict[str, Any]:
        first = self.sleepers[0].pid
        return {
            "files": {path.name: (path.stat().st_mode, path.stat().st_mtime, path.stat().st_uid, path.stat().st_size)
                      for path in sorted(self.folder.iterdir())},
            "alive": [sleeper.poll() for sleeper in self.sleepers],
            "priority": os.getpriority(os.PRIO_PROCESS, first), "affinity": os.sched_getaffinity(first),
            "limit": resource.prlimit(first, resource.RLIMIT_CORE),
        }  # fmt: skip

    def received(self) -> list[str]:
        """What has reached the sockets."""
        reached = []
        for name in ("server", "unix", "abstract"):
            with contextlib.suppress(BlockingIOError):
                getattr(self, name).accept()
                reached.append(name)
        for name in ("udp", "datagram"):
            with contextlib.suppress(BlockingIOError):
                getattr(self, name).recv(10)
                reached.append(name)
        return reached

    def close(self) -> None:
        for sleeper in self.sleepers:
            sleeper.kill()
            sleeper.wait()
        for item in self.sockets:
            item.close()
        shutil.rmtree(self.folder)


def results_of(text: str) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in map(json.loads, text.splitlines())}


class Escapes:
    def __init__(self, backend: str) -> None:
        self.targets = Targets()
        with open(self.targets.files[0], "rb") as inherited:
            os.set_inheritable(inherited.fileno(), True)
            given = json.dumps({**self.targets.about, "names": list(ATTEMPTS)})
            os.environ["FOUNDLING_CANARY"] = "secret"
            try:
                self.outcome = run(SOURCE, stdin=given, timeout=60, backend=backend)  # pyright: ignore[reportArgumentType]
            finally:
                del os.environ["FOUNDLING_CANARY"]
        self.results = results_of(self.outcome.stdout)
        self.after, self.received = self.targets.state(), self.targets.received()


@pytest.fixture(scope="module")
def escapes() -> Iterator[dict[str, Escapes]]:
    """All attempts, one program for each backend; made when a test asks first."""
    made = dict[str, Escapes]()

    class Lazy(dict[str, Escapes]):
        def __missing__(self, backend: str) -> Escapes:
            made[backend] = self[backend] = Escapes(backend)
            return made[backend]

    yield Lazy()
    for one in made.values():
        one.targets.close()


@both
@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_fails(escapes: dict[str, Escapes], backend: str, name: str) -> None:
    result = escapes[backend].results.get(name)
    assert result is not None, f"it was not tried: {escapes[backend].outcome}"
    assert not result["succeeded"]


@both
def test_the_host_is_unharmed(escapes: dict[str, Escapes], backend: str) -> None:
    one = escapes[backend]
    assert one.outcome.ok and len(one.results) == len(ATTEMPTS) >= 40
    assert one.after == one.targets.before
    assert one.received == []
    assert not (Path(json.__file__).parent / "foundling_was_here.py").exists()
    assert not Path("/dev/shm/foundling_was_here").exists()


def test_the_attempts_succeed_without_a_sandbox(tmp_path: Path) -> None:
    """On targets that may be lost. What needs root, or would change the machine, is not tried."""
    targets = Targets()
    folder = tmp_path / "own"
    folder.mkdir()
    try:
        given = json.dumps({**targets.about, "names": sorted(HARMLESS)})
        with open(targets.files[0], "rb") as inherited:
            done = subprocess.run(
                [sys.executable, "-c", SOURCE], input=given, capture_output=True, text=True, check=True, cwd=folder,
                pass_fds=[inherited.fileno()], env={**os.environ, "FOUNDLING_CANARY": "secret"},
            )  # fmt: skip
        results = results_of(done.stdout)
        assert {name: line for name, line in results.items() if not line["succeeded"]} == {}
        assert len(results) == len(HARMLESS) >= 25
        assert targets.state() != targets.before
        assert targets.received() == ["server", "unix", "abstract", "udp", "datagram"]
    finally:
        targets.close()


AS_OTHERS = """
import json, sys
from foundling.verify import sandbox
given = json.loads(sys.stdin.readline())
for backend in ("bubblewrap", "sandlock"):
    outcome = sandbox.run(open(given["attempts"]).read(), stdin=json.dumps(given), timeout=60, backend=backend)
    print(json.dumps([backend, outcome.stdout, outcome.reason, outcome.exit_code, outcome.stderr[-500:]]))
    forks = "import os, time\\nfor n in range(100): os.fork() or time.sleep(9)"
    ended = sandbox.run(forks, processes=8, timeout=3, backend=backend)
    print(json.dumps([backend, ended.reason, ended.exit_code]))
    print(json.dumps(sandbox.run(given["hidden"], disk=8 << 20, timeout=9, backend=backend).reason))
    print(json.dumps([sandbox.run("print(1)", backend=backend).reason for _ in range(5)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("user", ["nobody", "this one"])
def test_with_a_python_that_everybody_can_read(tmp_path: Path, user: str) -> None:
    """As a user without privileges, and as this one, who is root on many machines: with a real change of the user."""
    import sandlock

    python = interpreter.EXECUTABLE
    if not all(map(interpreter.is_open_to_others, interpreter.readable())):
        python = "/usr/bin/python3"
    public, targets = Path(tempfile.mkdtemp(prefix="foundling-public-")), Targets()
    try:
        public.chmod(0o755)
        shutil.copytree(ROOT / "foundling", public / "foundling", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(
            Path(sandlock.__file__).parent, public / "sandlock", ignore=shutil.ignore_patterns("__pycache__")
        )
        (public / "attempts.py").write_text(SOURCE, encoding="utf-8")
        given = {**targets.about, "names": list(ATTEMPTS), "attempts": str(public / "attempts.py"), "hidden": HIDDEN}
        other: dict[str, Any] = (
            {"user": 65534, "group": 65534, "extra_groups": []} if user == "nobody" and not os.geteuid() else {}
        )
        done = subprocess.run(
            [python, "-B", "-c", AS_OTHERS], input=json.dumps(given), capture_output=True, text=True, cwd="/",
            env={"PYTHONPATH": str(public), "PATH": os.environ["PATH"]}, check=False, **other,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        for backend, text, reason, code, stderr in lines[::4]:
            results = results_of(text)
            assert (reason, code) == ("exited", 0), stderr
            assert len(results) == len(ATTEMPTS), backend
            assert [name for name, line in results.items() if line["succeeded"]] == [], backend
        # bubblewrap's file system is full, or is seen to be
        assert lines[2] in ("disk", "exited") and lines[6] == "disk" and lines[3::4] == [["exited"] * 5] * 2
        for backend, reason, code in lines[1::4]:
            assert (reason, code) in (("processes", None), ("exited", 1)), backend  # BlockingIOError
        assert targets.state() == targets.before and targets.received() == []
    finally:
        targets.close()
        shutil.rmtree(public)


# --- exhaustion ------------------------------------------------------------------------------------------------------

MIB = 1 << 20
SMALL: dict[str, Any] = {"timeout": 3, "memory": 128 * MIB, "disk": 8 * MIB, "max_files": 200, "output": 1 << 16}
MAP = """import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
def map(size, flags, file):
    p = libc.mmap(None, size, 3, flags, file, 0)
    if p == 2**64 - 1: raise OSError(ctypes.get_errno(), "mmap")
    return p
"""
HIDDEN = """import os, time
os.mkdir("d", 0o300)
for n in range(20): open(f"d/{n}", "wb").write(bytes(4 << 20))
time.sleep(1000)
"""
EXHAUSTING: dict[str, tuple[str, set[str]]] = {
    # the program, and how it may end: "exited" with an error, which a refused call raised
    "sleep": ("import time; time.sleep(1000)", {"time"}),
    "spin": ("while True: pass", {"time"}),
    "stop itself": ("import os; os.kill(os.getpid(), 19)", {"time"}),
    "ignore signals": (
        "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "while True: time.sleep(1)",
        {"time"},
    ),
    "close its output": ("import os, time\nfor n in (0, 1, 2): os.close(n)\ntime.sleep(1000)", {"time"}),
    "spin in children": ("import os\nfor _ in range(5): os.fork()\nwhile True: pass", {"time", "processes", "exited"}),
    "fork without end": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", {"time", "processes"}),
    "fork and end": (
        "import os\nwhile True:\n    try:\n        if os.fork(): os._exit(3)\n    except OSError: pass",
        {"time", "processes", "exited"},
    ),
    "start threads": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(1000,)).start()",
        {"processes", "exited", "time"},
    ),
    "flood stdout": ("while True: print('x' * 4096)", {"output"}),
    "flood stderr": ("import sys\nwhile True: sys.stderr.write('x' * 4096)", {"output"}),
    "flood without a line": ("import os\nwhile True: os.write(1, bytes(65536))", {"output"}),
    "flood from children": ("import os\nos.fork(); os.fork()\nwhile True: os.write(2, b'x' * 65536)", {"output"}),
    "allocate": ("x = []\nwhile True: x.append(bytearray(1 << 20))", {"memory", "exited"}),
    "allocate at once": ("x = bytearray(1 << 34)", {"exited"}),
    "allocate in children": (
        "import os, time\nfor _ in range(8):\n    if not os.fork():\n        x = bytearray(b'x') * (60 << 20)\n"
        "        time.sleep(1000)\n"
        "time.sleep(1000)",
        {"memory"},
    ),
    "allocate shared memory in children": (
        "import mmap, os, time\nfor _ in range(8):\n    if not os.fork():\n        m = mmap.mmap(-1, 60 << 20)\n"
        "        m.write(b'x' * (50 << 20))\n        time.sleep(1000)\ntime.sleep(1000)",
        {"time"},
    ),
    "recurse": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f() + 1\nf()",
        {"signal", "memory", "exited", "time"},
    ),
    "write a large file": ("with open('a', 'wb') as f:\n    while True: f.write(bytes(1 << 20))", {"exited", "disk"}),
    "write a sparse file": ("import os\nf = open('a', 'wb'); os.truncate(f.fileno(), 1 << 40)", {"exited"}),
    "write several large files": (
        "for n in range(100):\n    with open(str(n), 'wb') as f: f.write(bytes(4 << 20))\n"
        "import time; time.sleep(1000)",
        {"disk", "exited"},
    ),
    "write files without a name": (
        "import os, time\nfiles = []\nfor n in range(30):\n"
        "    f = open('a', 'wb'); os.unlink('a'); f.write(bytes(4 << 20)); f.flush()\n"
        "    files.append(f)\ntime.sleep(1000)",
        {"disk", "exited"},
    ),
    "write many files": (
        "for n in range(10**6): open(str(n), 'w').close()\nimport time; time.sleep(1000)",
        {"disk", "exited"},
    ),
    "make deep folders": (
        "import os, time\ntry:\n    for n in range(10**5): os.mkdir('d'); os.chdir('d')\nexcept OSError: pass\n"
        "time.sleep(1000)",
        {"disk", "exited"},
    ),
    "open many files": ("x = [open('/dev/null') for _ in range(10**5)]", {"exited"}),
    "open many pipes": ("import os\nx = [os.pipe() for _ in range(10**5)]", {"exited"}),
    "kill its parent": (
        "import os, time\nwhile True:\n    try: os.kill(os.getppid(), 9)\n    except OSError: pass",
        {"time"},
    ),
    "kill everything": (
        "import os\nwhile True:\n    try: os.kill(-1, 9)\n    except OSError: pass",
        {"time", "signal"},
    ),
    "interrupt its parent": (
        "import os, time\nfor n in (2, 15, 1, 3, 6, 10, 20):\n    try: os.kill(os.getppid(), n)\n"
        "    except OSError: pass\n"
        "time.sleep(1000)",
        {"time"},
    ),
    "allocate without the first thread": (
        "import ctypes, os, threading, time\ndef f():\n    time.sleep(0.3)\n    x = bytearray(b'x') * (60 << 20)\n"
        "    time.sleep(1000)\nfor _ in range(3): os.fork()\nthreading.Thread(target=f).start()\n"
        "ctypes.CDLL(None).syscall(93 if os.uname().machine == 'aarch64' else 60, 0)",
        {"memory"},
    ),
    "share memory and map a page of it": (
        f"{MAP}for n in range(40):\n    p = map(8 << 20, 0x21, -1)\n"
        "    ctypes.memset(p, 1, 8 << 20); libc.munmap(p + 4096, (8 << 20) - 4096)\n",
        {"exited"},
    ),
    "map files that are deleted": (
        f"{MAP}for n in range(20):\n    f = os.open('f', os.O_RDWR | os.O_CREAT); os.write(f, bytes(4 << 20))\n"
        "    map(4096, 1, f); os.unlink('f'); os.close(f)\ntime.sleep(1000)",
        {"disk", "exited"},
    ),
    "send files that are deleted": (
        "import os, socket, time\na, b = socket.socketpair()\nfor n in range(20):\n"
        "    f = os.open('f', os.O_RDWR | os.O_CREAT); os.write(f, bytes(4 << 20))\n"
        "    socket.send_fds(a, [b'x'], [f]); os.unlink('f'); os.close(f)\n",
        {"exited", "disk"},
    ),
    "write into a folder that cannot be listed": (HIDDEN, {"disk", "exited"}),
    "write into folders of a long path": (
        "import os, time\nfor n in range(30): os.mkdir('d' * 200); os.chdir('d' * 200)\n"
        "for n in range(30): open(str(n), 'wb').write(bytes(4 << 20))\ntime.sleep(1000)",
        {"disk", "exited"},
    ),
    "raise its limits": (
        "import resource\nfor name in ('AS', 'NPROC', 'NOFILE', 'CPU', 'FSIZE'):\n"
        "    number = getattr(resource, 'RLIMIT_' + name)\n    soft, hard = resource.getrlimit(number)\n"
        "    if hard != -1:\n        try: resource.setrlimit(number, (hard + 1, hard + 1))\n"
        "        except (ValueError, OSError): continue\n"
        "        raise SystemExit(0)\nraise SystemExit(7)",
        {"exited"},
    ),
}
QUICK = {"flood stdout", "raise its limits", "allocate in children", "share memory and map a page of it",
         "map files that are deleted"}  # fmt: skip


def marked(token: str) -> list[int]:
    """Processes of this machine that have `token` in their command."""
    result = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and token.encode() in Path("/proc", entry, "cmdline").read_bytes():
                result.append(int(entry))
    return result


@both
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EXHAUSTING]
)
def test_exhaustion_is_bounded(backend: Any, name: str) -> None:
    code, reasons = EXHAUSTING[name]
    before = set(processes.descendants(os.getpid()))
    outcome = run(code, backend=backend, **SMALL)
    assert outcome.reason in reasons and not outcome.ok
    assert len(outcome.stdout) <= SMALL["output"] and len(outcome.stderr) <= SMALL["output"]
    assert outcome.seconds < 60
    assert set(processes.descendants(os.getpid())) <= before


@both
def test_no_daemon_survives(backend: Any) -> None:
    token = secrets.token_hex(8)
    daemon = (
        f"import os, subprocess, sys\nif not os.fork():\n    os.setsid()\n    if not os.fork():\n"
        f"        os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(1000) # {token}'])\n"
        f"    os._exit(0)\nimport time; time.sleep(0.3); print('done')"
    )
    outcome = run(daemon, backend=backend)
    assert outcome.ok and outcome.stdout == "done\n"
    assert marked(token) == []


@pytest.mark.slow
@both
def test_nothing_survives_the_caller(backend: str, tmp_path: Path) -> None:
    """The process that called run is killed, as by the kernel or an impatient user."""
    token = secrets.token_hex(8)
    daemon = (
        "import os, sys, time\nif not os.fork():\n    os.setsid()\n"
        f"    os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(1000) # {token}'])\n"
        f"time.sleep(1000)"
    )
    caller = f"from foundling.verify.sandbox import run; run({daemon!r}, timeout=100, backend={backend!r})"
    process = subprocess.Popen([sys.executable, "-c", caller], cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)})

    def alive() -> list[int]:
        return [
            pid
            for pid in marked(token)
            if pid != process.pid and b"foundling.verify" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    try:
        for _ in range(600):
            if alive():
                break
            time.sleep(0.05)
        assert alive(), "the daemon has not started"
    finally:
        process.kill()
        process.wait()
    for _ in range(600):
        if not marked(token):
            break
        time.sleep(0.05)
    assert marked(token) == []


def test_a_daemon_survives_without_a_sandbox() -> None:
    token = secrets.token_hex(8)
    code = (
        "import os, sys\nif not os.fork():\n    os.setsid()\n"
        f"    os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(30) # {token}'])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    try:
        for _ in range(200):
            if [pid for pid in marked(token) if b"os.execv" not in Path(f"/proc/{pid}/cmdline").read_bytes()]:
                break
            time.sleep(0.05)
        assert marked(token)
    finally:
        for pid in marked(token):
            os.kill(pid, 9)


# --- programs that are meant to run ----------------------------------------------------------------------------------

PROGRAMS: dict[str, tuple[str, str, str]] = {
    "prints": ("print('hello')", "", "hello\n"),
    "reads": ("import sys\nprint(sum(map(int, sys.stdin)))", "1\n2\n3\n", "6\n"),
    "unicode": ("print(input()[::-1])", "aé漢🙂", "🙂漢éa\n"),
    "library": (
        "import collections, dataclasses, datetime, decimal, fractions, functools, heapq, itertools, json, math, "
        "random, re,"
        "statistics, string, typing, hashlib, base64, bisect, copy, enum, operator, textwrap, unicodedata, zlib, "
        "sqlite3\n"
        "print(math.gcd(12, 18), json.dumps({'a': 1}), re.sub('a', 'b', 'aa'), hashlib.md5(b'').hexdigest()[:4])",
        "",
        '6 {"a": 1} bb d41d\n',
    ),
    "files": (
        "open('out.txt', 'w').write('x'); import os; print(sorted(os.listdir('.')))",
        "",
        "['data', 'main.py', 'out.txt']\n",
    ),
    "own files": (
        "import sys; print(open('data/a.txt').read(), __name__, sys.argv)",
        "",
        "héllo __main__ ['main.py']\n",
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor as T\nprint(list(T(4).map(abs, [-1, 2])))",
        "",
        "[1, 2]\n",
    ),
    "processes": (
        "import subprocess, sys\nprint(subprocess.check_output([sys.executable, '-c', 'print(1)']))",
        "",
        "b'1\\n'\n",
    ),
    "events": ("import asyncio\nasync def f(): return await asyncio.sleep(0, 5)\nprint(asyncio.run(f()))", "", "5\n"),
    "temporary": ("import tempfile\nwith tempfile.TemporaryDirectory() as d: print(len(d) > 3)", "", "True\n"),
    "surrogate": ("print(ascii('\udc80'))", "", "'\\udc80'\n"),
}


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(
            name,
            backend,
            marks=[] if backend == "bubblewrap" or name in ("own files", "processes") else pytest.mark.slow,
        )
        for name in PROGRAMS
        for backend in BACKENDS
    ],
)
def test_normal_programs_run(backend: Any, name: str) -> None:
    code, stdin, expected = PROGRAMS[name]
    if name == "surrogate":  # no file can hold it, and the line says where
        assert "SyntaxError" in run(code, backend=backend).stderr
        return
    outcome = run(code, stdin=stdin, files={"data/a.txt": "héllo"}, backend=backend)
    assert outcome.reason == "exited" and outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout == expected


@pytest.mark.parametrize("backend", ["bubblewrap", pytest.param("sandlock", marks=pytest.mark.slow)])
def test_ends_are_told_apart(backend: Any) -> None:
    def end(code: str) -> tuple[str, int | None, int | None]:
        outcome = run(code, backend=backend)
        return outcome.reason, outcome.exit_code, outcome.signal

    assert end("import sys; sys.exit(3)") == ("exited", 3, None)
    assert end("import os; os._exit(137)") == ("exited", 137, None)
    assert end("import os; os.kill(os.getpid(), 9)") == ("signal", None, 9)
    assert end("import ctypes; ctypes.string_at(0)") == ("signal", None, 11)
    failed = run("print('before')\n1 / 0", backend=backend)
    assert (failed.exit_code, failed.stdout) == (1, "before\n")
    assert "line 2" in failed.stderr and failed.stderr.endswith("ZeroDivisionError: division by zero\n")


@both
def test_bytes_that_are_no_text(backend: Any) -> None:
    outcome = run(
        "import os; os.write(1, b'\\xff\\x1b[31m'); os.write(1, os.read(0, 9))", stdin=b"\x00\xfe", backend=backend
    )
    assert outcome.stdout == "\ufffd\x1b[31m\x00\ufffd"  # whoever shows it renders it


@both
def test_folders_are_removed(backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sandbox.choose()
    run("import os\nos.makedirs('a/b'); open('a/b/c', 'w').close(); os.chmod('a', 0)" if backend == "bubblewrap"
        else "import os\nos.makedirs('a/b', mode=0o000)", backend=backend)  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_threads_run_programs_at_once() -> None:
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda n: run(f"print({n} ** 2)"), range(16)))
    assert [outcome.stdout for outcome in outcomes] == [f"{n * n}\n" for n in range(16)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"timeout": 0}, "timeout is 0"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"memory": 1}, "memory is 1;"),
        ({"processes": 0}, "processes is 0"),
        ({"output": True}, "output is True"),
        ({"disk": 1 << 60}, "disk is"),
        ({"files": {"../a": ""}}, "'../a'"),
        ({"files": {"/a": ""}}, "'/a'"),
        ({"files": {"main.py": ""}}, "main.py"),
        ({"files": {"a": bytes(40 << 20)}}, "disk=33,554,432"),
        ({"files": {"": ""}}, "file ''"),
        ({"files": {"a": "", "a/b": ""}}, "file 'a' is the folder of another one"),
        ({"files": {"main.py/x": ""}}, "file 'main.py' is the folder"),
        ({"files": {"a/" + "é" * 150: ""}}, "255 bytes a part"),
        ({"files": {"/".join(["a" * 100] * 30): ""}}, "2,048 together"),
        ({"files": {"\udc80": ""}}, "expected UTF-8"),
        ({"files": {f"{n}/a": "" for n in range(600)}}, "1,200 files and folders"),
        ({"backend": "none"}, "bubblewrap, sandlock"),
        ({"code": "#" * (65 << 20)}, "code and stdin"),
    ],
)
def test_values_out_of_limits(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(**{"code": "pass", **arguments})
    assert words in str(caught.value) and "\n" not in str(caught.value)


# --- without a kernel that confines ----------------------------------------------------------------------------------

CLOSED = """
import ctypes, json, os, struct, sys
library = ctypes.CDLL(None)
# what an old kernel or a container's filter says: no Landlock, no namespaces, no mounts
lines = [(0x20, 0, 0, 0)]
for number in (444, 445, 446, 272, 165, 166, 155, 101, 435):
    lines += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | 38)]
lines += [(0x15, 0, 3, 56), (0x20, 0, 0, 16), (0x45, 0, 1, 0x7E020080), (0x06, 0, 0, 0x00050000 | 1)]
lines += [(0x06, 0, 0, 0x7FFF0000)]
text = b"".join(struct.pack("=HBBI", *line) for line in lines)
class Program(ctypes.Structure):
    _fields_ = [("n", ctypes.c_ushort), ("lines", ctypes.c_char_p)]
assert library.prctl(38, 1, 0, 0, 0) == 0
assert library.prctl(22, 2, ctypes.byref(Program(len(text) // 8, text)), 0, 0) == 0
from foundling.errors import SandboxError
from foundling.verify import sandbox
ran = sys.argv[1]
for backend in (None, "bubblewrap", "sandlock"):
    try:
        sandbox.run(f"open({ran!r}, 'w')", backend=backend)
    except SandboxError as error:
        print(json.dumps([error.exit_code, str(error)]))
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="its filter has the numbers of x86-64")
def test_nothing_runs_where_the_kernel_offers_nothing(tmp_path: Path) -> None:
    """A process whose kernel refuses Landlock, namespaces and mounts, as old ones and strict containers do."""
    tmp_path.chmod(0o777)
    done = subprocess.run(
        [sys.executable, "-c", CLOSED, str(tmp_path / "ran")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    errors = [json.loads(line) for line in done.stdout.splitlines()]
    assert [code for code, _ in errors] == [2, 2, 2]
    everything, first, second = (message for _, message in errors)
    assert "not run" in everything and "bubblewrap: " in everything and "sandlock: needs Landlock ABI 6" in everything
    assert "this kernel" in second and "has none" in second and "nothing was run" in first
    assert not (tmp_path / "ran").exists()


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sandbox, "_probed", {})
    with pytest.raises(SandboxError, match="apt install bubblewrap"):
        run("pass", backend="bubblewrap")
    assert run("print(1)").stdout == "1\n"  # the other one


def test_what_does_not_confine_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bwrap that runs its command and confines nothing: the first program notices."""
    fake = tmp_path / "bwrap"
    fake.write_text(
        f"#!{sys.executable}\nimport os, sys\nwords = sys.argv[sys.argv.index('--') + 1:]\n"
        f"words[words.index('/inside.py')] = {str(ROOT / 'foundling/verify/inside.py')!r}\n"
        "import json\noptions = json.loads(words[-1]); options['command'][0] = words[0]\n"
        "options['environment'] = {}; options['user'] = None; options['limits'] = {}\n"
        f"words[-1] = json.dumps(options)\nos.chdir({str(tmp_path)!r})\nos.execv(words[0], words)\n", encoding="utf-8",
    )  # fmt: skip
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sandbox, "_probed", {})
    with pytest.raises(SandboxError, match="could read a file, write a file, connect to a port, signal a process"):
        run("pass", backend="bubblewrap")


def test_a_backend_that_fails_is_tried_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not before each run, which would cost seconds, and one after the other for all threads."""
    fake, log = tmp_path / "bwrap", tmp_path / "log"
    fake.write_text(f"#!/bin/sh\necho started >> {log}\nexit 1\n", encoding="ascii")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sandbox, "_probed", {})
    assert [run("print(1)").stdout for _ in range(3)] == ["1\n"] * 3
    assert log.read_text(encoding="ascii") == "started\n"


def test_a_program_that_cannot_start_is_no_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.choose()
    monkeypatch.setattr(interpreter, "resource_limits", lambda limits: {"NOTHING_OF_THAT_NAME": 1})
    with pytest.raises(SandboxError, match="nothing was run"):
        run("print(1)", backend="bubblewrap")


def test_an_outcome_is_ok_only_after_exit_0() -> None:
    assert Outcome("", "", 0, None, "exited", 1.0).ok
    assert not Outcome("", "", 1, None, "exited", 1.0).ok
    assert not Outcome("", "", None, None, "time", 1.0).ok
