# SPDX-License-Identifier: Apache-2.0
"""The model card: README.md of a model directory, as the Hugging Face hub reads it (YAML front matter, then Markdown).

It says what a stranger has to know before using a model, and marks what nobody stated rather than guessing. Every text
that somebody else wrote passes through `errors.render`.
"""

from collections.abc import Iterable
from dataclasses import replace

import yaml

from foundling.contracts.records import Result, RunRecord, Sample
from foundling.errors.render import markdown, markdown_code, shell, terminal
from foundling.report import findings, units
from foundling.report.definitions import definitions
from foundling.report.usage import example, usage

# The hub takes a licence from its list, or "other" with a name. Of the list, what data usually comes under.
HUB_LICENCES = frozenset(
    ["apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0"]
    + ["cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"]
    + ["odbl", "odc-by", "pddl", "gfdl", "unlicense"]
)


def model_card(
    run: RunRecord,
    *,
    model_id: str | None = None,
    data_licence: str | None = None,
    lineage_flops: float | None = None,
) -> str:
    """The whole card.

    `model_id`: the name that a user loads the model by; the run's own by default. `data_licence` and `lineage_flops`
    are of the model and all its parents, where `run` has those of this training alone; by default there is no more to
    count. A licence is repeated as somebody gave it; None is "not stated".
    """
    model_id = run.name if model_id is None else model_id
    licence = run.data["licence"] if data_licence is None else data_licence
    flops = run.flops if lineage_flops is None else lineage_flops
    sections = [
        f"# {markdown(run.name)}\n\n{markdown(findings.verdict(run))}",
        _what(run),
        _intended_use(run),
        _use(run, model_id),
        _sample(run.samples),
        _data(run, licence),
        _compute(run, flops),
        _scores(run),
        _limits(run),
        _definitions(run, flops),
        _lineage(run, model_id),
    ]
    return "\n\n".join([_front_matter(run, licence), *(section for section in sections if section)]) + "\n"


def with_results(run: RunRecord, results: Iterable[Result]) -> RunRecord:
    """The record with the results of evaluations of its model, which take the place of older ones of the same task,
    metric and prompts; of several the last. Its card and report show them."""
    merged = {_what_was_measured(result): result for result in run.results}
    for result in results:
        own = replace(result, subject="model", scores=[])
        merged[_what_was_measured(own)] = own
    return replace(run, results=list(merged.values()))


def _what_was_measured(result: Result) -> tuple[str, ...]:
    return result.task, result.metric, result.subject, result.hashes.get("prompt", "")


def _front_matter(run: RunRecord, licence: str | None) -> str:
    facts = {
        "library_name": "transformers",
        "pipeline_tag": run.pipeline_tag,
        "tags": ["foundling", "-".join(run.kind.split()), run.family],
    }
    if licence:
        identifier = licence.strip().lower()
        facts |= (
            {"license": identifier}
            if identifier in HUB_LICENCES
            else {"license": "other", "license_name": terminal(" ".join(licence.split()))}
        )
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=float('inf'))}---"


def _what(run: RunRecord) -> str:
    return (
        "## What it is\n\n"
        f"A {markdown(run.kind)} of the {markdown(run.family)} family with {units.count(run.params)} parameters, "
        f"trained with Foundling ({markdown(run.created)}) on {units.count(run.tokens)} tokens, "
        f"{units.size(run.bytes)} of text, in {units.duration(run.actual['seconds'])}. {usage(run.pipeline_tag).does}"
    ).strip()


def _intended_use(run: RunRecord) -> str:
    purpose = usage(run.pipeline_tag)
    stated = [*map(markdown, run.intended_use)] or [
        f"Whoever trained the model stated none. {purpose.does or 'It does what it was trained for.'} Whether it is "
        "good enough for a use is for the user to measure, on data of that use."
    ]
    excluded = [
        "Decisions about people, and advice on health, law, money or safety: it was not evaluated for any of them.",
        "Passing off what it makes as a person's own words or as fact."
        if purpose.generates
        else "Inferring traits of persons from their texts.",
        *map(markdown, run.out_of_scope),
    ]
    listed = "\n".join(f"- {sentence}" for sentence in stated)
    return f"## Intended use\n\n{listed}\n\nOut of scope:\n\n" + "\n".join(f"- {sentence}" for sentence in excluded)


def _use(run: RunRecord, model_id: str) -> str:
    found = usage(run.pipeline_tag)
    parts = ["## How to use it", markdown_code(example(found.ours, model_id), "python")]
    if found.theirs:
        parts += ["Or with transformers, without conversion:", markdown_code(example(found.theirs, model_id), "python")]
    return "\n\n".join(parts)


def _sample(samples: list[Sample]) -> str:
    if not samples:
        return ""
    first = samples[0]
    note = f" ({markdown(first['note'])})" if first["note"] else ""
    return f"A sample, unedited{note}:\n\n{markdown_code(first['prompt'] + first['text'], 'text', limit=2000)}"


