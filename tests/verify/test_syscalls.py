# SPDX-License-Identifier: Apache-2.0
"""The filter of system calls says what it is meant to say on each architecture, run here instruction by instruction."""

import errno
import re
import struct
from pathlib import Path

import pytest

from foundling.verify.syscalls import (
    CLONE,
    IOCTL,
    MACHINES,
    METADATA,
    MMAP,
    NEWEST,
    ONLY,
    OWN_ONLY,
    REFUSED,
    filter_program,
)

ALLOW, KILL = "allow", "kill"
HEADERS = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}


def result(program: bytes, audit: int, number: int, *arguments: int) -> str | int:
    """What a classic BPF program returns: "allow", "kill", or an error number (seccomp(2))."""
    data = struct.pack("=IIQ6Q", number, audit, 0, *[*arguments, *[0] * 6][:6])
    lines, at, accumulator = list(struct.iter_unpack("=HBBI", program)), 0, 0
    while True:
        code, yes, no, k = lines[at]
        at += 1
        if code == 0x20:
            accumulator = struct.unpack_from("=I", data, k)[0]
        elif code == 0x06:
            return {0x7FFF0000: ALLOW, 0x80000000: KILL}.get(k, k & 0xFFFF)
        else:
            holds = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[code]
            at += yes if holds else no


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("metadata", [True, False])
def test_the_filter_refuses_its_table_and_allows_the_rest(name: str, metadata: bool) -> None:
    machine = MACHINES[name]
    program = filter_program(machine, metadata=metadata)
    assert len(program) // 8 < 4096  # BPF_MAXINSNS

    def say(number: int, *arguments: int) -> str | int:
        return result(program, machine.audit, number, *arguments)

    refused = {numbers[machine.column] for numbers in REFUSED.values()}
    refused |= set() if metadata else {numbers[machine.column] for numbers in METADATA.values()}
    special = {CLONE[machine.column], IOCTL[machine.column], 435, MMAP[machine.column]}
    special |= {numbers[machine.column] for numbers, *_ in [*OWN_ONLY.values(), *ONLY.values()]}
    for number in set(range(NEWEST + 1)) - special:
        assert say(number) == (errno.EPERM if number in refused else ALLOW), number
    assert {say(number) for number in (NEWEST + 1, 1000, 0x40000000, 0x40000029, 0xFFFFFFFF, 435)} == {errno.ENOSYS}
    assert {result(program, audit, 0) for audit in (0, 0x40000003, 0x40000028)} == {KILL}
    clone, ioctl = CLONE[machine.column], IOCTL[machine.column]
    assert say(clone, 0x01200011) == ALLOW  # as fork
    assert {say(clone, 1 << bit) for bit in (7, 17, 25, 26, 27, 28, 29, 30)} == {errno.EPERM}
    assert (say(ioctl, 0, 0x5401), say(ioctl, 0, 0x5412), say(ioctl, 0, 0x541C)) == (ALLOW, errno.EPERM, errno.EPERM)
    assert {say(clone, 0x3D0F00 & ~bit) for bit in (0, 0x10000)} == {ALLOW}  # a thread of the C library, a process
    assert say(clone, 0x3D0F00 & ~0x400) == errno.EPERM  # a thread with open files of its own
    mmap = MMAP[machine.column]
    assert {say(mmap, 0, 1 << 20, 3, flags, 3) for flags in (0x22, 0x02, 0x01, 0x03, 0x100022)} == {ALLOW}
    assert {say(mmap, 0, 1 << 20, 3, flags, 0) for flags in (0x21, 0x23, 0x8021, 0x40021)} == {errno.EPERM}
    pair, prctl = ONLY["socketpair"][0][machine.column], ONLY["prctl"][0][machine.column]
    assert say(pair, 1, 1) == ALLOW and {say(pair, family, 1) for family in (0, 2, 16, 30, 40)} == {errno.EPERM}
    assert {say(prctl, option) for option in (1, 3, 15, 38)} == {ALLOW} and say(prctl, 4, 0) == errno.EPERM
    assert say(436, 3, 9, 0) == ALLOW and say(436, 1000, 1000, 2) == errno.EPERM, "a thread's own table of files"
    for numbers, arguments in OWN_ONLY.values():
        assert say(numbers[machine.column]) == ALLOW
        for argument in arguments:
            assert say(numbers[machine.column], *[0] * argument, 1234) == errno.EPERM


@pytest.mark.parametrize("name", MACHINES)
def test_the_numbers_are_those_of_the_kernel(name: str) -> None:
    path = Path("/usr/include") / HEADERS[name]
    if not path.exists():
        pytest.skip(f"no header of the kernel for {name} (linux-libc-dev)")
    text = path.read_text(encoding="utf-8")
    numbers = {key: int(value) for key, value in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\b", text)}
    column = MACHINES[name].column
    table = {
        **REFUSED,
        **METADATA,
        **{key: value for key, (value, _) in OWN_ONLY.items()},
        "clone": CLONE,
        "ioctl": IOCTL,
        "mmap": MMAP,
        **{key: numbers for key, (numbers, *_) in ONLY.items()},
    }
    for key, value in table.items():
        # an older header lacks new calls, and the generic one those that newer architectures never had
        if value[column] is not None and key in numbers:
            assert numbers[key] == value[column], key
        assert value[column] is not None or key not in numbers or name == "aarch64", key
