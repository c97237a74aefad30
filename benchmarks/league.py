# SPDX-License-Identifier: Apache-2.0
"""Every decoder family at equal training FLOPs on the built-in text: what it learns, and what it costs.

python -m benchmarks.league [llama mamba2 …] --out docs/league.json [--flops 2.5e12] [--size 128x4]

Width and depth are the same for all, the other sizes are those of each family's `sized`, and the FLOPs decide the
tokens. Each family runs in a process of its own, so that the peak memory is its own. The file keeps what is finished;
a second call continues. The table (.md) and the figure (.png) are written next to it.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.learning import Setting, TokenizedCorpus, run
from foundling.blocks.init import initialise
from foundling.models import FAMILIES, build, count_parameters, family
from foundling.runtime.device import available_threads
from foundling.runtime.files import write_bytes
from foundling.runtime.rng import generator

CONTEXTS = (128, 256, 512, 1024, 2048)
STEPS = 32
VOCAB = 2048
HELD_OUT = 200_000
"""bytes"""
DECODERS = [name for name, entry in FAMILIES.items() if entry.kind == "decoder"]


@torch.inference_mode()
def decode_milliseconds(name: str, d_model: int, n_layers: int) -> dict[int, float]:
    """tokens in the cache -> the median time of one more token of one row. Weights are random: speed does not depend on
    them, and a model trained on short windows may have no positions so far out."""
    model = build(name, **family(name).module.sized(VOCAB, CONTEXTS[-1] + STEPS, d_model, n_layers))
    initialise(model, generator("league"))
    model.eval()
    x = torch.randint(3, VOCAB, (1, CONTEXTS[-1] + STEPS), generator=generator("league", 1))
    caches = {context: model.new_cache(1, context + STEPS) for context in CONTEXTS}
    seconds: dict[int, list[float]] = {context: [] for context in CONTEXTS}
    for context, cache in caches.items():
        model(x[:, :context], cache=cache)
    for step in range(STEPS):
        for context, cache in caches.items():  # in turn, so that a disturbance affects all
            start = time.perf_counter()
            model.logits(model(x[:, context + step : context + step + 1], cache=cache).hidden)
            seconds[context].append(time.perf_counter() - start)
    return {context: round(1000 * statistics.median(s), 3) for context, s in seconds.items()}


def measure(name: str, budget: float, d_model: int, n_layers: int) -> dict[str, Any]:
    """One family's row, in this process."""
    setting, data = Setting(family=name, vocab_size=VOCAB), TokenizedCorpus("stdlib", VOCAB, HELD_OUT)
    tokens = budget / setting.flops_per_token(d_model, n_layers)
    result = run(data, d_model, n_layers, tokens, 0, available_threads(), setting)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
    return {
        "params": count_parameters(build(name, device="meta", **setting.config(d_model, n_layers))),
        "tokens": result["tokens"],
        "bits_per_byte": result["bits_per_byte"],
        "train_seconds": result["seconds"],
        "tokens_per_second": round(result["tokens"] / result["seconds"]),
        "peak_bytes": peak,
        "decode_milliseconds": decode_milliseconds(name, d_model, n_layers),
    }


def table(league: dict[str, Any]) -> str:
    settings, rows = league["asked"], league["families"]
    lines = [
        "# The league of decoders",
        "",
        f"Each family was trained on the built-in `stdlib` text for {settings['flops']:.1e} FLOPs at",
        f"{settings['size']} (width x layers), in windows of 256 tokens. Bits per byte are measured on held-out text",
        f"({HELD_OUT / 1e3:.0f} kB), best first. `ms at N` is the time of one more token with N in the cache.",
        "`python -m benchmarks.league --out docs/league.json`",
        "",
        "| family | M parameters (active) | M tokens | bits per byte | tokens/s | peak GiB | "
        + " | ".join(f"ms at {context}" for context in CONTEXTS)
        + " |",
        "|---|" + "--:|" * (5 + len(CONTEXTS)),
    ]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["bits_per_byte"]):
        size = row["params"]
        cells = [
            f"{size['total'] / 1e6:.2f} ({size['active'] / 1e6:.2f})",
            f"{row['tokens'] / 1e6:.2f}",
            f"{row['bits_per_byte']:.3f}",
            f"{row['tokens_per_second']:,}",
            f"{row['peak_bytes'] / 2**30:.2f}",
            *(f"{row['decode_milliseconds'][str(context)]:.2f}" for context in CONTEXTS),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n![bits per byte, and the time of a token by context](league.png)\n"


def draw(league: dict[str, Any], file: Path) -> None:
    from matplotlib.figure import Figure

    rows = dict(sorted(league["families"].items(), key=lambda item: -item[1]["bits_per_byte"]))
    figure = Figure(figsize=(10, 1.5 + 0.25 * len(rows)))
    bits, costs = figure.subplots(1, 2)
    bits.plot([row["bits_per_byte"] for row in rows.values()], list(rows), "o")
    bits.set(xlabel="held-out bits per byte")
    bits.grid(axis="y", alpha=0.3)
    for number, (name, row) in enumerate(reversed(rows.items())):
        style = {"color": f"C{number % 7}", "linestyle": ("-", "--", ":")[number // 7]}
        costs.plot(CONTEXTS, [row["decode_milliseconds"][str(context)] for context in CONTEXTS], label=name, **style)
    costs.set(xscale="log", xlabel="tokens in the cache", ylabel="ms per token")
    costs.set_xticks(CONTEXTS, [str(context) for context in CONTEXTS])
    costs.minorticks_off()
    costs.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("families", nargs="*", help=", ".join(DECODERS))
    parser.add_argument("--out", default="docs/league.json")
    parser.add_argument("--flops", type=float, default=2.5e12)
    parser.add_argument("--size", default="128x4")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.families) - set(DECODERS):
        parser.error(f"{', '.join(sorted(unknown))}: not a decoder family; expected {', '.join(DECODERS)}")
    d_model, n_layers = map(int, args.size.split("x"))
    if args.one:
        print(json.dumps(measure(args.families[0], args.flops, d_model, n_layers)))
        return
    out, settings = Path(args.out), {"flops": args.flops, "size": args.size}
    league: dict[str, Any] = {"asked": settings, "families": {}}
    if out.exists() and (stored := json.loads(out.read_text(encoding="utf-8")))["asked"] == settings:
        league = stored
    elif out.exists():
        parser.error(f"{out} holds results for {stored['asked']}, not {settings}; use the same, or another --out")
    for name in args.families or DECODERS:
        if name in league["families"]:
            continue
        command = ["-m", "benchmarks.league", name, "--one", "--flops", str(args.flops), "--size", args.size]
        done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(json.dumps({"family": name, "failed": done.returncode}), flush=True)
            continue
        row = league["families"][name] = json.loads(done.stdout.splitlines()[-1])
        print(json.dumps({"family": name, **row}), flush=True)
        write_bytes(out, (json.dumps(league, indent=1) + "\n").encode())
    write_bytes(out.with_suffix(".md"), table(league).encode())
    draw(league, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
