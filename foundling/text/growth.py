# SPDX-License-Identifier: Apache-2.0
"""How much longer a tokenizer's file makes a text. A rule that doubles a letter is harmless; forty of them in a row are
not, so the product of all rules of a part is bounded before the tokenizer sees a text."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from typing import Any

from foundling.errors import WeightsError
from foundling.limits import GROWTH

PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
SEQUENCES = ("normalizers", "pretokenizers", "processors", "decoders")
"""the keys under which a Sequence of the tokenizers library keeps its steps"""


def check_growth(backend: Any, where: str) -> None:
    """WeightsError, naming the part of the tokenizer in the file `where`, that makes more than GROWTH characters of
    one, or has more steps."""
    for part in PARTS:
        component = getattr(backend, part)
        if component is None:
            continue
        steps = list(_steps(json.loads(component.__getstate__())))
        growth = math.prod(min(_growth(step), GROWTH.high + 1) for step in steps[: GROWTH.high])
        if growth > GROWTH.high or len(steps) > GROWTH.high:
            raise WeightsError(
                f"{where}: its {part} makes more than {GROWTH.high:,} characters or tokens of one, in {len(steps)} "
                "steps; no tokenizer in use does"
            )


def _steps(component: dict[str, Any]) -> Iterator[dict[str, Any]]:
    inner = next((component[key] for key in SEQUENCES if key in component), None)
    if inner is None:
        yield component
    for step in inner or ():
        yield from _steps(step)


def _growth(step: dict[str, Any]) -> float:
    """At most how many characters (or tokens, after encoding) a step makes of one; 1 where it makes none more."""
    kind = step.get("type")
    if kind == "Replace":
        return max(1.0, len(step["content"]) / max(1, len(step["pattern"].get("String", ""))))
    if kind == "Prepend":
        return 1 + len(step["prepend"])
    if kind == "Precompiled":  # SentencePiece's map: the length of a trie, the trie, and what its entries become
        data = base64.b64decode(step["precompiled_charsmap"])
        texts = data[4 + int.from_bytes(data[:4], "little") :]
        return max(1, *(len(text) for text in texts.split(b"\0")))
    if kind in ("ByteLevel", "Metaspace"):
        return 2  # a byte beyond ASCII is two in UTF-8; every word may get a ▁
    if kind == "TemplateProcessing":
        return max(_pieces(step, name) for name in ("single", "pair"))
    return 1


def _pieces(template: dict[str, Any], name: str) -> int:
    """Tokens and texts in a template."""
    special = {key: len(value["ids"]) for key, value in template["special_tokens"].items()}
    return max(1, sum(special.get(p["SpecialToken"]["id"], 1) if "SpecialToken" in p else 1 for p in template[name]))
