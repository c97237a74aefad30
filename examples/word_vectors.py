# SPDX-License-Identifier: Apache-2.0
"""Word vectors: one-hot, skip-gram and CBOW, beside gensim, and real published ones.

python -m examples.word_vectors [PART …] [--peers DIR] [--minutes 5] [--small] [--out FILE]

generated   analogies on a text whose relations are known (examples.generated_relations)
published   king − man + woman, analogies and similarity on the vectors of the package wordllama
text        skip-gram and CBOW on a real text, three seeds of ours and of gensim in turn: scores, speed, memory
speed       one epoch on a quarter of that text, ours and gensim in turn, with 1 and 2 threads
map         nearest neighbours, and two maps by the two largest principal components

Without PART: all of them; text, speed and map need gensim (--peers: the folder that it was installed to). What is in
the results already is not measured again, so that a run can be cut by --minutes and gone on with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.fetch import fetch
from benchmarks.runs import Results
from examples.generated_relations import known_questions, sentences
from examples.programs import Parser, chosen, cost_of, measured, require_all, run, save_figure, table
from examples.word2vec import Options, Text, train
from examples.word_scores import Vectors, analogies, ratings, score, similarity
from examples.word_training import (
    FOLDER,
    MIN_COUNT,
    compare_scorers,
    gensim_models,
    saved_vectors,
    text_file,
    train_gensim,
    train_ours,
)  # fmt: skip
from foundling.errors import ConfigError

PARTS = ("generated", "published", "text", "speed", "map")
SEEDS = (1, 2, 3)
KINDS = {"skip-gram": False, "CBOW": True}
EPOCHS = 2
SAVED = FOLDER / "skip-gram.safetensors"
"""of the part text, which map draws"""
COLUMNS = {"analogies %": ".2f", "WordSim": ".3f", "SimLex": ".3f"}
COLUMNS |= {"words/s": ",", "words/cpu-s": ",", "peak memory (MB)": ","}
NEIGHBOURS = ("king", "river", "iron", "oak", "fever", "winter", "france", "red")
GROUPS = {
    "trees": "oak elm maple birch pine willow cedar poplar",
    "metals": "iron copper zinc silver gold lead tin nickel",
    "body": "arm leg hand foot knee shoulder wrist ankle",
    "family": "father mother brother sister son daughter uncle aunt",
    "time": "monday tuesday friday sunday january april july october",
}
CAPITALS = (
    "France Paris Germany Berlin Italy Rome Spain Madrid Russia Moscow England London Japan Tokyo Greece Athens "
    "Ireland Dublin Austria Vienna"
)


def generated(n_sentences: int, n_questions: int) -> dict[str, Any]:
    """Percent right of analogies, and what a guess reaches."""
    text, questions = Text(sentences(n_sentences)), known_questions(n_questions)
    result: dict[str, Any] = {"words": text.n_words, "vocabulary": len(text.words)}
    for kind, cbow in KINDS.items():
        vectors = Vectors.of(text.words, train(text, Options(cbow=cbow, width=50, epochs=5)))
        result[kind] = round(100 * analogies(vectors, questions)["accuracy"], 2)
    result["one-hot"] = round(100 * analogies(Vectors(text.words, None), questions)["accuracy"], 3)
    result["chance"] = round(100 / (len(text.words) - 3), 3)
    return result


def published_vectors() -> Vectors:
    """The tokens that are whole words, in the order of their ids (about that of frequency); in lower case where the
    vocabulary has the word so, else as it is written."""
    import json

    from safetensors.torch import load_file

    folder = fetch("wordllama") / "wordllama"
    vocabulary = json.loads((folder / "tokenizers" / "l2_supercat_tokenizer_config.json").read_text(encoding="utf-8"))
    vectors = load_file(folder / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
    ids = {
        token[1:]: at for token, at in vocabulary["model"]["vocab"].items() if token[0] == "▁" and token[1:].isalpha()
    }
    rows = {word.lower(): at for word, at in ids.items() if word.lower() == word or word.lower() not in ids}
    return Vectors.of(list(rows), vectors[list(rows.values())])


def royalty(vectors: Vectors) -> dict[str, Any]:
    plus, minus = ["king", "woman"], ["man"]
    return {"king − man + woman": vectors.nearest(plus, minus, 6), "rank of queen": vectors.rank("queen", plus, minus)}


def published() -> dict[str, Any]:
    vectors = published_vectors()
    return {
        "words": len(vectors.words),
        **royalty(vectors),
        "paris − france + italy": vectors.nearest(["paris", "italy"], ["france"], 5),
        **score(vectors),
    }


def one_hot(words: list[str]) -> dict[str, Any]:
    """Of WordSim-353's pairs one is a word with itself, tiger and tiger: the only one that one-hot vectors tell from
    the rest."""
    vectors = Vectors(words, None)
    different = [row for row in ratings("wordsim353.tsv") if row[0] != row[1]]
    return score(vectors) | {"WordSim of different words": similarity(vectors, different)["spearman"]}


def measure_text(results: Results, peers: Path | None) -> None:
    """Ours and gensim's in turn, so that what else the machine does falls on both."""
    if "scorers" not in results.values:
        gensim_models(peers)
    for seed in SEEDS:
        for kind, cbow in KINDS.items():
            o = Options(cbow=cbow, epochs=EPOCHS, seed=seed)
            save = FOLDER / f"{kind}.safetensors" if seed == SEEDS[0] else None
            results.get(
                f"{kind}, ours {seed}", lambda o=o, save=save: measured(train_ours, text_file(), o, save, threads=1)
            )
            results.get(f"{kind}, gensim {seed}", lambda o=o: measured(train_gensim, text_file(), o, peers, threads=1))
    if results.complete:
        results.get("one-hot", lambda: one_hot(saved_vectors(SAVED).words))
        results.get("scorers", lambda: compare_scorers(SAVED, peers))
        for kind in KINDS:
            results.values[f"{kind}, compared"] = compared(results, kind)
        results.save()


