# SPDX-License-Identifier: Apache-2.0
"""Two runs to report on: one as it would be, and one whose every string and number is out to break the page."""

from dataclasses import replace
from math import exp, log, nan, sin

from foundling.contracts.records import Metric, Result, RunRecord

CODE = "def factorial(n):\n    if n < 2:\n        return 1\n    return n * factorial(n - 1)\n"


def realistic() -> RunRecord:
    return RunRecord(
        kind="base model",
        family="llama",
        name="stdlib-3min",
        command="foundling raise stdlib --minutes 3 --out stdlib-3min",
        created="2026-11-21",
        directory="models/stdlib 3min",
        params=912_384,
        settings={
            "family": {"value": "llama", "by": "chosen"},
            "n_layers": {"value": 4, "by": "chosen"},
            "d_model": {"value": 128, "by": "chosen"},
            "n_heads": {"value": 4, "by": "chosen"},
            "vocab_size": {"value": 2048, "by": "chosen"},
            "seq_len": {"value": 256, "by": "chosen"},
            "batch_size": {"value": 64, "by": "chosen"},
            "lr": {"value": 0.004, "by": "chosen"},
            "seed": {"value": 0, "by": "given"},
            "minutes": {"value": 3, "by": "given"},
        },
        tokens=13_107_200,
        bytes=44_800_000,
        flops=7.2e13,
        data={
            "source": "stdlib: source and docstrings of the running Python",
            "documents": 1_432,
            "bytes": 28_700_000,
            "removed": {"duplicate": 61, "near-duplicate": 118, "too short": 23, "not text": 4},
            "held_out_documents": 30,
            "held_out_bytes": 512_000,
            "hash": "sha256:9f2c1e6f0b7a4f52a2f8d0c5f1b0a61be4d7c1f5a7d6e0a9c2b3d4e5f6a7b8c9",
            "licence": "PSF-2.0",
        },
        predicted={
            "seconds": 180.0,
            "peak_bytes": 1.32e9,
            "loss": 4.14,
            "bits_per_byte": 1.75,
            "joules": {"value": 5_040.0, "source": "estimated: 28 W × wall time"},
        },
        actual={
            "seconds": 176.2,
            "peak_bytes": 1.27e9,
            "loss": 4.046,
            "bits_per_byte": 1.709,
            "joules": {"value": 4_890.0, "source": "measured by RAPL, package domain"},
        },
        history=[_record(step) for step in range(1, 801)],
        baselines={
            "gzip": 2.318,
            "xz": 2.402,
            "xz_stream": 1.688,
            "ngram": 1.964,
        },
        samples=[
            {
                "prompt": "def read_lines(path",
                "text": ", encoding=None):\n    # Return the lines of the file.\n    # The default is 'utf-8'.\n"
                "    with open(path, encoding=encoding) as file:\n        return [line for line in file]\n",
                "note": "temperature 0.8, top-p 0.95, seed 0",
            },
            {"prompt": "import ", "text": "os\nimport sys\nimport re\n\n\ndef main(args):\n    ", "note": "greedy"},
        ],
        machine={
            "processor": "AMD EPYC 7B13, 2 cores used",
            "memory": "8 GB",
            "system": "Linux 6.1",
            "torch": "2.12.0, float32, compiled",
        },
        timeline=[
            ("reading and cleaning the data", 9.4),
            ("training the tokenizer", 6.1),
            ("probing the machine", 11.8),
            ("training", 139.6),
            ("measuring on held-out text", 6.5),
            ("writing", 2.8),
        ],
        law_error=0.04,
        tokenizer={
            "vocab_size": 2048,
            "snippets": [_tokens(CODE), _tokens("The quick brown fox — naïvely — jumps over\tthe lazy dog.\n")],
            "bytes_per_token": 3.418,
            "tokens_per_word": 2.21,
            "longest": [
                "                ",
                " NotImplementedError",
                "self.assertEqual(",
                " isinstance(",
                "\n        return ",
            ],
        },
        results=[
            _share("passes Python's tokenize", 0.84, 50, "model", 0.7149, 0.9166),
            _share("passes Python's tokenize", 0.1, 50, "ngram", 0.0435, 0.2136),
            _share("parses as Python", 0.3, 50, "model", 0.1910, 0.4375),
            _share("parses as Python", 0.0, 50, "ngram", 0.0, 0.0714),
        ],
        next_commands=[
            {"command": "foundling generate stdlib-3min 'def main('", "purpose": "write with it"},
            {"command": "foundling serve stdlib-3min", "purpose": "a playground page and an HTTP API"},
        ],
    )


