# SPDX-License-Identifier: Apache-2.0
"""The models of a server by name: which are loaded, and loading and unloading them while it runs."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from foundling.config import nearest
from foundling.errors import ConfigError
from foundling.limits import MODEL_NAME_CHARS, shown
from foundling.runtime.hub import place_name
from foundling.serve.errors import APIError, busy
from foundling.serve.models import GenerativeModel, Price, ServedModel, load_served, with_adapter
from foundling.serve.options import ServeOptions

T = TypeVar("T")
State = Literal["loaded", "loading", "unloaded"]


@dataclass
class Entry:
    """A model that the server was told of. Requests name it; only the command line says where it is."""

    name: str
    directory: str
    adapters: dict[str, str] = field(default_factory=dict)
    """name -> directory"""
    served: dict[str, ServedModel] = field(default_factory=dict)
    """itself and its adapters by name, where it is loaded"""
    state: State = "unloaded"
    on_demand: Callable[[], None] | None = None
    """begins to load it: of a model that is loaded once it is asked for"""
    loader: Callable[[], Awaitable[bool]] | None = None
    """loads such a model where there is place for it, and says whether there was"""
    used: float = 0.0
    """when it was asked for last, by the monotonic clock"""
    owner: str | None = None
    """whose it alone is (Caller.owner); None: everybody's"""

    def visible(self, owner: str | None) -> bool:
        return self.owner in (None, owner)

    @property
    def names(self) -> list[str]:
        return [self.name, *self.adapters]


