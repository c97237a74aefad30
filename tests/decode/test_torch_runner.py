# SPDX-License-Identifier: Apache-2.0
"""The torch runner computes chunks of equal length in one pass, wherever in their sequences they start: what the model
computes of each sequence alone."""

import random
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from foundling.decode.engine.scheduler import ScheduledChunk, Sequence
from foundling.decode.engine.torch_runner import BLOCK_SIZE, TorchRunner
from tests.contract.cases import case

STARTS, N_TOKENS = (44, 0, 3, 16), 9
"""of the chunks of one pass: within blocks, at their ends, at the beginning, beyond the windows of gemma2"""
PROMPTS = [[random.Random(n).randrange(3, 64) for _ in range(5 + n)] for n in range(len(STARTS))]
"""sources, for a model that reads one"""


class Pass(NamedTuple):
    logits: Tensor
    """(rows, V) of all chunks, by the runner"""
    alone: Tensor
    """the same by the model's own cache, of each sequence whole"""
    n_forward: int


def sequence_of(runner: TorchRunner, number: int, blocks: list[int]) -> Sequence:
    """As long as its chunk needs, of random tokens."""
    begin, draw = runner.add_sequence(number, PROMPTS[number], None), random.Random(100 + number)
    length = STARTS[number] + N_TOKENS
    tokens = [*begin, *(draw.randrange(3, 64) for _ in range(length))][:length]
    return Sequence(number, tokens, blocks=[blocks.pop() for _ in range(-(-length // BLOCK_SIZE))])


def alone(model: Any, sequence: Sequence) -> Tensor:
    reads = model.capabilities.reads_source
    more = {"memory": model.encode(torch.tensor([PROMPTS[sequence.request_id]]))} if reads else {}
    cache = model.new_cache(1, len(sequence.tokens), **more)
    hidden = model(torch.tensor([sequence.tokens]), cache=cache).hidden
    return model.logits(hidden[0, -N_TOKENS:]).float()


@torch.inference_mode()
def compute(model: Any) -> Pass:
    runner, blocks = TorchRunner(model.eval(), 16, len(STARTS)), list(range(16))
    random.Random(0).shuffle(blocks)
    sequences = [sequence_of(runner, number, blocks) for number in range(len(STARTS))]
    for sequence, start in zip(sequences, STARTS, strict=True):
        if start:
            runner.forward([ScheduledChunk(sequence, 0, start, False)], [0])
    calls = list[None]()
    hook = model.register_forward_pre_hook(lambda *_: calls.append(None))
    chunks = [ScheduledChunk(s, start, N_TOKENS, True) for s, start in zip(sequences, STARTS, strict=True)]
    logits = runner.forward(chunks, [N_TOKENS] * len(chunks))
    hook.remove()
    return Pass(logits, torch.cat([alone(model, sequence) for sequence in sequences]), len(calls))


@pytest.mark.parametrize("name", ["llama", "gemma2", "mamba", "jamba", "t5"])
def test_chunks_that_start_at_different_tokens_are_one_pass(name: str) -> None:
    model = case(name).tiny()
    if name == "gemma2":
        assert model.config.window < max(STARTS)
    out = compute(model)
    assert out.n_forward == 1
    assert torch.allclose(out.logits, out.alone, rtol=1e-4, atol=1e-4), (out.logits - out.alone).abs().max()


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_pass_within_autocast_errs_as_the_model_does(name: str) -> None:
    """By the rounding of bfloat16, of which the model alone has as much."""
    model = case(name).tiny()
    exact = compute(model).alone
    with torch.autocast("cpu", torch.bfloat16):
        rounded = compute(model)
    error, expected = ((logits - exact).norm() / exact.norm() for logits in (rounded.logits, rounded.alone))
    assert rounded.n_forward == 1
    assert 2**-12 < error < 2 * expected < 2**-4, (error, expected)
