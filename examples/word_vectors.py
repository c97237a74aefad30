# SPDX-License-Identifier: Apache-2.0
"""Word vectors: one-hot, skip-gram and CBOW, beside gensim, and real published ones.

python -m examples.word_vectors [PART …] [--peers DIR] [--minutes 5] [--small] [--out FILE]

generated   analogies on a text whose relations are known (examples.generated_relations)
published   king − man + woman, analogies and similarity on the vectors of the package wordllama
text        skip-gram and CBOW on a real text, three seeds of ours and of gensim in turn: scores, speed, memory
speed       one epoch on a quarter of that text, ours and gensim in turn, with 1 and 2 threads
map         nearest neighbours, and two maps by the two largest principal components

Without PART: all of them; text, speed and map need gensim (--peers: the folder that it was installed to). What is in
the results already is not measured again, so that a run can be cut by --minutes and gone on with. --small: generated
alone, on a smaller text; its results go into the folder of the benchmarks' texts.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from benchmarks.fetch import fetch
from benchmarks.runs import DOCS, Results
from examples.generated_relations import known_questions, sentences
from examples.word2vec import Options, Text, train
from examples.word_scores import Vectors, analogies, ratings, score, similarity
from examples.word_training import (
    FOLDER,
    apart,
    compare_scorers,
    gensim_models,
    saved_vectors,
    text_file,
    train_gensim,
    train_ours,
)  # fmt: skip
from foundling.errors import ConfigError, FoundlingError

PARTS = ("generated", "published", "text", "speed", "map")
SEEDS = (1, 2, 3)
KINDS = {"skip-gram": False, "CBOW": True}
EPOCHS = 2
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


def generated(small: bool) -> dict[str, Any]:
    """Percent right of analogies, and what a guess reaches."""
    text, questions = Text(sentences(10_000 if small else 40_000)), known_questions(500 if small else 5000)
    result: dict[str, Any] = {"words": text.n_words, "vocabulary": len(text.words)}
    for kind, cbow in KINDS.items():
        table = train(text, Options(cbow=cbow, width=50, epochs=5))
        result[kind] = round(100 * analogies(Vectors.of(text.words, table), questions)["accuracy"], 2)
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
    table = load_file(folder / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
    ids = {
        token[1:]: at for token, at in vocabulary["model"]["vocab"].items() if token[0] == "▁" and token[1:].isalpha()
    }
    chosen = {word.lower(): at for word, at in ids.items() if word.lower() == word or word.lower() not in ids}
    return Vectors.of(list(chosen), table[list(chosen.values())])


def royalty(vectors: Vectors) -> dict[str, Any]:
    given = ["king", "woman"], ["man"]
    return {"king − man + woman": vectors.nearest(*given, 6), "rank of queen": vectors.rank("queen", *given)}


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
    for seed in SEEDS:
        for kind, cbow in KINDS.items():
            o = Options(cbow=cbow, epochs=EPOCHS, seed=seed)
            save = FOLDER / f"{kind}.safetensors" if seed == SEEDS[0] else None
            results.get(f"{kind}, ours {seed}", lambda o=o, save=save: apart(train_ours, text_file(), o, save))
            results.get(f"{kind}, gensim {seed}", lambda o=o: apart(train_gensim, text_file(), o, peers))
    if results.complete:
        results.get("one-hot", lambda: one_hot(saved_vectors(FOLDER / "skip-gram.safetensors").words))
        results.get("scorers", lambda: compare_scorers(FOLDER / "skip-gram.safetensors", peers))
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
    file = text_file(every=4)
    for kind, cbow in KINDS.items():
        for threads in (1, 2):
            o = Options(cbow=cbow, epochs=1, threads=threads)
            name = f"speed, {kind}, threads {threads}"
            results.get(f"{name}, ours", lambda o=o: apart(_ours_unscored, file, o))
            results.get(f"{name}, gensim from the file", lambda o=o: apart(_gensim_unscored, file, o, peers, False))
            results.get(f"{name}, gensim from lists", lambda o=o: apart(_gensim_unscored, file, o, peers, True))
    if results.complete:
        for kind in KINDS:
            results.values[f"speed, {kind}, ratio to gensim's best"] = speed_ratio(results, kind)
        results.save()


def _ours_unscored(file: Path, o: Options) -> dict[str, Any]:
    return train_ours(file, o, scored=False)


def _gensim_unscored(file: Path, o: Options, peers: Path | None, in_memory: bool) -> dict[str, Any]:
    return train_gensim(file, o, peers, scored=False, in_memory=in_memory)


def speed_ratio(results: Results, kind: str) -> dict[str, float]:
    """Each side at its best setting: words a second on the clock, and a second of the processor."""
    result = {}
    for unit in ("words/s", "words/cpu-s"):
        sides = [
            max(
                entry[unit]
                for name, entry in results.values.items()
                if name.startswith(f"speed, {kind}, t") and who in name
            )
            for who in (", ours", ", gensim")
        ]
        result[unit] = round(sides[0] / sides[1], 2)
    return result


def project(vectors: Vectors, words: Sequence[str]) -> Tensor:
    """(n, 2): the two largest principal components of the words' vectors."""
    assert vectors.unit is not None
    chosen = vectors.unit[[vectors.index[word] for word in words]]
    centred = chosen - chosen.mean(0)
    return centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T


