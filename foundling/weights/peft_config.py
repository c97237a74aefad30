# SPDX-License-Identifier: Apache-2.0
"""adapter_config.json of a LoRA adapter that peft wrote: what is obeyed, what makes no difference to the outputs, and
what is refused because it would compute something else."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from foundling.errors import WeightsError
from foundling.limits import shown
from foundling.weights.adapter_layout import CONFIG, PREFIX, Source

OBEYED = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "modules_to_save"}
INERT = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "exclude_modules", "lora_dropout", "fan_in_fan_out", "layers_to_transform", "layers_pattern", "megatron_core",
    "qalora_group_size", "loftq_config", "eva_config", "ensure_weight_tying", "runtime_config", "bias",
    "init_lora_weights", "corda_config", "lora_ga_config", "target_parameters",
}  # fmt: skip
"""Keys of training, of where the base is, or of which modules have tensors: the file itself says that."""
PLAIN_INIT = (None, True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base as it is; others (PiSSA, OLoRA, CorDA) change its weights."""
MAX_PATTERN = 300
"""characters of a key of alpha_pattern"""


def check(source: Source) -> None:
    """WeightsError for a key that asks for another computation, or a value of a wrong type."""
    config, file = source.config, source.directory / CONFIG
    if config.get("bias", "none") != "none":
        raise WeightsError(f"{file}: bias = {shown(config['bias'])} trains biases, which are not read; only 'none' is")
    if config.get("init_lora_weights") not in PLAIN_INIT:
        raise WeightsError(
            f"{file}: init_lora_weights = {shown(config['init_lora_weights'])} changes the base too; save it in peft "
            "with path_initial_model_for_weight_conversion"
        )
    for key, value in config.items():
        if key not in OBEYED and key not in INERT and value:
            raise WeightsError(f"{file}: {shown(key)} = {shown(value)} is not supported; only plain LoRA is")
    if not is_rank(config.get("r")) or not _is_scale(config.get("lora_alpha")):
        raise WeightsError(
            f"{file}: r = {shown(config.get('r'))} and lora_alpha = {shown(config.get('lora_alpha'))}, expected a "
            "number of at least 1 and one above 0"
        )
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(_is_scale(alpha) for alpha in patterns.values()):
        raise WeightsError(f"{file}: alpha_pattern is {shown(patterns)}, expected positive numbers by module")
    for pattern in patterns:
        _compiled(pattern, str(file))


def is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_scale(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def alpha(source: Source, module: str, rank: int) -> float:
    """alpha of a module of this rank such that alpha / rank is peft's scale."""
    config, value = source.config, float(source.config["lora_alpha"])
    for pattern, other in (config.get("alpha_pattern") or {}).items():
        if _compiled(pattern, str(source.directory / CONFIG)).fullmatch(module):
            value = float(other)
            break
    return value * math.sqrt(rank) if config.get("use_rslora") else value


def _compiled(pattern: str, file: str) -> re.Pattern[str]:
    """A key of alpha_pattern as peft matches it: the whole name, or its end after a dot. Of regular expressions only
    names, `.*` and `\\d+` are understood: others can take hours, and whoever wrote the file chose them."""
    text = pattern.removeprefix("^").removesuffix("$")
    parts = re.split(r"(\.\*|\\d\+|\[0-9\]\+)", text)
    names = [part.replace("\\.", ".") for part in parts[::2]]
    if len(pattern) > MAX_PATTERN or len(parts) > 7 or not all(re.fullmatch(r"[\w.-]*", name) for name in names):
        raise WeightsError(f"{file}: alpha_pattern has the key {shown(pattern)}, expected a module's name")
    wild = [".*" if part == ".*" else "[0-9]+" for part in parts[1::2]]
    joined = "".join(re.escape(n) + w for n, w in zip(names, [*wild, ""], strict=True))
    return re.compile(joined if pattern.startswith("^") else rf"(?:.*\.)?{joined}")


def check_targets(source: Source, found: Mapping[str, str], every: Iterable[str]) -> None:
    """Compares a list of target_modules with the modules that have tensors: WeightsError for one that is targeted and
    has none. A regular expression is not run; there the file alone says which modules have adapters."""
    config = source.config
    targets = config.get("target_modules")
    if not isinstance(targets, list) or config.get("layers_to_transform") is not None or config.get("exclude_modules"):
        return
    if not all(isinstance(target, str) for target in targets):
        raise WeightsError(f"{source.directory / CONFIG}: target_modules is {shown(targets)}, expected names")
    wanted = set(targets)
    for name in every:
        ends = {name} | {name[at.end() :] for at in re.finditer(r"\.", name)}
        if ends & wanted and name not in found:
            raise WeightsError(f"{source.tensors.path}: lacks tensor '{PREFIX}{name}.lora_A.weight'")
