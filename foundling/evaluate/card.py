# SPDX-License-Identifier: Apache-2.0
"""Results of evaluations in the model card of a directory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from foundling.contracts.records import EvaluationRecord, RunRecord
from foundling.errors import MismatchError, WeightsError
from foundling.report.card import model_card, with_results
from foundling.runtime.files import read_json, write_bytes
from foundling.weights.manifest import MANIFEST, read_manifest


def write_card(directory: str | Path, evaluations: Iterable[EvaluationRecord]) -> str:
    """Writes README.md of a directory that a run of Foundling made again, with the results of evaluations of this
    model. Edits of the file are lost; no other file changes. Returns the card.

    WeightsError for a directory without report.json, MismatchError for an evaluation of other weights."""
    directory = Path(directory)
    if not (directory / "report.json").is_file() or not (directory / MANIFEST).is_file():
        raise WeightsError(f"{directory}: no report.json and {MANIFEST} of a run; its card is not Foundling's to write")
    digest = read_manifest(directory).get("weights_hash")
    results = []
    for record in evaluations:
        for result in record.results:
            model = result.hashes.get("model")
            if model is not None and model != digest:
                raise MismatchError(
                    f"{directory}: the evaluation of {record.subject!r} is of weights {model[:12]}, these are "
                    f"{str(digest)[:12]}; evaluate this directory"
                )
            results.append(result)
    try:
        run = RunRecord.from_dict(read_json(directory / "report.json"))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{directory / 'report.json'}: damaged ({error})") from None
    card = model_card(with_results(run, results))
    write_bytes(directory / "README.md", card.encode())
    return card
