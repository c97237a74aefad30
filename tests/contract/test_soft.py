# SPDX-License-Identifier: Apache-2.0
"""Soft prompts and prefixes on every family: virtual tokens before each text, keys and values before each text."""

from typing import Any

import pytest
import torch
from torch import Tensor

from foundling.adapt.added import adapter_tensors
from foundling.adapt.prefix import prefix_tuning
from foundling.adapt.soft import prompt_tuning, virtual_ids
from foundling.contracts.data import Batch
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.plain import generate
from foundling.decode.request import Request
from foundling.decode.sampling import Sampling
from foundling.errors import AdaptError, MismatchError
from foundling.runtime.rng import generator
from foundling.train.options import OptimOptions
from foundling.train.state import TrainState
from foundling.weights.adapters import load_adapter, save_adapter
from foundling.weights.directory import load, save, weights_hash
from tests.contract.cases import case, close, tokens
from tests.contract.matrix import covers
from tests.contract.test_methods import Same, fit

N = 3


def after_virtual(model: Any, x: Tensor) -> Tensor:
    """(B, T) -> (B, n + T)"""
    virtual = torch.tensor(virtual_ids(model), dtype=torch.int64)
    return torch.cat((virtual.expand(len(x), -1), x), dim=1)


def framed(model: Any, batch: Batch) -> Batch:
    """The batch with the virtual tokens before each document, where nothing is asked for."""
    virtual, side = torch.tensor(virtual_ids(model), dtype=torch.int64), "source" if "source" in batch else "tokens"
    documents = batch["source_documents" if side == "source" else "documents"][0]
    parts = [(documents == d).nonzero()[:, 0] for d in documents.unique().tolist()]

    def put(name: str, new: Tensor) -> Tensor:
        return torch.cat([t for at in parts for t in (new.expand(len(batch[name]), -1), batch[name][:, at])], dim=1)

    numbers = torch.cat([torch.full((len(virtual) + len(at),), d) for d, at in enumerate(parts)])
    changed = {side: put(side, virtual), "documents": numbers.expand(len(batch[side]), -1)}
    if side == "source":
        return batch | {"source": changed["source"], "source_documents": changed["documents"]}
    if "targets" in batch:
        changed |= {"targets": put("targets", virtual * 0)}
        changed |= {"loss_mask": put("loss_mask", torch.zeros_like(virtual, dtype=torch.bool))}
    return batch | changed


@torch.no_grad()
def outputs(of: Any, model: Any, x: Tensor) -> Tensor:
    """What comes of texts that all begin with the virtual tokens, without what comes of those."""
    if of.family.kind == "dual_encoder":
        return model.embed("text", {"tokens": after_virtual(model, x)})
    if of.family.kind == "seq2seq":
        memory = model.encode(after_virtual(model, of.source(len(x))))
        return model.logits(model(x, memory=memory).hidden)
    return model.logits(model(after_virtual(model, x)).hidden)[:, len(virtual_ids(model)) :]


def check_trained_and_saved_alone(of: Any, adapt: Any, tmp_path) -> Any:
    model, x = of.tiny(), tokens(2, 12)
    save(model, tmp_path / "base")
    base, before = weights_hash(model), outputs(of, model, x)
    adapt(model, N, generator("soft"), [5, 6])
    assert {n for n, p in model.named_parameters() if p.requires_grad} == adapter_tensors(model).keys()
    with pytest.raises(AdaptError, match="already"):
        adapt(model, N, generator("soft"))
    state = TrainState.build(model.train(), OptimOptions(optimizer="adamw", learning_rate=0.03))
    losses = fit(model, of.objective(), Same(framed(model, of.batch(0))), state=state)
    assert losses[-1] < losses[0] and weights_hash(model) == base, "the base is not touched by a bit"
    model.eval()
    after = outputs(of, model, x)
    assert (after - before).abs().max() > 1e-3
    save_adapter(model, tmp_path / "adapter")
    fresh = load(tmp_path / "base")
    load_adapter(fresh, tmp_path / "adapter")
    close(outputs(of, fresh, x), after)  # peft's layout has rotated keys and scaled rows: rounded anew
    with pytest.raises(MismatchError, match="base"):
        load_adapter(of.tiny(seed=1), tmp_path / "adapter")
    return model


@torch.no_grad()
def check_packed_and_cached(of: Any, model: Any) -> None:
    a, b = tokens(2, 12, seed=3), tokens(2, 7, seed=4)
    if of.family.kind == "dual_encoder":
        return
    if of.family.kind == "seq2seq":
        both = torch.cat((after_virtual(model, a), after_virtual(model, b)), dim=1)
        documents = (torch.arange(both.shape[1]) >= both.shape[1] - after_virtual(model, b).shape[1]).long()
        packed = model.encode(both, documents=documents.expand(2, -1)).states
        for d, part in enumerate((a, b)):
            close(packed[:, documents == d], model.encode(after_virtual(model, part)).states)
        return
    n, both = len(virtual_ids(model)), torch.cat((after_virtual(model, a), after_virtual(model, b)), dim=1)
    documents = (torch.arange(both.shape[1]) >= n + 12).long()
    packed = model.logits(model(both, documents=documents.expand(2, -1)).hidden)
    close(packed[:, n : n + 12], outputs(of, model, a))
    close(packed[:, 2 * n + 12 :], outputs(of, model, b))
    if of.family.kind == "decoder":
        x, cache = after_virtual(model, a), model.new_cache(2, 40)
        parts = [model(part, cache=cache).hidden for part in x.split((1, 5, x.shape[1] - 6), dim=1)]
        close(model.logits(torch.cat(parts, dim=1))[:, n:], outputs(of, model, a))


def check_generated(of: Any, model: Any) -> None:
    """Greedily, plain and by the engine: what reading all again says."""
    if not model.capabilities.generates:
        return
    prompts = [after_virtual(model, tokens(1, n, seed=n))[0].tolist() for n in (9, 4)]
    answers = [c.tokens for c in generate(model, prompts, max_tokens=6, temperature=0.0)]
    engine = Engine(model, EngineOptions(native=False, max_num_seqs=2, max_step_tokens=7))
    assert [c.tokens for c in engine.generate([Request(p, 6, Sampling(temperature=0.0)) for p in prompts])] == answers
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():
            if model.capabilities.reads_source:
                read, start = {"memory": model.encode(torch.tensor([prompt]))}, [model.config.start_id]
            else:
                read, start = {}, prompt
            logits = model.logits(model(torch.tensor([[*start, *answer]]), **read).hidden)[0, len(start) - 1 : -1]
        assert logits.argmax(-1).tolist() == answer


@covers("prompt", quick=("llama", "mixtral", "bert", "t5", "mamba"))
def test_virtual_tokens(name: str, tmp_path) -> None:
    of = case(name)
    model = check_trained_and_saved_alone(of, prompt_tuning, tmp_path)
    check_packed_and_cached(of, model)
    check_generated(of, model)


@covers("prefix", quick=("llama", "gemma2", "bert", "t5"))
def test_prefixes(name: str, tmp_path) -> None:
    of = case(name)
    model = check_trained_and_saved_alone(of, prefix_tuning, tmp_path)
    check_packed_and_cached(of, model)
    check_generated(of, model)
