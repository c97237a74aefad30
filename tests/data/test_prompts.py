# SPDX-License-Identifier: Apache-2.0
"""Prompts from files, to be answered: what rows are read, what says what is right, what is left out and counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from foundling.data.encode import Encoder, example_lengths, suggest_seq_len
from foundling.data.encoded import EncodedExamples, encode_examples
from foundling.data.examples import Examples, ingest_examples
from foundling.data.kinds import Columns, Example
from foundling.data.layouts import detect
from foundling.data.streams import Skip
from foundling.errors import ConfigError, DataError, WeightsError
from foundling.text.chat import TEMPLATES
from foundling.text.framing import Framing
from foundling.text.tokenizer import Tokenizer
from tests.text.kinds import TEXTS

ASKED = {"role": "user", "content": "Add 1 and 2."}
ANSWER = {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "Be brief."}
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
)
"""refuses what Gemma's template does"""


@pytest.fixture(scope="module")
def framing() -> Framing:
    return Framing(Tokenizer.train(TEXTS, 384).with_chat_template(TEMPLATES["plain"]))


def read(row: dict[str, Any], **columns: str) -> Any:
    layout = detect([row], "prompt", Columns(**columns))
    assert layout.kind == "prompt"
    return layout.convert(row)


def prompts(*contents: str, **more: Any) -> list[Example]:
    fields = [{"messages": [{"role": "user", "content": text}], "row": {"prompt": text, **more}} for text in contents]
    return [Example(str(i), one) for i, one in enumerate(fields)]


def ingested(folder: Path, rows: list[dict[str, Any]], **more: Any) -> Examples:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ingest_examples(folder / "data.jsonl", folder / "examples", kind="prompt", **more)


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Add 1 and 2."},
        {"question": "Add 1 and 2."},
        {"messages": [ASKED]},
        {"messages": [ASKED, ANSWER]},
        {"messages": [ASKED, ANSWER, {**ANSWER, "content": "5"}]},
        {"conversations": [{"from": "human", "value": "Add 1 and 2."}, {"from": "gpt", "value": "4"}]},
        {"prompt": "\n\nHuman: Add 1 and 2.\n\nAssistant:"},
    ],
)
def test_the_usual_rows_are_read_and_answers_are_left_out(row: dict[str, Any]) -> None:
    fields = read(row)
    assert fields["messages"] == [ASKED] and fields["row"]["prompt"] == "Add 1 and 2." and "answer" not in fields["row"]


def test_earlier_turns_and_a_system_prompt_stay() -> None:
    turns = [ASKED, ANSWER, {"role": "user", "content": "And 3?"}]
    fields = read({"messages": [SYSTEM, *turns], "system": "Be kind."})
    assert fields["messages"] == [{**SYSTEM, "content": "Be kind."}, *turns] and fields["row"]["prompt"] == "And 3?"
    assert read({"prompt": "Add 1 and 2.", "system_prompt": "Be brief."})["messages"] == [SYSTEM, ASKED]
    assert read({"prompt": "Add 1 and 2.", "system": " "})["messages"] == [ASKED]


def test_columns_can_be_named() -> None:
    row = {"prompt": "a", "ask": "Add 1 and 2.", "gold": "3", "answer": "the own one"}
    fields = read(row, field="ask", target="gold")
    assert fields["messages"] == [ASKED] and fields["row"]["answer"] == "3" and fields["row"]["gold"] == "3"
    assert read({"prompt": "Add 1 and 2.", "completion": "3"}, target="completion")["row"]["answer"] == "3"
    with pytest.raises(ConfigError, match="--target 'golds': there is no such column, the nearest is 'gold'"):
        read(row, target="golds")
    with pytest.raises(ConfigError, match=r"hold no prompts: name them with --target, --field"):
        read({"a": "b"})


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ({"answer": "3", "solution": "1 + 2 = 3"}, "3"),
        ({"solution": "3"}, "3"),
        ({"target": 3.0}, 3.0),
        ({"answer": ["3", "three"]}, ["3", "three"]),
        ({"completion": "Sure!"}, None),
        ({"response": "Sure!", "output": "3", "answers": {"text": ["3"]}}, None),
        ({"completion": "Sure!", "answer": "3"}, "3"),
        ({"answer": {"value": "3"}, "solution": "1 + 2 = 3"}, {"value": "3"}),
        ({"solution": {"steps": ["1 + 2"]}, "target": "3"}, "3"),
        ({"solution": True}, None),
    ],
)
def test_only_a_column_that_says_so_is_what_is_right(row: dict[str, Any], right: Any) -> None:
    """A completion may be any text that someone wrote; what stands in `answer` stays."""
    fields = read({"prompt": "Add 1 and 2.", **row})
    assert fields["row"].get("answer") == right
    assert fields["row"] == {"prompt": "Add 1 and 2.", **row, **({} if right is None else {"answer": right})}


