# SPDX-License-Identifier: Apache-2.0
"""IFBench's kinds that look at words (Pyatkin et al. 2025, "Generalizing Verifiable Instruction Following")."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

from foundling.verify.instruction_kinds.kind import Kind
from foundling.verify.instruction_kinds.verbs import is_verb
from foundling.verify.instruction_kinds.wording import (
    PUNCTUATION,
    is_japanese,
    joined_words,
    sentences,
    syllables,
    tokens,
    without_punctuation,
)


def alphabet(text: str, prompt: str) -> bool:
    """Each word begins with the next letter of the alphabet, a follows z."""
    letters = [word[0] for word in without_punctuation(text).lower().split()]
    if not letters or not all("a" <= letter <= "z" for letter in letters):
        return False
    return all((ord(b) - ord(a)) % 26 == 1 for a, b in pairwise(letters))


def vowel(text: str, prompt: str) -> bool:
    """One paragraph whose words have at most three of the five vowels."""
    return "\n" not in text.strip() and len(set(text.lower()) & set("aeiou")) <= 3


def consonants(text: str, prompt: str) -> bool:
    """Each word has two consonants in a row; y is one."""
    cluster = re.compile("[bcdfghjklmnpqrstvwxyz]{2}")
    clean = [word for word in text.lower().split() if any(c.isalpha() for c in word)]
    return bool(clean) and all(cluster.search(word) for word in clean)


def palindrome(text: str, prompt: str) -> bool:
    """Ten words of five letters or more that read the same from behind."""
    return sum(len(w) >= 5 and w == w[::-1] for w in without_punctuation(text).lower().split()) >= 10


def prime_lengths(text: str, prompt: str) -> bool:
    lengths = {len(word) for word in without_punctuation(text).split()}
    return bool(lengths) and all(n > 1 and all(n % d for d in range(2, int(n**0.5) + 1)) for n in lengths)


def start_verb(text: str, prompt: str) -> bool:
    first = joined_words(text)[:1]
    return bool(first) and is_verb(first[0])


def repeats(text: str, prompt: str, small_n: int) -> bool:
    """No word more than `small_n` times."""
    return max(Counter(without_punctuation(text.lower()).split()).values(), default=0) <= small_n


def odd_even_syllables(text: str, prompt: str) -> bool:
    parities = [syllables(word) % 2 for word in without_punctuation(text).lower().split()]
    return all(a != b for a, b in pairwise(parities))


def last_first(text: str, prompt: str) -> bool:
    """The last word of each sentence is the first of the next."""
    ends = [tokens(sentence) for sentence in sentences(text)]
    return all(a and b and a[-1] == b[0] for a, b in pairwise(ends))


def paragraph_last_first(text: str, prompt: str) -> bool:
    """Each line that is not empty ends with the word that it begins with."""
    lines = [tokens(line) for line in text.split("\n") if line.strip()]
    return all(line and line[0] == line[-1] for line in lines)


def no_consecutive(text: str, prompt: str) -> bool:
    """No two neighbouring words begin with the same letter."""
    return all(a[0] != b[0] for a, b in pairwise(without_punctuation(text.lower()).split()))


def keywords_specific_position(text: str, prompt: str, keyword: str, n: int, m: int) -> bool:
    """`keyword` is word `m` of sentence `n`, both counted from 1."""
    parts = sentences(text)
    if not 1 <= n <= len(parts):
        return False
    words = joined_words(parts[n - 1])
    return 1 <= m <= len(words) and words[m - 1].casefold() == keyword.strip().casefold()


def words_position(text: str, prompt: str, keyword: str) -> bool:
    """The second word, and the second to last."""
    words = [word.casefold() for word in joined_words(text)]
    return len(words) > 1 and words[1] == words[-2] == keyword.strip().casefold()


def words_japanese(text: str, prompt: str, N: int) -> bool:
    """Every N-th word has Japanese characters; a number or a mark may stand there as well."""
    every = [word.strip(PUNCTUATION) for word in text.split()[N - 1 :: N]] if N else []
    return bool(every) and all(not word or word.isdigit() or is_japanese(word) for word in every)


def alliteration_increment(text: str, prompt: str) -> bool:
    """More words in each sentence stand in runs of one first letter than in the sentence before."""
    before = -1
    for sentence in sentences(text):
        letters = [token[0] for token in tokens(sentence)]
        same = [False, *(a == b for a, b in pairwise(letters)), False]
        count = sum(left or right for left, right in pairwise(same))
        if count <= before:
            return False
        before = count
    return True


def increment(text: str, prompt: str, small_n: int) -> bool:
    """Each sentence has exactly `small_n` words more than the one before."""
    counts = [len(without_punctuation(sentence).split()) for sentence in sentences(text)]
    return all(b - a == small_n for a, b in pairwise(counts))


def keyword(text: str, prompt: str, word: str, N: int) -> bool:
    """Sentence N, counted from 1, has the word."""
    parts = sentences(text)
    return 1 <= N <= len(parts) and word.strip().casefold() in parts[N - 1].casefold()


KINDS = {
    "words:alphabet": Kind(alphabet, {}),
    "words:vowel": Kind(vowel, {}),
    "words:consonants": Kind(consonants, {}),
    "words:palindrome": Kind(palindrome, {}),
    "words:prime_lengths": Kind(prime_lengths, {}),
    "words:start_verb": Kind(start_verb, {}),
    "words:repeats": Kind(repeats, {"small_n": "count"}),
    "words:odd_even_syllables": Kind(odd_even_syllables, {}),
    "words:last_first": Kind(last_first, {}),
    "words:paragraph_last_first": Kind(paragraph_last_first, {}),
    "words:no_consecutive": Kind(no_consecutive, {}),
    "words:keywords_specific_position": Kind(
        keywords_specific_position, {"keyword": "text", "n": "count", "m": "count"}
    ),
    "words:words_position": Kind(words_position, {"keyword": "text"}),
    "count:words_japanese": Kind(words_japanese, {"N": "count"}),
    "sentence:alliteration_increment": Kind(alliteration_increment, {}),
    "sentence:increment": Kind(increment, {"small_n": "count"}),
    "sentence:keyword": Kind(keyword, {"word": "text", "N": "count"}),
}
