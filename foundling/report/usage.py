# SPDX-License-Identifier: Apache-2.0
"""How a model is used, by its pipeline tag (the hub's word for what a model does): the card's examples and limits."""

import re
from typing import NamedTuple


class Usage(NamedTuple):
    does: str
    """a sentence on what the model does"""
    ours: str
    """Python, with {name} for the model as a Python string"""
    theirs: str
    """the same in transformers; "" where it has no such model"""
    limit: str
    """a sentence on what it does not do"""
    generates: bool = False


_TEXT_GENERATION = Usage(
    "It continues text.",
    """import foundling

model, tokenizer = foundling.load({name}), foundling.Tokenizer.load({name})
prompt = tokenizer.encode_framed("Once upon a time")
(answer,) = foundling.generate(model, [prompt], max_tokens=64, stop=[tokenizer.eos])
print(tokenizer.decode(answer.tokens))""",
    """from transformers import pipeline

generate = pipeline("text-generation", model={name})
print(generate("Once upon a time", max_new_tokens=64)[0]["generated_text"])""",
    "The model continues text. It was not trained to follow instructions, to hold a conversation or to be truthful: "
    "what reads like a fact is a likely wording.",
    generates=True,
)
_FILL_MASK = Usage(
    "It fills gaps in text.",
    """from foundling.decode.fill import MaskFiller

print(MaskFiller.load({name}).fill("The cat sat on the ___.")["text"])""",
    """from transformers import pipeline

fill = pipeline("fill-mask", model={name})
print(fill(f"The cat sat on the {{fill.tokenizer.mask_token}}.")[0]["sequence"])""",
    "The model reads text and fills single gaps. It does not write text from left to right, and what it fills in is a "
    "likely wording, true or not.",
)
_TEXT_TO_TEXT = Usage(
    "It reads a source text and writes a target text.",
    """import foundling

model, tokenizer = foundling.load({name}), foundling.Tokenizer.load({name})
source = tokenizer.encode_framed("Once upon a time")
(answer,) = foundling.generate(model, [source], max_tokens=64, stop=[tokenizer.eos])
print(tokenizer.decode(answer.tokens))""",
    """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained({name}), AutoTokenizer.from_pretrained({name})
source = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**source, max_new_tokens=64)[0]))""",
    "The model writes what its training paired with such a source: after denoising alone, the hidden spans of a text. "
    "For any task of your own, finetune it first.",
    generates=True,
)
_OTHER = Usage(
    "",
    """import foundling

model = foundling.load({name})""",
    "",
    "The model does what it was trained for and nothing else.",
)
_BY_TAG = {
    "text-generation": _TEXT_GENERATION,
    "fill-mask": _FILL_MASK,
    "text2text-generation": _TEXT_TO_TEXT,
    "text-to-image": _OTHER._replace(does="It draws images from text.", generates=True),
    "unconditional-image-generation": _OTHER._replace(does="It draws images.", generates=True),
    "feature-extraction": _OTHER._replace(does="It turns an input into vectors."),
    "sentence-similarity": _OTHER._replace(does="It turns texts into vectors whose angle tells how alike they are."),
}


def usage(pipeline_tag: str) -> Usage:
    """What the tag's models do; for an unknown tag, how to load one."""
    return _BY_TAG.get(pipeline_tag, _OTHER)


def example(code: str, model_id: str) -> str:
    """The code for this model."""
    plain = re.fullmatch(r"[\w ./:@+-]*", model_id, re.ASCII)
    return code.format(name=f'"{model_id}"' if plain else ascii(model_id))
