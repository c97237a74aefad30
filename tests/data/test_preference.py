# SPDX-License-Identifier: Apache-2.0
"""Comparisons from files: what rows are read, what is refused, and their batches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foundling.data.encoded import EncodedExamples, encode_examples
from foundling.data.examples import ingest_examples
from foundling.data.kinds import Columns
from foundling.data.layouts import detect
from foundling.data.streams import Skip
from foundling.data.transforms.preference import Comparisons, comparison_batches, comparisons_of, subset_of
from foundling.errors import ConfigError, DataError
from foundling.text.framing import Framing
from foundling.text.tokenizer import Tokenizer
from tests.text.kinds import TEXTS

ASKED = {"role": "user", "content": "Add 1 and 2."}
FIELDS = {"messages": [ASKED], "completions": ["3", "4"]}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(row: dict[str, Any]) -> Any:
    layout = detect([row])
    assert layout.kind == "preference"
    return layout.convert(row)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Add 1 and 2.", "chosen": "3", "rejected": "4"},
        {"question": "Add 1 and 2.", "chosen": "3", "rejected": "4", "id": 7},
        {"prompt": [ASKED], "chosen": [answer("3")], "rejected": [answer("4")]},
        {"prompt": "Add 1 and 2.", "chosen": answer("3"), "rejected": answer("4")},
        {"prompt": "Add 1 and 2.", "chosen": [ASKED, answer("3")], "rejected": [ASKED, answer("4")]},
        {"chosen": [ASKED, answer("3")], "rejected": [ASKED, answer("4")]},
        {"messages": [ASKED], "chosen": "3", "rejected": "4"},
        {"prompt": "Add 1 and 2.", "ranked": ["3", "4"]},
        {"prompt": "\n\nHuman: Add 1 and 2.\n\nAssistant:", "chosen": "3", "rejected": "4"},
        {"input": "Add 1 and 2.", "chosen": "3", "rejected": "4"},
        {"prompt": "Add 1 and 2. ", "chosen": [ASKED, answer("3")], "rejected": [ASKED, answer("4")]},
        {
            "prompt": "Add 1 and 2.",
            "chosen": [{"from": "human", "value": "Add 1 and 2."}, {"from": "gpt", "value": "3"}],
            "rejected": [{"from": "human", "value": "Add 1 and 2."}, {"from": "gpt", "value": "4"}],
        },
        {"messages": [ASKED, answer("3")], "chosen": "3", "rejected": "4"},
        {
            "chosen": "\n\nHuman: Add 1 and 2.\n\nAssistant: 3",
            "rejected": "\n\nHuman: Add 1 and 2.\n\nAssistant: 4",
        },
    ],
)
def test_the_usual_rows_are_read(row) -> None:
    assert read(row) == FIELDS


def test_a_conversation_of_several_turns_and_a_ranking() -> None:
    turns = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Add 1 and 2.\n\nAssistant:"
    fields = read({"chosen": f"{turns} 3", "rejected": f"{turns} 4"})
    assert [m["role"] for m in fields["messages"]] == ["user", "assistant", "user"] and fields["completions"] == [
        "3",
        "4",
    ]
    fields = read({"system": "Be brief.", "prompt": "Add 1 and 2.", "ranked": ["3", "three", "4"]})
    assert fields["messages"][0] == {"role": "system", "content": "Be brief."} and len(fields["completions"]) == 3


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "equal completions"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "a chat with an empty answer"),
        ({"prompt": "a", "chosen": [ASKED], "rejected": "b"}, "a chat without an answer"),
        ({"chosen": [ASKED, answer("3")], "rejected": [{"role": "user", "content": "Add 2."}, answer("4")]},
         "completions of different prompts"),
        ({"chosen": "3", "rejected": "4"}, "completions without a prompt"),
        ({"prompt": "a", "ranked": ["3"]}, "fewer than two completions"),
        ({"prompt": " ", "chosen": "3", "rejected": "4"}, "completions without a prompt"),
        ({"prompt": "a", "rejected": "b", "chosen": {"role": "assistant", "content": None, "tool_calls": [{}]}},
         "a completion that calls tools"),
    ],
)  # fmt: skip
def test_what_is_no_comparison_is_skipped_with_a_reason(row, reason: str) -> None:
    skip = read(row)
    assert isinstance(skip, Skip) and skip.reason == reason


def test_steps_of_a_solution_are_no_ranking() -> None:
    with pytest.raises(ConfigError):
        detect([{"prompt": "a", "completions": ["first", "then"], "labels": [True, False]}])


def test_the_columns_can_be_named() -> None:
    row = {"asked": "Add 1 and 2.", "good": "3", "bad": "4"}
    layout = detect([row], "preference", Columns(field="asked", target="good", label="bad"))
    assert layout.convert(row) == FIELDS


def test_no_completion_of_a_held_out_prompt_is_learnt_from(tmp_path) -> None:
    rows = [{"prompt": f"say {i % 12}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(48)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = ingest_examples(tmp_path / "data.jsonl", tmp_path / "examples")
    learnt, held_out = (
        {e.fields["messages"][0]["content"] for e in part} for part in (examples.train, examples.held_out)
    )
    assert learnt and held_out and not learnt & held_out
    assert examples.removed["example of a prompt that is held out"] > 0


def encoded(folder: Path, rows: list[dict[str, Any]], seq_len: int = 64) -> tuple[EncodedExamples, Framing]:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    framing = Framing(Tokenizer.train(TEXTS, 384))
    examples = ingest_examples(folder / "data.jsonl", folder / "examples")
    return encode_examples(folder / "tokens", examples, framing, seq_len=seq_len), framing


def rows_of(n: int) -> list[dict[str, Any]]:
    """Of two completions, and of three for every other prompt; the better ones are longer."""
    return [
        {"prompt": f"say {i}", "ranked": [f"yes {i} " * (2 + i % 3), f"no {i}", "never"][: 2 + i % 2]} for i in range(n)
    ]


def test_completions_stand_side_by_side_the_best_first(tmp_path) -> None:
    data, framing = encoded(tmp_path, rows_of(24))
    groups = comparisons_of(data.train)
    assert sum(map(len, groups)) == len(data.train) and {len(group) for group in groups} == {2, 3}
    batches = Comparisons(data.train, batch_size=5, seed=3)
    rows = [batches[n] for n in range(batches.steps_per_epoch)]
    assert torch.cat([row["n_completions"] for row in rows]).sum() >= len(data.train)
    for batch in rows:
        tokens, documents, mask = batch["tokens"], batch["documents"], batch["loss_mask"]
        assert tokens.shape == documents.shape == mask.shape and tokens.shape[0] == 5 and tokens.shape[2] % 8 == 0
        for row, n in enumerate(batch["n_completions"].tolist()):
            texts = [framing.tokenizer.decode(tokens[row, k][documents[row, k] >= 0].tolist()) for k in range(n)]
            assert "yes" in texts[0] and "no" in texts[1]
            assert len({text.split("assistant")[0] for text in texts}) == 1
            answers = [framing.tokenizer.decode(batch["targets"][row, k][mask[row, k]].tolist()) for k in range(n)]
            assert answers[0].strip().startswith("yes") and answers[1].strip().startswith("no")
    again = Comparisons(data.train, batch_size=5, seed=3)
    assert all(torch.equal(again[7][name], batches[7][name]) for name in batches[7])
    other = Comparisons(data.train, batch_size=5, seed=4)
    assert any(not torch.equal(other[n]["tokens"], row["tokens"]) for n, row in enumerate(rows))


def test_a_head_reads_all_tokens_and_a_reference_is_a_column(tmp_path) -> None:
    data, _ = encoded(tmp_path, rows_of(24))
    whole, parts = (comparison_batches(data.held_out, batch_size=8, whole=whole)[0] for whole in (True, False))
    for row, group in enumerate(comparisons_of(data.held_out)[:8]):
        for k, place in enumerate(group):
            ids = data.held_out.example(int(place))["tokens"].tolist()
            assert whole["tokens"][row, k][whole["documents"][row, k] >= 0].tolist() == ids
            assert parts["tokens"][row, k][parts["documents"][row, k] >= 0].tolist() == ids[:-1]
    data.train.reference = np.arange(len(data.train), dtype="<f4")
    batch = Comparisons(data.train, batch_size=4, seed=0)[0]
    assert batch["reference_logprobs"].shape == batch["tokens"].shape[:2]
    some = subset_of(data.train, [2, 0])
    first = comparison_batches(some, batch_size=2)[0]
    expected = [data.train.reference[comparisons_of(data.train)[i][0]] for i in (2, 0)]
    assert first["reference_logprobs"][:, 0].tolist() == expected


def test_a_comparison_with_a_completion_that_is_too_long_is_skipped_whole(tmp_path) -> None:
    rows = rows_of(20) + [{"prompt": "say", "ranked": ["short", "long " * 120]}]
    data, _ = encoded(tmp_path, rows, seq_len=96)
    total = len(comparisons_of(data.train)) + len(comparisons_of(data.held_out))
    assert total == 20 and data.skipped == {"a chat over 97 tokens": 1}


def test_rows_of_which_none_is_a_comparison_are_refused(tmp_path) -> None:
    (tmp_path / "same.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n' * 20)
    with pytest.raises(DataError, match="equal completions: 20"):
        ingest_examples(tmp_path / "same.jsonl", tmp_path / "examples")
