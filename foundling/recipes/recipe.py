# SPDX-License-Identifier: Apache-2.0
"""A run as data: what was asked for, and the recipe that it resolves to, from which the same weights come again.

These dataclasses import no torch: the command line builds its flags and help from them. The docstring under a field is
its help text. A default stands here, or in the class that a section is (OptimOptions, Schedule), and nowhere else.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

from foundling import limits
from foundling.adapt.options import AdaptOptions
from foundling.config import flattened, hints, nested, partial_dict
from foundling.errors import ConfigError
from foundling.limits import shown
from foundling.plan.budget import Budget
from foundling.recipes.rollout_spec import RolloutSpec
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule

Precision = Literal["float32", "bfloat16"]
ExampleKind = Literal["chat", "text", "classify", "tag", "regress", "seq2seq", "reward", "dpo", "ipo"]
"""of finetuning"""
PREFERENCE_KINDS = ("reward", "dpo", "ipo")
"""objectives that learn from comparisons, which are one kind of data (data/kinds.PREFERENCE)"""
REWARDED = ("ppo", "grpo")
"""objectives that learn from rewards of the policy's own answers (data/kinds.PROMPT)"""
ObjectiveKind = Literal[
    "causal", "masked", "bilm", "span", "infill", "distill", "chat", "text", "classify", "tag", "regress", "seq2seq",
    "reward", "dpo", "ipo", "ppo", "grpo",
]  # fmt: skip


def _at_least(values: Any, least: float, *names: str) -> None:
    for name in names:
        if not getattr(values, name) >= least:
            raise ConfigError(f"'{name}' is {getattr(values, name)}, expected at least {least:g}")


def _share(values: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(values, name) <= 1:
            raise ConfigError(f"'{name}' is {getattr(values, name)}, expected 0 to 1")


@dataclass(frozen=True)
class DataSpec:
    source: str
    """file or folder of text, code, .jsonl or .parquet, or builtin:NAME"""
    vocab_size: int | None = None
    """size of the tokenizer that is trained on the data; none where a parent's is used"""
    field: str | None = None
    """name of the column with the text, in rows of JSON lines, Parquet and tables (default: text)"""
    share: float = 1.0
    """share of the training text that is used, chosen by hash; below 1 where the budget cannot use all"""
    fim_rate: float = 0.0
    """share of the training documents rearranged for fill-in-the-middle"""
    label: str | None = None
    """finetune: name of the column with the label, the tags or the number"""
    pair: str | None = None
    """finetune: name of the column with a second text, read beside the first"""
    target: str | None = None
    """finetune: name of the column with the text to be written for the first"""
    held_out: str | None = None
    """finetune: file, folder or builtin:NAME of the held-out examples (default: a fifth of the data, by hash)"""
    chat_template: str | None = None
    """finetune: how chats become text, for a model that has no chat template or in place of its own: a Jinja file,
    chatml, or plain (User: … Assistant: …)"""

    def __post_init__(self) -> None:
        from foundling.text.tokenizer import MULTIPLE, SMALLEST

        if self.vocab_size is not None:
            limits.TOKENS.check(self.vocab_size, "'vocab_size'")
            if self.vocab_size % MULTIPLE or self.vocab_size < SMALLEST:
                raise ConfigError(
                    f"'vocab_size' is {self.vocab_size}, expected a multiple of {MULTIPLE} from {SMALLEST} up"
                )
        if not 0 < self.share <= 1:
            raise ConfigError(f"'share' is {self.share}, expected above 0, at most 1")
        _share(self, "fim_rate")


@dataclass(frozen=True)
class ModelSpec:
    """One of family, preset and directory says where the model comes from; `fields` of the family's configuration are
    set on top (any of them: --model.n-kv-heads 2)."""

    family: str = "llama"
    """model family (foundling families)"""
    preset: str | None = None
    """published size (foundling families); its fields are fixed"""
    directory: str | None = None
    """model directory to continue from, with its tokenizer; a plan downloads one of hf:// too"""
    weights_hash: str | None = None
    """hash of the weights in `directory`; filled in when the recipe is resolved"""
    fields: dict[str, Any] = field(default_factory=dict)
    """fields of the family's configuration"""


@dataclass(frozen=True)
class ObjectiveSpec:
    kind: ObjectiveKind
    """what is learnt; follows from the family, or when finetuning from the columns of the data"""
    mask_rate: float = 0.15
    """masked, span, distill of an encoder: share of the tokens that are hidden"""
    infill_rate: float = 0.3
    """infill: share of the tokens that are hidden"""
    mean_span: float = 3.0
    """span, infill: mean length of a hidden span in tokens"""
    teacher: str | None = None
    """distill: model directory of the teacher, whose tokenizer the student takes; an encoder has
    its sizes and half of its layers, where they are not given, and starts from these"""
    teacher_hash: str | None = None
    """hash of the teacher's weights; filled in when the recipe is resolved"""
    temperature: float = 2.0
    """distill: softens both distributions"""
    alpha: float = 0.5
    """distill of a decoder: weight of the teacher; the text itself has 1 - alpha"""
    beta: float = 0.1
    """dpo, ipo: how closely the policy stays to the model that it starts from; smaller is further"""
    kl_coef: float = 0.04
    """ppo, grpo: weight of the KL divergence to the model that the policy starts from; 0 for none"""
    clip_low: float = 0.2
    """ppo, grpo: how far an update may lower the probability of a token, as a share of it"""
    clip_high: float = 0.2
    """ppo, grpo: how far an update may raise it"""
    normalise: Literal["token", "sequence", "constant"] = "token"
    """ppo, grpo: what the loss is a mean over. token: all tokens; sequence: the tokens of each answer, then the
    answers; constant: the sum over tokens by the longest that an answer may be"""
    value_coef: float = 0.1
    """ppo: weight of the loss of the value head"""
    pretraining: str | None = None
    """ppo, grpo: file or folder of text, of which each update predicts some as in pretraining, so that less is
    forgotten"""
    pretraining_hash: str | None = None
    """of that text; filled in when the recipe is resolved"""
    pretraining_coef: float = 0.5
    """ppo, grpo: weight of the loss on that text, in nats per token"""

    def __post_init__(self) -> None:
        _share(self, "alpha")
        _at_least(self, 0, "kl_coef", "value_coef", "pretraining_coef")
        if not 0 < self.clip_low < 1 or not 0 < self.clip_high < float("inf"):
            raise ConfigError(
                f"'clip_low' is {self.clip_low}, 'clip_high' {self.clip_high}: expected 0 to 1, and above 0"
            )
        for name in ("mask_rate", "infill_rate"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"'{name}' is {getattr(self, name)}, expected above 0 and below 1")
        _at_least(self, 1, "mean_span")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"'temperature' is {self.temperature}, expected a positive number")
        if not 0 < self.beta < float("inf"):
            raise ConfigError(f"'beta' is {self.beta}, expected a positive number")


