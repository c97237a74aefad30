# SPDX-License-Identifier: Apache-2.0
"""What examples a model is finetuned on, and which columns hold them, as settings. This file imports no torch and no
pyarrow, so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Kind = Literal["chat", "text", "classify", "tag", "regress", "seq2seq", "preference", "prompt"]
"""chat: {"messages": [{"role", "content", …}], "tools"?} · text: {"text", "continues"?}, True for a piece that is not
the last of its text · classify: {"text", "label", "pair"?} · tag: {"words", "tags"} · regress: {"text", "value",
"pair"?} · seq2seq: {"source", "target"} · preference: {"messages", "completions": [the best, …, the worst]} ·
prompt: {"messages", "row"}, to be answered, and all fields of its row, which say what is right"""
KINDS: tuple[Kind, ...] = get_args(Kind)
PACKED: tuple[Kind, ...] = ("chat", "text")
"""kinds whose examples share rows, for a causal model"""
PROMPT: Kind = "prompt"
"""the kind that is read only where it is asked for: rows of any other kind have prompts too"""
PREFERENCE: Kind = "preference"
"""comparisons: the kind whose examples are encoded as several texts each, one for each completion"""


@dataclass(frozen=True)
class Columns:
    """Names of columns (None: detected)."""

    field: str | None = None
    """the text, chats, words, prompts or sources"""
    pair: str | None = None
    """the second text of a pair"""
    label: str | None = None
    """the class, value or tags"""
    target: str | None = None
    """the answer to a prompt, or the target of a source"""


@dataclass(frozen=True)
class Example:
    """One example; `id` is the name of its file with "#row", `fields` are those of its kind."""

    id: str
    fields: dict[str, Any]
    meta: dict[str, Any] = field(default_factory=dict)
