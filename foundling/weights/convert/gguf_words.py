# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's names of pre-tokenizers (llama-vocab.cpp): the patterns, one after another, by which a text is cut into
words before bytes are merged. Where llama.cpp adapts a published pattern, the published one stands here."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Regex, pre_tokenizers

from foundling.text.tokenizer import WORDS

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"
GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",)
"""What ByteLevel of the tokenizers library cuts by itself."""
DIGIT, DIGITS = r"\p{N}", r"\p{N}{1,3}"
LLAMA3 = (rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}{{1,3}}|{REST}",)
QWEN2 = (rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}|{REST}",)
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
HAN = "[一-龥぀-ゟ゠-ヿ]+"
DEEPSEEK3 = (
    DIGITS, HAN,
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + SPACES,
)  # fmt: skip
CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ"
    "Ὗ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-"
    "Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
"""Letters that have a case, as DeepSeek's first tokenizer lists them."""
SENTENCES = " ?[^(\\s|.,!?…。，、।۔،)]+"


def _cased(end: str, digits: str) -> tuple[str, ...]:
    """Words that begin anew at a capital, as of GPT-4o; `end`: what may follow one."""
    word = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{word}[{UPPER}]*[{LOWER}]+{end}|{word}[{UPPER}]+[{LOWER}]*{end}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}",
    )


PATTERNS: dict[str, tuple[str, ...]] = {
    "gpt-2": GPT2,
    "llama-bpe": LLAMA3,
    "qwen2": QWEN2,
    "smollm": (DIGIT, *GPT2),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", *GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", *GPT2, "[0-9][0-9][0-9]"),
    "deepseek-coder": ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGIT),
    "deepseek-llm": (
        "[\r\n]", rf"\s?[{CASED}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+", r"\p{N}+",
    ),
    "deepseek-v3": DEEPSEEK3,
    "gpt-4o": _cased(CONTRACTIONS + "?", DIGITS),
    "tekken": _cased("", DIGIT),
    "bloom": (SENTENCES,),
    "viking": (SENTENCES, DIGIT),
    "qwen35": (
        rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
        rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}",
    ),
    "seed-coder": (rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACES}",),
    "bailingmoe": (
        rf"'(?i:[sdmt]|ll|ve|re)|{LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    ),
    "minicpm5": (DIGITS, rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}+|{REST}"),
    "foundling": (WORDS,),
}  # fmt: skip
"""name -> patterns; the last is our own and has no name in llama.cpp"""
SAME = {
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 dbrx smaug-bpe chatglm-bpe glm4 glm5",
    "gpt-2": "gpt2 phi-2 gigachat a.x-4.0 mellum modern-bert jina-es jina-de jina-v2-es jina-v2-de mpt olmo jais "
    "trillion granite-docling exaone4",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b mellum2",
    "qwen2": "deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan solar-open grok-2",
    "deepseek-v3": "hunyuan-dense joyai-llm",
    "gpt-4o": "llama4 kanana2 minimax-m2",
    "bloom": "poro-chat gpt3-finnish",
    "bailingmoe": "bailingmoe2 llada-moe",
}
"""name -> others with its patterns"""
NAMES = {name: name for name in PATTERNS} | {other: name for name, others in SAME.items() for other in others.split()}
WHOLE_WORDS = frozenset(
    [
        "llama-bpe",
        "llama3",
        "llama-v3",
        "falcon3",
        "falcon-h1",
        "pixtral",
        "midm-2.0",
        "lfm2",
        "glm4",
        "glm5",
        "tekken",
        "minicpm5",
    ]
)
"""names where a word that is a token is not put together by merges"""
ADDS_BOS = WHOLE_WORDS - {"glm4", "glm5", "minicpm5"}
"""names where llama.cpp begins a text with bos if the file does not say"""
OWN = "foundling"


def pre_tokenizer(patterns: tuple[str, ...]) -> Any:
    """Cuts by the patterns, then writes bytes as characters."""
    own, digit = patterns[-1:] == GPT2, patterns[:1] == (DIGIT,)
    parts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digit else []
    parts += [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns[digit : len(patterns) - own]]
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own)])


def pre_name(backend: Any) -> str | None:
    """The name of a tokenizer's pre-tokenizer: llama.cpp's, or OWN; None where PATTERNS has none."""
    table = json.loads(backend.to_str())
    parts, patterns = table["pre_tokenizer"] or {}, []
    for part in parts.get("pretokenizers", [parts]):
        if part.get("type") == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
            patterns.append(part["pattern"].get("Regex"))
        elif part.get("type") == "Digits" and part.get("individual_digits"):
            patterns.append(DIGIT)
        elif part.get("type") == "ByteLevel" and not part.get("add_prefix_space"):
            patterns += GPT2 if part.get("use_regex", True) else ()
        else:
            return None
    whole = bool(table["model"].get("ignore_merges"))
    found = (name for name in NAMES if PATTERNS[NAMES[name]] == tuple(patterns) and (name in WHOLE_WORDS) == whole)
    return next(found, None)
