# SPDX-License-Identifier: Apache-2.0
"""What a model has already read, owned by the caller: each row's length, documents, keys, values and states."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from foundling.contracts.cache import KV, Conv, Cross, LayerCache, RowCache, Slot, State
from foundling.errors import GenerationError

Snapshot = tuple[Tensor, list[list[Tensor]]]
"""lengths, and copies of the tensors that are not only appended to"""


class ModelCache(RowCache):
    """One row per sequence. `rows`, where set, makes this a view: it reads and writes those rows of the tensors."""

    documents: Tensor = torch.empty(0)  # of the current forward pass, set by `begin`
    previous: Tensor = torch.empty(0)
    span: int = 0

    def __init__(
        self,
        spec: list[tuple[Slot, ...]],
        batch_size: int,
        max_seq_len: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        cross: Sequence[tuple[Tensor, Tensor]] = (),
        memory_documents: Tensor | None = None,
    ) -> None:
        """`cross`: keys and values of a memory, one pair per Cross slot in order; they belong to the memory's rows.
        `read_rows` are the rows of the memory that this cache's rows read; None where they are all, in order."""
        self.spec, self.max_seq_len = spec, max_seq_len
        self.rows: Tensor | None = None
        self.memory_rows = torch.arange(batch_size, device=device)
        self._memory_documents = memory_documents
        self._n_memory = len(cross[0][0]) if cross else 0
        self.read_rows: Tensor | None = None if self._n_memory == batch_size else self.memory_rows
        self._lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._documents = torch.full((batch_size, max_seq_len), -1, dtype=torch.int64, device=device)
        memory = iter(cross)
        self.tensors: list[list[tuple[Tensor, ...]]] = [
            [next(memory) if isinstance(slot, Cross) else self._allocate(slot, dtype) for slot in slots]
            for slots in spec
        ]

    def _allocate(self, slot: KV | Conv | State, dtype: torch.dtype) -> tuple[Tensor, ...]:
        rows, device = len(self._lengths), self._lengths.device
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
        return self.read(self._lengths)

    @property
    def memory_documents(self) -> Tensor | None:
        return None if self._memory_documents is None else self.of_memory(self._memory_documents)

    def of_memory(self, tensor: Tensor) -> Tensor:
        """(rows of the memory, …) -> (B, …), what each row of this cache reads"""
        return tensor if self.read_rows is None else tensor[self.read_rows]

    def begin(self, documents: Tensor | None, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        if self.read_rows is not None:  # compared once a forward pass, not in each layer: it waits for the device
            every = torch.arange(self._n_memory, device=self.read_rows.device)
            self.read_rows = None if torch.equal(self.read_rows, every) else self.read_rows
        lengths, past = self.lengths, self.read(self._documents)
        self.previous = past.gather(1, (lengths - 1).clamp_min(0)[:, None])[:, 0].masked_fill(lengths == 0, -1)
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
        rows, columns, steps_ = self.columns(real)
        self._documents[self.base(rows), columns] = documents[rows, steps_]
        same = (past[:, None, : self.span] == documents[:, :, None]) & (
            torch.arange(self.span, device=past.device) < lengths[:, None, None]
        )
        starts = torch.ones_like(real)
        starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
        index = torch.arange(steps, device=past.device).expand_as(documents)
        start = torch.where(starts, index, 0).cummax(1).values
        first = start == 0  # the run that may continue a document of the cache
        positions = index - start + torch.where(first, same.sum(-1), 0)
        return documents, self.read(self._documents)[:, : self.span], positions

    def columns(self, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """row, column in the cache, and step of every real token"""
        rows, steps = real.nonzero(as_tuple=True)
        return rows, self.lengths[rows] + steps, steps

    def base(self, rows: Tensor) -> Tensor:
        """rows of this view -> rows of the tensors"""
        return rows if self.rows is None else self.rows[rows]

    def slot(self, index: int) -> SlotCache:
        return SlotCache(self, index)

    def advance(self) -> None:
        self.write(self._lengths, self.lengths + (self.documents >= 0).sum(1))

    def select(self, rows: Tensor, max_seq_len: int | None = None) -> Self:
        """A memory is shared, not copied."""
        chosen = copy.copy(self)
        rows, chosen.rows = self.base(rows), None
        chosen._lengths, chosen._documents = self._lengths[rows], self._documents[rows]
        chosen.max_seq_len = size = self.max_seq_len if max_seq_len is None else max_seq_len
        n_used = size  # columns that are copied
        if size != self.max_seq_len:
            n_used = min(size, int(chosen._lengths.max()))
            chosen._documents = F.pad(chosen._documents[:, :n_used], (0, size - n_used), value=-1)
        chosen.memory_rows = self.memory_rows[rows]
        chosen.read_rows = chosen.memory_rows if self._n_memory else None
        chosen.tensors = [
            [
                tensors
                if isinstance(slot, Cross)
                else tuple(
                    t[rows] if not isinstance(slot, KV) or n_used == size
                    else F.pad(t[:, :, :n_used][rows], (0, 0, 0, size - n_used))
                    for t in tensors
                )
                for slot, tensors in zip(slots, of_slots, strict=True)
            ]
            for slots, of_slots in zip(self.spec, self.tensors, strict=True)
        ]  # fmt: skip
        return chosen

    def view(self, rows: Tensor) -> Self:
        view = copy.copy(self)
        view.rows = self.base(rows)
        view.read_rows = view.read(view.memory_rows) if self._n_memory else None
        return view

    def _states(self) -> list[list[Tensor]]:
        return [
            [
                t
                for slot, tensors in zip(slots, of_slots, strict=True)
                if isinstance(slot, Conv | State)
                for t in tensors
            ]
            for slots, of_slots in zip(self.spec, self.tensors, strict=True)
        ]

    def reset(self, rows: Tensor) -> None:
        base = self.base(rows)
        self._lengths[base] = 0
        for tensors in self._states():
            for tensor in tensors:
                tensor[base] = 0

    def snapshot(self, rows: Tensor) -> Snapshot:
        """Lengths and states. `restore` takes it as long as the rows have only grown: it cuts keys and values."""
        base = self.base(rows)
        return self._lengths[base], [[t[base] for t in tensors] for tensors in self._states()]

    def restore(self, snapshot: Snapshot, rows: Tensor) -> None:
        base, (lengths, states) = self.base(rows), snapshot
        self._lengths[base] = lengths
        for tensors, saved in zip(self._states(), states, strict=True):
            for tensor, value in zip(tensors, saved, strict=True):
                tensor[base] = value

    def truncate(self, lengths: Tensor) -> None:
        if any(self._states()):
            raise GenerationError("a recurrent state cannot be cut back to fewer tokens; restore a snapshot instead")
        self.write(self._lengths, torch.minimum(self.lengths, lengths))


def tensors_of_slot(
    slots: Sequence[Slot], tensors: Sequence[tuple[Tensor, ...]], kind: type[Slot]
) -> tuple[Tensor, ...]:
    """The tensors of a mixer's slot of this kind."""
    for slot, of_slot in zip(slots, tensors, strict=True):
        if isinstance(slot, kind):
            return of_slot
    raise AssertionError(f"a mixer declared no {kind.__name__} slot")


class SlotCache(LayerCache):
    """One mixer's part of the cache."""

    def __init__(self, cache: ModelCache, index: int) -> None:
        self.cache, self.index = cache, index

    def _tensors(self, kind: type[Slot]) -> tuple[Tensor, ...]:
        return tensors_of_slot(self.cache.spec[self.index], self.cache.tensors[self.index], kind)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes k and v (B, K, T, P) after each row's last token; gives all keys and values up to the longest row."""
        cache = self.cache
        keys, values = self._tensors(KV)
        rows, columns, steps = cache.columns(cache.documents >= 0)
        base = cache.base(rows)
        keys[base, :, columns] = k[rows, :, steps].to(keys.dtype)
        values[base, :, columns] = v[rows, :, steps].to(values.dtype)
        return cache.read(keys)[:, :, : cache.span], cache.read(values)[:, :, : cache.span]

    def cross(self) -> tuple[Tensor, Tensor]:
        keys, values = self._tensors(Cross)
        return self.cache.of_memory(keys), self.cache.of_memory(values)

    def get(self, kind: type[Slot]) -> Tensor:
        return self.cache.read(self._tensors(kind)[0])

    def put(self, kind: type[Slot], value: Tensor) -> None:
        self.cache.write(self._tensors(kind)[0], value)
