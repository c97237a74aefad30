# SPDX-License-Identifier: Apache-2.0
"""Import a directory of transformers or diffusers, or a GGUF file, and record the hash of every file."""

from __future__ import annotations

import argparse
from typing import Any

EXAMPLES = [
    "foundling import downloads/llama-3.2-1b models/llama-3.2-1b",
    "foundling import downloads/mamba2-130m models/mamba2 --dtype bfloat16",
    "foundling import llama.gguf models/llama",
]
STORED = ("float32", "bfloat16", "float16")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="directory with config.json and safetensors, or a .gguf file (Llama models only)"
    )
    parser.add_argument("out", help="model directory to write")
    parser.add_argument("--dtype", choices=STORED, help="data type of the stored weights (default: unchanged)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.cli.common import progress_for
    from foundling.weights.convert.hugging_face import import_model

    progress_for(args).line(f"reading {args.source}")
    found = import_model(args.source, args.out, dtype=args.dtype)
    if not args.json:
        print_result(found)
        print(f"next: foundling check {args.out}")
    return found


def print_result(found: dict[str, Any]) -> None:
    from foundling.errors import render

    print(f"{render.terminal(found['out'])}: {found['family']}, {found['parameters']:,} parameters, {found['dtype']}")
    for key, what in (("kept", "copied"), ("left_out", "not copied")):
        if found[key]:
            print(render.terminal(f"{what}: {', '.join(found[key])}"))
