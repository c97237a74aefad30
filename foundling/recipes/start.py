# SPDX-License-Identifier: Apache-2.0
"""Ways to start a run: anew, resumed, or as a reproduction; each claims its output directory first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from foundling.config import from_dict
from foundling.errors import ConfigError, Interrupted, MismatchError, OutputError, render
from foundling.recipes.journal import JOURNAL, PLAN, RECIPE, Journal
from foundling.recipes.models import with_parents
from foundling.recipes.progress import Progress
from foundling.recipes.publish import finish_publishing, is_complete
from foundling.recipes.recipe import Recipe, Request, code_version
from foundling.recipes.run import Run, Script, write_plan
from foundling.recipes.upgrade import upgrade
from foundling.runtime.clock import Clock
from foundling.runtime.device import Runtime
from foundling.runtime.files import is_temporary, lock, remove_abandoned
from foundling.runtime.hub import is_hub, local_directory
from foundling.runtime.machine import machine
from foundling.weights.manifest import MANIFEST, read_manifest


def start(
    script: Script,
    request: Request,
    out: str | Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    clock: Clock | None = None,
    reproduced: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Runs `script` into the directory `out` and returns what `--json` prints.

    `out` must be new or empty or, with `resume`, hold an unfinished run. `reproduced`: the manifest of a run that is to
    be done again, its recipe read. OutputError, MismatchError or BusyError where it cannot be; nothing that was there
    is touched. Interrupted, by a signal, says how to continue."""
    out, progress, clock = Path(out), progress or Progress(False), clock or Clock()
    existed = out.exists()
    resuming = f"continue with: foundling {request.command} --out {render.shell(str(out))} --resume"
    with claimed(out, resume, progress):
        code, of = code_version(), (reproduced or {}).get("weights_hash")
        journal = stored_journal(out) if resume else Journal(out / "run", asdict(request), code, of)
        try:
            if not resume:
                journal.save()
            if (result := finish_publishing(journal, out, progress)) is not None:
                return result
            if reproduced:  # written each time, since a parent may have moved
                more = {key: reproduced[key] for key in ("data_hash", "stages") if key in reproduced}
                write_plan(journal, reproduced["recipe"], reproduced["prediction"] | more)
            return _run(script, Run(request, out, progress, clock, journal))
        except Interrupted as stop:
            raise Interrupted(stop.number, stop.at, "give the same command again" if reproduced else resuming) from None
        except Exception:
            if not resume and not {RECIPE, PLAN} & journal.files.keys():  # nothing was decided: nothing to resume
                journal.remove()
                if not existed and {p.name for p in out.iterdir()} == {".lock"}:
                    (out / ".lock").unlink()
                    out.rmdir()
            raise


def _run(script: Script, run: Run) -> dict[str, Any]:
    try:
        return script(run)
    finally:
        run.memory.done.set()


def stored_journal(out: Path) -> Journal:
    """Of the unfinished run in `out`; MismatchError where this version of foundling cannot continue it."""
    journal = Journal.load(out / "run")
    if journal is None and (out / "run" / "request.json").exists():
        raise MismatchError(f"{out} was started by foundling 0.1; continue with that version, or start anew")
    if journal is None:
        raise OutputError(f"{out}: there is no run to resume here; start one without --resume")
    if journal.code != code_version():
        raise MismatchError(f"{out} was started by another version of foundling; continue with that one, or start anew")
    return journal


def stored_request(out: Path) -> Request:
    """The request that an unfinished run was started with."""
    journal = stored_journal(out)
    if journal.reproduces and RECIPE not in journal.files:
        raise MismatchError(f"{out} was started by 'foundling reproduce'; give that command again")
    return from_dict(Request, journal.request, where=str(journal.directory / JOURNAL))


REPRODUCED = {
    "recipe": dict, "code": dict, "machine": dict, "prediction": dict, "request": dict, "data_hash": str,
    "weights_hash": str, "prediction.params": int, "prediction.flops": int | float,
    "prediction.seconds": int | float, "prediction.peak_bytes": int | float, "prediction.joules.value": int | float,
    "prediction.joules.source": str,
}  # fmt: skip
"""what a manifest must have to be reproduced"""