HOSTILE = '<script>alert("1")</script>\'&{{ 7*7 }}</pre></svg>|`~~~\n\n# $x_{$ \x00 ]]> --> \ud83d'


def hostile() -> RunRecord:
    """Markup and template syntax in every string, an unpaired surrogate as paths have, and no number that is one."""
    nothing = {"seconds": nan, "peak_bytes": None, "loss": nan, "bits_per_byte": None, "joules": None}
    return replace(
        realistic(),
        name=HOSTILE,
        command=HOSTILE,
        created=HOSTILE,
        directory=HOSTILE,
        settings={HOSTILE: {"value": HOSTILE, "by": "given"}, "nothing": {"value": None, "by": "chosen"}},
        data=realistic().data
        | {"source": HOSTILE, "removed": {HOSTILE: 1}, "hash": HOSTILE, "licence": HOSTILE, "held_out_bytes": 0},
        predicted=nothing | {"joules": {"value": nan, "source": HOSTILE}},
        actual=nothing | {"joules": {"value": 1.0, "source": HOSTILE}},
        flops=nan,
        history=[_record(1) | {"loss": nan}, _record(2) | {"loss": None, "seconds": nan}],
        baselines={HOSTILE: HOSTILE, "gzip": nan, "xz": f"needs {HOSTILE}"},
        samples=[{"prompt": HOSTILE, "text": HOSTILE, "note": HOSTILE}],
        machine={HOSTILE: HOSTILE},
        timeline=[(HOSTILE, nan), (HOSTILE, 0.0)],
        law_error=nan,
        tokenizer={
            "vocab_size": 3,
            "snippets": [[(HOSTILE, 0), ("", 1)]],
            "bytes_per_token": nan,
            "tokens_per_word": None,
            "longest": [HOSTILE],
        },
        results=[_share(HOSTILE, nan, 0, HOSTILE, nan, None)],
        kind=HOSTILE,
        family=HOSTILE,
        metric=Metric("bits_per_byte", HOSTILE, True, HOSTILE),
        loss_unit=HOSTILE,
        parents=[HOSTILE],
        pipeline_tag=HOSTILE,
        limits=[HOSTILE],
        next_commands=[{"command": HOSTILE, "purpose": HOSTILE}],
    )


def bare() -> RunRecord:
    """A run of another kind: its main metric has no prediction, and nothing was measured beside the model."""
    nothing = {"seconds": 61.0, "peak_bytes": 1e9, "joules": None}
    return replace(
        realistic(),
        kind="masked language model",
        family="bert",
        name="bert-1min",
        tokens=99_000,
        metric=Metric("loss", "nats per masked token", True, "The mean of −ln p(token) over hidden tokens."),
        loss_unit="nats per masked token",
        predicted=nothing,
        actual=nothing | {"seconds": 59.0, "loss": 3.21},
        history=[{"step": i, "tokens": 1000 * i, "seconds": 0.1 * i, "loss": 8 / i + 3} for i in range(1, 100)],
        baselines={},
        results=[],
        samples=[],
        machine={},
        timeline=[],
        law_error=None,
        tokenizer=None,
        next_commands=[],
        pipeline_tag="fill-mask",
    )


def _share(task: str, value: float, n: int, subject: str, low: float | None, high: float | None) -> Result:
    return Result(task, "share", value, n, subject, low, high, "Wilson score")


def _record(step: int) -> dict:
    """A loss that falls from ln(2048) as losses fall, with the scatter of single batches."""
    loss = 4.0 + (log(2048) - 4.0) * exp(-((step / 40) ** 0.55)) + 0.07 * sin(12.9898 * step * step)
    return {
        "step": step,
        "tokens": step * 16_384,
        "seconds": step * 0.1745 + 0.9 * sin(step / 60),
        "loss": loss,
        "bits_per_byte": loss / log(2) / 3.418,
        "lr": 0.004 * min(1, step / 40),
        "grad_norm": 1.2,
    }


def _tokens(text: str) -> list[tuple[str, int]]:
    """Cut before every space and line end: near enough to what byte pairs do for a page to be looked at."""
    pieces, start = [], 0
    for end in range(1, len(text) + 1):
        if end == len(text) or (text[end] in " \n\t(" and text[end - 1] not in " \n"):
            pieces.append(text[start:end])
            start = end
    return [(piece, 300 + 7 * i) for i, piece in enumerate(pieces)]
