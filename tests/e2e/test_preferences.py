# SPDX-License-Identifier: Apache-2.0
"""`foundling preferences` through the real command line: by rewards and by a judge behind real HTTP, killed and given
again, the same file whatever the batch; and what it refuses, each in one line."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from foundling.data.example_rows import ExampleRows
from tests.e2e.tools import foundling, start
from tests.evaluate.servers import Reply, Seen, chat, serving
from tests.serve.servers import save_model

SHOWN = re.compile(r"<answer-([0-9a-f]{12})>\n(.*?)\n</answer-\1>", re.DOTALL)
SAMPLING = ["--temperature", "1.3", "--max-tokens", "6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preferences")
    save_model(folder / "tiny")
    words = ["cat", "dog", "mat", "text", "small", "long"]
    rows = "".join(json.dumps({"prompt": f"say {word}", "answer": word}) + "\n" for word in words)
    (folder / "prompts.jsonl").write_text(rows)
    (folder / "principles.txt").write_text("# of the house\nBe long.\n\nBe kind.\n")
    return folder


def preferences(folder: Path, out: str, *args: object) -> dict[str, Any]:
    done = foundling(
        "preferences", folder / "tiny", folder / "prompts.jsonl", "--out", folder / out, *SAMPLING, *args, "--json"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def texts_of(seen: Seen) -> list[str]:
    return [text for _, text in SHOWN.findall(seen.body["messages"][0]["content"])]


def most_letters(seen: Seen) -> Any:
    """Without a preference for a place."""
    _, a, b = ([sum(c.isascii() and c.isalpha() for c in text)] for text in texts_of(seen))
    return chat("[[C]]" if a == b else "[[A]]" if a > b else "[[B]]")


def test_rewards_rank_and_the_same_command_gives_the_same_file(folder: Path) -> None:
    by = ["--by", "matches:[aeiou]", "--by", "0.5*matches:t", "--n", "4"]
    result = preferences(folder, "rows.jsonl", *by, "--gold", "matches:t", "--curve", folder / "curve.json")
    out, work = folder / "rows.jsonl", folder / "rows.jsonl.work"
    assert result["rows"] + sum(result["skipped"].values()) == 6 and result["answers"] == 24
    assert len(list(ExampleRows(out, "preference"))) == result["rows"] > 0
    for row in map(json.loads, out.read_text().splitlines()):
        values = [(re.search("[aeiou]", t) is not None) + 0.5 * ("t" in t) for t in row["ranked"]]
        assert values == sorted(set(values), reverse=True)
    assert 0.5 < result["gold"]["share"]["value"] <= 1 and result["gold"]["one_order"]["value"] is None
    curve = json.loads((folder / "curve.json").read_text())
    assert [point["n"] for point in curve["points"]] == [1, 2, 3, 4] and "<svg" in (folder / "curve.html").read_text()
    whole = out.read_bytes()
    answers = (work / "answers.jsonl").read_bytes()
    (work / "answers.jsonl").write_bytes(answers[: len(answers) // 2])  # as SIGKILL leaves it: a line is torn
    out.unlink()
    preferences(folder, "rows.jsonl", *by, "--batch-size", "3")
    assert out.read_bytes() == whole
    best = preferences(folder, "best.jsonl", "--by", "matches:[aeiou]", "--best", "--at-least", "1", "--n", "2")
    rows = [json.loads(line) for line in (folder / "best.jsonl").read_text().splitlines()]
    assert all(re.search("[aeiou]", row["completion"]) for row in rows) and len(rows) == best["rows"]


def test_a_judge_is_killed_and_asked_no_verdict_twice(folder: Path) -> None:
    out, work, running = folder / "judged.jsonl", folder / "judged.jsonl.work", list[Any]()

    def answer(seen: Seen, number: int) -> Any:
        if number == 12:
            running[0].send_signal(signal.SIGKILL)
            return Reply(b"", 500)
        return most_letters(seen)

    options = [*SAMPLING, "--pairs", "--constitution", folder / "principles.txt", "--draw", "--workers", "2"]
    with serving(answer) as server:
        args = [folder / "tiny", folder / "prompts.jsonl", "--out", out, *options, "--by", f"judge:m@{server.url}"]
        running.append(start("preferences", *args))
        assert running[0].wait(60) == -signal.SIGKILL and not out.exists()
        n_before, n_requests = len((work / "verdicts.jsonl").read_text().splitlines()), len(server.requests)
        assert 8 <= n_before <= 12
        done = foundling("preferences", *args, "--price", "1,2", "--gold", "matches:a", "--json")
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        cost, total = result["judge"]["cost"], len(server.requests) - n_requests
        assert total == cost["requests"] - n_before and cost["recorded"] == n_before
        assert cost["dollars"] == pytest.approx(cost["requests"] * (12 * 1 + 3 * 2) / 1e6)
        drawn = {"Be long." in t or 2 * ("Be kind." in t) for t in
                 (seen.body["messages"][0]["content"] for seen in server.requests)}  # fmt: skip
        assert drawn == {True, 2}
        first = out.read_bytes()
        assert first.count(b'"chosen"') == result["rows"] > 0 and result["judge"]["contradicted"] == 0
        shown = foundling("preferences", *args, "--price", "1,2", "--gold", "matches:a")
        assert shown.returncode == 0 and out.read_bytes() == first
        assert len(server.requests) == n_requests + total  # all was recorded
    assert re.search(r"judge m@.*: \d+ pairs, \d+ requests \(\d+ recorded before\), .* tokens, \$", shown.stdout)
    assert "agreement with gold: " in shown.stdout and "verdicts that change with the order: 0" in shown.stdout


def test_a_model_here_judges_by_log_probabilities(folder: Path) -> None:
    save_model(folder / "judge", seed=2, max_seq_len=2048)
    truth = folder / "truth.jsonl"
    truth.write_text(
        "".join(json.dumps({"prompt": f"{i}", "chosen": "a cat", "rejected": "dog"}) + "\n" for i in range(4))
    )
    args = ["--by", f"judge:{folder / 'judge'}", "--logprobs", "--n", "2", "--limit", "2", "--agreement", truth]
    result = preferences(folder, "soft.jsonl", *args)
    assert result["prompts"] == 2 and result["rows"] == 2 and result["judge"]["unread"] == 0
    assert result["judge"]["ties"] == 0  # the mean of both orders decides, whatever each says
    agreement = result["agreement"]
    assert agreement["pairs"] == 4 and agreement["ties"] == 0 and agreement["share"]["value"] in (0, 0.25, 0.5, 0.75, 1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--by", "exact", "--n", "1"], "--n 1 leaves nothing to compare"),
        (["--by", "exact", "--temperature", "0"], "temperature 0 gives the same answer 4 times"),
        (["--by", "goodness"], "the reward 'goodness' is unknown"),
        (["--by", "exact", "--field", "text"], "no column 'text'; there are 'prompt', 'answer'"),
        (["--by", "json", "--by", "judge:ollama:m"], "a judge ranks alone"),
        (["--by", "judge:{dir}/encoder"], "generates no text, so it is no judge"),
        (["--by", "exact", "--curve", "c.json"], "--curve needs two rewards"),
        (["--by", "exact", "--gold", "matches:a", "--curve", "prompts.jsonl"], "give a file .json"),
        (["--by", "judge:ollama:m", "--constitution", "none.txt"], "none.txt: cannot be read"),
        (["--by", "judge:nobody:m"], "no model of an API"),
        (["--by", "exact", "--logprobs"], "--logprobs is for a judge"),
        (["--by", "instructions"], "the reward 'instructions' cannot be computed: expected prompt, instruction"),
        (["--by", "matches:\\d{50}"], "none of 6 prompts gave a row (a prompt whose answers are all equal: 6)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(args: list[str], message: str, folder: Path, tmp_path: Path) -> None:
    from tests.serve.servers import save_encoder

    if "{dir}" in args[-1]:
        save_encoder(folder / "encoder")
    out = tmp_path / "rows.jsonl"
    command = ["preferences", folder / "tiny", folder / "prompts.jsonl", "--out", out, "--max-tokens", "4"]
    done = foundling(*command, *(arg.format(dir=folder) if "{dir}" in arg else arg for arg in args))
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1], done.stderr
    assert not out.exists() and "Traceback" not in done.stderr


def test_an_endpoint_that_refuses_or_writes_nonsense_loses_nothing(folder: Path, tmp_path: Path) -> None:
    replies = [Reply({"error": {"message": "no such model"}}, 404), chat("Both are nice.")]
    for reply, message in zip(replies, ["no such model", "verdicts could be read; use --logprobs"], strict=True):
        with serving(lambda seen, n, reply=reply: reply) as server:
            out = tmp_path / "rows.jsonl"
            args = [folder / "tiny", folder / "prompts.jsonl", "--out", out, *SAMPLING, "--by", f"judge:m@{server.url}"]
            done = foundling("preferences", *args)
            assert done.returncode == 2 and message in done.stderr.splitlines()[-1], done.stderr
            assert (
                not out.exists()
                and len((tmp_path / "rows.jsonl.work" / "answers.jsonl").read_text().splitlines()) == 24
            )
    out.write_text("{}\n")
    done = foundling("preferences", *args)
    assert done.returncode == 2 and "is not as this command wrote it" in done.stderr and out.read_text() == "{}\n"
    assert os.path.isdir(tmp_path / "rows.jsonl.work")
