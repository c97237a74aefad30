# SPDX-License-Identifier: Apache-2.0
"""Attempts to get out of a sandbox. It runs inside one as a program of its own, and without one on what the test may
lose, so that an attempt that cannot succeed anywhere is noticed. Each attempt does something to a target, or raises.

stdin: a JSON object of targets and the names of the attempts. stdout: a line of JSON for each attempt.
"""

import ctypes
import json
import mmap
import os
import platform
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

Targets = dict[str, Any]
ATTEMPTS: dict[str, Callable[[Targets], object]] = {}
HARMLESS: set[str] = set()
"""those that succeed without a sandbox, whoever runs them, and harm nothing but their targets"""


def attempt(harmless: bool = False) -> Callable[[Callable[[Targets], object]], Callable[[Targets], object]]:
    def register(function: Callable[[Targets], object]) -> Callable[[Targets], object]:
        ATTEMPTS[function.__name__] = function
        if harmless:
            HARMLESS.add(function.__name__)
        return function

    return register


libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"


def call(x86_64: int, aarch64: int, *arguments: object) -> int:
    """A system call by its number."""
    result = libc.syscall(ctypes.c_long(x86_64 if X86 else aarch64), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def in_child(function: Callable[[], object]) -> None:
    """For what may end its process."""
    child = os.fork()
    if not child:
        try:
            function()
        except BaseException:
            os._exit(1)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise OSError("refused")


def text_of(path: str) -> str:
    with open(path) as file:
        return file.read()


# --- files -----------------------------------------------------------------------------------------------------------


@attempt(harmless=True)
def read_a_file(targets: Targets) -> None:
    assert text_of(targets["file"]) == targets["content"]


@attempt(harmless=True)
def read_through_a_symlink(targets: Targets) -> None:
    os.symlink(targets["file"], "link")
    assert text_of("link") == targets["content"]


@attempt(harmless=True)
def read_through_a_linked_folder(targets: Targets) -> None:
    os.symlink(os.path.dirname(targets["file"]), "folder")
    assert text_of("folder/" + os.path.basename(targets["file"])) == targets["content"]


@attempt(harmless=True)
def read_through_dots(targets: Targets) -> None:
    assert text_of(os.path.relpath(targets["file"])) == targets["content"]


@attempt(harmless=True)
def read_through_proc_root(targets: Targets) -> None:
    assert text_of("/proc/self/root" + targets["file"]) == targets["content"]


@attempt(harmless=True)
def read_through_a_hard_link(targets: Targets) -> None:
    os.link(targets["file"], targets["folder"] + "/hard")
    assert text_of(targets["folder"] + "/hard") == targets["content"]


@attempt(harmless=True)
def map_a_file(targets: Targets) -> None:
    number = os.open(targets["file"], os.O_RDONLY)
    assert mmap.mmap(number, 0, prot=mmap.PROT_READ)[:] == targets["content"].encode()


@attempt(harmless=True)
def append_to_a_file(targets: Targets) -> None:
    with open(targets["file"], "a") as file:
        file.write("")


@attempt(harmless=True)
def truncate_a_file(targets: Targets) -> None:
    os.truncate(targets["lost"][0], 0)


@attempt(harmless=True)
def delete_a_file(targets: Targets) -> None:
    os.unlink(targets["lost"][1])


@attempt(harmless=True)
def rename_a_file(targets: Targets) -> None:
    os.rename(targets["lost"][2], targets["lost"][2] + ".moved")


@attempt(harmless=True)
def change_permissions(targets: Targets) -> None:
    os.chmod(targets["lost"][3], 0o600)


@attempt(harmless=True)
def change_permissions_by_number(targets: Targets) -> None:
    libc.chmod.argtypes = [ctypes.c_char_p, ctypes.c_uint]
    if libc.chmod(targets["lost"][3].encode(), 0o640):
        raise OSError(ctypes.get_errno(), "chmod")


@attempt(harmless=True)
def change_times(targets: Targets) -> None:
    os.utime(targets["lost"][4], (1, 1))


@attempt(harmless=True)
def create_a_file_outside(targets: Targets) -> None:
    open(targets["folder"] + "/new", "w").close()


@attempt(harmless=True)
def create_a_folder_outside(targets: Targets) -> None:
    os.mkdir(targets["folder"] + "/folder")


@attempt(harmless=True)
def list_a_folder(targets: Targets) -> None:
    assert os.listdir(targets["folder"])


@attempt(harmless=True)
def read_the_users(targets: Targets) -> None:
    assert "root" in text_of("/etc/passwd")


@attempt()
def read_the_passwords(targets: Targets) -> None:
    assert text_of("/etc/shadow")


@attempt()
def list_home(targets: Targets) -> None:
    assert set(os.listdir(targets["home"])) & set(targets["home_names"])


@attempt()
def write_into_the_library(targets: Targets) -> None:
    open(os.path.dirname(json.__file__) + "/foundling_was_here.py", "w").close()


@attempt()
def write_over_the_interpreter(targets: Targets) -> None:
    os.close(os.open(os.path.realpath(sys.executable), os.O_RDWR))


@attempt()
def write_the_environment_of_the_interpreter(targets: Targets) -> None:
    open(os.path.join(sys.prefix, "pyvenv.cfg"), "a").close()


@attempt()
def write_into_shared_memory(targets: Targets) -> None:
    open("/dev/shm/foundling_was_here", "w").close()


@attempt(harmless=True)
def use_an_inherited_file(targets: Targets) -> None:
    for number in range(3, 4096):
        try:
            os.fstat(number)
        except OSError:
            continue
        return
    raise OSError("no file is open")


@attempt(harmless=True)
def see_a_variable(targets: Targets) -> None:
    assert os.environ["FOUNDLING_CANARY"]


@attempt(harmless=True)
def see_variables_of_another_process(targets: Targets) -> None:
    assert text_of(f"/proc/{targets['process']}/environ")


@attempt(harmless=True)
def see_the_command_of_another_process(targets: Targets) -> None:
    assert text_of(f"/proc/{targets['process']}/cmdline")


@attempt(harmless=True)
def import_a_package(targets: Targets) -> None:
    import numpy  # noqa: F401


@attempt()
def open_the_memory_of_the_machine(targets: Targets) -> None:
    for name in ("mem", "kmsg", "port", "kvm", "fuse", "net/tun", "sda", "vda"):
        try:
            os.close(os.open("/dev/" + name, os.O_RDONLY))
            return
        except OSError:
            continue
    raise OSError("none can be opened")


@attempt()
def make_a_device(targets: Targets) -> None:
    os.mknod("device", 0o666 | 0o020000, os.makedev(1, 3))


@attempt()
def open_a_file_by_handle(targets: Targets) -> None:
    call(304, 265, -100, b"\0" * 64, 0)


# --- processes -------------------------------------------------------------------------------------------------------


@attempt(harmless=True)
def signal_a_process(targets: Targets) -> None:
    os.kill(targets["process"], signal.SIGCONT)


@attempt(harmless=True)
def kill_a_process(targets: Targets) -> None:
    os.kill(targets["lost_process"], signal.SIGKILL)


@attempt(harmless=True)
def kill_by_pidfd(targets: Targets) -> None:
    signal.pidfd_send_signal(os.pidfd_open(targets["process"]), signal.SIGCONT)


@attempt(harmless=True)
def change_a_priority(targets: Targets) -> None:
    os.setpriority(os.PRIO_PROCESS, targets["process"], 5)


@attempt(harmless=True)
def change_an_affinity(targets: Targets) -> None:
    os.sched_setaffinity(targets["process"], {0})


@attempt(harmless=True)
def change_a_limit(targets: Targets) -> None:
    resource.prlimit(targets["process"], resource.RLIMIT_CORE, (0, 0))


@attempt(harmless=True)
def trace_a_process(targets: Targets) -> None:
    call(101, 117, 0x4206, targets["process"], 0, 0)  # PTRACE_SEIZE


@attempt()
def trace_its_parent(targets: Targets) -> None:
    call(101, 117, 0x4206, os.getppid(), 0, 0)


@attempt(harmless=True)
def be_traced(targets: Targets) -> None:
    in_child(lambda: call(101, 117, 0, 0, 0, 0))  # PTRACE_TRACEME


@attempt()
def read_the_memory_of_a_process(targets: Targets) -> None:
    local = ctypes.create_string_buffer(8)
    part = struct.pack("=QQ", ctypes.addressof(local), 8)
    call(310, 270, os.getppid(), part, 1, struct.pack("=QQ", 0x400000, 8), 1, 0)


@attempt()
def open_the_memory_of_a_process(targets: Targets) -> None:
    os.close(os.open(f"/proc/{os.getppid()}/mem", os.O_RDWR))


@attempt(harmless=True)
def open_its_own_memory(targets: Targets) -> None:
    os.close(os.open("/proc/self/mem", os.O_RDWR))


@attempt()
def become_root(targets: Targets) -> None:
    os.setuid(0)
    assert text_of("/etc/shadow")


@attempt()
def change_the_owner_of_a_file(targets: Targets) -> None:
    os.chown(targets["lost"][3], 1, 1)


# --- network ---------------------------------------------------------------------------------------------------------


@attempt(harmless=True)
def connect_by_tcp(targets: Targets) -> None:
    socket.create_connection(("127.0.0.1", targets["port"]), 2).close()


@attempt(harmless=True)
def send_by_udp(targets: Targets) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"out", ("127.0.0.1", targets["udp"]))