@dataclass(frozen=True)
class ScheduleSpec:
    kind: Literal["wsd", "cosine"] = Schedule.kind
    """wsd: constant, then linear decay; cosine"""
    warmup_steps: int = Schedule.warmup_steps
    """steps of linear warm-up"""
    decay_share: float = Schedule.decay_share
    """wsd: share of the steps in which the rate falls"""

    def __post_init__(self) -> None:
        limits.STEPS._replace(low=0).check(self.warmup_steps, "'warmup_steps'")
        if not 0 < self.decay_share <= 1:
            raise ConfigError(f"'decay_share' is {self.decay_share}, expected above 0, at most 1")


@dataclass(frozen=True)
class TrainSpec:
    total_steps: int
    """optimiser steps"""
    seq_len: int
    """tokens in a row"""
    batch_size: int
    """rows in a step"""
    micro_batch_size: int
    """rows that go through the model at once; changes memory, not the result"""
    clip: float = TrainOptions.clip
    """largest norm of the gradient"""
    activation_checkpointing: bool = TrainOptions.activation_checkpointing
    """recompute layers in the backward pass instead of keeping their activations"""
    ema_decay: float | None = None
    """decay of an exponential moving average of the weights, which is what is saved; none unless given"""
    checkpoint_every: int = 100
    """steps between checkpoints"""
    epochs: float | None = None
    """finetune: times that the examples are read; total_steps follows from it"""
    evaluate_every: int | None = None
    """finetune: steps between measurements on the validation examples, by which the best weights are kept; 0 trains on
    all examples and measures none"""
    patience: int | None = None
    """finetune: measurements without a better one after which training stops; none unless given"""
    n_completions: int = 1
    """reward, dpo, ipo: completions of a prompt, at most; they are rows of their own; filled in when the recipe is
    resolved"""
    unfreeze_every: int | None = None
    """steps until one more layer is trained, from the top; all from the start unless given"""

    def __post_init__(self) -> None:
        for limit, names in (
            (limits.STEPS, ("total_steps", "checkpoint_every")), (limits.SEQ_LEN, ("seq_len",)),
            (limits.ROWS, ("batch_size", "micro_batch_size", "n_completions")),
            (limits.STEPS, ("patience", "unfreeze_every")), (limits.STEPS._replace(low=0), ("evaluate_every",)),
        ):  # fmt: skip
            for name in names:
                if getattr(self, name) is not None:
                    limit.check(getattr(self, name), f"'{name}'")
        if self.epochs is not None and not 0 < self.epochs < float("inf"):
            raise ConfigError(f"'epochs' is {self.epochs}, expected a positive number")
        rows = self.batch_size * self.n_completions
        limits.STEP_ROWS_TOKENS.check(rows * self.seq_len, "'batch_size' × 'seq_len'")
        if not 0 < self.clip < float("inf"):
            raise ConfigError(f"'clip' is {self.clip}, expected a positive number")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"'ema_decay' is {self.ema_decay}, expected above 0 and below 1")

    @property
    def tokens(self) -> int:
        """that training reads"""
        return self.total_steps * self.batch_size * self.n_completions * self.seq_len