def _require(manifest: dict[str, Any], directory: Path, *keys: str) -> None:
    for key in keys:
        value: Any = manifest
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, REPRODUCED[key]) or isinstance(value, bool):
            raise ConfigError(
                f"{directory / MANIFEST} has no '{key}': the model was not raised here; nothing to reproduce"
            )


def reproduce(
    script_of: Callable[[Recipe, Request], Script],
    directory: str | Path,
    *,
    data: str | None = None,
    parents: Sequence[str] = (),
    out: str | Path | None = None,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> dict[str, Any]:
    """Runs the recipe of the model in `directory` again, into `out`, and compares the hashes of the weights.
    `script_of`: the script of a recipe and what was asked for. `parents`: where the models are now that it starts
    from, if they have moved; which is which is known by their weights.

    MismatchError where the data, the code or a parent is not what it was; another machine is reported, and tried."""
    progress, place, directory = progress or Progress(False), directory, local_directory(directory)
    manifest = read_manifest(directory)
    _require(manifest, directory, "code")  # first: another version had other keys
    code, here = manifest["code"], code_version()
    if code.get("sha256") != here["sha256"]:
        raise MismatchError(
            f"{directory} was raised by foundling {code.get('version')} ({str(code.get('sha256'))[:12]}), this is "
            f"{here['version']} ({here['sha256'][:12]}); install that version to reproduce it"
        )
    _require(manifest, directory, *REPRODUCED)
    recipe = from_dict(Recipe, upgrade(manifest["recipe"]), where=f"{directory / MANIFEST} recipe")
    recipe = with_parents(recipe, parents)
    Runtime(threads=recipe.runtime.threads).setup()
    for name, there in manifest["machine"].items():
        if name in ("torch", "cpu_capability", "threads", "device") and machine()[name] != there:
            progress.line(f"note: {name} is {machine()[name]} here and was {there}; equal bits are not to be expected")
    asked = from_dict(Request, manifest["request"], where=f"{directory / MANIFEST} request")
    request = replace(asked, data=data or asked.data)
    if is_hub(place) and out is None:
        raise ConfigError(f"{place} is on the hub; give --out DIR for the second model")
    out = Path(out) if out else directory.with_name(directory.name + "-again")
    if is_complete(out) and read_manifest(out).get("reproduces") == manifest["weights_hash"]:
        progress.line(f"{out} is complete")  # published while a signal came
        result = read_manifest(out)["result"]
    else:
        begun = None if is_complete(out) else Journal.load(out / "run")
        resume = begun is not None and begun.reproduces == manifest["weights_hash"]
        result = start(
            script_of(recipe, request), request, out, resume=resume, progress=progress, clock=clock,
            reproduced=manifest | {"recipe": recipe},
        )  # fmt: skip
    again = read_manifest(out)["weights_hash"]
    same = again == manifest["weights_hash"]
    return {"identical": same, "weights_hash": again, "expected": manifest["weights_hash"], **result}


@contextmanager
def claimed(out: Path, resume: bool, progress: Progress) -> Iterator[None]:
    """`out` for this process alone; refuses to touch what another run or anyone else has put there."""
    _check_free(out, resume)
    with lock(out) as locked:
        if not locked:
            progress.line(f"note: the file system of {out} has no locks; start no second run in this directory")
        for folder in ("run", "run/checkpoints", "run/tokens"):
            remove_abandoned(out / folder)
        _check_free(out, resume)
        yield


def _check_free(out: Path, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; choose another --out")
    if resume or not out.exists() or all(path.name == ".lock" or _is_empty(path) for path in out.iterdir()):
        return
    if (out / "run" / JOURNAL).exists() and not is_complete(out):
        raise OutputError(f"{out}: holds an unfinished run; continue it with --resume, or choose another --out")
    raise OutputError(f"{out}: is not empty, and was not changed; choose another --out")


def _is_empty(path: Path) -> bool:
    """Whether it is the folder of a run that was killed before it had written its journal."""
    return path.name == "run" and path.is_dir() and all(is_temporary(each) for each in path.iterdir())