class ModelPool:
    """Not thread-safe: the event loop alone uses it."""

    def __init__(
        self, options: ServeOptions, prices: dict[str, Price] | None = None,
        on_load: Callable[[ServedModel], None] = lambda served: None,
    ) -> None:  # fmt: skip
        self.options, self.prices, self.on_load = options, prices or {}, on_load
        self.entries: dict[str, Entry] = {}
        self.remotes: dict[str, ServedModel] = {}
        """models behind other APIs"""
        self._lock, self._turn = asyncio.Lock(), asyncio.Lock()

    def add(self, name: str, directory: str, adapters: dict[str, str] | None = None, owner: str | None = None) -> Entry:
        """Tells the pool of a model, without loading it. ConfigError for a name that is taken or no name."""
        entry = Entry(name, directory, adapters or {}, owner=owner)
        for each in entry.names:
            check_name(each)
            if self.entry_of(each) or each in self.remotes:
                raise ConfigError(f"two models are called {shown(each)}; give one another name, NAME=DIR")
        self.entries[name] = entry
        return entry

    def add_remote(self, served: ServedModel) -> None:
        check_name(served.name)
        if self.entry_of(served.name) or served.name in self.remotes:
            raise ConfigError(f"two models are called {shown(served.name)}; give one another name, NAME=DIR")
        self.remotes[served.name] = served

    def entry_of(self, name: str) -> Entry | None:
        return next((entry for entry in self.entries.values() if name in entry.names), None)

    @property
    def names(self) -> list[str]:
        return self.names_for(None)

    def names_for(self, owner: str | None) -> list[str]:
        """What a caller can name."""
        entries = [entry for entry in self.entries.values() if entry.visible(owner)]
        return [*(name for entry in entries for name in entry.names), *self.remotes]

    @property
    def loaded(self) -> list[ServedModel]:
        return [*(one for entry in self.entries.values() for one in entry.served.values()), *self.remotes.values()]

    def loaded_for(self, owner: str | None) -> list[ServedModel]:
        names = self.names_for(owner)
        return [one for one in self.loaded if one.name in names]

    def get(self, name: str | None, kind: type[ServedModel] = ServedModel, owner: str | None = None) -> ServedModel:
        """The loaded model of a name, of those that `owner` may see. APIError 404 for an unknown name or a model of
        another kind, 503 for one that is not loaded."""
        loaded = self.loaded_for(owner)
        if name is None:
            name = next((one.name for one in loaded if isinstance(one, kind)), None)
            if name is None:
                raise APIError(404, "no model that can do this is loaded", param="model", code="model_not_found")
        if name in self.remotes:
            served = self.remotes[name]
        else:
            entry = self.entry_of(name)
            if entry is None or not entry.visible(owner):
                close = nearest(name[: MODEL_NAME_CHARS.high], self.names_for(owner))
                raise APIError(404, f"there is no model {shown(name)}; {close}", param="model", code="model_not_found")
            if name not in entry.served:
                if entry.on_demand is not None:
                    entry.on_demand()
                coming = entry.on_demand is not None or entry.state == "loading"
                way = "is being loaded; try again soon" if coming else "is not loaded"
                raise busy(f"the model {shown(name)} {way}", 5, "model_not_loaded", 503)
            served, entry.used = entry.served[name], time.monotonic()
        if not isinstance(served, kind):
            able = [one.name for one in loaded if isinstance(one, kind)]
            way = f"; ask for {', '.join(able)}" if able else ""
            message = f"the model {shown(name)} does not do this, it is there to {served.kind}{way}"
            raise APIError(400, message, param="model", code="model_not_supported")
        return served

    async def load(self, name: str, owner: str | None = None, *, has_place: bool = False) -> Entry:
        """Loads a model that the pool was told of, with its adapters; nothing where it is loaded. APIError 503 where
        there is no place for a model that is loaded on demand, unless its loader has made it (`has_place`)."""
        entry = self.visible_entry(name, owner)
        if entry.loader is not None and not has_place:
            if not await entry.loader():
                raise busy(f"the model {shown(name)} cannot be loaded now", 5, "model_not_loaded", 503)
            return entry
        async with self._lock:
            if entry.state == "loaded":
                return entry
            entry.state = "loading"
            try:
                served = await asyncio.to_thread(
                    load_served, entry.name, entry.directory, self.options, adapters=entry.adapters,
                    price=self.prices.get(entry.name),
                )  # fmt: skip
                served.check(self.options)
                if entry.adapters and not isinstance(served, GenerativeModel):
                    raise ConfigError(f"{entry.name} does not generate, so it takes no adapters; leave them out")
            except BaseException:
                entry.state = "unloaded"
                raise
            entry.served = {entry.name: served}
            if isinstance(served, GenerativeModel):
                served.worker.start()
                entry.served |= {
                    adapter: with_adapter(served, adapter, adapter, self.prices.get(adapter, served.price))
                    for adapter in entry.adapters
                }
            entry.state, entry.used = "loaded", time.monotonic()
            self.on_load(served)
            return entry

    async def unload(self, name: str, owner: str | None = None) -> Entry:
        """Frees a model and its adapters. Requests that it computes end with an error."""
        entry = self.visible_entry(name, owner)
        async with self._lock:
            served, entry.served, entry.state = entry.served, {}, "unloaded"
            for one in served.values():
                await one.close()
        del served
        await asyncio.to_thread(gc.collect)
        return entry

    async def remove(self, name: str, owner: str | None = None) -> None:
        """Unloads a model and forgets it."""
        entry = await self.unload(name, owner)
        self.entries.pop(entry.name, None)

    async def in_turn(self, function: Callable[[], T]) -> T:
        """A computation of models without an engine: one at a time, beside the event loop."""
        await self._turn.acquire()
        task = asyncio.create_task(asyncio.to_thread(function))
        # a thread cannot be cancelled: whoever leaves, the next one begins when it has ended
        task.add_done_callback(lambda _: self._turn.release())
        return await asyncio.shield(task)

    async def close(self) -> None:
        for one in self.remotes.values():
            await one.close()
        for entry in self.entries.values():
            for one in entry.served.values():
                await one.close()

    def visible_entry(self, name: str, owner: str | None) -> Entry:
        """APIError 404 where there is none that `owner` may see."""
        entry = self.entry_of(name)
        if entry is None or not entry.visible(owner):
            what = "is behind another API" if name in self.remotes else "is unknown"
            raise APIError(404, f"the model {shown(name)} {what}", param="model", code="model_not_found")
        return entry


def check_name(name: str) -> None:
    """ConfigError for a name that a request could not carry in a URL or a log."""
    fits = 0 < len(name) <= MODEL_NAME_CHARS.high and name.isascii() and name.isprintable()
    if not fits or any(char in name for char in " /\\?#%&\"'<>") or name.startswith("."):
        raise ConfigError(f"a model is called {shown(name)}; use letters, digits, '-', '_', '.', ':': NAME=DIR")


def parse_place(text: str) -> tuple[str, str]:
    """NAME=DIR or DIR -> (name, directory); without a name, that of the directory."""
    name, equals, directory = text.partition("=")
    if equals and not Path(text).exists():
        return name, directory
    return (place_name(text) or Path(text).resolve().name).rpartition("/")[2], text
