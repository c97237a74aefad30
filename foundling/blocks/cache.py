# SPDX-License-Identifier: Apache-2.0
"""What a model has already read, owned by the caller: each row's own length, documents, keys, values and states."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from foundling.contracts.cache import KV, Conv, Cross, Slot, State
from foundling.errors import GenerationError

Snapshot = tuple[Tensor, list[list[Tensor]]]
"""lengths, and copies of what is not merely appended to"""


class ModelCache:
    """One row an answer. `rows`, where set, makes this a view: it reads and writes those rows of the tensors."""

    def __init__(
        self,
        spec: list[tuple[Slot, ...]],
        batch_size: int,
        max_seq_len: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        cross: list[tuple[Tensor, Tensor]] | None = None,
        memory_documents: Tensor | None = None,
    ) -> None:
        """`cross`, one per Cross slot in order, are the keys and values of a memory and belong to its rows."""
        self.spec, self.max_seq_len = spec, max_seq_len
        self.rows: Tensor | None = None
        self.memory = iter(cross or ())
        self.memory_rows = torch.arange(batch_size, device=device)
        self._memory_documents = memory_documents
        self._lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._documents = torch.full((batch_size, max_seq_len), -1, dtype=torch.int64, device=device)
        self.held: list[list[tuple[Tensor, ...]]] = [
            [self._allocate(slot, batch_size, dtype, device) for slot in slots] for slots in spec
        ]
        del self.memory
        self.documents = self.previous = self._lengths  # of the forward pass at hand: see begin
        self.span = 0

    def _allocate(self, slot: Slot, rows: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        if isinstance(slot, Cross):
            return next(self.memory)
        if isinstance(slot, State):
            return (torch.zeros(rows, *slot.shape, dtype=torch.float32, device=device),)
        if isinstance(slot, Conv):
            return (torch.zeros(rows, slot.width, slot.channels, dtype=dtype, device=device),)
        shape = (rows, slot.n_kv_heads, self.max_seq_len, slot.head_dim)
        return (torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))

    def read(self, tensor: Tensor) -> Tensor:
        return tensor if self.rows is None else tensor[self.rows]

    def write(self, tensor: Tensor, value: Tensor) -> None:
        if self.rows is None:
            tensor.copy_(value)
        else:
            tensor[self.rows] = value.to(tensor.dtype)

    @property
    def lengths(self) -> Tensor:
        """(B,) real tokens that each row holds"""
        return self.read(self._lengths)

    @property
    def memory_documents(self) -> Tensor | None:
        """(B, S) of the memory that each row reads"""
        rows = self.read(self.memory_rows)
        return None if self._memory_documents is None else self._memory_documents[rows]

    def begin(self, documents: Tensor | None, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Called once a forward, before the layers: which documents the coming tokens (B, steps) are of; None goes on
        with each row's last. Returns their documents, all keys' documents (B, S) and the tokens' places in their own
        document (B, steps)."""
        lengths, held = self.lengths, self.read(self._documents)
        self.previous = held.gather(1, (lengths - 1).clamp_min(0)[:, None])[:, 0].masked_fill(lengths == 0, -1)
        if documents is None:
            documents = self.previous.clamp_min(0)[:, None].expand(-1, steps)
        self.documents = documents
        real = documents >= 0
        self.span = int(lengths.max()) + steps
        if int((lengths + real.sum(1)).max()) > self.max_seq_len:
            raise GenerationError(
                f"the cache holds {self.max_seq_len} tokens a row; make it longer or the prompt shorter"
            )
        self.span = min(self.span, self.max_seq_len)
        rows, places, steps_ = self._places(real)
        self._documents[self._base(rows), places] = documents[rows, steps_]
        same = (held[:, None, : self.span] == documents[:, :, None]) & (
            torch.arange(self.span, device=held.device) < lengths[:, None, None]
        )
        starts = torch.ones_like(real)
        starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
        index = torch.arange(steps, device=held.device).expand_as(documents)
        begun = torch.where(starts, index, 0).cummax(1).values
        first = begun == 0  # the run that may continue a document already held
        positions = index - begun + torch.where(first, same.sum(-1), 0)
        return documents, self.read(self._documents)[:, : self.span], positions

    def _places(self, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """row, place in the row, and step of every real token"""
        rows, steps = real.nonzero(as_tuple=True)
        return rows, self.lengths[rows] + steps, steps

    def _base(self, rows: Tensor) -> Tensor:
        return rows if self.rows is None else self.rows[rows]

    def slot(self, index: int) -> SlotCache:
        return SlotCache(self, index)

    def advance(self) -> None:
        """Each row grows by its real tokens of the pass that `begin` began."""
        self.write(self._lengths, self.lengths + (self.documents >= 0).sum(1))

    def select(self, rows: Tensor) -> ModelCache:
        """Rows gathered into a new cache: beams, or many answers to one prompt. A memory is shared, not copied."""
        chosen = copy.copy(self)
        rows, chosen.rows = self._base(rows), None
        chosen._lengths, chosen._documents = self._lengths[rows], self._documents[rows]
        chosen.memory_rows = self.memory_rows[rows]
        chosen.held = [
            [
                tensors if isinstance(slot, Cross) else tuple(t[rows] for t in tensors)
                for slot, tensors in zip(slots, held, strict=True)
            ]
            for slots, held in zip(self.spec, self.held, strict=True)
        ]
        return chosen

    def view(self, rows: Tensor) -> ModelCache:
        """A cache of these rows alone that reads and writes this one: rows that join, and rows that go on."""
        seen = copy.copy(self)
        seen.rows = self._base(rows)
        return seen

    def _states(self) -> list[list[Tensor]]:
        return [
            [t for slot, tensors in zip(slots, held, strict=True) if isinstance(slot, Conv | State) for t in tensors]
            for slots, held in zip(self.spec, self.held, strict=True)
        ]

    def reset(self, rows: Tensor) -> None:
        """Empties rows, so that others may begin there."""
        base = self._base(rows)
        self._lengths[base] = 0
        for tensors in self._states():
            for tensor in tensors:
                tensor[base] = 0

    def snapshot(self, rows: Tensor) -> Snapshot:
        """Rows as they are, for `restore` while they have only grown: keys and values are cut, states put back."""
        base = self._base(rows)
        return self._lengths[base], [[t[base] for t in tensors] for tensors in self._states()]

    def restore(self, snapshot: Snapshot, rows: Tensor) -> None:
        base, (lengths, states) = self._base(rows), snapshot
        self._lengths[base] = lengths
        for tensors, saved in zip(self._states(), states, strict=True):
            for tensor, value in zip(tensors, saved, strict=True):
                tensor[base] = value

    def truncate(self, lengths: Tensor) -> None:
        """Cuts each row to its first `lengths` tokens; GenerationError where a state cannot be cut."""
        if any(self._states()):
            raise GenerationError("a recurrent state cannot be cut back to fewer tokens; restore a snapshot instead")
        self.write(self._lengths, torch.minimum(self.lengths, lengths))


def held_by(slots: Sequence[Slot], tensors: Sequence[tuple[Tensor, ...]], kind: type[Slot]) -> tuple[Tensor, ...]:
    """What one mixer holds for its slot of a kind."""
    for slot, held in zip(slots, tensors, strict=True):
        if isinstance(slot, kind):
            return held
    raise AssertionError(f"a mixer declared no {kind.__name__} slot")


class SlotCache:
    """One mixer's part of the cache."""

    def __init__(self, cache: ModelCache, index: int) -> None:
        self.cache, self.index = cache, index
        self.documents, self.previous = cache.documents, cache.previous

    def _held(self, kind: type[Slot]) -> tuple[Tensor, ...]:
        return held_by(self.cache.spec[self.index], self.cache.held[self.index], kind)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes k and v (B, K, T, P) behind each row's own end; returns all keys and values up to the longest row."""
        cache = self.cache
        keys, values = self._held(KV)
        rows, places, steps = cache._places(cache.documents >= 0)
        base = cache._base(rows)
        keys[base, :, places] = k[rows, :, steps].to(keys.dtype)
        values[base, :, places] = v[rows, :, steps].to(values.dtype)
        return cache.read(keys)[:, :, : cache.span], cache.read(values)[:, :, : cache.span]

    def cross(self) -> tuple[Tensor, Tensor]:
        """The memory's keys and values (B, K, S, P) for each row."""
        rows = self.cache.read(self.cache.memory_rows)
        keys, values = self._held(Cross)
        if len(rows) == len(keys) and torch.equal(rows, torch.arange(len(rows), device=rows.device)):
            return keys, values
        return keys[rows], values[rows]

    def get(self, kind: type[Slot]) -> Tensor:
        """What a Conv or State slot holds, (B, …)."""
        return self.cache.read(self._held(kind)[0])

    def put(self, kind: type[Slot], value: Tensor) -> None:
        self.cache.write(self._held(kind)[0], value)
