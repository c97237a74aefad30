# SPDX-License-Identifier: Apache-2.0
"""What a finetuning trains: the model with its head and its adaptation, the objective, the batches, and what is written
at the end."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from foundling.adapt.added import merge, wrapping
from foundling.adapt.frozen import store_frozen
from foundling.adapt.heads import REWARD, HeadOptions, absorb, add_head, same_head
from foundling.adapt.method import SAVED_ALONE, apply, stores_rounded
from foundling.adapt.options import AdaptOptions
from foundling.adapt.quantize import dequantize
from foundling.data.encoded import EncodedSplit
from foundling.data.examples import Examples
from foundling.errors import ConfigError
from foundling.models import FAMILIES
from foundling.objectives.causal import Causal
from foundling.objectives.classify import Classify, Regress, Tag
from foundling.objectives.preference import DPO, Reward
from foundling.recipes.models import load_start
from foundling.recipes.progress import Progress
from foundling.recipes.publish import write_whole
from foundling.recipes.recipe import PREFERENCE_KINDS, REWARDED, ObjectiveSpec, Recipe
from foundling.runtime.hub import local_directory
from foundling.runtime.memory import trim_memory
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.text.framing import Framing
from foundling.weights.adapters import adapter_contents, write_contents
from foundling.weights.directory import hash_of, weights_hash
from foundling.weights.loading import files_of, is_adapter
from foundling.weights.text_spec import read_text_spec

HEADED = ("classify", "tag", "regress", "reward")
"""kinds of examples that a head answers"""
POOLED = ("classify", "regress", "reward")
"""those whose head reads a pool of the states of a text"""
KINDS = {
    "chat": "chat model", "text": "finetuned model", "classify": "text classifier", "tag": "word tagger",
    "regress": "regression model", "seq2seq": "finetuned model", "reward": "reward model",
    **dict.fromkeys(("dpo", "ipo"), "preference-tuned chat model"),
    **dict.fromkeys(REWARDED, "reward-tuned chat model"),
}  # fmt: skip
"""kind of examples -> what comes of them, in words"""
MERGED = ("lora", "qlora")
"""methods whose adapter can be merged into the model"""
N_ENDS = 20
"""examples whose last tokens are looked at"""
OBJECTIVES = {"classify": Classify, "tag": Tag, "regress": Regress, "reward": Reward}


def check_kind(model: Any, kind: str) -> None:
    """ConfigError where this model cannot learn from these examples."""
    can = model.capabilities
    if not can.takes_head:  # declared by every model that reads text alone
        raise ConfigError(f"{type(model).__name__} is not finetuned on text; use a decoder, encoder or encoder–decoder")
    if kind in ("dpo", "ipo", *REWARDED) and can.reads_source:
        raise ConfigError(f"{type(model).__name__} writes no chats, so it cannot learn '{kind}'; use a decoder")
    if kind in ("chat", "text", "dpo", "ipo", *REWARDED) and (not can.generates or can.reads_source):
        other = "--as seq2seq" if can.reads_source else "--as classify, tag or regress"
        raise ConfigError(f"{type(model).__name__} does not continue text, so it cannot learn '{kind}'; use {other}")
    if kind == "seq2seq" and not (can.generates or can.reads_source):
        raise ConfigError(f"{type(model).__name__} writes no text; use a decoder or an encoder–decoder")


def head_options(kind: str, examples: Examples) -> HeadOptions | None:
    """The head that these examples need; None for those that the model's own head answers."""
    if kind not in HEADED:
        return None
    if kind == "reward":
        return HeadOptions("regress", (REWARD,))
    if kind != "regress":
        return HeadOptions(kind, tuple(examples.labels))
    values = [float(example.fields["value"]) for example in examples.train]
    return HeadOptions(kind, ("value",), mean=statistics.fmean(values), std=statistics.pstdev(values) or 1.0)


def with_pool(head: HeadOptions, recipe: Recipe) -> HeadOptions:
    """A new head reads the mean of the states: nobody has trained a dense layer for it, or the state of one token to
    stand for the text. A decoder's last state can learn to, since it alone has seen all."""
    adapt = recipe.adapt
    if head.kind == "tag" or adapt.pool == "published":
        return head
    learns = FAMILIES[recipe.model.family].kind == "decoder" and adapt.method != "head"
    return replace(head, pool=adapt.pool or ("" if learns else "mean"))


