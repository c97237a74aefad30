# SPDX-License-Identifier: Apache-2.0
"""The model card: README.md of a model directory, as the Hugging Face hub reads it (YAML front matter, then Markdown).

It says what a stranger has to know before using a model, and marks what nobody stated rather than guessing.
"""

import re
from html import escape
from shlex import quote

import yaml

from foundling.evaluate.definitions import definitions
from foundling.evaluate.report import findings, units
from foundling.evaluate.report.run import Run, Sample

# The hub takes a licence from its list, or "other" with a name. Of the list, what data usually comes under.
HUB_LICENCES = frozenset(
    ["apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0"]
    + ["cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"]
    + ["odbl", "odc-by", "pddl", "gfdl", "unlicense"]
)


def model_card(
    run: Run, *, model_id: str, family: str, data_licence: str | None, flops: float, parents: list[str]
) -> str:
    """The whole card.

    `data_licence` and `flops` are of the whole lineage, where `run` has those of this training alone; without parents
    they are the same. The licence is as somebody gave it, None is "not stated". `parents` are shown as they are.
    """
    sections = [
        f"# {_text(run.name)}\n\n{_text(findings.verdict(run))}",
        _what(run, family),
        _use(model_id),
        _samples(run.samples),
        _data(run, data_licence),
        _compute(run, flops),
        _scores(run),
        _limits(run),
        _definitions(run, flops),
        _lineage(run, model_id, parents),
    ]
    card = "\n\n".join([_front_matter(family, data_licence), *(section for section in sections if section)]) + "\n"
    return card.encode(errors="backslashreplace").decode()  # paths may hold bytes that are no text; the card is UTF-8


def _front_matter(family: str, data_licence: str | None) -> str:
    facts = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["foundling", "base-model", family],
    }
    if data_licence:
        identifier = data_licence.strip().lower()
        facts |= (
            {"license": identifier}
            if identifier in HUB_LICENCES
            else {"license": "other", "license_name": " ".join(data_licence.split())}
        )
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=float('inf'))}---"


def _what(run: Run, family: str) -> str:
    return (
        "## What it is\n\n"
        f"A language model of the {_text(family)} family with {units.count(run.params)} parameters, raised with "
        f"Foundling ({_text(run.created)}) on {units.count(run.tokens)} tokens, {units.size(run.bytes)} of text, in "
        f"{units.duration(run.actual['seconds'])}. It is a base model: it continues text."
    )


def _use(model_id: str) -> str:
    name = _python_string(model_id)
    return "## How to use it\n\n" + "\n\n".join(
        [
            _fence(
                f"import foundling\n\nmodel, tokenizer = foundling.load({name}), foundling.Tokenizer.load({name})\n"
                'prompt = [tokenizer.eos, *tokenizer.encode("Once upon a time")]\n'
                "(answer,) = foundling.generate(model, [prompt], max_tokens=64, stop=[tokenizer.eos])\n"
                "print(tokenizer.decode(answer.tokens))",
                "python",
            ),
            "Nothing has to be converted:",
            _fence(
                "from transformers import pipeline\n\n"
                f'generate = pipeline("text-generation", model={name})\n'
                'print(generate("Once upon a time", max_new_tokens=64)[0]["generated_text"])',
                "python",
            ),
        ]
    )


def _samples(samples: list[Sample]) -> str:
    if not samples:
        return ""
    first = samples[0]
    note = f" ({_text(first['note'])})" if first["note"] else ""
    return f"A sample, unedited{note}:\n\n{_fence(first['prompt'] + first['text'], 'text')}"


def _data(run: Run, data_licence: str | None) -> str:
    data = run.data
    licence = (
        f"{_text(data_licence)}, as given by whoever raised the model. The front matter repeats it; whoever publishes "
        "the weights decides on theirs."
        if data_licence
        else "not stated"
    )
    removed = "; ".join(f"{_text(reason)}: {units.count(n)}" for reason, n in data["removed"].items()) or "none"
    return "## Data\n\n" + _table(
        ("", ""),
        [
            ("source", _text(data["source"])),
            ("trained on", f"{units.count(data['documents'])} documents, {units.size(data['bytes'])}"),
            ("held out", f"{units.count(data['held_out_documents'])} documents, {units.size(data['held_out_bytes'])}"),
            ("documents removed", removed),
            ("licence", licence),
            ("hash", _text(data["hash"])),
        ],
    )


def _compute(run: Run, flops: float) -> str:
    machine = "; ".join(f"{_text(name)}: {_text(fact)}" for name, fact in run.machine.items()) or "not recorded"
    actual = [(energy, source) for when, energy, source in findings.energies(run) if when == "actual"]
    energy = "; ".join(f"{energy} — {_text(source)}" for energy, source in actual) or "neither measured nor estimated"
    rows = [
        ("training", f"{units.power(run.flops)} FLOPs"),
        ("with everything it descends from", f"{units.power(flops)} FLOPs"),
        ("time", units.duration(run.actual["seconds"])),
        ("machine", machine),
        ("energy", energy),
    ]
    if flops == run.flops:
        del rows[1]
    return "## Compute and energy\n\n" + _table(("", ""), rows)


def _scores(run: Run) -> str:
    rows = [(_text(bar.name), _text(bar.value)) for bar in findings.score_bars(run)]
    table = _table(("", "bits per byte of held-out text, fewer is better"), rows)
    words = (
        f"{_text(findings.standing(run))} Neither the model's size nor the n-gram model's is counted. "
        f"Predicted before the first step: {units.number(run.predicted['bits_per_byte'], 3)}."
    )
    return f"## Scores\n\n{table}\n\n{words.strip()}"


def _limits(run: Run) -> str:
    return (
        "## Limits\n\n"
        "- A base model continues text: it follows no instructions, holds no conversation and knows no truth. What "
        "reads like a fact is a likely wording.\n"
        f"- It has seen {units.size(run.data['bytes'])} of distinct text and nothing else. Outside of it, in other "
        "languages or domains, expect nonsense.\n"
        "- It may repeat its training text word for word, personal data and mistakes included, and whatever bias is in "
        "it. Nothing was done against that beyond the removals listed above.\n"
        "- Its scores are of held-out documents from the same source; they say little about other text."
    )


def _definitions(run: Run, flops: float) -> str:
    rows = [
        (d.where, d.text, d.asks, f"**{'yes' if d.met else 'no'}**: {d.reason}")
        for d in definitions(params=run.params, flops=flops, data_bytes=run.data["bytes"])
    ]
    return (
        "## Is this a foundation model?\n\n"
        + _table(("", "defined in", "asks for", "met, by the figures"), rows)
        + "\n\nWorked out from this card's figures. The conditions that are no figures are named and left to the "
        "reader; this is no legal advice."
    )


def _lineage(run: Run, model_id: str, parents: list[str]) -> str:
    ancestry = "\n".join(f"- {_text(parent)}" for parent in parents) or "It has no parents: raised from nothing."
    again = _fence(f"{run.command}\nfoundling reproduce {quote(model_id)}", "sh")
    return (
        f"## Lineage\n\n{ancestry}\n\n"
        f"How it was raised, and how to raise it again, bit for bit, on the same machine:\n\n{again}"
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(value: object) -> str:
    """Somebody's words as words: on one line, with nothing that Markdown or HTML would take for markup."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", escape(" ".join(str(value).split()), quote=False))


def _python_string(value: str) -> str:
    return f'"{value}"' if re.fullmatch(r"[\w ./:@+-]*", value) else repr(value)


def _fence(code: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks inside it, so that nothing inside can end it."""
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"
