# SPDX-License-Identifier: Apache-2.0
"""The cache as its caller sees it, for every family that has one: rows that come and go, snapshots, cuts."""

import pytest
import torch

from foundling.contracts.cache import Conv, State
from foundling.errors import GenerationError
from foundling.models import FAMILIES
from tests.contract.cases import case, close, tokens
from tests.contract.matrix import covers

DECODERS = [name for name, entry in FAMILIES.items() if entry.kind == "decoder"]
each = pytest.mark.parametrize("name", DECODERS)


def rows(*values: int) -> torch.Tensor:
    return torch.tensor(values)


@covers("cache", only=DECODERS)
@torch.inference_mode()
def test_rows_that_start_and_end_at_different_times(name: str) -> None:
    """Three rows, five texts: each joins when a row is free, by a view of it, and ends at its own length; what it reads
    beside others is what it reads alone."""
    model, x = case(name).tiny(), tokens(5, 20)
    lengths, prompts = [9, 14, 6, 11, 8], [3, 5, 2, 4, 1]
    alone = [model(x[i : i + 1, :n]).hidden[0] for i, n in enumerate(lengths)]
    cache = model.new_cache(3, 20)
    waiting, running, started = [0, 1, 2, 3, 4], {}, []
    for step in range(40):
        free = [r for r in range(3) if r not in running]
        if waiting and free and step >= len(started):  # one a step
            row, text = free[0], waiting.pop(0)
            cache.reset(rows(row))
            out = model(x[text : text + 1, : prompts[text]], cache=cache.view(rows(row))).hidden[0]
            close(out, alone[text][: prompts[text]])
            running[row] = text
            started.append(step)
        active = sorted(running)
        if not active:
            break
        view = cache.view(rows(*active))
        at = view.lengths.clone()
        new = torch.stack([x[running[r], n] for r, n in zip(active, at, strict=True)])
        out = model(new[:, None], cache=view).hidden[:, 0]
        for i, row in enumerate(active):
            close(out[i], alone[running[row]][at[i]])
            if at[i] + 1 == lengths[running[row]]:
                del running[row]
    assert not waiting and not running and len(set(started)) == 5


@each
@torch.inference_mode()
def test_documents_one_after_the_other_in_a_row(name: str) -> None:
    """Borders inside a read and between two reads; padding on the right in between."""
    model, x = case(name).tiny(), tokens(2, 30)
    documents = torch.tensor([[0] * 4 + [1] * 9 + [2] * 17, [5] * 15 + [6] * 15])
    whole = model(x, documents=documents).hidden
    cache, at = model.new_cache(2, 30), [0, 0]
    for sizes in ([4, 7], [5, 1], [1, 7], [6, 3], [14, 12]):
        longest = max(sizes)
        part, said = torch.zeros(2, longest, dtype=torch.int64), torch.full((2, longest), -1)
        for r, size in enumerate(sizes):
            part[r, :size] = x[r, at[r] : at[r] + size]
            said[r, :size] = documents[r, at[r] : at[r] + size]
        out = model(part, documents=said, cache=cache).hidden
        for r, size in enumerate(sizes):
            close(out[r, :size], whole[r, at[r] : at[r] + size])
            at[r] += size
    assert cache.lengths.tolist() == [30, 30]


@each
@torch.inference_mode()
def test_what_is_read_without_documents_continues_the_last_one(name: str) -> None:
    """Also where that one has begun with the last token alone."""
    model, x = case(name).tiny(), tokens(2, 9)
    documents = torch.tensor([[0] * 5 + [1] * 4, [2] * 3 + [4] * 6])
    whole, cache = model(x, documents=documents).hidden, model.new_cache(2, 9)
    model(x[:, :6], documents=documents[:, :6], cache=cache)
    close(model(x[:, 6:], cache=cache).hidden, whole[:, 6:])


@each
@torch.inference_mode()
def test_a_snapshot_leads_back_to_the_same_bits(name: str) -> None:
    model, x = case(name).tiny(), tokens(3, 20)
    cache = model.new_cache(3, 20)
    model(x[:, :8], cache=cache)
    kept = cache.snapshot(rows(0, 2))
    first = model(x[:, 8:13], cache=cache).hidden
    cache.restore(kept, rows(0, 2))
    assert cache.lengths.tolist() == [8, 13, 8]
    again = model(x[[0, 2], 8:13], cache=cache.view(rows(0, 2))).hidden
    close(again, first[[0, 2]])
    row = cache.view(rows(0))
    kept = row.snapshot(rows(0))
    one = model(x[:1, 13:16], cache=row).hidden
    row.restore(kept, rows(0))
    assert torch.equal(model(x[:1, 13:16], cache=row).hidden, one)


@each
@torch.inference_mode()
def test_keys_can_be_cut_and_states_cannot(name: str) -> None:
    model, x = case(name).tiny(), tokens(2, 20)
    cache = model.new_cache(2, 20)
    whole = model(x[:, :12], cache=cache).hidden
    if any(isinstance(slot, State | Conv) for slots in model.cache_spec() for slot in slots):
        with pytest.raises(GenerationError, match="snapshot"):
            cache.truncate(rows(5, 7))
        return
    cache.truncate(rows(5, 30))
    assert cache.lengths.tolist() == [5, 12]
    close(model(x[:1, 5:12], cache=cache.view(rows(0))).hidden, whole[:1, 5:])


@each
@torch.inference_mode()
def test_a_full_cache_says_so(name: str) -> None:
    model, x = case(name).tiny(), tokens(2, 12)
    cache = model.new_cache(2, 10)
    model(x[:, :9], cache=cache)
    with pytest.raises(GenerationError, match="10 tokens a row"):
        model(x[:, 9:11], cache=cache)


@torch.inference_mode()
def test_the_rows_of_a_memory_are_compared_once_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison waits for the device: none in the usual case, one after rows were chosen, whatever the layers."""
    model, calls, equal = case("t5").tiny(n_decoder_layers=4), [], torch.equal
    memory = model.encode(tokens(2, 5))
    cache, x = model.new_cache(2, 8, memory), tokens(2, 6)
    monkeypatch.setattr(torch, "equal", lambda *args: calls.append(args) or equal(*args))
    first = model(x[:, :1], cache=cache).hidden
    assert not calls
    order = torch.tensor([1, 0])
    for rows, of in (
        (order, cache.select(order)),
        (order, cache.view(order)),
        (torch.arange(2), cache.select(torch.arange(2))),
    ):
        calls.clear()
        out = model(x[rows, 1:2], cache=of).hidden
        assert len(calls) == 1
        expected = model(x[rows, :2], memory=memory.select(rows)).hidden[:, 1:]
        assert (out - expected).abs().max() < 1e-4 * first.abs().max()
        of.truncate(torch.ones(2, dtype=torch.int64))
