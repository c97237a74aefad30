# SPDX-License-Identifier: Apache-2.0
"""Held-out score against every token's probability added up one by one."""

import math

import torch

from foundling.data.loader import evaluation_batches
from foundling.data.shards import write_shards
from foundling.evaluate.perplexity import score
from foundling.models import build, family
from foundling.objectives.causal import Causal
from foundling.runtime.device import Runtime
from foundling.text import Tokenizer

TEXTS = ["first text, rather short", "a second one that is a good deal longer than the first", "third"]


def test_whole_documents_read_apart(tmp_path) -> None:
    """With a window longer than the text, packing makes no difference: each document is read from its own eos."""
    tokenizer = Tokenizer.train(TEXTS, 320)
    model = build("llama", **family("llama").module.sized(320, 512, 32, 2))
    shards = write_shards(tmp_path, TEXTS, tokenizer)
    found = score(
        model, Causal(), evaluation_batches(shards, seq_len=512, batch_size=2, stride=64), shards.n_bytes, Runtime()
    )
    nats, count = 0.0, 0
    with torch.no_grad():
        for text in TEXTS:
            ids = torch.tensor([[tokenizer.eos, *tokenizer.encode(text), tokenizer.eos]])
            logprobs = torch.log_softmax(model.logits(model(ids[:, :-1]).hidden), -1)
            nats -= float(logprobs.gather(-1, ids[:, 1:, None]).sum())
            count += ids.shape[1] - 1
    assert found.tokens == count
    assert math.isclose(found.loss, nats / count, rel_tol=1e-5)
    n_bytes = sum(len(t.encode()) for t in TEXTS)
    assert math.isclose(found.bits_per_byte, nats / math.log(2) / n_bytes, rel_tol=1e-5)
