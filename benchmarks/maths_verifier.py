# SPDX-License-Identifier: Apache-2.0
"""The maths verifier on published solutions, and beside math-verify on labelled pairs.

python -m benchmarks.maths_verifier [--pairs 12] [--out docs/results/maths_verifier.json]

1. The solutions that lm-eval brings as few-shot examples: does the final answer of each equal its label? GSM8K's label
   is what lm-eval's own filter extracts; BBH's is the target of the same question in the task without reasoning;
   MMLU's is the option in parentheses at the end; MATH's (Minerva) is its last sentence.
2. Pairs of answers that are right or wrong by construction, in FAMILIES: `equal` of ours in both orders, and
   math-verify alone (`parse` of both in \\boxed{}, then `verify`), against the label.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import platform
import random
import re
import subprocess
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from benchmarks.fetch import PINNED, fetch
from foundling.verify.maths import equal, final_answer

Pair = tuple[str, str, str]
"""an answer, one that equals it, one that does not"""


class Loader(yaml.SafeLoader):
    """YAML of lm-eval, whose own tags (functions of Python) are read as null."""


Loader.add_multi_constructor("!", lambda *_: None)


# --- published solutions ----------------------------------------------------------------------------------------------


def samples(path: Path) -> list[dict[str, Any]]:
    return yaml.load(path.read_text(encoding="utf-8"), Loader)["fewshot_config"]["samples"]


def gsm8k(tasks: Path) -> Iterator[tuple[str, str]]:
    """lm-eval's filter "strict-match" gives the label, with the marks dropped that its metric ignores."""
    for name in ("gsm8k-cot", "gsm8k-cot-llama"):
        for sample in samples(tasks / "gsm8k" / f"{name}.yaml"):
            match = re.search(r"answer is (-?\$?[0-9.,]+)", sample["target"])
            assert match
            yield sample["target"], match[1].strip("$.").replace(",", "")


def bbh(tasks: Path) -> Iterator[tuple[str, str]]:
    for path in sorted((tasks / "bbh" / "cot_fewshot").glob("[!_]*.yaml")):
        labels = {sample["input"]: sample["target"] for sample in samples(tasks / "bbh" / "fewshot" / path.name)}
        yield from ((sample["target"], labels[sample["input"]]) for sample in samples(path))


def mmlu(tasks: Path) -> Iterator[tuple[str, str]]:
    for path in sorted((tasks / "mmlu" / "flan_cot_fewshot").glob("mmlu_*.yaml")):
        for sample in samples(path):
            match = re.search(r"\(([A-E])\)\W*$", sample["target"])
            assert match
            yield sample["target"], match[1]


