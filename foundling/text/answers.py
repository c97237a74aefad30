# SPDX-License-Identifier: Apache-2.0
"""Where the assistant's answers are in a conversation that a chat template renders, so that a loss counts them alone.

A template says it itself by {% generation %} blocks, as transformers reads them. Of any other, an answer is what
follows from the messages before it with the generation prompt, up to the special token that ends it; this holds only if
adding a message does not change what stands before, which is checked for every conversation.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from foundling.errors import FoundlingError, WeightsError
from foundling.limits import RENDERED_CHARS, TEMPLATE_BYTES, TEMPLATE_SECONDS
from foundling.runtime.limited import LimitedProcess, LimitError
from foundling.text.chat import compile_template, render_compiled
from foundling.text.tokenizer import Tokenizer

MARKS = ("\ue010\ue011\ue012", "\ue013\ue014\ue015")
"""private characters: a conversation that has them is not used"""
BLOCK = re.compile(r"{%[-+]?\s*generation\b")
RENDERINGS, CHARS = 64, 1 << 20
"""of one call of the process, about: a rendering takes at most some milliseconds"""
NO_ANSWER = "a chat without an answer"
REFUSED = "the chat template refuses a chat"
NO_PLACE = "the chat template does not say where the answers of a chat are"
WAY_OUT = (
    "give one answer a chat, mark the answers in the template by {% generation %} … {% endgeneration %}, or use "
    "--as seq2seq or --as text"
)


class Unusable(NamedTuple):
    """Why an example cannot be learnt from: the reason is counted, the detail explains it."""

    reason: str
    detail: str = ""
    too_long: bool = False


class Answered(NamedTuple):
    ids: list[int]
    mask: list[bool]
    """True for the tokens of answers, the one that ends each included"""


def chat_examples(
    tokenizer: Tokenizer,
    template: str,
    names: Mapping[str, str],
    chats: Sequence[Mapping[str, Any]],
    longest: int | None = None,
) -> list[Answered | Unusable]:
    """The tokens of each conversation {"messages", "tools"?} with the places of its answers; `names` as of render_chat.
    A message with "weight": 0 is not learnt. One of over `longest` tokens is unusable. WeightsError where the template
    is none."""
    rendered = render_answers(template, chats, names)
    usable = [i for i, one in enumerate(rendered) if not isinstance(one, Unusable)]
    out: list[Any] = list(rendered)
    encoded = tokenizer.encode_marked_batch([rendered[i][0] for i in usable])
    block = BLOCK.search(template) is not None
    for i, (ids, offsets) in zip(usable, encoded, strict=True):
        text, spans = rendered[i]
        if longest is not None and len(ids) > longest:
            out[i] = Unusable(f"a chat over {longest:,} tokens", f"one has {len(ids):,}; raise --seq-len", True)
        elif block:
            mask = [any(a <= start and stop <= b for a, b in spans) for start, stop in offsets]
            out[i] = Answered(ids, mask) if any(mask) else Unusable(NO_ANSWER, "no {% generation %} block is rendered")
        else:
            out[i] = _after_prompts(tokenizer, text, spans, ids, offsets)
    return out


def _after_prompts(
    tokenizer: Tokenizer, text: str, spans: Sequence[Sequence[int]], ids: list[int], offsets: Sequence[tuple[int, int]]
) -> Answered | Unusable:
    """The answers at `spans` (characters). A prompt has at inference the tokens of its text alone; where a token of
    the whole text joins a prompt with its answer, prompts and answers are encoded apart.

    Special tokens divide a text before anything else does, so a prompt is compared from the last one in it."""
    marks = [at for at, token in enumerate(ids) if token in tokenizer.special]
    stops = [offsets[at][1] for at in marks]
    last = [marks[at - 1] if (at := bisect_right(stops, start)) else 0 for start, _ in spans]
    tails = [text[offsets[at][0] : start] for at, (start, _) in zip(last, spans, strict=True)]
    prompts = [prompt for prompt, _ in tokenizer.encode_marked_batch(tails)]
    ends = [offset[1] for offset in offsets]
    places = [
        (at + len(prompt), bisect_right(ends, stop)) for at, prompt, (_, stop) in zip(last, prompts, spans, strict=True)
    ]
    if any(ids[at : at + len(prompt)] != prompt for at, prompt in zip(last, prompts, strict=True)):
        cuts = sorted({0, *(at for span in spans for at in span), len(text)})
        parts = [text[a:b] for a, b in pairwise(cuts)]
        pieces = [part for part, _ in tokenizer.encode_marked_batch(parts)]
        joined = [token for piece in pieces for token in piece]
        decode = tokenizer.backend.decode
        if decode(joined, skip_special_tokens=False) != decode(ids, skip_special_tokens=False):
            return Unusable("an answer whose first token joins the text before it", WAY_OUT)
        places_of = dict(zip(cuts[1:], accumulate(map(len, pieces)), strict=True)) | {0: 0}
        ids, places = joined, [(places_of[start], places_of[stop]) for start, stop in spans]
    mask = [False] * len(ids)
    for start, stop in places:
        while stop > start and ids[stop - 1] not in tokenizer.special and not tokenizer.decode([ids[stop - 1]]).strip():
            stop -= 1  # what the template writes after the token that ends the answer
        if stop == start or ids[stop - 1] not in tokenizer.special:
            return Unusable(NO_PLACE, f"no special token ends an answer; {WAY_OUT}")
        mask[start:stop] = [True] * (stop - start)
    return Answered(ids, mask)


# --- rendering -------------------------------------------------------------------------------------------------------


def render_answers(template: str, chats: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[Any]:
    """(text, [[start, stop], …] in characters) of each conversation, or why there is none."""
    out = list[Any]()
    for group in _groups(chats):
        try:
            out += _answers.call([template, dict(names), group])
        except LimitError:
            out += [_alone(template, names, chat) for chat in group]
    return [Unusable(*one["unusable"]) if "unusable" in one else (one["text"], one["spans"]) for one in out]


def _alone(template: str, names: Mapping[str, str], chat: Mapping[str, Any]) -> Any:
    try:
        return _answers.call([template, dict(names), [chat]])[0]
    except LimitError as error:
        return {"unusable": ["a chat that the chat template takes too long for", str(error)]}


def _groups(chats: Sequence[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """A conversation is rendered once or twice for each answer."""
    group, renderings, chars = list[dict[str, Any]](), 0, 0
    for chat in chats:
        messages = list(chat["messages"])
        n = 2 * sum(message.get("role") == "assistant" for message in messages)
        size = n * sum(len(str(message.get("content"))) for message in messages)
        if group and (renderings + n > RENDERINGS or chars + size > CHARS):
            yield group
            group, renderings, chars = [], 0, 0
        group.append({"messages": messages, "tools": chat.get("tools")})
        renderings, chars = renderings + n, chars + size
    if group:
        yield group


_answers = LimitedProcess(
    "foundling.text.answers:answers_here", memory=TEMPLATE_BYTES.high, seconds=TEMPLATE_SECONDS.high,
    answer=8 * RENDERED_CHARS.high, modules=("jinja2.sandbox", "jinja2.ext"),
)  # fmt: skip


def answers_here(values: list[Any]) -> list[dict[str, Any]]:
    """render_answers of one group, in this process."""
    template, names, chats = values
    out = list[dict[str, Any]]()
    for chat in chats:
        try:
            out.append(_answers_of(template, names, chat))
        except WeightsError:  # of the template itself
            raise
        except FoundlingError as error:
            out.append({"unusable": [REFUSED, str(error)]})
    return out


def _answers_of(template: str, names: Mapping[str, str], chat: Mapping[str, Any]) -> dict[str, Any]:
    weights = [message.get("weight", 1) for message in chat["messages"]]
    messages = [{key: value for key, value in message.items() if key != "weight"} for message in chat["messages"]]
    fields = {"tools": chat["tools"], "documents": None, **names}
    answers = [i for i, m in enumerate(messages) if m.get("role") == "assistant" and weights[i]]
    if not answers:
        return {"unusable": [NO_ANSWER, "no message is of the role 'assistant'"]}
    block = BLOCK.search(template) is not None
    compiled = compile_template(template, MARKS if block else ("", ""))

    def render(n: int, prompt: bool) -> str:
        return render_compiled(compiled, {"messages": messages[:n], "add_generation_prompt": prompt, **fields})

    whole = render(len(messages), False)
    if block:
        return _between_marks(whole, messages)
    spans = list[list[int]]()
    for i in answers:
        prompt, after = render(i, True), render(i + 1, False) if i + 1 < len(messages) else whole
        if not after.startswith(prompt) or not whole.startswith(after):
            number = answers.index(i) + 1
            return {
                "unusable": [NO_PLACE, f"it changes what stands before answer {number} of {len(answers)}; {WAY_OUT}"]
            }
        spans.append([len(prompt), len(after)])
    return {"text": whole, "spans": spans}


def _between_marks(marked: str, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A template writes both marks of a block or none; the text of a message that has them could move the answers."""
    contents = json.dumps(messages, ensure_ascii=False)
    if any(sign in contents for mark in MARKS for sign in mark):
        return {"unusable": ["a chat with private characters", "U+E010 to U+E015 stand for the places of answers"]}
    text, spans, start = "", list[list[int]](), None
    for part in re.split(f"({MARKS[0]}|{MARKS[1]})", marked):
        if part == MARKS[0]:
            start = len(text)
        elif part == MARKS[1] and start is not None:
            spans.append([start, len(text)])
        elif part not in MARKS:
            text += part
    return {"text": text, "spans": spans}