def compared(results: Results, kind: str) -> dict[str, Any]:
    """For each score the means over seeds, gensim's range, and whether the means differ by more than the noise: twice
    the standard error of a difference of means, from gensim's standard deviation over its seeds."""
    result: dict[str, Any] = {}
    for name in ("analogies %", "WordSim", "SimLex", "words/cpu-s", "words/s"):
        ours, theirs = (
            torch.tensor([float(results.values[f"{kind}, {who} {seed}"][name]) for seed in SEEDS])
            for who in ("ours", "gensim")
        )
        if "words" in name:
            result[name] = {"ratio": round(float(ours.mean() / theirs.mean()), 2)}
            continue
        noise = 2 * float(theirs.std()) * math.sqrt(2 / len(SEEDS))
        difference = float(ours.mean() - theirs.mean())
        result[name] = {
            "ours": round(float(ours.mean()), 4), "gensim": round(float(theirs.mean()), 4),
            "gensim's range": [round(float(theirs.min()), 4), round(float(theirs.max()), 4)],
            "difference": round(difference, 4), "noise": round(noise, 4), "not worse": difference >= -noise,
        }  # fmt: skip
    return result


def measure_speed(results: Results, peers: Path | None) -> None:
    if f"speed, {[*KINDS][-1]}, ratio to gensim's best" not in results.values:
        gensim_models(peers)
    file = text_file(every=4)
    for kind, cbow in KINDS.items():
        for threads in (1, 2):
            o = Options(cbow=cbow, epochs=1, threads=threads)
            name = f"speed, {kind}, threads {threads}"
            results.get(f"{name}, ours", lambda o=o: measured(train_ours, file, o, scored=False, threads=1))
            for source, in_memory in (("the file", False), ("lists", True)):
                options = {"scored": False, "in_memory": in_memory, "threads": 1}
                results.get(
                    f"{name}, gensim from {source}",
                    lambda o=o, options=options: measured(train_gensim, file, o, peers, **options),
                )
    if results.complete:
        for kind in KINDS:
            results.values[f"speed, {kind}, ratio to gensim's best"] = speed_ratio(results, kind)
        results.save()


def speed_ratio(results: Results, kind: str) -> dict[str, float]:
    """Each side at its best setting: words a second on the clock, and a second of the processor."""

    def best(side: str, unit: str) -> float:
        cells = [cell for name, cell in results.values.items() if name.startswith(f"speed, {kind}, t") and side in name]
        return max(cell[unit] for cell in cells)

    return {unit: round(best(", ours", unit) / best(", gensim", unit), 2) for unit in ("words/s", "words/cpu-s")}