@pytest.mark.parametrize("row", [{"prompt": " "}, {"messages": [ANSWER]}, {"prompt": "", "system": "Be brief."}])
def test_an_empty_prompt_is_skipped(row: dict[str, Any]) -> None:
    layout = detect([{**row, "prompt": "a"} if "prompt" in row else row], "prompt")
    skip = layout.convert(row)
    assert isinstance(skip, Skip) and skip.reason == "an empty prompt"


@pytest.mark.parametrize("same", [{}, {"system": "Be brief."}])
def test_equal_prompts_are_on_one_side(same: dict[str, str], tmp_path: Path) -> None:
    """Rows that differ in other fields only."""
    rows = [{"prompt": f"say {i % 12}", "answer": f"{i}", **same} for i in range(48)]
    examples = ingested(tmp_path, rows)
    learnt, held_out = (
        {e.fields["messages"][-1]["content"] for e in part} for part in (examples.train, examples.held_out)
    )
    assert learnt and held_out and not learnt & held_out
    assert examples.removed["example of a prompt that is held out"] > 0


# --- tokens ----------------------------------------------------------------------------------------------------------


def encoded(folder: Path, rows: list[dict[str, Any]], framing: Framing, seq_len: int) -> EncodedExamples:
    return encode_examples(folder / "tokens", ingested(folder, rows), framing, seq_len=seq_len)


def test_the_chosen_length_holds_prompts_of_any_one_length(framing: Framing) -> None:
    """A prompt of 8 k + 1 tokens takes so many positions: no answer begins before its last."""
    seen = set[int]()
    for n in range(16):
        examples = prompts(*["a " * n + "cat"] * 8)
        n_tokens = len(framing.chat(examples[0].fields["messages"]))
        lengths = example_lengths(examples, "prompt", framing, 128)
        assert lengths.tolist() == [n_tokens] * len(lengths)
        encoder = Encoder("prompt", framing, suggest_seq_len(lengths, 128))
        assert len(list(encoder(examples))) == 8 and not encoder.skipped
        seen.add(n_tokens % 8)
    assert 1 in seen


def test_too_long_prompts_are_skipped_and_counted(framing: Framing, tmp_path: Path) -> None:
    rows = [{"prompt": f"say {i} " + "cat " * (60 if i % 4 == 0 else 1)} for i in range(40)]
    split = encoded(tmp_path, rows, framing, 32)
    assert split.skipped == {"a prompt over 32 tokens": 10}
    for i in range(len(split.train)):
        example = split.train.example(i)
        assert 0 < len(example["tokens"]) <= 32 and not example["mask"].any()


def test_prompts_that_the_template_refuses_are_counted(framing: Framing) -> None:
    strict = Framing(framing.tokenizer.with_chat_template(STRICT))
    refused = [[SYSTEM, ASKED], [ASKED, ASKED]]
    examples = prompts("a", "b") + [Example("x", {"messages": m, "row": {"prompt": "a"}}) for m in refused]
    encoder = Encoder("prompt", strict, 64)
    assert [place for place, _ in encoder(examples)] == [0, 1]
    assert encoder.skipped == {"the chat template refuses a chat": 2}
    assert "System role not supported" in encoder.details["the chat template refuses a chat"]
    assert len(example_lengths(examples, "prompt", strict, 64)) == 2
    with pytest.raises(DataError, match=r"no example can be encoded .*System role not supported"):
        example_lengths(examples[2:], "prompt", strict, 64)


def test_a_broken_or_missing_template_is_an_error(framing: Framing) -> None:
    with pytest.raises(WeightsError, match="template"):
        list(Encoder("prompt", Framing(framing.tokenizer.with_chat_template("{% for %}")), 64)(prompts("a")))
    plain = Framing(Tokenizer(framing.tokenizer.backend, {"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(DataError, match="no chat template"):
        list(Encoder("prompt", plain, 64)(prompts("a")))
