# SPDX-License-Identifier: Apache-2.0
"""The bat question: which two of three marked words mean the most similar things?

python -m examples.bat [--triples FILE] [--json] [--out FILE]

A: "I am so excited to use my new **bat** at the baseball game tomorrow."
B: "The favorite food of this species of **bat** is mosquitoes."
C: "The **cardinal** isn't just a lawn decoration; the species makes themselves useful by eating mosquitoes."

A vector for each word of the vocabulary, as word2vec has it, must say A–B: it is the same vector. A contextual encoder
can say B–C. This reads all-MiniLM-L6-v2, a real encoder, layer by layer: layer 0 is the sum of the embeddings after
its norm, layer n the output of the n-th block. A vector is made of the states of a layer in one of four ways:

word      the mean over the tokens of the marked word
change    that, less the same mean where the word stands alone: what the sentence did to the word
context   the mean over all other tokens of the sentence, the special ones too
sentence  the mean over all tokens, which is what the model was trained to compare, at its last layer

The closest pair has the largest cosine. What `context` says at layer 0 is what a bag of words can say.

The share of right answers is over the triples of bat_triples.json: A and B hold one word in two senses, C another word
of the sense of B. The question above is not among them.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import redirect_stdout
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import foundling
from benchmarks.baselines import minilm
from examples.programs import Parser, measured, require_all, run, table
from foundling.errors import DataError
from foundling.evaluate.intervals import wilson
from foundling.text import Tokenizer

QUESTION = {
    "a": "I am so excited to use my new **bat** at the baseball game tomorrow.",
    "b": "The favorite food of this species of **bat** is mosquitoes.",
    "c": "The **cardinal** isn't just a lawn decoration; the species makes themselves useful by eating mosquitoes.",
}
TRIPLES = Path(__file__).with_name("bat_triples.json")
MODEL = "all-MiniLM-L6-v2"
POOLINGS = ("word", "change", "context", "sentence")
PAIRS = {"A–B": (0, 1), "A–C": (0, 2), "B–C": (1, 2)}
Triple = dict[str, str]


def parse(sentence: str) -> tuple[str, int, int]:
    """'my **bat** is' -> ('my bat is', 3, 6). DataError unless one word is marked."""
    marked = re.findall(r"\*\*(.+?)\*\*", sentence)
    if len(marked) != 1:
        raise DataError(f"{sentence!r} marks {len(marked)} words, expected one: **word**")
    start = sentence.index("**")
    return sentence.replace("**", ""), start, start + len(marked[0])


def check(triple: Any) -> Triple:
    """A triple of the form of the question; DataError for any other."""
    keys = set(triple) if isinstance(triple, dict) else None
    if keys != {"a", "b", "c"} or not all(isinstance(sentence, str) for sentence in triple.values()):
        raise DataError(f"{json.dumps(triple)[:80]} is no triple: expected sentences under a, b and c")
    words = [text[start:stop].lower() for text, start, stop in (parse(triple[key]) for key in "abc")]
    if words[0] != words[1] or words[1] == words[2]:
        raise DataError(f"the marked words are {', '.join(words)}: a and b mark one word, c another")
    return triple


def read_triples(file: Path) -> list[Triple]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {getattr(error, 'strerror', None) or 'not JSON'}; give a JSON list") from None
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{file}: expected a JSON list of triples")
    return [check(row) for row in rows]


@torch.inference_mode()
def layer_states(model: Any, tokenizer: Tokenizer, text: str, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """States (L + 1, T, D) of a text with its special tokens, and which tokens (T,) lie in text[start:stop]."""
    (encoding,) = tokenizer.encode_framed_batch([text])
    states: list[Tensor] = []
    parts = [model.embedding_norm, *model.layer_sequence()]
    hooks = [part.register_forward_hook(lambda _, __, output: states.append(output[0])) for part in parts]
    try:
        model.encode(torch.tensor([encoding.ids]))
    finally:
        for hook in hooks:
            hook.remove()
    inside = [low < stop and high > start and low < high for low, high in encoding.offsets]
    return torch.stack(states), torch.tensor(inside)


def read_vectors(model: Any, tokenizer: Tokenizer, sentence: str) -> dict[str, Tensor]:
    """pooling -> (L + 1, D), each of length 1."""
    text, start, stop = parse(sentence)
    states, inside = layer_states(model, tokenizer, text, start, stop)
    alone, own = layer_states(model, tokenizer, text[start:stop], 0, stop - start)
    word = states[:, inside].mean(1)
    pooled = {
        "word": word,
        "change": word - alone[:, own].mean(1),
        "context": states[:, ~inside].mean(1),
        "sentence": states.mean(1),
    }
    return {pooling: normalize(vectors, dim=-1) for pooling, vectors in pooled.items()}


def cosines(vectors: list[Tensor]) -> list[dict[str, float]]:
    """Three (L, D) of length 1 -> for each layer the cosine of each pair."""
    products = {name: (vectors[i] * vectors[j]).sum(-1).tolist() for name, (i, j) in PAIRS.items()}
    return [{name: round(values[layer], 4) for name, values in products.items()} for layer in range(len(vectors[0]))]


def closest(pairs: dict[str, float]) -> str:
    return max(pairs, key=lambda name: pairs[name])


def share(answers: list[str]) -> dict[str, Any]:
    right = sum(answer == "B–C" for answer in answers) / len(answers)
    low, high = wilson(right, len(answers))
    counts = {name: answers.count(name) for name in PAIRS}
    return {"right": round(right, 3), "low": round(low, 3), "high": round(high, 3), "of": len(answers), **counts}


def measure(triples: list[Triple]) -> dict[str, Any]:
    """pooling -> layer -> the answer to the question, its cosines, and the share of triples that are right."""
    model, tokenizer = foundling.load(minilm()).eval(), Tokenizer.load(minilm())
    read = [[read_vectors(model, tokenizer, triple[key]) for key in "abc"] for triple in (QUESTION, *triples)]
    result: dict[str, Any] = {}
    for pooling in read[0][0]:
        question, *others = [cosines([vectors[pooling] for vectors in triple]) for triple in read]
        for layer, pairs in enumerate(question):
            answers = [closest(triple[layer]) for triple in others]
            entry = {"question": closest(pairs), "cosines": pairs, "triples": share(answers)}
            result.setdefault(pooling, {})[str(layer)] = entry
    return result


def answers_table(result: dict[str, Any]) -> str:
    rows = [["pooling", "layer", *PAIRS, "says", "triples right"]]
    for pooling in POOLINGS:
        for layer, entry in result[pooling].items():
            right, low, high = (f"{100 * entry['triples'][name]:.0f}" for name in ("right", "low", "high"))
            cosine = [f"{entry['cosines'][name]:.3f}" for name in PAIRS]
            rows.append([pooling, layer, *cosine, entry["question"], f"{right} % ({low} to {high})"])
    return table(rows)


def main() -> None:
    parser = Parser("bat", __doc__, small="", seeds=False)
    parser.add_argument("--triples", type=Path, default=TRIPLES, help="a JSON list of {a, b, c}; needs --out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    triples = read_triples(args.triples)
    results, _ = parser.results(args, {"triples": sha256(args.triples.read_bytes()).hexdigest()})
    with redirect_stdout(sys.stderr):  # stdout has the answers alone
        result = results.get(MODEL, lambda: measured(measure, triples))
    require_all(results)
    print(json.dumps(result, ensure_ascii=False) if args.json else answers_table(result))


if __name__ == "__main__":
    run(main)
