# SPDX-License-Identifier: Apache-2.0
"""List the model families, their published sizes (presets), and which methods are tested for each."""

from __future__ import annotations

import argparse
import gc
from typing import Any

from foundling.cli.stdio import say

EXAMPLES = ["foundling families", "foundling families --json"]
MARKS = {"test": "●", "slow": "◐", "": " "}


def add(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.models import FAMILIES, build, count_parameters, family, matrix

    cells, found = matrix(), {}
    gc.disable()  # models have no cycles, and the collector would walk their modules again and again
    for name in FAMILIES:
        here = family(name)
        sizes = {p: count_parameters(build(name, device="meta", **f)) for p, f in here.module.PRESETS.items()}
        found[name] = {
            "about": here.about,
            "kind": here.kind,
            "presets": {preset: size["total"] for preset, size in sizes.items()},
            "active": {preset: size["active"] for preset, size in sizes.items() if size["active"] < size["total"]},
            "methods": cells.get(name, {}),
        }
    gc.enable()
    if not args.json:
        for name, entry in found.items():
            say(f"{name:8} {entry['about']}")
            for preset, size in entry["presets"].items():
                active = f", {entry['active'][preset]:,} active" if preset in entry["active"] else ""
                say(f"           {preset:24} {size:>15,} parameters{active}")
        say()
        say(f"{'':11}" + " ".join(f"{name:>8}" for name in found))
        for method in next(iter(cells.values()), {}):
            row = [MARKS.get(cells[name].get(method, ""), "–") if name in cells else " " for name in found]
            say(f"{method:11}" + " ".join(f"{mark:>8}" for mark in row))
        say("● passes in the tests, ◐ in the slow tests, – not applicable (docs/matrix.md says why)")
    return found
