# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M learns the format of benchmarks.chat_task from 1,000 chats, a tenth of which choose the best weights.

python -m benchmarks.finetune_chat [--cases lora-0,lora-1,lora-2,qlora-0,full-0] [--count 512] [--minutes 5]

Share of held-out items that is right before and after, minutes and peak memory beside the plan. A case is a method and
a seed. A call measures what is missing, and begins nothing new after --minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.chat_task import chat, held_out_items, parts, share_right, smollm2
from benchmarks.corpora import WORK
from benchmarks.runs import Results, foundling_json

CASES = "lora-0,lora-1,lora-2,qlora-0,full-0"
N_LOSS = 100
"""held-out chats whose loss the run itself reports; they are not among those that are answered"""


def held_out() -> Path:
    file = WORK / "data" / "chat" / "held_out.jsonl"
    lines = [json.dumps(chat(item)) + "\n" for item in held_out_items()[-N_LOSS:]]
    file.write_text("".join(lines), encoding="utf-8")
    return file


def measure(method: str, seed: str, count: int) -> dict[str, Any]:
    out = WORK / "chat" / f"{method}-{seed}"
    options = ["--as", "chat", "--method", method, "--epochs", "1", "--seed", seed, "--held-out", held_out()]
    if method != "full":
        options.append("--merged")
    if (out / "config.json").exists():
        result = json.loads((out.parent / f"{method}-{seed}.json").read_text())
    else:
        shutil.rmtree(out, ignore_errors=True)
        result = foundling_json("finetune", smollm2(), parts()[0], *options, "--out", out)
        (out.parent / f"{method}-{seed}.json").write_text(json.dumps(result))
    actual, predicted = result["actual"], result["predicted"]
    return {
        **share_right(out, count),
        "minutes": round(actual["seconds"] / 60, 2),
        "peak GiB": round(actual["peak_bytes"] / 2**30, 3),
        "time, actual / planned": round(actual["seconds"] / predicted["seconds"], 3),
        "memory, actual / planned": round(actual["peak_bytes"] / predicted["peak_bytes"], 3),
        "loss before": result["baselines"].get("before"),
        "loss after": actual.get(result["metric"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--minutes", type=float, default=5)
    args = parser.parse_args()
    results = Results("finetune_chat", minutes=args.minutes)
    results.get("before", lambda: share_right(smollm2(), args.count))
    for case in args.cases.split(","):
        method, seed = case.rsplit("-", 1)
        results.get(case, lambda method=method, seed=seed: measure(method, seed, args.count))


if __name__ == "__main__":
    main()