def project(vectors: Vectors, words: Sequence[str]) -> Tensor:
    """(n, 2): the two largest principal components of the words' vectors."""
    assert vectors.unit is not None
    rows = vectors.unit[[vectors.index[word] for word in words]]
    centred = rows - rows.mean(0)
    return centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T


def neighbours(vectors: Vectors) -> dict[str, Any]:
    nearest = {word: [other for other, _ in vectors.nearest([word], [], 6)] for word in NEIGHBOURS}
    return {**nearest, **royalty(vectors)}


def draw_map(file: Path) -> None:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6))
    real, names = published_vectors(), CAPITALS.lower().split()
    pairs = [pair for pair in zip(names[::2], names[1::2], strict=True) if all(word in real.index for word in pair)]
    words = [word for pair in pairs for word in pair]
    points = project(real, words)
    for at in range(0, len(words), 2):
        left.plot(points[at : at + 2, 0], points[at : at + 2, 1], "o-", color=f"C{at // 2}", markersize=3)
    left.set_title("published vectors: countries and capitals")
    ours = saved_vectors(SAVED)
    groups = {name: [word for word in group.split() if word in ours.index] for name, group in GROUPS.items()}
    named = [(name, word) for name, group in groups.items() for word in group]
    places = project(ours, [word for _, word in named])
    for at, name in enumerate(groups):
        at_group = [i for i, (group, _) in enumerate(named) if group == name]
        right.plot(places[at_group, 0], places[at_group, 1], "o", color=f"C{at}", markersize=3, label=name)
    right.legend(fontsize=7)
    right.set_title("our skip-gram vectors: words of five groups")
    for axis, labels, where in ((left, words, points), (right, [word for _, word in named], places)):
        for label, (x, y) in zip(labels, where.tolist(), strict=True):
            axis.annotate(label, (x, y), fontsize=6.5, xytext=(2, 2), textcoords="offset points")
        axis.set(xlabel="first component", ylabel="second component")
    save_figure(figure, file)


def generated_table(entry: dict[str, Any]) -> str:
    rows = [["generated text", "right"], *([name, f"{entry[name]} %"] for name in (*KINDS, "one-hot"))]
    return table([*rows, [f"a guess among the other {entry['vocabulary'] - 3} words", f"{entry['chance']} %"]])


def results_table(values: dict[str, Any]) -> str:
    """Of all vectors that were scored, and all trainings that were timed."""
    rows = [["vectors", *COLUMNS]]
    for name, entry in values.items():
        if isinstance(entry, dict) and ("seconds" in entry or {"WordSim", "questions"} <= entry.keys()):
            rows.append([name, *(format(entry[key], form) if key in entry else "–" for key, form in COLUMNS.items())])
    return table(rows)


def main() -> None:
    parser = Parser("word_vectors", __doc__, small="the part generated alone, on a smaller text", seeds=False)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--peers", type=Path, help="the folder that gensim was installed to")
    args = parser.parse_args()
    parts = chosen(",".join(args.parts or (PARTS[:1] if args.small else PARTS)), PARTS, "PART")
    if args.small and parts != ["generated"]:
        raise ConfigError("--small has the part generated alone; leave out --small, or the other parts")
    if "map" in parts and "text" not in parts and not SAVED.exists():
        raise ConfigError("map draws the vectors that the part text trains; name text too")
    size = (10_000, 500) if args.small else (40_000, 5000)
    settings = {"generated": size, "text": asdict(Options(epochs=EPOCHS)), "seeds": SEEDS, "min_count": MIN_COUNT}
    results, picture = parser.results(args, settings)
    if "generated" in parts:
        results.get("generated", lambda: measured(generated, *size, threads=1))
    if "published" in parts:
        results.get("published (wordllama)", lambda: measured(published, threads=1))
    if "text" in parts:
        measure_text(results, args.peers)
    if "speed" in parts:
        measure_speed(results, args.peers)
    if "generated" in results.values:
        print("\n" + generated_table(results.values["generated"]))
    if not args.small:
        print("\n" + results_table(results.values))
    print("\n" + cost_of(results))
    require_all(results)
    if "map" in parts:
        results.get("neighbours", lambda: neighbours(saved_vectors(SAVED)))
        require_all(results)
        draw_map(picture.with_name("words.svg"))


if __name__ == "__main__":
    run(main)
