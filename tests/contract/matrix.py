# SPDX-License-Identifier: Apache-2.0
"""The matrix of families and methods: which cells there are, which test fills each, and where a method has no meaning.

A test marked `@covers("packing")` runs for every family that the method applies to. What passed is written down by
`make matrix` into foundling/models/matrix.json and docs/matrix.md; `make test` fails when a cell that was green is not
(tests/conftest.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any

import pytest

from foundling.models import FAMILIES, family

ROOT = Path(__file__).parents[2]
FILE = ROOT / "foundling" / "models" / "matrix.json"
PAGE = ROOT / "docs" / "matrix.md"

METHODS = {
    "pretrain": "learns by its objective in the one loop; micro-batches change nothing",
    "gradients": "every parameter that the objective declares gets one",
    "packing": "documents packed in a row equal the documents apart",
    "padding": "padding on the right changes nothing",
    "cache": "read in uneven parts, rows of different lengths reordered in between, equals read at once",
    "recurrent": "the chunked form of training equals the recurrent form of decoding",
    "generate": "greedy generation equals reading all again; of a denoiser, a row's sample is its own",
    "beams": "beam search by the same `generate`",
    "speculate": "speculative decoding gives what plain decoding gives",
    "engine": "many at once, coming, going and put back, say what plain decoding says",
    "bf16": "autocast stays within bounds",
    "compile": "layers trace without a break (aot_eager)",
    "inductor": "compiled layers equal eager ones",
    "directory": "saved and loaded bitwise, by the hash of every file",
    "exchange": "its directory loads in transformers or diffusers and theirs here, with equal outputs",
    "LoRA": "adapters by name pattern: train, save alone, load on the same base, merge",
    "QLoRA": "a 4-bit base: quantise, adapt, train, save the adapter, load on the same base, merge",
    "int8": "quantised by name pattern, within its bound; quantise, adapt, train, merge",
    "prompt": "virtual tokens before each text: train, packed, cached, generated, saved alone and loaded",
    "prefix": "keys and values before each text: train, packed, cached, generated, saved alone and loaded",
    "partial": "biases and norms, the top layers, rates and unfreezing by depth: nothing else changes by a bit",
    "prune": "half of the weights and two of each four: zeros stay zero in training, saved and loaded",
    "DDP": "two processes equal one",
    "FSDP2": "two processes that share the parameters equal one",
    "resume": "killed by SIGKILL and resumed, bitwise",
    "distill": "learns from a frozen teacher",
    "DPO": "learns from preferences, the reference as batch columns",
    "classify": "a head of classes, tags or values: learns, padding changes nothing, saved and loaded bitwise",
}

_IMAGES = "rows are images, not streams of tokens"
_LANGUAGE = "a method of language models"
WITHOUT: dict[tuple[str, str], str] = {
    **{
        ("encoder", m): "reads all at once; what fits into a gap is told in one pass"
        for m in ("cache", "recurrent", "generate", "beams", "speculate", "engine")
    },
    ("encoder", "DPO"): "tells probabilities of single places, not of texts",
    ("dual_encoder", "packing"): "a text is a row; its padding is tested",
    ("denoiser", "packing"): _IMAGES,
    ("denoiser", "padding"): _IMAGES,
    **{
        ("dual_encoder", m): "nothing is generated"
        for m in ("cache", "recurrent", "generate", "beams", "speculate", "engine")
    },
    **{("denoiser", m): "it reads no tokens" for m in ("prompt", "prefix")},
    **{("denoiser", m): _IMAGES for m in ("cache", "recurrent", "beams", "speculate", "engine")},
    **{(k, m): _LANGUAGE for k in ("dual_encoder", "denoiser") for m in ("distill", "DPO", "classify")},
}
"""(kind, method) -> why there is nothing to test"""
WITHOUT_STATE = "it has no recurrent state"
WITHOUT_ATTENTION = "it has no self-attention, whose keys and values a prefix is"
WITHOUT_OTHERS = "no library else has it; see tests/parity or tests/blocks"


def why_not(name: str, method: str) -> str | None:
    if method == "recurrent" and FAMILIES[name].kind in ("decoder", "seq2seq"):
        from foundling.contracts.cache import State
        from tests.contract.cases import case

        slots = [type(slot) for slots in case(name).tiny().cache_spec() for slot in slots]
        return None if State in slots else WITHOUT_STATE
    if method == "prefix" and FAMILIES[name].kind in ("decoder", "encoder", "seq2seq"):
        from tests.contract.cases import case

        paths = [path for path, _ in case(name).tiny().named_modules()]
        return None if any(path.endswith("mixer.attend") for path in paths) else WITHOUT_ATTENTION
    if method == "exchange" and ours_alone(name):
        return WITHOUT_OTHERS
    return WITHOUT.get((FAMILIES[name].kind, method))


def ours_alone(name: str) -> bool:
    """Whether transformers and diffusers have nothing to exchange with."""
    table = family(name).module.CONFIG
    return not table.architecture and table.type_key == "model_type"


def names(method: str) -> list[str]:
    """The families that the method applies to."""
    return [name for name in FAMILIES if why_not(name, method) is None]


MECHANISMS = {
    "llama": "attention with rotary positions, gated feed-forward",
    "gpt2": "learned positions, fused q, k, v, plain feed-forward",
    "bloom": "ALiBi",
    "gemma2": "windows, soft-caps, norms on both sides",
    "mixtral": "experts and their router's loss",
    "mamba2": "state space in chunks",
    "mamba": "selective scan",
    "rwkv": "WKV recurrence, token shift",
    "s4": "convolution by FFT",
    "jamba": "attention, recurrence and experts by turns",
    "bert": "post-norm encoder",
    "albert": "one layer's weights for all layers",
    "t5": "source and relative bias",
    "clip": "two encoders, contrastive loss",
    "unet": "convolutions, time embedding, no tokens",
}
"""One family of each kind of layer -> which. A test of a second or less is run for these in `make test` and for the
others in `make test-slow`; one of milliseconds runs for all."""
UNLIKE = ("llama", "mixtral", "mamba2", "t5")
"""Where a test takes seconds: one of each kind of memory and of forward pass."""
ADAPTED = ("llama", "gpt2", "mixtral", "mamba2", "bert", "t5", "clip", "unet")
"""One of each kind of projection and of model: single and fused matrices, experts, scans, cross-attention, pixels."""


def families(of: Iterable[str], quick: Container[str] = MECHANISMS) -> list[Any]:
    """Parameters of a test: these families, the others than `quick` in `make test-slow`."""
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in of]


def covers(method: str, only: list[str] | None = None, quick: Container[str] = tuple(FAMILIES)) -> Callable[[Any], Any]:
    """Runs the test for each family that the method applies to (of `only`) and fills their cells: for `quick` in
    `make test`, for the others in `make test-slow`."""
    assert method in METHODS, method
    chosen = families(names(method) if only is None else only, quick)

    def mark(test: Any) -> Any:
        return pytest.mark.covers(method)(pytest.mark.parametrize("name", chosen)(test))

    return mark


def read() -> dict[str, dict[str, str]]:
    """family -> method -> 'test' or 'slow' (what fills it), or the reason why nothing does"""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def write(passed: dict[tuple[str, str], bool], by: str) -> None:
    """Takes in what ran now; cells that did not run stay as they were."""
    old = read()
    table = {}
    for name in FAMILIES:
        row = {}
        for method in METHODS:
            reason, ran = why_not(name, method), passed.get((name, method))
            before = old.get(name, {}).get(method, "")
            if ran and by == "slow" and before == "test":
                ran = None  # some of its tests are long; the others stand in `make test`
            row[method] = f"– {reason}" if reason else ("" if not ran else by) if ran is not None else before
        table[name] = row
    FILE.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(table), encoding="utf-8")


def page(table: dict[str, dict[str, str]]) -> str:
    mark = {"test": "●", "slow": "◐", "": " "}
    reasons = sorted({cell for row in table.values() for cell in row.values() if cell.startswith("–")})
    notes = {reason: f"–{i + 1}" for i, reason in enumerate(reasons)}
    lines = [
        "# Families and methods",
        "",
        "Produced by running it: `make matrix`. ● passes in `make test`, ◐ in `make test-slow`, an empty cell is not",
        "tested yet, – has no meaning there. `make test` fails when a cell that is green here is not.",
        "",
        "| method | " + " | ".join(table) + " |",
        "|---|" + "---|" * len(table),
    ]
    for method in METHODS:
        cells = [notes.get(row[method]) or mark[row[method]] for row in table.values()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += ["", *[f"- {note}: {reason.removeprefix('– ')}" for reason, note in notes.items()], ""]
    lines += [f"- **{method}**: {about}" for method, about in METHODS.items()]
    return "\n".join(lines) + "\n"
