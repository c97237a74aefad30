# SPDX-License-Identifier: Apache-2.0
"""What the processes below a process take together, read from /proc, and the end of all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from typing import NamedTuple

_PAGE = 1 << 10
_MEMORY = (b"RssAnon", b"RssShmem", b"VmSwap")
TOO_MUCH = 1 << 62
"""bytes of what cannot be looked at: more than any limit, so that nobody hides what they take"""


class Usage(NamedTuple):
    """`memory`: bytes that are not the content of files. `threads`: of all processes."""

    processes: int
    threads: int
    memory: int


def descendants(root: int) -> list[int]:
    """The processes below `root`, parents first."""
    result, seen = list[int](), {root}
    todo = [root]
    while todo:
        children = [child for process in todo for child in _children(process) if child not in seen]
        seen.update(children)
        result += children
        todo = children
    return result


def _children(process: int) -> list[int]:
    result = list[int]()
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{process}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{process}/task/{thread}/children", "rb") as file:
                result += map(int, file.read().split())
    return result


def usage(processes: list[int]) -> Usage:
    """Memory that several processes share after a fork counts once, where the system says how much that is and the sum
    without this knowledge is large."""
    count = threads = memory = 0
    for process in processes:
        with contextlib.suppress(OSError):
            if place := _running(process):
                fields = _fields(f"{place}/status")
                count, threads = count + 1, threads + int(fields[b"Threads"])
                memory += sum(int(fields[name].split()[0]) * _PAGE for name in _MEMORY if name in fields)
    return Usage(count, threads, memory)


def _running(process: int) -> str:
    """Where /proc shows a process: at its first thread that runs, since the first of all may have ended before the
    others, and then shows no memory and no files. "" where none runs."""
    with contextlib.suppress(OSError, IndexError):
        state, *rest = _stat(f"/proc/{process}")
        if state not in _ENDED:
            return f"/proc/{process}"
        for thread in os.listdir(f"/proc/{process}/task") if int(rest[16]) > 1 else []:
            with contextlib.suppress(OSError, IndexError):
                if _stat(place := f"/proc/{process}/task/{thread}")[0] not in _ENDED:
                    return place
    return ""


_ENDED = (b"Z", b"X")


def _stat(place: str) -> list[bytes]:
    """What follows the name of the program, the state first (proc(5), /proc/pid/stat)."""
    with open(f"{place}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()


def _fields(path: str) -> dict[bytes, bytes]:
    with open(path, "rb") as file:
        return {name: value.strip() for name, _, value in (line.partition(b":") for line in file)}


def proportional_memory(processes: list[int]) -> int | None:
    """Bytes in which a page of n processes counts 1/n for each (PSS); None where it cannot be read."""
    total = 0
    for process in processes:
        if not (place := _running(process)):
            continue
        try:
            with open(f"{place}/smaps_rollup", "rb") as file:
                parts = [line.split() for line in file if line.startswith((b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:"))]
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        except OSError:
            return None
        total += sum(int(part[1]) * _PAGE for part in parts)
    return total


def unlinked_bytes(processes: list[int], device: int) -> int:
    """Of files on `device` that have no name any more, and so are in no folder: of open ones their size, and TOO_MUCH
    where one is mapped and closed, since its size can no longer be read, or where a process hides its files."""
    sizes, mapped = dict[int, int](), set[int]()
    for process in processes:
        try:
            if place := _running(process):
                _add_open(place, device, sizes)
                mapped |= _deleted_maps(place, device)
        except PermissionError:
            if _running(process):
                return TOO_MUCH
        except OSError:  # it has ended
            continue
    return sum(sizes.values()) if mapped <= sizes.keys() else TOO_MUCH


def _add_open(place: str, device: int, sizes: dict[int, int]) -> None:
    for number in os.listdir(f"{place}/fd"):
        with contextlib.suppress(FileNotFoundError):
            about = os.stat(f"{place}/fd/{number}")
            if stat.S_ISREG(about.st_mode) and not about.st_nlink and about.st_dev == device:
                sizes[about.st_ino] = about.st_blocks * 512


def _deleted_maps(place: str, device: int) -> set[int]:
    """The numbers of mapped files without a name (proc(5), /proc/pid/maps)."""
    result, number = set[int](), f"{os.major(device):02x}:{os.minor(device):02x}".encode()
    with open(f"{place}/maps", "rb") as file:
        for line in file:
            words = line.split(maxsplit=5)
            if len(words) == 6 and words[3] == number and words[5].rstrip().endswith(b"(deleted)"):
                result.add(int(words[4]))
    return result


def folder_size(path: str, max_files: int) -> tuple[int, int]:
    """(bytes on the disk, files and folders) below `path`; it counts no further than just above `max_files`. A folder
    that cannot be read, for its permissions or the length of its path, holds TOO_MUCH."""
    n_bytes = n_files = 0
    todo = [path]
    while todo and n_files <= max_files:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    n_files += 1
                    about = _about(entry)
                    n_bytes += about.st_blocks * 512 if about else 0
                    if about and stat.S_ISDIR(about.st_mode):
                        todo.append(entry.path)
                    if n_files > max_files:
                        break
        except (FileNotFoundError, NotADirectoryError):  # the program has removed it
            continue
        except OSError:
            return TOO_MUCH, n_files
    return n_bytes, n_files


def _about(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None


def prefer_for_oom(processes: list[int]) -> None:
    """Where the whole machine runs out of memory, the kernel ends these first."""
    for process in processes:
        with contextlib.suppress(OSError), open(f"/proc/{process}/oom_score_adj", "w") as file:
            file.write("1000")


def kill_below(root: int, *, patience: float = 10.0) -> None:
    """Kills all processes below `root`, until none is left that is not a zombie. The parent of an orphan must be below
    `root` or `root` itself (prctl(2), PR_SET_CHILD_SUBREAPER), or it would not be seen."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        alive = [process for process in descendants(root) if _running(process)]
        if not alive:
            return
        for process in alive:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.001)
