# SPDX-License-Identifier: Apache-2.0
"""How a text becomes ids to continue, where its answer ends, and how the answer becomes text again.

One object for generation and chat, by plain decoding or the engine. It does what transformers does with the same
directory: the tokenizer's own post-processor frames a text, the chat template frames a conversation, and an answer is
decoded as the continuation of its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foundling.errors import DataError, GenerationError
from foundling.text.answers import Answered, Unusable, chat_examples
from foundling.text.chat import render_chat
from foundling.text.tokenizer import Tokenizer

SEPARATOR = "\n"
"""after a source, whose target a model without an encoder learns to write on a line of its own"""
NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TextSpec:
    """What a model directory says of texts, beside its tokenizer."""

    ends: tuple[int, ...] = ()
    """ids that end an answer, by generation_config.json and config.json"""
    n_rows: int | None = None
    """of the model's embedding; more or fewer than the tokenizer has ids"""
    reads_source: bool = False
    """whether a prompt is a source of its own, whose answer begins anew (an encoder–decoder)"""
    chats: bool | None = None
    """whether the model was taught to answer; None where nothing says so"""
    fills_middle: bool | None = None
    """whether the model was taught to fill in the middle; None where nothing says so"""
    separator: str = ""
    """what stands between a source and its target, for a model without an encoder that was taught to answer sources"""
    reads_types: bool = True
    """whether the model is told which text of a pair a token is of"""
    virtual: tuple[int, ...] = ()
    """ids of a soft prompt, which stand before each text and stand for none (adapt/soft.py)"""


class AnswerDecoder:
    """Ids of an answer -> its text: decode(prompt + answer) without decode(prompt), so that a space that a tokenizer
    drops at the beginning of a text stays where the answer only continues one."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self.tokenizer, self.prompt = tokenizer, list(prompt)
        self.before = tokenizer.decode(self.prompt) if self.prompt else ""

    def __call__(self, ids: Sequence[int]) -> str:
        if not self.prompt:
            return self.tokenizer.decode(ids)
        whole = self.tokenizer.decode([*self.prompt, *ids])
        same = len(self.before)
        # shorter where the prompt ends inside a character, which the answer completes
        while not whole.startswith(self.before[:same]):
            same -= 1
        return whole[same:]


class Framing:
    """Of one tokenizer and what its model directory says of texts. What it encodes begins with a soft prompt."""

    def __init__(self, tokenizer: Tokenizer, spec: TextSpec | None = None) -> None:
        self.tokenizer, self.spec = tokenizer, spec or TextSpec()
        self.ends = tuple(dict.fromkeys([*self.spec.ends, tokenizer.eos]))
        """ids that end an answer"""

    def prompt(self, text: str) -> list[int]:
        """The ids to continue, or a source to answer, with the special tokens that the tokenizer puts around a text.
        An empty text that gets none begins with the tokenizer's bos or eos, as a document does. A model that was taught
        to answer sources gets what stood before a target in training: the separator, and nothing after it."""
        if self.spec.separator:
            return self.beginning(text + self.spec.separator)
        ids = self.tokenizer.encode_framed(text)
        opening = self.tokenizer.eos if self.tokenizer.bos is None else self.tokenizer.bos
        return [*self.spec.virtual, *(ids or [opening])]

    def beginning(self, text: str) -> list[int]:
        """The ids of a text that goes on: `prompt` without what the tokenizer puts after a text. They may be none."""
        _, last = self.tokenizer.frame
        ids = self.tokenizer.encode_framed(text)
        return [*self.spec.virtual, *ids[: len(ids) - len(last)]]

    def fill_in_the_middle(self, prefix: str, suffix: str) -> list[int]:
        """The ids to continue with what stands between. GenerationError where the tokenizer has no tokens for it."""
        if self.tokenizer.fim is None:
            raise GenerationError("the tokenizer has no fill-in-the-middle tokens; omit the suffix")
        before, after, middle = self.tokenizer.fim
        first, _ = self.tokenizer.frame
        ends = [before, *self.tokenizer.encode(prefix)], [after, *self.tokenizer.encode(suffix), middle]
        return [*self.spec.virtual, *first, *ends[0], *ends[1]]

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The ids of a conversation by the chat template, whose special tokens are recognised. DataError where there is
        no template or it refuses the messages."""
        return self.marked(self.render_chat(messages, tools=tools, add_generation_prompt=add_generation_prompt))

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The text that the chat template makes of a conversation, special tokens written out."""
        template, names = self._template, self._names
        return render_chat(template, messages, tools=tools, add_generation_prompt=add_generation_prompt, names=names)

    def marked(self, text: str) -> list[int]:
        """The ids of a text in which special tokens are written out; none are added."""
        return [*self.spec.virtual, *self.tokenizer.encode_marked(text)]

    def chat_examples(
        self, chats: Sequence[Mapping[str, Any]], longest: int | None = None
    ) -> list[Answered | Unusable]:
        """The ids of conversations {"messages", "tools"?} and which of them the answers are, to learn from. Those of
        an answer follow the ids that `chat` gives for what stands before it. DataError where there is no template."""
        return chat_examples(self.tokenizer, self._template, self._names, chats, longest)

    def chat_example(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None
    ) -> tuple[list[int], list[bool]]:
        """The ids of one conversation and which of them the answers are. DataError where that is not to be known."""
        (example,) = self.chat_examples([{"messages": messages, "tools": tools}])
        if isinstance(example, Unusable):
            raise DataError(f"{example.reason}: {example.detail}")
        return example.ids, example.mask

    @property
    def _template(self) -> str:
        if self.tokenizer.chat_template is None:
            raise DataError(
                "the model has no chat template (tokenizer_config.json, chat_template.jinja); give "
                "finetune one with --chat-template, such as --chat-template plain, or use --as text or --as seq2seq"
            )
        return self.tokenizer.chat_template

    @property
    def _names(self) -> dict[str, str]:
        return {name: text for name in NAMES if (text := self.tokenizer.name(name)) is not None}

    def answer(self, prompt: Sequence[int]) -> AnswerDecoder:
        virtual = set(self.spec.virtual)
        return AnswerDecoder(self.tokenizer, () if self.spec.reads_source else [i for i in prompt if i not in virtual])

    def stops(self, strings: Sequence[str]) -> list[int]:
        """Ids of the strings that are special tokens: they are no part of any text, so they are never found in one."""
        ids = (self.tokenizer.backend.token_to_id(text) for text in strings)
        return [i for i in ids if i is not None and i in self.tokenizer.special]

    def unnamed_rows(self) -> list[int]:
        """Rows of the model that stand for no token: a vocabulary padded to a round number."""
        return sorted(set(range(self.spec.n_rows or 0)) - self.tokenizer.ids)
