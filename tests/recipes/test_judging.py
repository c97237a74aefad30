# SPDX-License-Identifier: Apache-2.0
"""What measures a finetuning before and after."""

import json
from pathlib import Path

import foundling
from foundling.plan.budget import Budget
from foundling.recipes.kinds import finetune_model
from foundling.recipes.recipe import Request
from foundling.text import Tokenizer
from foundling.text.chat import TEMPLATES
from tests.contract.cases import case


def test_prompts_that_leave_little_or_nothing_for_an_answer_are_measured(tmp_path: Path) -> None:
    """The model reads 64 tokens, and the prompts have 57 to 63 of them."""
    tokenizer = Tokenizer.train(["a b c d e f g h User: Assistant: yes"] * 20, 320)
    tokenizer = tokenizer.with_chat_template(TEMPLATES["plain"])
    model = case("llama").tiny(vocab_size=tokenizer.vocab_size, max_seq_len=64)
    foundling.save(model, tmp_path / "base", tokenizer=tokenizer)
    frame = len(tokenizer.encode_marked("User: x\nAssistant: ")) - 1
    rows = []
    for n in range(40):
        text = f"{n} " + "z" * (57 - frame - len(tokenizer.encode(f"{n} ")) + n % 7)
        rows.append({"prompt": text, "completion": "y"})
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {
        "model": {"directory": str(tmp_path / "base")}, "objective": {"kind": "chat"}, "train": {"batch_size": 8},
        "runtime": {"device": "cpu", "threads": 1, "precision": "float32"},
    }  # fmt: skip
    request = Request(str(tmp_path / "chats.jsonl"), Budget("epochs", 1), given=given, command="finetune")
    result = finetune_model(request, tmp_path / "out")
    assert result["actual"]["loss"] > 0 and result["results"]
