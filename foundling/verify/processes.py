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
_MEMORY = (b"RssAnon", b"RssShmem")


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
        with contextlib.suppress(OSError), open(f"/proc/{process}/status", "rb") as file:
            fields = {name: value.strip() for name, _, value in (line.partition(b":") for line in file)}
            if not fields.get(b"State", b"Z").startswith(b"Z"):
                count, threads = count + 1, threads + int(fields[b"Threads"])
                memory += sum(int(fields[name].split()[0]) * _PAGE for name in _MEMORY if name in fields)
    return Usage(count, threads, memory)


def proportional_memory(processes: list[int]) -> int | None:
    """Bytes in which a page of n processes counts 1/n for each (PSS); None where it cannot be read."""
    total = 0
    for process in processes:
        try:
            with open(f"/proc/{process}/smaps_rollup", "rb") as file:
                parts = [line.split() for line in file if line.startswith((b"Pss_Anon:", b"Pss_Shmem:"))]
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        except OSError:
            return None
        total += sum(int(part[1]) * _PAGE for part in parts)
    return total


def unlinked_bytes(processes: list[int], device: int) -> int:
    """Of open files on `device` that have no name any more, and so are in no folder."""
    sizes = dict[int, int]()
    for process in processes:
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{process}/fd"):
                with contextlib.suppress(OSError):
                    about = os.stat(f"/proc/{process}/fd/{number}")
                    if stat.S_ISREG(about.st_mode) and not about.st_nlink and about.st_dev == device:
                        sizes[about.st_ino] = about.st_blocks * 512
    return sum(sizes.values())


def folder_size(path: str, max_files: int) -> tuple[int, int]:
    """(bytes on the disk, files and folders) below `path`; it counts no further than just above `max_files`."""
    n_bytes = n_files = 0
    todo = [path]
    while todo and n_files <= max_files:
        with contextlib.suppress(OSError), os.scandir(todo.pop()) as entries:
            for entry in entries:
                n_files += 1
                with contextlib.suppress(OSError):
                    n_bytes += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                if n_files > max_files:
                    break
    return n_bytes, n_files


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
        alive = [process for process in descendants(root) if not _is_zombie(process)]
        if not alive:
            return
        for process in alive:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.001)


def _is_zombie(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (OSError, IndexError):
        return True
