# SPDX-License-Identifier: Apache-2.0
"""generation_config.json: what a model directory asks of generation. Each key is obeyed, inert, or named as ignored."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundling.errors import WeightsError
from foundling.limits import shown
from foundling.runtime.files import read_json
from foundling.text import Tokenizer

SAMPLED = ("temperature", "top_k", "top_p", "min_p")
"""keys that hold where `do_sample` is true"""
ALWAYS = ("repetition_penalty",)
INERT = {
    "bos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version", "do_sample", "eos_token_id",
    "max_length", "max_new_tokens", "use_cache", "cache_implementation", "return_dict_in_generate", "output_scores",
    "output_attentions", "output_hidden_states", "output_logits", "trust_remote_code", "cache_config",
}  # fmt: skip
"""keys that are read elsewhere here, or that change no token"""
OFF: dict[str, Any] = {
    "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "length_penalty": 1.0, "diversity_penalty": 0.0,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0, "min_length": 0,
    "min_new_tokens": 0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "early_stopping": False,
    "remove_invalid_values": False, "renormalize_logits": False, "guidance_scale": 1.0, "top_h": None,
}  # fmt: skip
"""key -> the value that asks for nothing"""


@dataclass(frozen=True)
class GenerationConfig:
    ends: tuple[int, ...] = ()
    """ids that end an answer"""
    sampling: dict[str, Any] = field(default_factory=dict)
    """fields of decode.sampling.Sampling"""
    greedy: bool = False
    """as transformers reads a file that does not say `do_sample: true`"""
    max_tokens: int | None = None
    max_length: int | None = None
    """of prompt and answer together, where `max_tokens` is not given"""
    start: int | None = None
    """the first id that the decoder of an encoder-decoder reads, where the file names one"""
    ignored: tuple[str, ...] = ()
    """what the file asks for and this library does not do, in words"""


def read_generation_config(directory: Path) -> GenerationConfig:
    """Of the directory's generation_config.json; a null is a missing key. WeightsError for values of wrong types."""
    file = directory / "generation_config.json"
    if not file.exists():
        return GenerationConfig()
    values = {key: value for key, value in read_json(file).items() if value is not None}
    if not isinstance(sampled := values.get("do_sample", False), bool):
        raise WeightsError(f"{file}: do_sample is {shown(sampled)}, expected true or false")
    greedy = not sampled
    sampling: dict[str, Any] = {}
    for name in (*ALWAYS, *SAMPLED):
        if name in values:
            value = values[name]
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise WeightsError(f"{file}: {name} is {value!r}, expected a number")
            if name in ALWAYS or not greedy:
                sampling[name] = value
    words = values.get("bad_words_ids", [])
    if not isinstance(words, list):
        raise WeightsError(f"{file}: bad_words_ids is {str(words)[:80]}, expected lists of ids")
    if bad := [ids for word in words if (ids := read_ids(word, "bad_words_ids", file))]:
        sampling["bad_words"] = bad
    if never := read_ids(values.get("suppress_tokens", []), "suppress_tokens", file):
        sampling["logit_bias"] = dict.fromkeys(never, float("-inf"))
    known = {*INERT, *SAMPLED, *ALWAYS, "bad_words_ids", "suppress_tokens"}
    ignored = [
        f"{key} {value!r}"[:80] for key, value in values.items()
        if key not in known and not key.startswith("_") and not (key in OFF and value == OFF[key])
    ]  # fmt: skip
    most, longest = (_read_length(values.get(key), key, file) for key in ("max_new_tokens", "max_length"))
    start = read_ids(values.get("decoder_start_token_id", []), "decoder_start_token_id", file)
    ends = read_ids(values.get("eos_token_id", []), "eos_token_id", file)
    return GenerationConfig(
        ends, sampling, greedy, most, None if most else longest, start[0] if start else None, tuple(ignored)
    )


def _read_length(value: Any, key: str, file: Path) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WeightsError(f"{file}: {key} is {shown(value)}, expected a whole number of at least 1, or null")
    return value


def default_generation_config(model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a reader must know to begin and end an answer."""
    source = model.capabilities.reads_source
    values = {
        "bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "do_sample": not source,
        "decoder_start_token_id": model.config.start_id if source else None,
    }  # fmt: skip
    return {key: value for key, value in values.items() if value is not None}


def read_ids(value: Any, key: str, file: Path) -> tuple[int, ...]:
    """An id or a list of them; WeightsError for anything else."""
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i < 1 << 31 for i in ids):
        raise WeightsError(f"{file}: {key} is {str(value)[:80]}, expected ids")
    return tuple(i for i in ids if i >= 0)  # a negative one is written for none