def _data(run: RunRecord, licence: str | None) -> str:
    data = run.data
    stated = (
        f"{markdown(licence)}, as given by whoever trained the model. The front matter repeats it; whoever publishes "
        "the weights decides on theirs."
        if licence
        else "not stated"
    )
    removed = "; ".join(f"{markdown(reason)}: {units.count(n)}" for reason, n in data["removed"].items()) or "none"
    return "## Data\n\n" + _table(
        ("", ""),
        [
            ("source", markdown(data["source"])),
            ("trained on", f"{units.count(data['documents'])} documents, {units.size(data['bytes'])}"),
            ("held out", f"{units.count(data['held_out_documents'])} documents, {units.size(data['held_out_bytes'])}"),
            ("documents removed", removed),
            ("licence", stated),
            ("hash", markdown(data["hash"])),
        ],
    )


def _compute(run: RunRecord, flops: float) -> str:
    machine = "; ".join(f"{markdown(name)}: {markdown(fact)}" for name, fact in run.machine.items()) or "not recorded"
    actual = [(energy, source) for when, energy, source in findings.energies(run) if when == "actual"]
    energy = "; ".join(f"{energy} — {markdown(source)}" for energy, source in actual)
    rows = [
        ("training", f"{units.power(run.flops)} FLOPs"),
        ("with everything it descends from", f"{units.power(flops)} FLOPs"),
        ("time", units.duration(run.actual["seconds"])),
        ("machine", machine),
        ("energy", energy or "neither measured nor estimated"),
        ("carbon", markdown(run.carbon) or "not stated: it depends on where and when the energy was made"),
    ]
    if flops == run.flops or not units.known(flops):
        del rows[1]
    return "## Compute and energy\n\n" + _table(("", ""), rows)


def _scores(run: RunRecord) -> str:
    better = "lower" if run.metric.lower_is_better else "higher"
    bars = [(markdown(bar.name), markdown(bar.value)) for bar in findings.score_bars(run)]
    parts = ["## Scores", _table(("", f"{markdown(run.metric.name)} on held-out data; {better} is better"), bars)]
    words = [findings.standing(run), findings.prediction_words(run), run.metric.explanation]
    parts.append(" ".join(markdown(sentence) for sentence in words if sentence))
    if run.results:
        head = ("task", *(markdown(findings.subject_name(name)) for name in findings.subjects(run)), "n")
        rows = [
            (markdown(row.task), *(markdown(value) for value in row.values), row.n) for row in findings.result_rows(run)
        ]
        parts += [_table(head, rows), f"In brackets 95 % intervals: {markdown(findings.intervals(run) or 'none')}."]
        parts += [*_conditions(run.results)]
    return "\n\n".join(parts)


def _conditions(results: list[Result]) -> Iterable[str]:
    """What scores depend on besides the model: of each task that was asked of it by `foundling evaluate`."""
    measured = [result for result in results if "template" in result.hashes or "backend" in result.hashes]
    if measured:
        hashes = {
            f"{name} {markdown(result.hashes[name][:12])}"
            for result in measured for name in ("template", "backend") if name in result.hashes
        }  # fmt: skip
        yield (
            "Scores move with the prompt's template and the backend. These were measured with "
            f"{', '.join(sorted(hashes))} (SHA-256); compare with results of the same alone."
        )
    figures = [
        f"{markdown(result.task)}: {markdown(name)} {units.number(value, 3)}"
        + (f" ({units.number(low, 3)}–{units.number(high, 3)})" if units.known(low) and units.known(high) else "")
        for result in results
        for name, (value, low, high) in result.figures.items()
        if units.known(value)
    ]
    if figures:
        yield "More figures of the same items:\n\n" + "\n".join(f"- {figure}" for figure in figures)


def _limits(run: RunRecord) -> str:
    sentences = [
        usage(run.pipeline_tag).limit,
        f"It was trained on {units.size(run.data['bytes'])} of distinct data and nothing else"
        f"{' beyond what its parents were trained on' if run.parents else ''}. Elsewhere, in other languages or "
        "domains, expect nonsense.",
        "It may repeat its training data word for word, personal data and mistakes included, and it has whatever bias "
        "is in them. Nothing was done against that beyond the removals listed above.",
        "Its scores are of held-out documents from the same source; they say little about other data.",
        *map(markdown, run.limits),
    ]
    return "## Limits\n\n" + "\n".join(f"- {sentence}" for sentence in sentences)


def _definitions(run: RunRecord, flops: float) -> str:
    found = definitions(
        params=run.params,
        flops=flops,
        data_bytes=run.data["bytes"],
        generates=usage(run.pipeline_tag).generates,
    )
    rows = [(d.where, d.text, d.asks, f"**{'yes' if d.met else 'no'}**: {d.reason}") for d in found]
    return (
        "## Is this a foundation model?\n\n"
        + _table(("", "defined in", "asks for", "met, by the figures"), rows)
        + "\n\nWorked out from this card's figures. The conditions that are no figures are named and left to the "
        "reader; this is no legal advice."
    )


def _lineage(run: RunRecord, model_id: str) -> str:
    parents = "\n".join(f"- {markdown(parent)}" for parent in run.parents)
    stages = "\n".join(
        f"- stage {markdown(stage['name'])}, {markdown(stage['kind'])}: {markdown(stage['examples'])}"
        for stage in run.stages
    )
    parents = f"{parents}\n\n{stages}" if stages else parents
    again = markdown_code(f"{run.command}\nfoundling reproduce {shell(model_id)}", "sh")
    return (
        f"## Lineage\n\n{parents or 'It has no parents: trained from random weights.'}\n\n"
        f"The command that trained it, and the one that trains it again, bit for bit, on the same machine:\n\n{again}"
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
