# SPDX-License-Identifier: Apache-2.0
"""Write a model directory as transformers or diffusers would have saved it, or as one GGUF file."""

from __future__ import annotations

import argparse
from typing import Any

from foundling.cli.import_ import STORED, print_result
from foundling.errors import ConfigError

EXAMPLES = [
    "foundling export runs/notes for-others",
    "foundling export runs/notes for-others --dtype bfloat16",
    "foundling export runs/notes notes.gguf --gguf --dtype int4     # for llama.cpp",
]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", help="model directory")
    parser.add_argument("out", help="directory to write; with --gguf, file to write")
    parser.add_argument("--gguf", action="store_true", help="write one GGUF file for llama.cpp")
    parser.add_argument(
        "--dtype", choices=(*STORED, "int8", "int4"), help="data type of the stored weights (default: unchanged); "
        "int8 and int4 only with --gguf",
    )  # fmt: skip


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.dtype not in (None, *STORED) and not args.gguf:
        raise ConfigError(f"--dtype {args.dtype} needs --gguf; a directory takes one of {', '.join(STORED)}")
    from foundling.cli.common import progress_for
    from foundling.weights.convert.hugging_face import export_gguf, export_model

    progress_for(args).line(f"reading {args.dir}")
    if args.gguf:
        found = export_gguf(args.dir, args.out, weights=args.dtype)
    else:
        found = export_model(args.dir, args.out, dtype=args.dtype)
    if not args.json:
        print_result(found)
    return found
