# SPDX-License-Identifier: Apache-2.0
"""The process of one fine-tuning job: `python -m foundling.serve.job_child` in the job's folder.

It reads request.json, trains into model/ (from its checkpoint, if one is there), and writes outcome.json where
that fails. It ends as SIGTERM ends a run, after a checkpoint, once its stdin is closed: with the server that began it.
What is no fault of the job, such as a full disk, ends it with AGAIN, and the server begins it again later.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from foundling.config import from_dict
from foundling.errors import BusyError, FoundlingError, MismatchError, OutputError
from foundling.recipes.journal import JOURNAL
from foundling.recipes.kinds import finetune_model, resume_model
from foundling.recipes.publish import is_complete
from foundling.recipes.recipe import Request
from foundling.runtime import signals
from foundling.runtime.files import lock, read_json, write_json

logger = logging.getLogger("foundling.serve")
REQUEST, OUTCOME, MODEL = Path("request.json"), Path("outcome.json"), Path("model")
NICE = 10
AGAIN = 75
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SAVE_SECONDS = 120.0
"""that it has to end in once the server has gone"""
BUSY_SECONDS = 300.0
"""that it waits for the process of a server that was killed to end"""


def main() -> int:
    os.nice(NICE)
    threading.Thread(target=_watch_server, daemon=True).start()
    try:
        with signals.raising():
            OUTCOME.unlink(missing_ok=True)
            _train()
    except KeyboardInterrupt as stop:
        return getattr(stop, "exit_code", 130)
    except Exception as error:
        logger.exception("the fine-tuning failed")
        return _end(error)
    return 0


def _end(error: Exception) -> int:
    """The exit code of an error, of which the client is told where it is a FoundlingError."""
    if isinstance(error, OutputError | BusyError) or (isinstance(error, OSError) and error.errno in FULL):
        return AGAIN
    if not isinstance(error, FoundlingError):
        return 1
    try:
        write_json(OUTCOME, {"error": str(error)})
    except OSError:  # OutputError is one: without its outcome the job would fail for no reason that it can tell
        return AGAIN
    return error.exit_code


def _watch_server() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SAVE_SECONDS)
    os._exit(AGAIN)


def _train() -> None:
    deadline, request = time.monotonic() + BUSY_SECONDS, from_dict(Request, read_json(REQUEST))
    while True:
        try:
            if is_complete(MODEL) or (MODEL / "run" / JOURNAL).exists():
                try:
                    resume_model(MODEL)
                    return
                except MismatchError:  # another version of foundling, or of the base, is there now
                    logger.warning("the run cannot go on as it was; it begins anew", exc_info=True)
            with lock(MODEL):  # a run that cannot go on, or what a removal that was cut off has left
                shutil.rmtree(MODEL)
            finetune_model(request, MODEL)
            return
        except BusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