@dataclass(frozen=True)
class RuntimeSpec:
    device: str
    """cpu or cuda"""
    precision: Precision
    """what autocast computes in; parameters are float32"""
    threads: int
    """CPU threads"""
    compile: bool
    """torch.compile of the layers"""

    def __post_init__(self) -> None:
        limits.THREADS.check(self.threads, "'threads'")


@dataclass(frozen=True)
class Recipe:
    """Every figure that the weights depend on; nothing in it is looked up, probed or timed again."""

    data: DataSpec
    model: ModelSpec
    objective: ObjectiveSpec
    optim: OptimOptions
    schedule: ScheduleSpec
    train: TrainSpec
    runtime: RuntimeSpec
    adapt: AdaptOptions = field(default_factory=AdaptOptions)
    """finetune: what of the model is trained, and what is added to it"""
    rollout: RolloutSpec = field(default_factory=RolloutSpec)
    """ppo, grpo: the answers that are learnt from"""
    seed: int = 0
    """seed of everything random"""

    def __post_init__(self) -> None:
        limits.SEED.check(self.seed, "'seed'")

    def make_schedule(self) -> Schedule:
        return Schedule(
            self.train.total_steps, self.schedule.kind, self.schedule.warmup_steps, self.schedule.decay_share
        )

    def train_options(self) -> TrainOptions:
        t = self.train
        return TrainOptions(
            t.micro_batch_size, clip=t.clip, activation_checkpointing=t.activation_checkpointing, seed=self.seed,
            ema_decay=t.ema_decay, unfreeze_every=t.unfreeze_every,
        )  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What the user asked for: the data, a budget, and any keys of the recipe to be held fixed (`given`, nested as the
    recipe is). Raises ConfigError, naming the key, before any work is done."""

    data: str
    budget: Budget = field(default_factory=Budget)
    licence: str | None = None
    given: dict[str, Any] = field(default_factory=dict)
    command: Literal["raise", "finetune"] = "raise"
    """which asks for it"""
    align: str | None = None
    """raise: align the model afterwards, by a file of chats, or where it is "" by questions from the data itself"""

    def __post_init__(self) -> None:
        if not isinstance(self.data, str) or not self.data:
            raise ConfigError(f"the data is {shown(self.data)}, expected a path or builtin:NAME")
        if not isinstance(self.budget, Budget):
            raise ConfigError(f"the budget is {shown(self.budget)}, expected a Budget, such as Budget('seconds', 180)")
        if self.licence is not None and not isinstance(self.licence, str):
            raise ConfigError(f"the licence is {shown(self.licence)}, expected a text, such as 'CC-BY-4.0'")
        if self.align is not None and (not isinstance(self.align, str) or self.command != "raise"):
            raise ConfigError(f"align is {shown(self.align)}, expected a file of chats for the command 'raise', or ''")
        if not isinstance(self.given, dict):
            raise ConfigError(f"given is {shown(self.given)}, expected a dict of sections of the recipe")
        object.__setattr__(self, "given", check_given(self.given))

    def get(self, key: str, default: Any = None) -> Any:
        """What was given for a dotted key."""
        value: Any = self.given
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                return default
            value = value[part]
        return value


def check_given(given: dict[str, Any]) -> dict[str, Any]:
    """Names, types and ranges of some keys of a recipe; what is missing is filled with anything that passes."""
    clean = partial_dict(Recipe, given, where="recipe")
    for key, value in flattened(clean).items():
        if value == "":
            raise ConfigError(f"--{key.replace('_', '-')} is empty; give a value, or leave it out")
    fill = {int: 320, str: "cpu", bool: False, Precision: "float32", ObjectiveKind: "causal"}
    for name, values in clean.items():
        section = nested(hints(Recipe)[name])
        if section is not None:
            missing = [f for f in dataclasses.fields(section) if f.default is dataclasses.MISSING]
            needed = {f.name: fill[hints(section)[f.name]] for f in missing if f.default_factory is dataclasses.MISSING}
            section(**(needed | values))
    limits.SEED.check(clean.get("seed", 0), "'seed'")
    for name in ("n_layers", "d_model"):  # they have flags of their own; the others are checked with their family
        if (value := clean.get("model", {}).get("fields", {}).get(name)) is not None:
            limits.limit_of_size(name).check(value, f"'{name}'")
    return clean


def code_version() -> dict[str, str]:
    """The release, and a SHA-256 over every source file: two versions that could compute differently differ here."""
    from importlib.metadata import PackageNotFoundError, version  # not needed for --help

    digest = hashlib.sha256()
    root = resources.files("foundling")
    stack, files = [("", root)], {}
    while stack:
        prefix, folder = stack.pop()
        for entry in folder.iterdir():
            path = f"{prefix}{entry.name}"
            if entry.is_dir() and entry.name != "__pycache__":
                stack.append((f"{path}/", entry))
            elif entry.name.endswith((".py", ".json")) and path != "models/matrix.json":  # which computes nothing
                files[path] = entry
    for path in sorted(files):
        digest.update(f"{path}\n".encode() + files[path].read_bytes())
    try:
        release = version("foundling")
    except PackageNotFoundError:  # run from a source tree
        release = "unreleased"
    return {"version": release, "sha256": digest.hexdigest()}