def adapted(model: Any, recipe: Recipe, head: HeadOptions | None) -> Any:
    """The model, in place, with its head and adaptation. Frozen weights are kept in the type they compute in."""
    if recipe.objective.kind in (*PREFERENCE_KINDS, *REWARDED):
        remove_dropout(model)
    pool = recipe.adapt.pool if recipe.adapt.pool != "published" else None
    if head is not None and not same_head(model, replace(head, pool=pool or "")):
        add_head(model, with_pool(head, recipe), generator("head", recipe.seed))
    apply(model, recipe.adapt, generator("adapt", recipe.seed))
    if stores_rounded(recipe.adapt, recipe.runtime.precision):
        store_frozen(model, weights_hash(model))
        trim_memory()  # the wider weights are free now
    return model.to(recipe.runtime.device)


def remove_dropout(model: Any) -> None:
    """Both completions of a comparison, the reference, and the engine that draws completions are the same network."""
    for module in model.modules():
        for name in ("p", "dropout", "weight_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def build_adapted(recipe: Recipe, head: HeadOptions | None) -> Any:
    """The model as training starts, on the recipe's device."""
    assert recipe.model.directory
    return adapted(load_start(recipe.model.directory), recipe, head)


def saved_whole(directory: str, options: AdaptOptions, progress: Progress) -> AdaptOptions:
    """Of what starts from an adapter a whole model is saved: an adapter is loaded on a model directory alone, here and
    by peft. ConfigError for a method that has no whole model."""
    if not is_adapter(local_directory(directory)):
        return options
    if options.method in SAVED_ALONE and options.method not in MERGED:
        raise ConfigError(
            f"{directory} is an adapter, and the method '{options.method}' is saved beside a whole model; make one: "
            f"foundling merge {directory} --out NEW"
        )
    progress.line(f"{directory} is an adapter: training starts from it merged into its base, and saves a whole model")
    return replace(options, merged=options.method in MERGED)


def framing_of(directory: str, tokenizer: Tokenizer, model: Any) -> Framing:
    """How texts of the adapted model are framed: as the base's directory says, virtual tokens included."""
    return Framing(tokenizer, read_text_spec(files_of(directory), model))


def base_framing(framing: Framing) -> Framing:
    """The same without virtual tokens, which are put into batches: tokens on disk do not depend on the method."""
    return Framing(framing.tokenizer, replace(framing.spec, virtual=()))


def with_ends(framing: Framing, split: EncodedSplit) -> Framing:
    """With the special token that ends the answers of the examples, where they end with one: what the model learns to
    stop by."""
    special, ends = framing.tokenizer.special, list(framing.spec.ends)
    for i in range(min(len(split), N_ENDS)):
        example = split.example(i)
        learnt = example["tokens"][example["mask"]].tolist()
        ends += [token for token in learnt[-2:] if token in special]
    return Framing(framing.tokenizer, replace(framing.spec, ends=tuple(dict.fromkeys(ends))))


def objective_of(spec: ObjectiveSpec) -> Any:
    if spec.kind in ("dpo", "ipo"):
        return DPO(beta=spec.beta, loss=spec.kind)  # pyright: ignore[reportArgumentType]
    return OBJECTIVES[spec.kind]() if spec.kind in HEADED else Causal()


def writer(recipe: Recipe, head: HeadOptions | None, out: Path) -> Any:
    """The function that writes what was trained, the adapter alone or the whole model, for the directory `out`."""

    def write(model: Any, directory: Path) -> dict[str, Any]:
        options = recipe.adapt
        if options.method in SAVED_ALONE and not options.merged:
            tensors, config, bound = adapter_contents(model, out, recipe.model.directory)
            write_contents(directory, tensors, config)
            return {"weights_hash": hash_of(sorted(tensors.items())), **bound}
        return write_whole(whole_model(recipe, model, head), directory)

    return write


def whole_model(recipe: Recipe, model: Any, head: HeadOptions | None) -> Any:
    """The model with its adapter merged, in float32: on the base read again, which is rounded in memory."""
    assert recipe.model.directory
    if stores_rounded(recipe.adapt, recipe.runtime.precision):
        trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        exact = replace(recipe, runtime=replace(recipe.runtime, precision="float32"))
        model = adapted(load_start(recipe.model.directory), exact, head)
        params = dict(model.named_parameters())
        for name, value in trained.items():
            params[name].data.copy_(value)
    if wrapping(model):
        merge(model)
    dequantize(model)
    absorb(model)
    return model
