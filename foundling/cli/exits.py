# SPDX-License-Identifier: Apache-2.0
"""The only place that turns an exception into an exit code and one line.

0 done · 1 a fault of foundling · 2 what the user or the system can mend · 3 a comparison says worse ·
4 a comparison with a tolerance has too few items to tell · 75 stopped, to be resumed ·
129, 130, 143 ended by SIGHUP, SIGINT or SIGTERM (128 and the signal's number).
"""

from __future__ import annotations

import errno
import os
import re
import traceback
from typing import NamedTuple

from foundling.errors import FoundlingError, render

OURS, USER, INTERRUPTED = 1, 2, 130
WORSE, UNDECIDED = 3, 4
"""of `foundling compare`: apart from 1 and 2, so that a script tells a worse model from a command that failed"""
SYSTEM = {
    errno.ENOSPC: "free some space, or choose another place to write to",
    errno.EDQUOT: "free some space, or choose another place to write to",
    errno.EROFS: "choose another place to write to",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f), or choose another place to write to",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs, or raise the limit on open files (sysctl fs.file-max)",
    errno.EAGAIN: "raise the limit on processes and threads (ulimit -u), or give fewer --threads",
    errno.EIO: "look at the state of the disk",
    errno.EACCES: "change its permissions, or choose another path",
    errno.EPERM: "change its permissions, or choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a symbolic link points to itself",
}
"""error number of the operating system -> the way out"""
MEMORY = "out of memory; choose a smaller model, batch or sequence length, or raise the limit (ulimit -v)"
# torch has no type for an allocation that fails on a CPU, and Rust libraries pass on no error number
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|cannot allocate memory", re.IGNORECASE)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_NO_THREAD = re.compile(r"can't start new thread|Resource temporarily unavailable")


class Exit(NamedTuple):
    code: int
    message: str


def exit_for(error: BaseException) -> Exit:
    """The exit code for an exception and one line for it, of bounded length."""
    if isinstance(error, FoundlingError):
        return Exit(error.exit_code, str(error))
    if isinstance(error, KeyboardInterrupt):
        return Exit(getattr(error, "exit_code", INTERRUPTED), str(error) or "interrupted")
    if is_memory(error):
        return Exit(USER, MEMORY)
    if (number := _os_number(error)) is not None:
        return Exit(USER, _of_system(error, number))
    if (wrong := _not_text(error)) is not None:
        return Exit(USER, wrong)
    line = f"{type(error).__name__}: {first_line(error)} (internal error; rerun with --debug)"
    return Exit(OURS, render.message(line))


def is_memory(error: BaseException) -> bool:
    """Whether memory ran out: in Python, in torch on a CPU or a GPU, in the operating system."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(_head(error)) is not None


def first_line(error: BaseException) -> str:
    return next(iter(_head(error).splitlines()), "")


def _head(error: BaseException) -> str:
    return str(error)[: 2 * render.LIMIT]


def trace(error: BaseException) -> str:
    """The traceback. Its text is as untrusted as the message of the exception."""
    return "".join(traceback.format_exception(error)).rstrip("\n")


def _os_number(error: BaseException) -> int | None:
    """The error number of what the operating system refused; None where it refused nothing, or where only a wrong
    call of ours explains it."""
    if isinstance(error, OSError):
        if error.errno in (None, errno.EBADF, errno.EFAULT) or (error.errno == errno.EINVAL and error.filename is None):
            return None
        return error.errno
    if isinstance(error, RuntimeError) and _NO_THREAD.search(_head(error)):
        return errno.EAGAIN
    found = _OS_ERROR.search(_head(error))
    return int(found[1]) if found else None


def _not_text(error: BaseException) -> str | None:
    """What is wrong with an argument or a value of a file that is no text, or no path; None for other errors."""
    if isinstance(error, UnicodeEncodeError) and any("\ud800" <= c <= "\udfff" for c in error.object):
        text = repr(error.object[max(0, error.start - 20) : error.end + 20])
        return render.message(f"{text} is not Unicode: it holds a byte that is not UTF-8, or half of a surrogate pair")
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return "a path holds the character NUL, which no file system has"
    return None


def _of_system(error: BaseException, number: int) -> str:
    names = [error.filename, error.filename2] if isinstance(error, OSError) else []
    what = " and ".join(repr(os.fsdecode(name)) for name in names if isinstance(name, str | bytes))
    reason = os.strerror(number) if number > 0 else first_line(error)
    way = SYSTEM.get(number)
    return render.message(": ".join(filter(None, [what, reason + (f"; {way}" if way else "")])))