@attempt(harmless=True)
def listen_on_a_port(targets: Targets) -> None:
    socket.create_server(("127.0.0.1", 0)).close()


@attempt()
def use_a_raw_socket(targets: Targets) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()


@attempt()
def use_a_packet_socket(targets: Targets) -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()


@attempt(harmless=True)
def use_a_netlink_socket(targets: Targets) -> None:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()


@attempt()
def use_other_sockets(targets: Targets) -> None:
    for family in (2, 10, 16, 17, 31, 38, 40, 44):
        try:
            socket.socket(family, socket.SOCK_DGRAM).close()
            return
        except OSError:
            continue
    raise OSError("none")


@attempt(harmless=True)
def connect_to_a_unix_socket(targets: Targets) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(targets["unix"])


@attempt(harmless=True)
def connect_to_an_abstract_socket(targets: Targets) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + targets["abstract"])


@attempt(harmless=True)
def send_through_a_pair_of_sockets(targets: Targets) -> None:
    a, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    a.sendto(b"out", targets["unix_datagram"])


@attempt()
def resolve_a_name(targets: Targets) -> None:
    socket.getaddrinfo("example.com", 80)


# --- the kernel ------------------------------------------------------------------------------------------------------


@attempt()
def mount_a_file_system(targets: Targets) -> None:
    os.makedirs("mounted", exist_ok=True)
    call(165, 40, b"none", b"mounted", b"tmpfs", 0, None)


