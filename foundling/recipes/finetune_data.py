# SPDX-License-Identifier: Apache-2.0
"""What a finetuning reads: its tokenizer, the length of rows, the examples that choose the best weights, batches."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from foundling.adapt.options import AdaptOptions
from foundling.adapt.soft import virtual_ids
from foundling.data.encode import example_lengths, suggest_seq_len
from foundling.data.encoded import EncodedSplit
from foundling.data.examples import Examples
from foundling.data.subset import Subset
from foundling.data.transforms.examples import PackedExamples, PaddedExamples
from foundling.data.transforms.preference import Comparisons, comparisons_of, subset_of
from foundling.data.transforms.virtual import VirtualBatches
from foundling.errors import ConfigError, DataError, WeightsError
from foundling.limits import TEMPLATE_CHARS, shown
from foundling.recipes.recipe import PREFERENCE_KINDS, Recipe
from foundling.text import Tokenizer
from foundling.text.chat import TEMPLATES, render_chat
from foundling.text.framing import Framing
from foundling.weights.loading import files_of

MAX_SEQ_LEN = 2048
"""tokens in a row, unless --seq-len asks for more"""
N_SAMPLED = 500
"""examples whose lengths decide the rows"""
VALIDATED_FROM, VALIDATION_SHARE, MOST_VALIDATED = 200, 0.1, 200
"""From so many training examples on, a share of them is kept to choose the best weights by."""


def parent_tokenizer(recipe: Recipe, examples: Any = None) -> Tokenizer:
    """The base's, with the chat template of the recipe where it has one. DataError where that asks for special tokens
    that the base has not."""
    assert recipe.model.directory
    tokenizer, template = Tokenizer.load(files_of(recipe.model.directory)), recipe.data.chat_template
    try:
        return tokenizer if template is None else tokenizer.with_chat_template(template)
    except DataError as error:
        raise DataError(f"{error}; use --chat-template plain") from None


def template_text(asked: str | None) -> str | None:
    """The chat template that was asked for by name or by file, or stands in a written recipe. ConfigError for a file
    that is not there or is none."""
    if asked is None or asked in TEMPLATES:
        return asked and TEMPLATES[asked]
    if "{{" in asked or "{%" in asked:
        return asked
    file = Path(asked)
    if not file.is_file():
        raise ConfigError(f"--chat-template {shown(asked)} is no file; give one, or {' or '.join(TEMPLATES)}")
    TEMPLATE_CHARS.check(file.stat().st_size, f"the size of {file}")
    try:
        template = file.read_text(encoding="utf-8")
        with suppress(DataError):  # of one that wants other messages
            render_chat(template, [{"role": "user", "content": "a"}])
    except (UnicodeDecodeError, WeightsError) as error:
        raise ConfigError(f"--chat-template {file} cannot be used: {error}") from None
    return template


def choose_seq_len(asked: int | None, examples: Examples, framing: Framing, longest: int, options: AdaptOptions) -> int:
    """As asked, else what nearly all examples fit into. ConfigError for more than the `longest` that the model
    reads."""
    if asked is not None:
        if asked + options.added_tokens > longest:
            raise ConfigError(f"--seq-len {asked} is more than the {longest} tokens that the model reads (max_seq_len)")
        return asked
    most = min(longest, MAX_SEQ_LEN) - options.added_tokens
    lengths = example_lengths(examples.train, examples.kind, framing, most, classes=examples.labels, n=N_SAMPLED)
    return suggest_seq_len(lengths, most)


def longest_text(recipe: Recipe) -> int:
    """What an example is encoded for: a packed one has a target more than it has inputs, and a head reads them all."""
    return recipe.train.seq_len - (recipe.objective.kind == "reward")


def count_examples(split: EncodedSplit, recipe: Recipe) -> int:
    """Prompts, of comparisons, whose completions are texts of their own in the split."""
    return len(comparisons_of(split)) if recipe.objective.kind in PREFERENCE_KINDS else len(split)


def validation_split(split: EncodedSplit, recipe: Recipe) -> tuple[EncodedSplit, EncodedSplit | None]:
    """(to train on, to choose the best weights by). The second is chosen by the seed; None where the recipe measures
    none. All examples of one prompt go the same way, unless most prompts have too many: then single examples do."""
    if not recipe.train.evaluate_every:
        return split, None
    n = count_examples(split, recipe)
    n_validated = max(1, min(MOST_VALIDATED, int(VALIDATION_SHARE * n)))
    groups = [group for group in _by_prompt(split, recipe) if len(group) <= n_validated]
    if sum(map(len, groups)) < n_validated:
        groups = [[i] for i in range(n)]
    validated = list[int]()
    for at in np.random.default_rng(recipe.seed).permutation(len(groups)):
        if len(validated) + len(groups[at]) <= n_validated:
            validated += groups[at]
    choose = subset_of if recipe.objective.kind in PREFERENCE_KINDS else Subset
    return choose(split, np.setdiff1d(np.arange(n), validated)), choose(split, np.sort(validated))


def _by_prompt(split: EncodedSplit, recipe: Recipe) -> list[list[int]]:
    """The numbers of the comparisons, chats or targets of each prompt: of a source, or of the tokens before the first
    answer. Other examples have none, and stand alone."""
    if recipe.objective.kind in PREFERENCE_KINDS:
        firsts = [int(group[0]) for group in comparisons_of(split)]
    elif recipe.objective.kind in ("chat", "seq2seq"):
        firsts = list(range(len(split)))
    else:
        return [[i] for i in range(len(split))]
    groups: dict[bytes, list[int]] = {}
    for number, example in enumerate(map(split.example, firsts)):
        prompt = example["source"] if "source" in example else example["tokens"][: example["mask"].argmax()]
        groups.setdefault(prompt.tobytes(), []).append(number)
    return list(groups.values())


def start_id(model: Any) -> int:
    """What a decoder that reads a source begins with."""
    return model.config.start_id if model.capabilities.reads_source else 0


def batches_of(split: EncodedSplit, recipe: Recipe, model: Any) -> Any:
    t = recipe.train
    if recipe.objective.kind in PREFERENCE_KINDS:
        batches: Any = Comparisons(
            split, batch_size=t.batch_size, seed=recipe.seed, whole=recipe.objective.kind == "reward"
        )
    elif split.packed:
        batches = PackedExamples(split, seq_len=t.seq_len, batch_size=t.batch_size, seed=recipe.seed)
    else:
        batches = PaddedExamples(split, batch_size=t.batch_size, seed=recipe.seed, start_id=start_id(model))
    return with_virtual(batches, model)


def with_virtual(batches: Any, model: Any) -> Any:
    """With the virtual tokens of a soft prompt before each text, where the model has them."""
    ids = virtual_ids(model)
    return VirtualBatches(batches, ids) if ids else batches


def steps_per_epoch(batches: Any) -> int:
    inner: Any = batches.batches if isinstance(batches, VirtualBatches) else batches
    return inner.steps_per_epoch
