# SPDX-License-Identifier: Apache-2.0
"""Activation patching (Meng et al. 2022, ROME, section 2; Wang et al. 2022): put an activation of one input into the
forward pass of another, and see how much of the answer comes with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from foundling.blocks.attention import Attention
from foundling.errors import InterpretError
from foundling.runtime.mode import evaluation_mode


class Site(NamedTuple):
    """A place in a model."""

    module: str
    """whose output it is: embedding, layers.3, layers.3.mixer, layers.3.ffn, …"""
    head: int | None = None
    """one head of an attention: its mean of the values"""
    positions: tuple[int, ...] | None = None
    """of the tokens; None for all of them"""

    def __str__(self) -> str:
        head = "" if self.head is None else f".head.{self.head}"
        return self.module + head + ("" if self.positions is None else f" at {','.join(map(str, self.positions))}")


@torch.no_grad()
def activations(model: Any, tokens: Tensor, sites: Iterable[Site], **inputs: Any) -> dict[Site, Tensor]:
    """What stands at the sites while `tokens` (B, T) are read: (B, n, D) of its positions each, (B, n, P) of a head."""
    values: dict[Site, Tensor] = {}

    def keep(site: Site, value: Tensor) -> None:
        values[site] = value[:, _at(site, value)].detach().clone()

    with evaluation_mode(model), _hooked(model, sites, keep):
        model(tokens, **inputs)
    return values


@contextmanager
def patched(model: Any, values: Mapping[Site, Tensor]) -> Iterator[None]:
    """Inside, every forward pass has these values at these sites, as `activations` gives them."""

    def put(site: Site, value: Tensor) -> Tensor:
        changed = value.clone()
        changed[:, _at(site, value)] = values[site].to(value.dtype)
        return changed

    with _hooked(model, values, put):
        yield


@torch.no_grad()
def patch_effects(
    model: Any, clean: Tensor, corrupted: Tensor, sites: Iterable[Site], score: Callable[[Tensor], float], **inputs: Any
) -> dict[Site, float]:
    """site -> the share of the difference between two inputs that returns when the clean input's activation is put
    into the corrupted one's pass: 0 changes nothing, 1 restores all of it.

    clean and corrupted (B, T) are as long as each other; `score` reads the logits (B, V) of the last token, such as the
    difference of two of them. InterpretError where both inputs score the same."""
    if clean.shape != corrupted.shape:
        raise InterpretError(f"the inputs have {clean.shape[1]} and {corrupted.shape[1]} tokens; give as many in both")
    sites = list(sites)
    values = activations(model, clean, sites, **inputs)

    def measure(tokens: Tensor) -> float:
        return score(model.logits(model(tokens, **inputs).hidden[:, -1]).float())

    with evaluation_mode(model):
        high, low = measure(clean), measure(corrupted)
        if high == low:
            raise InterpretError("both inputs score the same, so that there is no difference to restore")
        effects = {}
        for site in sites:
            with patched(model, {site: values[site]}):
                effects[site] = (measure(corrupted) - low) / (high - low)
    return effects


def sites_of(model: Any, *, heads: bool = False, positions: Iterable[int] | None = None) -> list[Site]:
    """The mixer, cross-attention and feed-forward of every layer, or every head of its self-attentions; at all tokens
    together, or at each of `positions` alone."""
    sites = []
    for name, module in model.named_modules():
        parent, _, part = name.rpartition(".")
        if parent.rpartition(".")[0] != "layers" or part not in ("mixer", "cross", "ffn"):
            continue
        if not heads:
            sites.append(Site(name))
        elif part == "mixer" and isinstance(module, Attention):
            sites += [Site(name, head) for head in range(module.n_heads)]
    if positions is None:
        return sites
    return [site._replace(positions=(position,)) for site in sites for position in positions]


def _at(site: Site, value: Tensor) -> slice | list[int]:
    n = value.shape[1]
    for position in site.positions or ():
        if not -n <= position < n:
            raise InterpretError(f"'{site.module}' has no token {position}; the input has {n}, counted from 0")
    return slice(None) if site.positions is None else list(site.positions)


@contextmanager
def _hooked(model: nn.Module, sites: Iterable[Site], do: Callable[[Site, Tensor], Tensor | None]) -> Iterator[None]:
    """Calls `do` with what stands at each site, (B, T, …); what it returns takes its place."""
    hooks = []

    def output_of(site: Site) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if not isinstance(output, tuple):
                return do(site, output)
            changed = do(site, output[0])
            return None if changed is None else (changed, *output[1:])

        return hook

    def head_of(site: Site, width: int) -> Any:
        def hook(module: nn.Module, args: Any) -> Any:
            (z,) = args
            assert site.head is not None
            part = slice(site.head * width, (site.head + 1) * width)
            changed = do(site, z[..., part])
            if changed is None:
                return None
            whole = z.clone()
            whole[..., part] = changed
            return (whole,)

        return hook

    try:
        for site in sites:
            module = _module(model, site)
            if site.head is None:
                hooks.append(module.register_forward_hook(output_of(site)))
            else:
                hooks.append(module.o.register_forward_pre_hook(head_of(site, module.head_dim)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _module(model: nn.Module, site: Site) -> Any:
    try:
        module = model.get_submodule(site.module)
    except AttributeError:
        raise InterpretError(f"{type(model).__name__} has no module '{site.module}'") from None
    if site.head is not None and not (isinstance(module, Attention) and 0 <= site.head < module.n_heads):
        raise InterpretError(f"'{site.module}' has no head {site.head}")
    return module
