# SPDX-License-Identifier: Apache-2.0
"""The step of any family by its own modules: keys and values in blocks, recurrent states in rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from foundling.blocks.cache import tensors_of_slot
from foundling.contracts.cache import KV, Conv, Slot, State
from foundling.decode.engine.scheduler import ScheduledChunk

BLOCK_SIZE = 16


class TorchRunner:
    def __init__(self, model: Any, n_blocks: int, n_rows: int, state_bytes: int = 0) -> None:
        """`n_rows`: how many recurrent states are in use at once. `state_bytes`: memory for states saved at the ends of
        blocks, from which other sequences may continue."""
        self.model, self.n_blocks, self.block_size = model, n_blocks, BLOCK_SIZE
        weight = next(model.parameters())
        self.device, dtype = weight.device, weight.dtype
        self.spec: list[tuple[Slot, ...]] = model.cache_spec()
        kinds = {type(slot) for slots in self.spec for slot in slots}
        self.recurrent = bool(kinds & {Conv, State})

        def allocate(slot: Slot) -> tuple[Tensor, ...]:
            if isinstance(slot, KV):
                shape = (n_blocks, BLOCK_SIZE, slot.n_kv_heads, slot.head_dim)
                return tuple(torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(2))
            if isinstance(slot, State):
                return (torch.zeros(n_rows, *slot.shape, device=self.device),)
            if isinstance(slot, Conv):
                return (torch.zeros(n_rows, slot.width, slot.channels, dtype=dtype, device=self.device),)
            return ()  # Cross: belongs to a sequence and its encoder output

        self.tensors = [[allocate(slot) for slot in slots] for slots in self.spec]
        self.free_rows, self.row_of = list(range(n_rows)), dict[int, int]()
        self.states = [t for slots in self.tensors for tensors in slots if len(tensors) == 1 for t in tensors]
        bytes_per_row = sum(t[0].numel() * t.element_size() for t in self.states)
        self.max_saved = max(2, state_bytes // bytes_per_row) if bytes_per_row else 0
        self.saved_states: OrderedDict[bytes, list[Tensor]] = OrderedDict()
        self.cross_caches: dict[int, Any] = {}
        self.source_lengths: dict[int, int] = {}
        self.adapters: dict[int, str | None] = {}
        self.bank = getattr(model, "adapter_bank", None)

    @staticmethod
    def block_bytes(model: Any) -> int:
        """The size of one block, over all layers."""
        size = next(model.parameters()).element_size()
        slots = [slot for slots in model.cache_spec() for slot in slots if isinstance(slot, KV)]
        return sum(2 * BLOCK_SIZE * slot.n_kv_heads * slot.head_dim * size for slot in slots)

    def add_sequence(self, request_id: int, prompt: Sequence[int], adapter: str | None) -> list[int]:
        """The first tokens of the sequence: its prompt, or the start id where the prompt is a source to encode."""
        self.adapters[request_id] = adapter
        if not self.model.capabilities.reads_source:
            return list(prompt)
        with self._bind_adapters([adapter]):
            memory = self.model.encode(torch.tensor([list(prompt)], device=self.device))
            self.source_lengths[request_id] = len(prompt)
            self.cross_caches[request_id] = self.model.new_cache(1, 1, memory=memory)
        return [self.model.config.start_id]

    def release_state(self, request_id: int) -> None:
        """For a sequence that has finished or was preempted."""
        if request_id in self.row_of:
            self.free_rows.append(self.row_of.pop(request_id))

    def remove_sequence(self, request_id: int) -> None:
        self.release_state(request_id)
        self.cross_caches.pop(request_id, None)
        self.source_lengths.pop(request_id, None)
        self.adapters.pop(request_id, None)

    @contextmanager
    def _bind_adapters(self, rows: Sequence[str | None]) -> Generator[None]:
        """Inside, each row passes through its adapter; afterwards the model is the base model, whatever happened."""
        if self.bank:
            self.bank.bind(rows)
        try:
            yield
        finally:
            if self.bank:
                self.bank.bind(())

    def forward(self, chunks: Sequence[ScheduledChunk], n_logits: Sequence[int]) -> Tensor:
        """The logits (Σ n_logits, V) of the last n_logits[i] tokens of each chunk."""
        outputs: dict[int, Tensor] = {}
        groups: dict[int, list[int]] = {}
        for i, chunk in enumerate(chunks):  # rows of one forward pass have the same number of tokens
            groups.setdefault(chunk.n_tokens, []).append(i)
        for group in groups.values():
            some = [chunks[i] for i in group]
            tokens = torch.tensor([c.sequence.tokens[c.start : c.start + c.n_tokens] for c in some])
            cache = PagedCache(self, some)
            with self._bind_adapters([self.adapters[c.sequence.request_id] for c in some]):
                hidden = self.model(tokens.to(self.device), cache=cache).hidden
            for i, row in zip(group, hidden, strict=True):
                outputs[i] = row[len(row) - n_logits[i] :]
        rows = [self.adapters[c.sequence.request_id] for c, n in zip(chunks, n_logits, strict=True) for _ in range(n)]
        with self._bind_adapters(rows):
            return self.model.logits(torch.cat([outputs[i] for i in range(len(chunks))])).float()

    def state_row(self, chunk: ScheduledChunk) -> int:
        """The row of the sequence's states; a new one starts from the saved state of its prefix, or from zero."""
        request_id = chunk.sequence.request_id
        if request_id in self.row_of:
            return self.row_of[request_id]
        row = self.row_of[request_id] = self.free_rows.pop()
        values: Sequence[Any] = [0] * len(self.states)
        if chunk.start:
            values = self.saved_states[chunk.sequence.block_hashes[chunk.start // BLOCK_SIZE - 1]]
        for state, value in zip(self.states, values, strict=True):
            state[row] = value
        return row

    def save_state(self, request_id: int, block_hash: bytes) -> None:
        """Saves the state of a sequence that has just computed the last token of the block with this hash. The least
        recently used state is dropped where there are too many."""
        if block_hash not in self.saved_states and self.states:
            self.saved_states[block_hash] = [state[self.row_of[request_id]].clone() for state in self.states]
            while len(self.saved_states) > self.max_saved:
                self.saved_states.popitem(last=False)

    def count_resumable(self, hashes: Sequence[bytes]) -> int:
        """After how many of these first blocks a state is saved, the largest such number."""
        for count in range(len(hashes), 0, -1):
            if hashes[count - 1] in self.saved_states:
                self.saved_states.move_to_end(hashes[count - 1])
                return count
        return 0


class PagedCache:
    """The cache of one forward pass. Every row computes the same number of tokens; each row is one document."""

    def __init__(self, runner: TorchRunner, chunks: Sequence[ScheduledChunk]) -> None:
        self.runner, device = runner, runner.device
        self.steps = chunks[0].n_tokens
        self.lengths = torch.tensor([chunk.start for chunk in chunks], device=device)
        self.span = max(chunk.start for chunk in chunks) + self.steps
        n = -(-self.span // BLOCK_SIZE)
        tables = [chunk.sequence.blocks[:n] for chunk in chunks]
        self.tables = torch.tensor([table + [table[0]] * (n - len(table)) for table in tables], device=device)
        self.rows = (
            torch.tensor([runner.state_row(chunk) for chunk in chunks], device=device) if runner.recurrent else None
        )
        self.documents = torch.zeros(len(chunks), self.steps, dtype=torch.int64, device=device)
        self.previous = torch.where(self.lengths > 0, 0, -1)
        self.cross_caches: list[Any] = [runner.cross_caches.get(chunk.sequence.request_id) for chunk in chunks]
        self.source_lengths = [runner.source_lengths.get(chunk.sequence.request_id, 0) for chunk in chunks]

    def begin(self, documents: Tensor | None, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        assert documents is None and steps == self.steps
        at = torch.arange(self.span, device=self.lengths.device)
        keys = torch.where(at < self.lengths[:, None] + steps, 0, -1)
        return self.documents, keys, self.lengths[:, None] + torch.arange(steps, device=self.lengths.device)

    def slot(self, index: int) -> PagedSlot:
        return PagedSlot(self, index)

    def advance(self) -> None:
        """Nothing to do: the scheduler counts the tokens."""

    @property
    def memory_documents(self) -> Tensor | None:
        if len(set(self.source_lengths)) == 1:  # also without sources, whose lengths are 0
            return None
        lengths = torch.tensor(self.source_lengths, device=self.lengths.device)
        at = torch.arange(max(self.source_lengths), device=lengths.device)
        return torch.where(at < lengths[:, None], 0, -1)


def _pad_and_concatenate(parts: list[Tensor], dim: int, value: float) -> Tensor:
    """Tensors of one row each, of different length along `dim` → one tensor, padded by `value`."""
    longest = max(part.shape[dim] for part in parts)
    padded = []
    for part in parts:
        shape = list(part.shape)
        shape[dim] = longest - shape[dim]
        padded.append(torch.cat((part, part.new_full(shape, value)), dim) if shape[dim] else part)
    return torch.cat(padded)


class PagedSlot:
    """One mixer's part of a PagedCache."""

    def __init__(self, cache: PagedCache, index: int) -> None:
        self.cache, self.index = cache, index

    def _tensors(self, kind: type[Slot]) -> tuple[Tensor, ...]:
        return tensors_of_slot(self.cache.runner.spec[self.index], self.cache.runner.tensors[self.index], kind)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes k and v (B, K, T, P) into the blocks; returns all keys and values up to the longest row."""
        cache = self.cache
        keys, values = self._tensors(KV)
        positions = cache.lengths[:, None] + torch.arange(cache.steps, device=k.device)
        blocks, offsets = cache.tables.gather(1, positions // BLOCK_SIZE), positions % BLOCK_SIZE
        k, v = k.to(keys.dtype), v.to(values.dtype)  # autocast rounds them
        keys[blocks, offsets], values[blocks, offsets] = k.transpose(1, 2), v.transpose(1, 2)
        both = (t[cache.tables].flatten(1, 2)[:, : cache.span].transpose(1, 2) for t in (keys, values))
        return tuple(both)  # pyright: ignore[reportReturnType]

    def cross(self) -> tuple[Tensor, Tensor]:
        parts = [cache.slot(self.index).cross() for cache in self.cache.cross_caches]
        return tuple(_pad_and_concatenate(list(part), 2, 0.0) for part in zip(*parts, strict=True))  # pyright: ignore

    def get(self, kind: type[Slot]) -> Tensor:
        return self._tensors(kind)[0][self.cache.rows]

    def put(self, kind: type[Slot], value: Tensor) -> None:
        state = self._tensors(kind)[0]
        state[self.cache.rows] = value.to(state.dtype)
