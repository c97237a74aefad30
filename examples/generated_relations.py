# SPDX-License-Identifier: Apache-2.0
"""A text whose relations are known: each of N_CONCEPTS concepts has a word in each of N_FORMS forms, as king, queen and
kings are one concept in three forms.

Around a word stand words of its concept and words of its form, in random order among frequent words that mean nothing.
So a word's contexts are the sum of two parts, and a : b = c : d holds where a and b, c and d differ in form alone, and
a and c, b and d in concept alone. Nothing else in a word says either.
"""

from __future__ import annotations

import random

from examples.word_scores import Question

N_CONCEPTS, N_FORMS, N_CLUES, N_FILLERS = 24, 6, 6, 300


def sentences(n: int, seed: int = 0) -> list[list[str]]:
    draw = random.Random(f"sentences {seed}")
    fillers = [f"filler{at}" for at in range(N_FILLERS)]
    weights = [1 / (at + 1) for at in range(N_FILLERS)]
    result = []
    for _ in range(n):
        concept, form = draw.randrange(N_CONCEPTS), draw.randrange(N_FORMS)
        clues = [f"concept{concept}.{draw.randrange(N_CLUES)}" for _ in range(2)]
        clues += [f"form{form}.{draw.randrange(N_CLUES)}" for _ in range(2)]
        around = clues + draw.choices(fillers, weights, k=4)
        draw.shuffle(around)
        result.append([*around[:4], word(concept, form), *around[4:]])
    return result


def word(concept: int, form: int) -> str:
    return f"word{concept}.{form}"


def known_questions(n: int, seed: int = 0) -> dict[str, list[Question]]:
    draw = random.Random(f"questions {seed}")
    result: list[Question] = []
    for _ in range(n):
        (i, j), (f, g) = draw.sample(range(N_CONCEPTS), 2), draw.sample(range(N_FORMS), 2)
        result.append((word(i, f), word(i, g), word(j, f), word(j, g)))
    return {"generated": result}
