# SPDX-License-Identifier: Apache-2.0
"""Every error a user can cause. Each message is one line: the value given, what is allowed, the way out.

The command line prints the message and ends with `exit_code`; a traceback appears only with `--debug`. Names and values
of files pass through the renderer (render.py) here, where they are read: a message is one line that does nothing to a
terminal, also in the traceback of a program that uses the library.
"""

import signal

from foundling.errors import render


class FoundlingError(Exception):
    """Root of what a user can cause or meet; never raised itself."""

    exit_code = 2

    def __str__(self) -> str:
        return render.message(super().__str__())


class ConfigError(FoundlingError, ValueError):
    """A configuration key or value that is unknown, ill-typed or contradictory."""


class DataError(FoundlingError, ValueError):
    """Data that cannot be read, or of which nothing is left to learn from."""


class BudgetError(FoundlingError, ValueError):
    """A budget that no run fits in."""


class WeightsError(FoundlingError, ValueError):
    """A model directory that is missing, damaged, or not of the declared shape."""


class AdaptError(FoundlingError, ValueError):
    """An adapter or a quantisation that fits nothing in the model."""


class GenerationError(FoundlingError, ValueError):
    """A request to generate that contradicts itself or does not fit the model."""


class InterpretError(FoundlingError, ValueError):
    """A reading of a model's inner states that the model does not allow, or a text that is too long for it."""


class SandboxError(FoundlingError, RuntimeError):
    """Nothing on this machine confines a program, or what confines it failed; the program was not run."""


class QueryError(FoundlingError, ValueError):
    """A database query that cannot be executed, does more than read, or takes more than it may."""


class BusyError(FoundlingError, RuntimeError):
    """Another process is writing to the same directory."""


class OutputError(FoundlingError, OSError):
    """The output cannot be written: it exists, the disk is full, or it is read-only. Nothing that existed is lost."""


class MismatchError(FoundlingError, RuntimeError):
    """A reproduction or resumption whose data, code or machine is not the recorded one."""


class DivergedError(FoundlingError, ArithmeticError):
    """Training met too many non-finite steps."""

    exit_code = 1


class Interrupted(KeyboardInterrupt):
    """A signal told the process to stop. Not an Exception, so that nothing between takes it for a failure.

    `exit_code` is 75 where the work can be continued, and `way` says how; else 128 + the signal's number, as a shell
    has it (130 SIGINT, 143 SIGTERM, 129 SIGHUP)."""

    def __init__(self, number: int, at: str = "", way: str = "") -> None:
        self.number, self.at, self.way = number, at, way
        self.exit_code = 75 if way else 128 + number
        where = f" {at}" if at else ""
        super().__init__(
            f"stopped by {signal.Signals(number).name}{where}; {way or 'there is nothing to resume: run it again'}"
        )
