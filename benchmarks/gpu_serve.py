# SPDX-License-Identifier: Apache-2.0
"""`foundling serve` on CUDA: requests a second, the answers of a JSON Schema, and what the page looks at.

`make gpu` runs it last: python -m benchmarks.gpu_serve [--out FILE]; needs the extra `serve`, no network. The model is
raised there for a few steps, 12 layers of width 576, and served in bfloat16; speeds are those of its shape, its answers
say nothing. Each prompt is another 256 tokens, 64 tokens are generated greedily and streamed, ends of a text forbidden.
"""

import argparse
import json
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import torch

from benchmarks.runs import commit, foundling_json
from benchmarks.serve_speed import ANSWER, PROMPT, ask, free_port, running
from foundling.decode.constrain.constraint import json_schema
from foundling.text import Tokenizer
from foundling.verify.structured import matches_constraint

RAISE = "--tokens 1e6 --d-model 576 --n-layers 12 --vocab-size 4096 --total-steps 60 --seq-len 512 --device cuda"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20}, "count": {"type": "integer"}, "on": {"type": "boolean"},
    },
    "required": ["name", "count", "on"], "additionalProperties": False,
}  # fmt: skip


def post(address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def speed(address: str, tokenizer: Tokenizer, clients: int) -> dict[str, Any]:
    n, ends = 4 * clients, {str(token): -100 for token in tokenizer.special}
    ids = tokenizer.encode(Path(json.__file__).read_text(encoding="utf-8"))
    ids = ids * (1 + (n * 7 + PROMPT) // len(ids))
    bodies = [
        json.dumps({"model": "model", "prompt": ids[i * 7 : i * 7 + PROMPT], "max_tokens": ANSWER, "temperature": 0,
                    "stream": True, "stream_options": {"include_usage": True}, "logit_bias": ends})
        for i in range(n)
    ]  # fmt: skip
    ask(address, bodies[:clients], clients)  # warms up
    done = ask(address, bodies, clients)
    return {"requests/s": round(n / done["seconds"], 2), "tokens/s": round(sum(done["tokens"]) / done["seconds"], 1),
            **{name: done[name] for name in ("first_ms", "between_ms")}}  # fmt: skip


def structured(address: str) -> dict[str, int]:
    """How many of 16 answers hold, of those that ended."""
    answers = post(address, "/v1/completions", {
        "model": "model", "prompt": ["a record"] * 4, "n": 4, "max_tokens": 200, "temperature": 1, "seed": 1,
        "response_format": {"type": "json_schema", "json_schema": {"name": "record", "schema": SCHEMA}},
    })["choices"]  # fmt: skip
    ended = [one["text"] for one in answers if one["finish_reason"] == "stop"]
    return {"ended": len(ended), "valid": sum(bool(matches_constraint(text, json_schema(SCHEMA))) for text in ended)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/gpu_serve.json"))
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        sys.exit("make gpu: torch finds no CUDA device here")
    result: dict[str, Any] = {
        "commit": commit(), "device": torch.cuda.get_device_name(), "torch": torch.__version__, "prompt": PROMPT,
        "answer": ANSWER, "clients": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        foundling_json("raise", *RAISE.split(), "--out", f"{folder}/run")
        port, directory = free_port(), f"{folder}/run"
        tokenizer = Tokenizer.load(directory)
        serve = [sys.executable, "-m", "foundling", "serve", f"model={directory}", "--port", str(port)]
        with running([*serve, "--device", "cuda", "--weights", "bfloat16"], port) as address:
            for clients in (1, 8, 32):
                result["clients"][clients] = speed(address, tokenizer, clients)
                print(clients, result["clients"][clients], flush=True)
            result["json schema"] = structured(address)
            ids = tokenizer.encode("def main():\n    return")
            result["look"] = sorted(post(address, "/playground/look", {"model": "model", "tokens": ids}))
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
