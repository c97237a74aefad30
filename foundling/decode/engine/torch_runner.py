# SPDX-License-Identifier: Apache-2.0
"""Any family's step by its own modules, its keys and values in pages, its states in rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from foundling.blocks.cache import tensors_of_slot
from foundling.contracts.cache import KV, Conv, Slot, State
from foundling.decode.engine.scheduler import Work

PAGE_SIZE = 16


class TorchRunner:
    def __init__(self, model: Any, pages: int, rows: int, state_memory: int = 0) -> None:
        """`state_memory`: bytes for recurrent states at the ends of pages, from which others may go on."""
        self.model, self.pages, self.page_size = model, pages, PAGE_SIZE
        weight = next(model.parameters())
        self.device, dtype = weight.device, weight.dtype
        self.spec: list[tuple[Slot, ...]] = model.cache_spec()
        kinds = {type(slot) for slots in self.spec for slot in slots}
        self.recurrent = bool(kinds & {Conv, State})

        def held(slot: Slot) -> tuple[Tensor, ...]:
            if isinstance(slot, KV):
                shape = (pages, PAGE_SIZE, slot.n_kv_heads, slot.head_dim)
                return tuple(torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(2))
            if isinstance(slot, State):
                return (torch.zeros(rows, *slot.shape, device=self.device),)
            if isinstance(slot, Conv):
                return (torch.zeros(rows, slot.width, slot.channels, dtype=dtype, device=self.device),)
            return ()  # Cross: belongs to a sequence and its memory

        self.held = [[held(slot) for slot in slots] for slots in self.spec]
        self.free, self.row_of = list(range(rows)), dict[int, int]()
        states = [t for slots in self.held for tensors in slots if len(tensors) == 1 for t in tensors]
        self.states = states
        each = sum(t[0].numel() * t.element_size() for t in states)
        self.most_kept = max(2, state_memory // each) if each else 0
        self.kept: OrderedDict[bytes, list[Tensor]] = OrderedDict()
        self.memories: dict[int, Any] = {}
        self.adapters: dict[int, str | None] = {}
        self.bank = getattr(model, "adapter_bank", None)

    @staticmethod
    def page_bytes(model: Any) -> int:
        """Of one page through all layers."""
        size = next(model.parameters()).element_size()
        slots = [slot for slots in model.cache_spec() for slot in slots if isinstance(slot, KV)]
        return sum(2 * PAGE_SIZE * slot.n_kv_heads * slot.head_dim * size for slot in slots)

    def begin(self, number: int, prompt: Sequence[int], adapter: str | None) -> list[int]:
        """What a sequence reads first: its prompt, or the start id where the prompt is a source to encode."""
        self.adapters[number] = adapter
        if not hasattr(self.model, "encode"):
            return list(prompt)
        with self._bound([adapter]):
            memory = self.model.encode(torch.tensor([list(prompt)], device=self.device))
            self.memories[number] = self.model.new_cache(1, 1, memory=memory)
        return [self.model.config.start_id]

    def leave(self, number: int) -> None:
        """A sequence has ended, or lost its memory."""
        if number in self.row_of:
            self.free.append(self.row_of.pop(number))

    def forget(self, number: int) -> None:
        self.leave(number)
        self.memories.pop(number, None)
        self.adapters.pop(number, None)

    @contextmanager
    def _bound(self, rows: Sequence[str | None]) -> Generator[None]:
        """Each row through its adapter, inside; the model is the base's again afterwards, whatever happened."""
        if self.bank:
            self.bank.bind(rows)
        try:
            yield
        finally:
            if self.bank:
                self.bank.bind(())

    def read(self, works: Sequence[Work], wants: Sequence[int]) -> Tensor:
        """The logits (Σ wants, V) after the last `wants` tokens of each work."""
        said: dict[int, Tensor] = {}
        single = [i for i, work in enumerate(works) if work.count == 1]
        groups = [single] if single else []
        for group in groups + [[i] for i in range(len(works)) if i not in single]:
            tokens = torch.tensor([w.sequence.tokens[w.start : w.start + w.count] for w in (works[i] for i in group)])
            cache = PagedCache(self, [works[i] for i in group])
            with self._bound([self.adapters[works[i].sequence.number] for i in group]):
                hidden = self.model(tokens.to(self.device), cache=cache).hidden
            for i, row in zip(group, hidden, strict=True):
                said[i] = row[len(row) - wants[i] :]
        rows = [self.adapters[w.sequence.number] for w, n in zip(works, wants, strict=True) for _ in range(n)]
        with self._bound(rows):
            return self.model.logits(torch.cat([said[i] for i in range(len(works))])).float()

    def state_row(self, work: Work) -> int:
        number = work.sequence.number
        if number in self.row_of:
            return self.row_of[number]
        row = self.row_of[number] = self.free.pop()
        held = self.kept[work.sequence.keys[work.start // PAGE_SIZE - 1]] if work.start else [0] * len(self.states)
        for state, value in zip(self.states, held, strict=True):
            state[row] = value
        return row

    def keep(self, number: int, key: bytes) -> None:
        """The state of a sequence that has just read the page of this key to its end; the longest unused makes room."""
        if key not in self.kept and self.states:
            self.kept[key] = [state[self.row_of[number]].clone() for state in self.states]
            while len(self.kept) > self.most_kept:
                self.kept.popitem(last=False)

    def resume(self, keys: Sequence[bytes]) -> int:
        for count in range(len(keys), 0, -1):
            if keys[count - 1] in self.kept:
                self.kept.move_to_end(keys[count - 1])
                return count
        return 0


class PagedCache:
    """The cache of one forward pass: every row reads as many tokens, behind its own ones, all of one document."""

    def __init__(self, runner: TorchRunner, works: Sequence[Work]) -> None:
        self.runner, device = runner, runner.device
        self.steps = works[0].count
        self.lengths = torch.tensor([work.start for work in works], device=device)
        self.span = max(work.start for work in works) + self.steps
        n = -(-self.span // PAGE_SIZE)
        tables = [work.sequence.pages[:n] for work in works]
        self.tables = torch.tensor([table + [table[0]] * (n - len(table)) for table in tables], device=device)
        self.rows = (
            torch.tensor([runner.state_row(work) for work in works], device=device) if runner.recurrent else None
        )
        self.documents = torch.zeros(len(works), self.steps, dtype=torch.int64, device=device)
        self.previous = torch.where(self.lengths > 0, 0, -1)
        self.memories: list[Any] = [runner.memories.get(work.sequence.number) for work in works]

    def begin(self, documents: Tensor | None, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        assert documents is None and steps == self.steps
        at = torch.arange(self.span, device=self.lengths.device)
        keys = torch.where(at < self.lengths[:, None] + steps, 0, -1)
        return self.documents, keys, self.lengths[:, None] + torch.arange(steps, device=self.lengths.device)

    def slot(self, index: int) -> PagedSlot:
        return PagedSlot(self, index)

    def advance(self) -> None:
        """The scheduler counts."""

    @property
    def memory_documents(self) -> Tensor | None:
        if self.memories[0] is None:
            return None
        return _side_by_side([m.memory_documents for m in self.memories], 1, -1)


def _side_by_side(parts: list[Tensor], dim: int, value: float) -> Tensor:
    """Tensors of one row each, of different length along `dim`."""
    longest = max(part.shape[dim] for part in parts)
    padded = []
    for part in parts:
        shape = list(part.shape)
        shape[dim] = longest - shape[dim]
        padded.append(torch.cat((part, part.new_full(shape, value)), dim) if shape[dim] else part)
    return torch.cat(padded)


class PagedSlot:
    """One mixer's part of it."""

    def __init__(self, cache: PagedCache, index: int) -> None:
        self.cache, self.index = cache, index

    def _held(self, kind: type[Slot]) -> tuple[Tensor, ...]:
        return tensors_of_slot(self.cache.runner.spec[self.index], self.cache.runner.held[self.index], kind)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k and v (B, K, T, P) go into their pages; all keys and values up to the longest row come back."""
        cache = self.cache
        keys, values = self._held(KV)
        places = cache.lengths[:, None] + torch.arange(cache.steps, device=k.device)
        pages, offsets = cache.tables.gather(1, places // PAGE_SIZE), places % PAGE_SIZE
        keys[pages, offsets], values[pages, offsets] = k.transpose(1, 2), v.transpose(1, 2)
        both = (t[cache.tables].flatten(1, 2)[:, : cache.span].transpose(1, 2) for t in (keys, values))
        return tuple(both)  # pyright: ignore[reportReturnType]

    def cross(self) -> tuple[Tensor, Tensor]:
        found = [memory.slot(self.index).cross() for memory in self.cache.memories]
        return tuple(_side_by_side(list(part), 2, 0.0) for part in zip(*found, strict=True))  # pyright: ignore

    def get(self, kind: type[Slot]) -> Tensor:
        return self._held(kind)[0][self.cache.rows]

    def put(self, kind: type[Slot], value: Tensor) -> None:
        held = self._held(kind)[0]
        held[self.cache.rows] = value.to(held.dtype)