def minerva(tasks: Path) -> Iterator[tuple[str, str]]:
    """Each solution twice: with the \\boxed{} alone, and with the last sentence alone."""
    tree = ast.parse((tasks / "minerva_math" / "utils.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict) and any(isinstance(k, ast.Constant) and k.value == "solution" for k in node.keys):
            try:
                solution = ast.literal_eval(node)["solution"]
            except ValueError:
                continue
            before, _, last = solution.rpartition("\n")
            match = re.search(r"\$(.*)\$", last)
            assert match
            yield before, match[1]
            yield last, match[1]


def published() -> dict[str, Any]:
    tasks, result = fetch("lm-eval") / "lm_eval" / "tasks", {}
    for read in (gsm8k, bbh, mmlu, minerva):
        pairs = list(read(tasks))
        wrong = [label for text, label in pairs if not equal(final_answer(text) or "", label)]
        result[read.__name__] = {"solutions": len(pairs), "agree": len(pairs) - len(wrong), "wrong": wrong}
    return result


def filters(tasks: Path, n: int) -> dict[str, int]:
    """Solutions in GSM8K's format with an answer at random: lm-eval's filters and ours against it."""
    names = {"strict": r"#### (\-?[0-9\.\,]+)", "flexible": r"(-?[$0-9.,]{2,})|(-?[0-9]+)"}
    patterns = {
        name: pattern
        for name, pattern in names.items()
        if pattern in (tasks / "gsm8k" / "gsm8k.yaml").read_text().replace("\\\\", "\\")
    }
    assert len(patterns) == 2, "lm-eval has other filters than these"
    rng, right = random.Random(0), dict.fromkeys(["ours", *patterns], 0)
    for _ in range(n):
        value = rng.randrange(-(10**6), 10**6)
        shown = rng.choice([f"{value:,}", str(value), f"{value}.", f"{value:,}.00"])
        text = f"He has 48/2 = <<48/2=24>>24 apples.\n#### {shown}"
        right["ours"] += final_answer(text) == str(value)
        for name, pattern in patterns.items():
            hits = re.findall(pattern, text)
            hit = next((part for part in hits[-1] if part), "") if hits and isinstance(hits[-1], tuple) else hits[-1]
            right[name] += re.sub(r",|\$|\.$", "", hit) == str(value)
    return {"solutions": n, **right}


# --- labelled pairs ---------------------------------------------------------------------------------------------------


def fraction_latex(rng: random.Random) -> Pair:
    top, bottom = rng.randrange(1, 50), rng.randrange(51, 99)
    return f"\\frac{{{top}}}{{{bottom}}}", f"{3 * top}/{3 * bottom}", f"\\frac{{{top + 1}}}{{{bottom}}}"


def decimal(rng: random.Random) -> Pair:
    value = Fraction(rng.randrange(1, 4000), 8)
    return f"{float(value)}", f"{value.numerator}/{value.denominator}", f"{float(value) + 0.125}"


def third(rng: random.Random) -> Pair:
    """A rounded decimal is another number than the fraction."""
    n = rng.choice([1, 2, 4, 5, 7, 8])
    return f"{n}/3", f"\\frac{{{2 * n}}}{{6}}", f"{n / 3:.2f}"


def separators(rng: random.Random) -> Pair:
    n = rng.randrange(10_000, 10**7)
    return str(n), f"{n:,}", f"{n + 1000:,}"


def latex_separators(rng: random.Random) -> Pair:
    n = rng.randrange(10_000, 10**7)
    return str(n), f"{n:,}".replace(",", ",\\!"), f"{n + 10:,}".replace(",", ",\\!")


def money(rng: random.Random) -> Pair:
    n = rng.randrange(2, 900)
    return str(n), f"\\${n}", f"\\${n + 1}"


def units(rng: random.Random) -> Pair:
    n = rng.randrange(2, 900)
    return str(n), f"{n}\\text{{ cm}}", f"{n * 10}\\text{{ cm}}"


def other_units(rng: random.Random) -> Pair:
    n = rng.randrange(2, 900)
    return f"{n} m", f"{100 * n} cm", f"{n} miles"


def percent(rng: random.Random) -> Pair:
    n = rng.randrange(1, 99)
    return f"{n}\\%", f"\\frac{{{n}}}{{100}}", f"\\frac{{{n}}}{{10}}"


def mixed(rng: random.Random) -> Pair:
    whole, bottom = rng.randrange(1, 20), rng.randrange(3, 12)
    return f"{whole}\\frac{{1}}{{{bottom}}}", f"{whole * bottom + 1}/{bottom}", f"{whole}/{bottom}"


def scientific(rng: random.Random) -> Pair:
    n, power = rng.randrange(11, 99), rng.randrange(2, 7)
    return f"{n / 10} \\times 10^{{{power}}}", str(n * 10 ** (power - 1)), f"{n / 10} \\times 10^{{{power + 1}}}"


def minus(rng: random.Random) -> Pair:
    n = rng.randrange(2, 900)
    return f"-{n}", f"−{n}", str(n)


def product(rng: random.Random) -> Pair:
    a, b = rng.randrange(1, 9), rng.randrange(1, 9)
    return f"(x+{a})(x-{b + a})", f"x^2 - {b}x - {a * (a + b)}", f"x^2 + {b}x - {a * (a + b)}"


def radical(rng: random.Random) -> Pair:
    a, b = rng.randrange(2, 9), rng.choice([2, 3, 5, 7])
    return f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}", f"\\sqrt{{{a * b}}}"


def rationalised(rng: random.Random) -> Pair:
    b = rng.choice([2, 3, 5, 6, 7, 10])
    return f"\\frac{{1}}{{\\sqrt{{{b}}}}}", f"\\frac{{\\sqrt{{{b}}}}}{{{b}}}", f"\\frac{{\\sqrt{{{b}}}}}{{{b + 1}}}"


def circle(rng: random.Random) -> Pair:
    n = rng.randrange(2, 30)
    return f"\\frac{{{n}\\pi}}{{4}}", f"{n}\\pi/4", f"\\frac{{{n}}}{{4}}"


def pair(rng: random.Random) -> Pair:
    a, b = rng.randrange(1, 20), rng.randrange(21, 40)
    return f"({a}, {b})", f"\\left({a},{b}\\right)", f"({b}, {a})"


def sets(rng: random.Random) -> Pair:
    a, b, c = rng.sample(range(1, 60), 3)
    return f"\\{{{a}, {b}, {c}\\}}", f"\\{{{c}, {a}, {b}\\}}", f"\\{{{a}, {b}\\}}"


def interval(rng: random.Random) -> Pair:
    a, b = rng.randrange(1, 20), rng.randrange(21, 40)
    return f"[{a},{b})", f"\\left[{a}, {b}\\right)", f"[{a},{b}]"


def inequality(rng: random.Random) -> Pair:
    a = rng.randrange(1, 50)
    return f"(-\\infty, {a})", f"x < {a}", f"x > {a}"


def assignment(rng: random.Random) -> Pair:
    a = rng.randrange(2, 50)
    return str(a), f"x = {a}", f"x = -{a}"


def line(rng: random.Random) -> Pair:
    a, b = rng.randrange(2, 9), rng.randrange(2, 9)
    return f"y = {a}x + {b}", f"y - {a}x = {b}", f"y = {a}x - {b}"


def trigonometry(rng: random.Random) -> Pair:
    a = rng.randrange(2, 9)
    return f"{a}\\sin^2 x + {a}\\cos^2 x", str(a), f"{a}\\sin x + {a}\\cos x"


def logarithm(rng: random.Random) -> Pair:
    base, power = rng.randrange(2, 6), rng.randrange(2, 6)
    return f"\\log_{{{base}}} {base**power}", str(power), str(power + 1)


def matrix(rng: random.Random) -> Pair:
    a, b = rng.randrange(1, 9), rng.randrange(1, 9)
    form = "\\begin{{pmatrix}} {} \\\\ {} \\end{{pmatrix}}"
    return form.format(a, b), form.format(f"\\frac{{{2 * a}}}{{2}}", b), form.format(a, b + 1)


def words(rng: random.Random) -> Pair:
    a, b = rng.sample(["Monday", "Tuesday", "Sunday", "blue", "yellow", "Evelyn", "even", "odd"], 2)
    return f"\\text{{{a}}}", a, f"\\text{{{b}}}"


def option(rng: random.Random) -> Pair:
    a, b = rng.sample("ABCDE", 2)
    return f"({a})", a, f"({b})"


def comma(rng: random.Random) -> Pair:
    n = rng.randrange(11, 99)
    return f"{n / 10}", f"{n / 10}".replace(".", ","), str(n)


def roots(rng: random.Random) -> Pair:
    a, b = rng.randrange(10, 40), rng.choice([2, 3, 5, 7])
    return f"{a} \\pm \\sqrt{{{b}}}", f"{a} + \\sqrt{{{b}}}, {a} - \\sqrt{{{b}}}", f"{a} + \\sqrt{{{b}}}"


def scaled(rng: random.Random) -> Pair:
    n, (name, size) = rng.randrange(2, 99), rng.choice([("hundred", 100), ("thousand", 1000), ("million", 10**6)])
    return str(n * size), f"{n}\\text{{ {name}}}", f"{n}\\text{{ billion}}"


def spelled(rng: random.Random) -> Pair:
    names = ["two", "three", "four", "five", "six", "seven", "eight", "nine"]
    a, b = rng.sample(range(2, 10), 2)
    return str(100 * a + b), f"\\text{{{names[a - 2]} hundred {names[b - 2]}}}", f"\\text{{{names[a - 2]}}}"


def repeating(rng: random.Random) -> Pair:
    n = rng.choice([10, 13, 16, 19, 23, 29, 31, 46, 47])
    return f"\\frac{{{n}}}{{99}}", f"0.\\overline{{{n}}}", f"0.{n}"


def degrees(rng: random.Random) -> Pair:
    angle, value = rng.choice([(30, "\\frac{\\sqrt{3}}{2}"), (60, "\\frac{1}{2}"), (45, "\\frac{\\sqrt{2}}{2}")])
    n = rng.randrange(2, 20)
    return f"{n} \\cos {angle}^\\circ", f"{n} \\cdot {value}", f"{n} \\cos {angle}"


FAMILIES: list[Callable[[random.Random], Pair]] = [
    fraction_latex, decimal, third, separators, latex_separators, money, units, other_units, percent, mixed, scientific,
    minus, product, radical, rationalised, circle, pair, sets, interval, inequality, assignment, line, trigonometry,
    logarithm, matrix, words, option, comma, roots, scaled, spelled, repeating, degrees,
]  # fmt: skip


def theirs(a: str, b: str) -> bool:
    from math_verify import parse, verify

    return bool(verify(parse(f"$\\boxed{{{a}}}$"), parse(f"$\\boxed{{{b}}}$")))


def labelled(n: int) -> dict[str, Any]:
    """`n` triples of each family: two pairs each, one right and one wrong."""
    rows, totals = {}, {"pairs": 0, "ours": 0, "ours_reversed": 0, "math_verify": 0, "ours_equals_math_verify": 0}
    for family in FAMILIES:
        rng, row = random.Random(family.__name__), dict.fromkeys(totals, 0)
        for _ in range(n):
            answer, right, wrong = family(rng)
            for other, label in ((right, True), (wrong, False)):
                ours, peer = equal(answer, other), theirs(answer, other)
                row["pairs"] += 1
                row["ours"] += ours == label
                row["ours_reversed"] += equal(other, answer) == label
                row["math_verify"] += peer == label
                row["ours_equals_math_verify"] += ours == peer
        rows[family.__name__] = row
        totals = {name: totals[name] + row[name] for name in totals}
    return {**totals, "families": rows}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=12, help="triples of each family")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    git = ["git", "rev-parse", "HEAD"]
    result = {
        "command": f"python -m benchmarks.maths_verifier --pairs {args.pairs}",
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "date": f"{datetime.date.today()}",
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "lm_eval": PINNED["lm-eval"].version,
        "published": published(),
        "gsm8k_filters": filters(fetch("lm-eval") / "lm_eval" / "tasks", 1000),
        "labelled": labelled(args.pairs),
    }
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
