# SPDX-License-Identifier: Apache-2.0
"""A seccomp filter that refuses the system calls that no verified program needs, in the classic BPF of
Documentation/userspace-api/seccomp_filter.rst.

It stands beside what confines files and processes (namespaces or Landlock), so that a call which these do not cover,
such as io_uring or a keyring, is refused as well. Calls newer than the table do not exist inside (ENOSYS): the C
library then uses the older ones.
"""

from __future__ import annotations

import errno
import platform
import struct
from typing import NamedTuple


class Machine(NamedTuple):
    """`audit`: AUDIT_ARCH of linux/audit.h. `column`: of the tables below."""

    audit: int
    column: int


MACHINES = {"x86_64": Machine(0xC000003E, 0), "aarch64": Machine(0xC00000B7, 1)}
NEWEST = 451
"""the last number of the table; the numbers from 424 on are the same on every architecture"""
CLONE, CLONE3, IOCTL, MMAP = (56, 220), 435, (16, 29), (9, 222)
NAMESPACES = 0x7E020080
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME of linux/sched.h"""
TERMINAL = (0x5412, 0x541C, 0x5423, 0x540E)
"""TIOCSTI, TIOCLINUX, TIOCSETD, TIOCSCTTY: input for a terminal that others read"""
MAP_SHARED, MAP_ANONYMOUS = 0x01, 0x20
"""of linux/mman.h. Memory that is both keeps the pages that a process no longer maps, where nobody counts them."""
THREAD, FILES = 0x00010000, 0x00000400
"""CLONE_THREAD, CLONE_FILES of linux/sched.h: a thread with open files of its own would hide them from who counts"""

REFUSED: dict[str, tuple[int | None, int | None]] = {
    # other processes and their memory
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "ioprio_set": (251, 30),
    # mounts and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "move_mount": (429, 429),
    "open_tree": (428, 428), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268),
    # large parts of the kernel that a program does not need
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_setup": (206, 0), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "personality": (135, 92), "modify_ldt": (154, None),
    "mbind": (237, 235), "set_mempolicy": (238, 237), "uselib": (134, None), "ustat": (136, None), "sysfs": (139, None),
    # the machine
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161),
    "setdomainname": (171, 162), "iopl": (172, None), "ioperm": (173, None), "syslog": (103, 116),
    "lookup_dcookie": (212, 18), "vhangup": (153, 58), "mknod": (133, None), "mknodat": (259, 33),
    "open_by_handle_at": (304, 265), "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    # memory that belongs to no process, and so escapes what bounds the memory of processes
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "shmctl": (31, 195), "shmdt": (67, 197), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "mq_open": (240, 180), "mq_unlink": (241, 181),
    # every kind of network; socketpair stays, event loops need it
    "socket": (41, 198),
    # a message can hold open files, which are then in no process and hold deleted files (unix(7), SCM_RIGHTS)
    "sendmsg": (46, 211), "sendmmsg": (307, 269),
}  # fmt: skip
METADATA: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None), "utimensat": (280, 88),
    "futimesat": (261, None), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "inotify_add_watch": (254, 27),
}  # fmt: skip
"""What Landlock does not bound: a program could change the permissions and times of the files of the user who runs
it."""
ONLY: dict[str, tuple[tuple[int, int], int, int, bool]] = {
    "socketpair": ((53, 199), 0, 1, True), "prctl": ((157, 167), 0, 4, False),
    "close_range": ((436, 436), 2, 0, True),
}  # fmt: skip
"""Calls by the value of an argument: (numbers, argument, value, whether it must or must not be that one). A pair of
Unix sockets (AF_UNIX) and no other; PR_SET_DUMPABLE would hide what a process takes from who counts, and
CLOSE_RANGE_UNSHARE the files that a thread holds."""
OWN_ONLY: dict[str, tuple[tuple[int, int], tuple[int, ...]]] = {
    "setpriority": ((141, 140), (0, 1)), "prlimit64": ((302, 261), (0,)), "sched_setparam": ((142, 118), (0,)),
    "sched_setscheduler": ((144, 119), (0,)), "sched_setaffinity": ((203, 122), (0,)),
    "sched_setattr": ((314, 274), (0,)),
}  # fmt: skip
"""Calls that may concern the caller alone: the arguments that must be 0."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""offsets into struct seccomp_data; an argument has eight bytes, the lower half first"""


def machine() -> Machine | None:
    """This machine's, or None where the filter knows no numbers."""
    return MACHINES.get(platform.machine())


def filter_program(target: Machine, *, metadata: bool) -> bytes:
    """The filter as an array of struct sock_filter. `metadata`: whether permissions and times of files may change."""
    refuse = (_RETURN, 0, 0, _ERROR | errno.EPERM)
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, target.audit), (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, NEWEST + 1), (_RETURN, 0, 0, _ERROR | errno.ENOSYS),  # x32's numbers begin above
        (_EQUAL, 0, 1, CLONE3), (_RETURN, 0, 0, _ERROR | errno.ENOSYS),  # its flags are out of a filter's sight
    ]  # fmt: skip
    for numbers in (REFUSED if metadata else REFUSED | METADATA).values():
        if (number := numbers[target.column]) is not None:
            lines += [(_EQUAL, 0, 1, number), refuse]
    for numbers, arguments in OWN_ONLY.values():
        lines += [(_EQUAL, 0, 3 * len(arguments) + 1, numbers[target.column])]
        for argument in arguments:
            lines += [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), (_EQUAL, 1, 0, 0), refuse]
        lines += [(_RETURN, 0, 0, _ALLOW)]
    for numbers, argument, value, must in ONLY.values():
        lines += [
            (_EQUAL, 0, 4, numbers[target.column]), (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
            (_EQUAL, *((1, 0) if must else (0, 1)), value), refuse, (_RETURN, 0, 0, _ALLOW),
        ]  # fmt: skip
    lines += [
        (_EQUAL, 0, 5, MMAP[target.column]), (_LOAD, 0, 0, _ARGUMENTS + 8 * 3), (_ANY_BIT, 0, 2, MAP_ANONYMOUS),
        (_ANY_BIT, 0, 1, MAP_SHARED), refuse, (_RETURN, 0, 0, _ALLOW),
        (_EQUAL, 0, 6, CLONE[target.column]), (_LOAD, 0, 0, _ARGUMENTS), (_ANY_BIT, 3, 0, NAMESPACES),
        (_ANY_BIT, 0, 1, THREAD), (_ANY_BIT, 0, 1, FILES), (_RETURN, 0, 0, _ALLOW), refuse,
        (_EQUAL, 0, 1 + 2 * len(TERMINAL), IOCTL[target.column]), (_LOAD, 0, 0, _ARGUMENTS + 8),
    ]  # fmt: skip
    for request in TERMINAL:
        lines += [(_EQUAL, 0, 1, request), refuse]
    lines += [(_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
