# SPDX-License-Identifier: Apache-2.0
"""OUT/run/journal.json: what a run was asked for, and the SHA-256 of each file that it has finished.

It is the mark by which a folder `run` is known as ours, and is itself sealed by a hash. A file is written first and
recorded after; so what is recorded must be there as it was, and what is not recorded was cut off and is made again.
Where a folder has an index with the hashes of its files (text and token shards, checkpoints), the index is recorded.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from foundling.config import from_dict
from foundling.errors import ConfigError, MismatchError, WeightsError
from foundling.runtime.files import read_json, remove_files, sha256, write_json

JOURNAL = "journal.json"
FORMAT_VERSION = 1
RECIPE, PREDICTION, LOG = "recipe.yaml", "prediction.json", "log.jsonl"
PLAN = "plan.json"
"""of all stages of a run that has several, before the first step of the first"""
TOKENIZER = ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")
CORPUS = ("corpus/index.json",)
TOKENS = ("tokens/train/index.json", "tokens/held_out/index.json")
CHECKPOINTS = "checkpoints"
BEST = "best.safetensors"
"""the trained weights of the best validation so far"""
EXAMPLES = ("examples/index.json",)
ENCODED = ("encoded/train/index.json", "encoded/held_out/index.json")
REFERENCES = "reference/*.bin"
"""log-probabilities of completions by the model that a policy starts from, in parts"""
STAGED = "staging/foundling.json"
"""recorded when the model directory is complete aside, and only has to be moved"""
_CHECKPOINT = f"{CHECKPOINTS}/step-{'[0-9]' * 8}"
OURS = (
    "staging/**/*", f"{_CHECKPOINT}/state.safetensors", f"{_CHECKPOINT}/foundling.json", "tokens/train/[0-9]*.tokens",
    "tokens/held_out/[0-9]*.tokens", *TOKENS, "corpus/text-*.arrow", "corpus/held_out-*.arrow", *CORPUS, *TOKENIZER,
    "examples/*.arrow", *EXAMPLES, "encoded/*/*.bin", *ENCODED, REFERENCES, BEST, RECIPE, PREDICTION, PLAN, LOG,
)  # fmt: skip
"""Everything that a run writes into its folder."""


@dataclass
class Journal:
    directory: Path
    request: dict[str, Any]
    code: dict[str, str]
    reproduces: str | None = None
    """the weights_hash that a reproduction is compared with"""
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, directory: Path) -> Journal | None:
        """None where there is none. MismatchError where it is damaged, edited or somebody else's file."""
        file = directory / JOURNAL
        if not file.exists():
            return None
        try:
            values = read_json(file)
            seal, version = values.pop("sha256", None), values.pop("format_version", None)
            if seal != _seal(values):
                raise WeightsError(f"{file}: damaged, edited, or not of a run")
            if version != FORMAT_VERSION:
                raise WeightsError(f"{file}: of another version of foundling (format_version {version})")
            return from_dict(cls, {"directory": directory, **values}, where=str(file))
        except (WeightsError, ConfigError) as error:
            raise MismatchError(f"{error}; put the original back, or move {directory} away and start anew") from None

    def save(self) -> None:
        values = {name: value for name, value in asdict(self).items() if name != "directory"}
        write_json(self.directory / JOURNAL, {"format_version": FORMAT_VERSION, **values, "sha256": _seal(values)})

    def record(self, *names: str) -> None:
        """These files are finished. Checkpoints that are no longer there are dropped."""
        kept = {n: d for n, d in self.files.items() if not n.startswith(CHECKPOINTS) or (self.directory / n).exists()}
        files = kept | {name: sha256(self.directory / name) for name in names}
        if files != self.files:
            self.files = files
            self.save()

    def forget(self, *names: str) -> None:
        """These files are about to be made again."""
        self.files = {name: digest for name, digest in self.files.items() if name not in names}
        self.save()

    def problem(self, *names: str) -> str | None:
        """What is wrong with the first of these files that is not as it was recorded; None if all are."""
        for name in names:
            file = self.directory / name
            if name not in self.files:
                return f"{file}: was not finished"
            try:
                if sha256(file) != self.files[name]:
                    return f"{file}: damaged or edited"
            except OSError as error:
                return f"{file}: {'missing' if isinstance(error, FileNotFoundError) else error.strerror}"
        return None

    def remove(self, part: str = "") -> None:
        """Removes what the run has written below `part`, or in this one file, or all of it. Anything else that lies
        there stays."""
        patterns = [pattern for pattern in OURS if pattern.startswith(part)]
        single = [part] if not patterns and any(fnmatch(part, pattern) for pattern in OURS) else []
        remove_files(self.directory, patterns or single)
        if not part:  # the mark last, so that a removal that is cut off can be finished
            remove_files(self.directory, [JOURNAL])


def _seal(values: dict[str, Any]) -> str:
    """It shows damage and edits; it keeps nobody out who means to forge it."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