@attempt()
def unmount(targets: Targets) -> None:
    call(166, 39, b"/dev/null", 2)


@attempt()
def make_a_user_namespace(targets: Targets) -> None:
    call(272, 97, 0x10000000)


@attempt()
def clone_into_a_namespace(targets: Targets) -> None:
    child = call(56, 220, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
    if not child:
        os._exit(0)


@attempt()
def clone3_into_a_namespace(targets: Targets) -> None:
    child = call(435, 435, struct.pack("=8Q", 0x10000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0), 64)
    if not child:
        os._exit(0)


@attempt()
def change_the_root(targets: Targets) -> None:
    os.chroot(".")


@attempt()
def open_a_mount(targets: Targets) -> None:
    call(428, 428, -100, b"/", 1)


@attempt()
def use_a_keyring(targets: Targets) -> None:
    call(248, 217, b"user", b"foundling", b"x", 1, -4 & 0xFFFFFFFF)


@attempt()
def load_a_bpf_program(targets: Targets) -> None:
    call(321, 280, 0, struct.pack("=5I", 1, 4, 4, 1, 0), 20)


@attempt()
def use_io_uring(targets: Targets) -> None:
    call(425, 425, 4, ctypes.create_string_buffer(120))


@attempt()
def use_perf_events(targets: Targets) -> None:
    event = ctypes.create_string_buffer(struct.pack("=IIQ", 1, 64, 0), 64)
    call(298, 241, event, 0, -1, -1, 0)


@attempt()
def use_userfaultfd(targets: Targets) -> None:
    call(323, 282, 1)


@attempt()
def load_a_module(targets: Targets) -> None:
    call(313, 273, 0, b"", 0)


@attempt(harmless=True)
def make_memory_without_owner(targets: Targets) -> None:
    os.close(os.memfd_create("hidden"))


@attempt(harmless=True)
def share_memory_without_a_name(targets: Targets) -> None:
    """Its pages stay when a process no longer maps them, as long as it maps one of them."""
    mmap.mmap(-1, 8192, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS).close()


@attempt(harmless=True)
def share_memory_of_a_device(targets: Targets) -> None:
    number = os.open("/dev/zero", os.O_RDONLY)
    mmap.mmap(number, 8192, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ).close()


@attempt(harmless=True)
def send_an_open_file(targets: Targets) -> None:
    a, _ = socket.socketpair()
    with open("sent", "w") as file:
        socket.send_fds(a, [b"x"], [file.fileno()])


@attempt(harmless=True)
def hide_from_who_counts(targets: Targets) -> None:
    call(157, 167, 4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    call(157, 167, 4, 1, 0, 0, 0)


@attempt()
def make_a_pair_of_other_sockets(targets: Targets) -> None:
    socket.socketpair(30, socket.SOCK_STREAM)  # AF_TIPC


@attempt()
def share_memory_of_system_v(targets: Targets) -> None:
    call(29, 194, 0, 4096, 0o1600)


@attempt()
def set_the_clock(targets: Targets) -> None:
    import time

    time.clock_settime(time.CLOCK_REALTIME, time.time())


@attempt()
def set_the_host_name(targets: Targets) -> None:
    socket.sethostname(socket.gethostname())


@attempt()
def write_to_a_terminal(targets: Targets) -> None:
    import fcntl

    for number in (0, 1, 2, os.open("/dev/tty", os.O_RDWR)):
        fcntl.ioctl(number, 0x5412, b"x")


@attempt()
def read_the_log_of_the_kernel(targets: Targets) -> None:
    call(103, 116, 3, ctypes.create_string_buffer(64), 64)


@attempt()
def call_as_another_architecture(targets: Targets) -> None:
    """The filter is for numbers of 64 bits; the entry for 32 bits has others."""

    def enter() -> None:
        page = mmap.mmap(
            -1,
            4096,
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
            prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
        )
        page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20; int 0x80; ret
        function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        assert function() == os.getpid()

    if not X86:
        raise OSError("x86-64 alone has it")
    in_child(enter)


@attempt()
def call_by_x32_numbers(targets: Targets) -> None:
    if not X86:
        raise OSError("x86-64 alone has them")
    in_child(lambda: call(0x40000000 | 41, 0, 2, 1, 0))


@attempt()
def call_what_is_newer_than_the_filter(targets: Targets) -> None:
    in_child(lambda: call(460, 460, 0, 0, 0, 0))  # lsm_set_self_attr, Linux 6.8


if __name__ == "__main__":
    given = json.loads(sys.stdin.readline())
    for name in given["names"]:
        try:
            ATTEMPTS[name](given)
            line = {"name": name, "succeeded": True}
        except BaseException as error:
            line = {"name": name, "succeeded": False, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(line), flush=True)
