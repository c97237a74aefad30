# SPDX-License-Identifier: Apache-2.0
"""List the model families and their published sizes."""

from __future__ import annotations

import argparse
from typing import Any

EXAMPLES = ["foundling families", "foundling families --json"]


def add(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.models import FAMILIES, build, count_parameters, family

    found: dict[str, Any] = {}
    for name in FAMILIES:
        presets = family(name).module.PRESETS
        sizes = {p: count_parameters(build(name, device="meta", **fields))["total"] for p, fields in presets.items()}
        found[name] = {"about": (family(name).module.__doc__ or "").strip().splitlines()[0], "presets": sizes}
    if not args.json:
        for name, entry in found.items():
            print(f"{name:8} {entry['about']}")
            for preset, size in entry["presets"].items():
                print(f"           {preset:16} {size:>15,} parameters")
    return found