def neighbours(vectors: Vectors) -> dict[str, Any]:
    nearest = {word: [other for other, _ in vectors.nearest([word], [], 6)] for word in NEIGHBOURS}
    return {**nearest, **royalty(vectors)}


def draw_map(file: Path) -> None:
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "words"
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6))
    known, names = published_vectors(), CAPITALS.lower().split()
    pairs = [pair for pair in zip(names[::2], names[1::2], strict=True) if all(word in known.index for word in pair)]
    words = [word for pair in pairs for word in pair]
    points = project(known, words)
    for at in range(0, len(words), 2):
        left.plot(points[at : at + 2, 0], points[at : at + 2, 1], "o-", color=f"C{at // 2}", markersize=3)
    left.set_title("published vectors: countries and capitals")
    ours = saved_vectors(FOLDER / "skip-gram.safetensors")
    groups = {name: [word for word in group.split() if word in ours.index] for name, group in GROUPS.items()}
    named = [(name, word) for name, group in groups.items() for word in group]
    places = project(ours, [word for _, word in named])
    for at, name in enumerate(groups):
        chosen = [i for i, (group, _) in enumerate(named) if group == name]
        right.plot(places[chosen, 0], places[chosen, 1], "o", color=f"C{at}", markersize=3, label=name)
    right.legend(fontsize=7)
    right.set_title("our skip-gram vectors: words of five groups")
    for axis, labels, where in ((left, words, points), (right, [word for _, word in named], places)):
        for label, (x, y) in zip(labels, where.tolist(), strict=True):
            axis.annotate(label, (x, y), fontsize=6.5, xytext=(2, 2), textcoords="offset points")
        axis.set(xlabel="first component", ylabel="second component")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def table(values: dict[str, Any]) -> str:
    lines = [
        f"{'vectors':24} {'analogies %':>11} {'WordSim':>8} {'SimLex':>7} {'words/s':>9} {'words/cpu-s':>11} {'MB':>6}"
    ]
    for name, entry in values.items():
        if isinstance(entry, dict) and "analogies %" in entry and "WordSim" in entry and not name.endswith("compared"):
            speed = (
                f"{entry['words/s']:9,} {entry['words/cpu-s']:11,} {entry['peak memory (MB)']:6}"
                if "words/s" in entry
                else ""
            )
            lines.append(
                f"{name:24} {entry['analogies %']:11.2f} {entry['WordSim']:8.3f} {entry['SimLex']:7.3f} {speed}"
            )
    return "\n".join(lines)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; --help says more\n")


def measure(args: argparse.Namespace) -> Results:
    parts = args.parts or (PARTS[:1] if args.small else PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        raise ConfigError(f"no part is called {unknown[0]!r}; there are {', '.join(PARTS)}")
    if args.small and [*parts] != ["generated"]:
        raise ConfigError("--small has the part generated alone; leave out --small, or the other parts")
    if args.out.suffix != ".json" or not args.out.parent.is_dir():
        raise ConfigError(f"--out is '{args.out}', expected a file that ends in .json, in a folder that exists")
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not args.minutes > 0:
        raise ConfigError(f"--minutes is {args.minutes}, expected more than 0")
    if {"text", "speed"} & {*parts}:
        gensim_models(args.peers)
    if "map" in parts and "text" not in parts and not (FOLDER / "skip-gram.safetensors").exists():
        raise ConfigError("map draws the vectors that the part text trains; name text too")
    out = FOLDER / "small.json" if args.small and args.out == OUT else args.out
    if args.small and args.out == OUT:
        out.unlink(missing_ok=True)
    results = Results("word_vectors", out, minutes=args.minutes)
    if "generated" in parts:
        results.get("generated, small" if args.small else "generated", lambda: generated(args.small))
    if "published" in parts:
        results.get("published (wordllama)", published)
    if "text" in parts:
        measure_text(results, args.peers)
    if "speed" in parts:
        measure_speed(results, args.peers)
    if "map" in parts and results.complete:
        results.get("neighbours", lambda: neighbours(saved_vectors(FOLDER / "skip-gram.safetensors")))
        draw_map(args.out.with_name("words.svg") if args.out != OUT else DOCS / "words.svg")
    return results


OUT = DOCS / "results" / "word_vectors.json"


def main(arguments: list[str] | None = None) -> int:
    parser = Parser("python -m examples.word_vectors", allow_abbrev=False, description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--peers", type=Path, help="the folder that gensim was installed to")
    parser.add_argument("--minutes", type=float, default=5, help="begin no measurement after so many")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file of the results")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        results = measure(args)
    except FoundlingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(results.values))
    if not results.complete:
        print("not all was measured; call it again to go on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
