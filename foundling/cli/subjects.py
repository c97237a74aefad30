# SPDX-License-Identifier: Apache-2.0
"""Who is asked, as a command line names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SUBJECT = "directory of a model or adapter, hf://ORG/NAME, PROVIDER:MODEL or MODEL@URL, or an answers.jsonl"


def is_upstream(spec: str) -> bool:
    """Whether the words name a model behind an API, and no directory."""
    return not Path(spec).exists() and not spec.startswith("hf://") and ":" in spec


def is_local(spec: str) -> bool:
    """Whether the words name a model to load here."""
    return not spec.endswith(".jsonl") and not is_upstream(spec)


def load_subject(spec: str, **options: Any) -> Any:
    """`options`: those of evaluate.subjects.load_subject, for a directory."""
    if spec.endswith(".jsonl"):
        from foundling.evaluate.recorded import replay

        return replay(Path(spec))
    if is_upstream(spec):
        from foundling.evaluate.upstream import subject_of

        return subject_of(spec)
    from foundling.evaluate.subjects import load_subject

    return load_subject(spec, **options)


def chats(subject: Any) -> bool:
    """Whether it is asked in a conversation: behind an API, or with a chat template of its own."""
    framing = getattr(subject, "framing", None)
    return framing is None or framing.tokenizer.chat_template is not None
