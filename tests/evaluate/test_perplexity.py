# SPDX-License-Identifier: Apache-2.0
"""Held-out scores against each token's probability computed alone, by our models or by transformers'."""

import math

import pytest
import torch

from foundling.data.loader import evaluation_batches
from foundling.data.shards import write_shards
from foundling.data.transforms.mask import MaskedBatches
from foundling.data.transforms.span import SpanBatches
from foundling.errors import ConfigError, DataError, MismatchError
from foundling.evaluate.compare import compare
from foundling.evaluate.perplexity import corrupted_score, pseudo_perplexity, score
from foundling.models import build, family
from foundling.objectives.causal import Causal
from foundling.runtime.device import Runtime
from foundling.text import Tokenizer
from foundling.weights.directory import load
from tests.parity import references

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


def held_out(tokenizer: Tokenizer, tmp_path, seq_len: int):
    shards = write_shards(tmp_path, TEXTS * 3, tokenizer)
    return shards, evaluation_batches(shards, seq_len=seq_len, batch_size=2, stride=seq_len)


@torch.no_grad()
def test_masked_score_counts_each_hidden_place_once(tmp_path) -> None:
    tokenizer = Tokenizer.train(TEXTS, 320)
    model = build("bert", **family("bert").module.sized(320, 64, 32, 1)).eval()
    shards, batches = held_out(tokenizer, tmp_path, 10)
    hide = {"mask": 2, "vocab_size": 320, "seed": 3, "rate": 0.4, "never": (tokenizer.eos,)}
    found, again = (
        corrupted_score(model, Causal(), lambda b: MaskedBatches(b, **hide), batches, Runtime()) for _ in range(2)
    )
    assert found == again and math.isnan(found.bits_per_byte) and found.low < found.loss < found.high

    nats, places = 0.0, []
    for n, batch in enumerate(batches):
        hidden = MaskedBatches(batches, **hide)[n]
        for row in range(len(batch["tokens"])):
            k = 2 * n + row
            start = min(10 * k, shards.n_tokens - 1 - 10)
            for at in range(10):
                if hidden["loss_mask"][row, at] and start + at >= 10 * k:
                    documents = batch["documents"][row : row + 1]
                    logits = model.logits(model(hidden["tokens"][row : row + 1], documents=documents).hidden)
                    nats -= float(logits[0, at].log_softmax(-1)[batch["tokens"][row, at]])
                    places.append(start + at)
    assert len(places) == len(set(places)) == found.tokens > 10
    assert math.isclose(found.loss, nats / len(places), rel_tol=1e-5)
    stream = torch.from_numpy(shards.read(0, shards.n_tokens))
    assert tokenizer.eos not in stream[places]


@torch.no_grad()
def test_denoising_score_is_the_loss_of_targets_given_the_corrupted_source(tmp_path) -> None:
    tokenizer = Tokenizer.train(TEXTS, 320)
    model = build("t5", **family("t5").module.sized(320, 64, 32, 1)).eval()
    _, batches = held_out(tokenizer, tmp_path, 20)
    options = {"sentinels": [300, 301, 302, 303], "eos": tokenizer.eos, "seed": 1, "density": 0.3}
    found, again = (
        corrupted_score(model, Causal(), lambda b: SpanBatches(b, **options), batches, Runtime()) for _ in range(2)
    )
    assert found == again
    new = [b | {"documents": torch.where(b["loss_mask"], b["documents"], -1)} for b in batches]
    corrupted, nats, count = SpanBatches(new, **options), 0.0, 0
    for n in range(len(new)):
        batch = corrupted[n]
        for row in range(len(batch["tokens"])):
            for document in batch["documents"][row].unique().tolist():
                if document < 0:
                    continue
                source = batch["source"][row][batch["source_documents"][row] == document][None]
                own = batch["documents"][row] == document
                memory = model.encode(source, documents=torch.zeros_like(source))
                tokens, targets = batch["tokens"][row][own][None], batch["targets"][row][own]
                logits = model.logits(model(tokens, documents=torch.zeros_like(tokens), memory=memory).hidden)
                nats -= float(logits[0].log_softmax(-1).gather(-1, targets[:, None]).sum())
                count += len(targets)
    assert found.tokens == count > 10
    assert math.isclose(found.loss, nats / count, rel_tol=1e-4)


@torch.no_grad()
def test_pseudo_perplexity_masks_each_token_in_turn_as_transformers_does(tmp_path) -> None:
    transformers = references.transformers()
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=40,
    )  # fmt: skip
    theirs = transformers.BertForMaskedLM(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    first, last, mask = 1, 2, 3
    sequences = [[first, *torch.randint(5, 60, (n,)).tolist(), last] for n in (4, 9, 1, 17)]
    nats = []
    for ids in sequences:
        for at in range(1, len(ids) - 1):
            shown = torch.tensor([ids])
            shown[0, at] = mask
            nats.append(-float(theirs(shown).logits[0, at].double().log_softmax(-1)[ids[at]]))
    found = pseudo_perplexity(ours, sequences, mask, kept=(first, last), batch_size=7)
    assert found.n == 31 and math.isclose(found.value, math.exp(sum(nats) / len(nats)), rel_tol=1e-4)
    assert found.low < found.value < found.high and found.lower_is_better

    some = pseudo_perplexity(ours, sequences, mask, kept=(first, last), max_positions=10, seed=1)
    assert some.n == 10 and math.exp(min(nats)) <= some.value <= math.exp(max(nats))
    assert some == pseudo_perplexity(ours, sequences, mask, kept=(first, last), max_positions=10, seed=1)
    other = pseudo_perplexity(ours, sequences, mask, kept=(first, last), max_positions=10, seed=2)
    assert other.value != some.value and sorted(found.scores) == pytest.approx(sorted(nats), abs=1e-5)
    assert compare(found, found).difference == 0.0
    with pytest.raises(MismatchError):
        compare(some, other)

    with pytest.raises(DataError, match="no token to mask"):
        pseudo_perplexity(ours, [[first, last]], mask, kept=(first, last))
    with pytest.raises(DataError, match="41 tokens, the model reads 40"):
        pseudo_perplexity(ours, [[5] * 41], mask)
    llama = build("llama", **family("llama").module.sized(320, 64, 32, 1))
    with pytest.raises(ConfigError, match="does not predict masked tokens"):
        pseudo_perplexity(llama, sequences, mask)


def test_the_interval_of_a_score_is_over_batches_and_absent_for_one(tmp_path) -> None:
    tokenizer = Tokenizer.train(TEXTS, 320)
    model = build("llama", **family("llama").module.sized(320, 64, 32, 1))
    _, batches = held_out(tokenizer, tmp_path, 10)
    assert len(batches) > 3
    whole = score(model, Causal(), batches, None, Runtime())
    assert whole.low < whole.loss < whole.high
    assert score(model, Causal(), batches[:1], 100, Runtime())[3:] == (None, None)
