# SPDX-License-Identifier: Apache-2.0
"""Random schemas, random weights: what ends by itself is accepted by jsonschema, without exception."""

import json

import jsonschema
import pytest

from foundling.decode.constrain.constrainer import Constrainer
from foundling.decode.constrain.constraint import json_schema
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.request import Request
from foundling.decode.sampling import Sampling
from foundling.errors import GenerationError
from foundling.verify.structured import matches_constraint
from tests.contract.cases import case
from tests.decode.schemas import SchemaMaker
from tests.text.kinds import tokenizer

LONGEST = 200


def answers_of(seeds: range, kind: str) -> tuple[list[tuple[dict, str]], int, int]:
    """(schema, answer that ended) for each, how many were cut, how many schemas were refused."""
    words = tokenizer(kind)
    n_rows = words.vocab_size + 3
    model = case("llama").tiny(vocab_size=n_rows, max_seq_len=256)
    constrainer = Constrainer(words, n_rows, [words.eos])
    engine = Engine(model, EngineOptions(native=False))
    closing = {i: 4.0 for i, text in enumerate(words.spellings()) if text in (b'"', b"}", b"]", b'"}')}
    made, requests, refused = list[dict](), list[Request](), 0
    for seed in seeds:
        schema = SchemaMaker(seed).schema()
        try:
            processor = constrainer.processor(json_schema(schema))
        except GenerationError:
            refused += 1
            continue
        made.append(schema)
        sampling = Sampling(temperature=1 + seed % 2, logit_bias=closing)
        requests.append(Request([5, 6, 7], LONGEST, sampling, seed, [words.eos], processors=[processor]))
    completions = engine.generate(requests)
    assert not [c.error for c in completions if c.finish_reason == "error"]
    ended = [
        (s, constrainer.decode(c.tokens)) for s, c in zip(made, completions, strict=True) if c.finish_reason == "end"
    ]
    return ended, len(made) - len(ended), refused


def check(ended: list[tuple[dict, str]]) -> None:
    for schema, text in ended:
        verdict = matches_constraint(text, json_schema(schema))
        assert verdict, (verdict.reason, text, schema)
        # and by the library alone, on the schema as it was written (its floats have no exact multiples)
        if "multipleOf" not in json.dumps(schema):
            jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize(("kind", "start"), [("gpt2", 0), ("llama 2", 20)])
def test_no_answer_of_a_random_schema_is_invalid(kind: str, start: int) -> None:
    ended, cut, refused = answers_of(range(start, start + 20), kind)
    assert len(ended) >= 12 and refused <= 2, (cut, refused)
    check(ended)


@pytest.mark.slow
def test_no_answer_of_500_random_schemas_is_invalid() -> None:
    ended, cut, refused = answers_of(range(1000, 1800), "ours")
    assert len(ended) >= 500 and refused <= 80, (cut, refused)
    check(ended)
