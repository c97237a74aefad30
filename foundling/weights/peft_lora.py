# SPDX-License-Identifier: Apache-2.0
"""LoRA in the layout of peft: the update of a published module M is M.lora_A.weight (rank, in) and M.lora_B.weight
(out, rank). Which modules those are follows from the family's KEYS.

Where a published projection holds several of ours (GPT-2's c_attn, GPT-NeoX's query_key_value, Phi-3's gate_up_proj),
the a of all are stacked and each b fills its own block of columns: rows and columns of zeros change nothing, so both
directions are exact. Rows of b are ordered as the published rows are. Experts are written as peft_experts says, and
read expert by expert as well. What is published nowhere is written by our names, after `foundling.`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foundling.adapt.bank import LowRank
from foundling.adapt.lora import GROUPED, LINEAR, LoRA, attach, check_unadapted
from foundling.errors import AdaptError, WeightsError
from foundling.limits import shown
from foundling.models import family_of
from foundling.weights import keys, peft_config, peft_experts
from foundling.weights.adapter_layout import FILE, PREFIX, Kind, Source, Written
from foundling.weights.directory import persistent_tensors
from foundling.weights.manifest import MANIFEST

OWN = "foundling."
"""before names of ours, for what has no published module"""
ROWS = {"split", "split_heads", "rope_pairs", "qkv_interleave"}
"""transforms that order the rows of a weight alone"""
NO_ROWS = {"transpose", "stack_experts"}
"""transforms that leave the order of rows as it is: peft's lora_A and lora_B are the same for a transposed weight"""


class Place(NamedTuple):
    """A published projection and those of ours that it holds."""

    module: str
    """with {e} for the index of an expert"""
    parts: tuple[str, ...]
    link: keys.Link
    transposed: bool
    n_experts: int | None

    def rows_to_theirs(self, parts: list[Tensor]) -> Tensor:
        """(out of each part, C) -> (out, C)"""
        for transform in reversed(self.link.key.transforms):
            if transform in ROWS:
                parts = keys.TRANSFORMS[transform][1](parts, 1, self.link.heads)
        return parts[0]

    def rows_to_ours(self, whole: Tensor) -> list[Tensor]:
        parts = [whole]
        for transform in self.link.key.transforms:
            if transform in ROWS:
                parts = keys.TRANSFORMS[transform][0](parts, len(self.parts), self.link.heads)
        return parts


class Layout(NamedTuple):
    projections: dict[str, Any]
    """ours, in the order of the model"""
    places: list[Place]
    experts: list[peft_experts.Fused]


def layout(model: Any) -> Layout:
    """The projections of the plain model and where they are published. Built from the configuration on the meta device,
    so that neither quantisation nor adapters are in the way."""
    family = family_of(model)
    with torch.device("meta"):
        plain = family.model(model.config)
    if getattr(model, "head", plain) is None:
        plain.head = None
    projections = {n: m for n, m in plain.named_modules() if isinstance(m, LINEAR + GROUPED)}
    links, places = keys.links(family.module.KEYS, persistent_tensors(plain), plain.config), list[Place]()
    for link in links:
        parts = tuple(name.removesuffix(".weight") for name in link.ours)
        transforms, theirs = set(link.key.transforms), link.theirs[0]
        if not all(p in projections and n.endswith(".weight") for p, n in zip(parts, link.ours, strict=True)):
            continue
        if transforms - ROWS - NO_ROWS or not theirs.endswith(".weight"):
            continue
        experts = len(link.theirs) if "stack_experts" in transforms else None
        if isinstance(projections[parts[0]], GROUPED) != (experts is not None):
            continue
        if experts is not None:  # layers.{i}.experts.{e}.w1: of the published name only {e} is still open
            index = link.key.theirs.split(".").index("{e}")
            at = theirs.split(".")
            theirs = ".".join([*at[:index], "{e}", *at[index + 1 :]])
        places.append(Place(theirs.removesuffix(".weight"), parts, link, "transpose" in transforms, experts))
    grouped = {name: m for name, m in projections.items() if isinstance(m, GROUPED)}
    return Layout(projections, places, peft_experts.fused_experts(links, grouped, family.name))


def _modules(place: Place) -> list[str]:
    """The published modules of a place: one, or one for each expert."""
    return [place.module.replace("{e}", str(e)) for e in range(place.n_experts or 1)]


def write(model: Any, modules: dict[str, Any], tensors: dict[str, Tensor]) -> Written:
    """The adapters of the model, see adapter_layout.Kind."""
    plan, written, own = layout(model), dict[str, Tensor](), set(modules)
    ranks, parameters = dict[str, tuple[int, float]](), list[str]()
    for place in plan.places:
        if place.n_experts is None and {*place.parts} & modules.keys():
            a, b, alpha = _fused(place, modules, tensors, plan)
            pair = {f"{PREFIX}{place.module}.lora_A.weight": a, f"{PREFIX}{place.module}.lora_B.weight": b}
            written |= {name: tensor.contiguous() for name, tensor in pair.items()}
            ranks[place.module] = a.shape[-2], alpha
            own -= {*place.parts}
    targeted = list(ranks)
    for fused in plan.experts:
        if {*fused.parts} & modules.keys():
            a, b, alpha = _fused(fused, modules, tensors, plan)
            others = [p for f in plan.experts if f.owner == fused.owner and f != fused for p in f.parts]
            inner = fused.parameter == "gate_up_proj" and bool({*others} & modules.keys())
            written |= peft_experts.write(fused, a, b, inner=inner)
            ranks[fused.module] = a.shape[-2], alpha
            parameters.append(fused.module)
            own -= {*fused.parts}
    for name in sorted(own):
        written |= {f"{OWN}{name}.{part}": tensors[f"{name}.{part}"] for part in "ab"}
    every = [p.module for p in plan.places if p.n_experts is None] + [fused.module for fused in plan.experts]
    config = {
        **_ranks_config(ranks, every, modules),
        "target_modules": target_modules(targeted, every),
        "target_parameters": short_names(parameters, every) or None,
        "fan_in_fan_out": any(place.transposed for place in plan.places if {*place.parts} & modules.keys()),
    }
    return Written(config, written, {"modules": {name: [m.rank, m.alpha] for name, m in modules.items()}})


def _fused(
    place: Place | peft_experts.Fused, modules: dict[str, Any], tensors: dict[str, Tensor], plan: Layout
) -> tuple[Tensor, Tensor, float]:
    """a (…, R, in), b (…, out, R) and alpha of the published projection; R is the sum of the ranks."""
    present = [name for name in place.parts if name in modules]
    first, a = modules[present[0]], torch.cat([tensors[f"{name}.a"] for name in present], -2)
    total, start, blocks = a.shape[-2], 0, []
    for name in place.parts:
        block = a.new_zeros(*a.shape[:-2], plan.projections[name].out_features, total)
        if name in modules:
            # the published projection has one scale: that of the first part
            b = tensors[f"{name}.b"] * (modules[name].scale / first.scale)
            block[..., start : start + b.shape[-1]] = b
            start += b.shape[-1]
        blocks.append(block)
    return a, place.rows_to_theirs(blocks), first.alpha * total / first.rank


def _ranks_config(ranks: dict[str, tuple[int, float]], every: list[str], modules: dict[str, Any]) -> dict[str, Any]:
    """`ranks`: published projection -> (rank, alpha); `every`: all published projections"""
    common = Counter(ranks.values() or [(m.rank, m.alpha) for m in modules.values()]).most_common(1)[0][0]
    rank_pattern, alpha_pattern = (
        _pattern({name: pair[i] for name, pair in ranks.items()}, common[i], every) for i in range(2)
    )
    return {
        "peft_type": "LORA",
        "r": common[0],
        "lora_alpha": common[1],
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def _pattern(values: dict[str, Any], common: Any, every: list[str]) -> dict[str, Any]:
    """Module -> value, for those that differ from `common`; several modules of one name by that name."""
    pattern = {}
    for value in {v: None for v in values.values() if v != common}:
        names = {n for n, v in values.items() if v == value}
        endings = short_names(names, every)
        if {name for name in every if _ends(name, endings)} != names:  # `layers.0` also ends `encoder.layers.0`
            endings = [f"^{re.escape(name)}" for name in sorted(names)]
        pattern |= dict.fromkeys(endings, value)
    return pattern


def short_names(names: Iterable[str], every: Iterable[str]) -> list[str]:
    """The shortest endings of module names that match `names` and none else of `every`."""
    chosen, every = set(names), list(every)
    for n_parts in (1, 2, 3):
        endings = {".".join(name.split(".")[-n_parts:]) for name in chosen}
        if {name for name in every if _ends(name, endings)} == chosen:
            return sorted(endings)
    return sorted(chosen)


def target_modules(names: Iterable[str], every: Iterable[str]) -> list[str] | str:
    """`short_names`, or a regular expression of whole names where a name is the ending of another one: `layers.0` of a
    decoder is that of `encoder.layers.0`."""
    chosen, every = set(names), list(every)
    endings = short_names(chosen, every)
    if {name for name in every if _ends(name, endings)} == chosen:
        return endings
    return "|".join(re.escape(name) for name in sorted(chosen))


def _ends(name: str, endings: Iterable[str]) -> bool:
    """As peft matches target_modules."""
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def read_updates(model: Any, source: Source) -> dict[str, LowRank]:
    """Projection of ours -> its update. Shapes are checked before anything is read. Raises WeightsError for tensors
    that are missing or misshapen, and for a configuration that computes something else than LoRA does here."""
    check_unadapted(model)
    peft_config.check(source)
    plan, about = layout(model), _ranks_of(source)
    dtypes = {
        name: getattr(m, "dtype", m.weight.dtype)
        for name, m in model.named_modules()
        if isinstance(m, LINEAR + GROUPED)
    }
    names = published_names(model, source, plan)
    peft_config.check_targets(source, {n: n for n in names}, [n for p in plan.places for n in _modules(p)])
    found: dict[str, LowRank] = {}
    for place in plan.places:
        if present := [name for name in _modules(place) if name in names]:
            if missing := [name for name in _modules(place) if name not in names]:
                raise WeightsError(f"{source.tensors.path}: lacks tensor '{PREFIX}{missing[0]}.lora_A.weight'")
            updates = _read_place(source, place, plan, [names[name] for name in present], dtypes[place.parts[0]])
            found |= updates if about is None else _own_columns(source, place, updates, about)
    for fused in plan.experts:
        updates = {} if {*fused.parts} & found.keys() else peft_experts.read(source, fused, dtypes[fused.parts[0]])
        if updates:
            found |= updates if about is None else _own_columns(source, fused, updates, about)
    for name, module in plan.projections.items():
        if f"{OWN}{name}.a" in source:
            found[name] = _read_own(source, name, module, dtypes[name])
    if about is not None and about.keys() != found.keys():
        wrong = sorted(about.keys() ^ found.keys())[0]
        if wrong in plan.projections:
            raise WeightsError(f"{source.tensors.path}: lacks the tensors of '{wrong}'")
        raise AdaptError(f"{source.directory / MANIFEST}: '{shown(wrong)}' is not a projection of this model")
    if not found:
        raise WeightsError(f"{source.tensors.path}: no tensors of a projection of this model")
    return {name: found[name] for name in plan.projections if name in found}


def published_names(model: Any, source: Source, plan: Layout) -> dict[str, str]:
    """Published module -> its name in the file. An adapter that was trained on a model without a head leaves out what
    such a model leaves out, as in a model directory."""
    every = {name for place in plan.places for name in _modules(place)}
    prefix, names = family_of(model).module.CONFIG.base_prefix, dict[str, str]()
    for tensor in source:
        if tensor.startswith(PREFIX) and ".lora_" in tensor:
            stored = tensor.removeprefix(PREFIX).rpartition(".lora_")[0]
            names[stored if stored in every or prefix + stored not in every else prefix + stored] = stored
    return names


def _ranks_of(source: Source) -> dict[str, tuple[int, float]] | None:
    """Projection of ours -> (rank, alpha), where foundling.json says them."""
    about = source.about(KIND.name)
    modules = None if about is None else about.get("modules")
    if about is None:
        return None
    file = source.directory / MANIFEST
    if not isinstance(modules, dict) or not modules:
        raise WeightsError(f"{file}: damaged, the adapter has no modules")
    for name, pair in modules.items():
        if not isinstance(pair, list) or len(pair) != 2 or not peft_config.is_rank(pair[0]) or not _positive(pair[1]):
            raise WeightsError(f"{file}: damaged, rank and alpha of {shown(name)} are {shown(pair)}")
    return {name: (rank, float(alpha)) for name, (rank, alpha) in modules.items()}


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _read_place(
    source: Source, place: Place, plan: Layout, stored: list[str], dtype: torch.dtype
) -> dict[str, LowRank]:
    """The update of each part, of the whole rank that the file has."""
    first: Any = plan.projections[place.parts[0]]
    n_out = sum(plan.projections[name].out_features for name in place.parts)  # pyright: ignore
    ranks, parts_a, parts_b = set(), [], []
    for name in stored:
        a, b = (f"{PREFIX}{name}.lora_{which}.weight" for which in "AB")
        rank = source.shape(a, 2)[0]
        source.expect(a, (rank, first.in_features))
        source.expect(b, (n_out, rank))
        ranks.add(rank)
    if len(ranks) > 1 or 0 in ranks:
        raise WeightsError(
            f"{source.tensors.path}: ranks of '{place.module}' are {sorted(ranks)}, expected one above 0"
        )
    (rank,), alphas = ranks, {peft_config.alpha(source, name, next(iter(ranks))) for name in stored}
    if len(alphas) > 1:
        raise WeightsError(f"{source.tensors.path}: experts of '{place.module}' have several values of alpha")
    for name in stored:
        parts_a.append(source.take(f"{PREFIX}{name}.lora_A.weight", (rank, first.in_features), dtype))
        parts_b.append(source.take(f"{PREFIX}{name}.lora_B.weight", (n_out, rank), dtype))
    (alpha,) = alphas
    if place.n_experts is not None:
        return {place.parts[0]: LowRank(rank, alpha, torch.stack(parts_a), torch.stack(parts_b))}
    rows = place.rows_to_ours(parts_b[0])
    return {n: LowRank(rank, alpha, parts_a[0], b.contiguous()) for n, b in zip(place.parts, rows, strict=True)}


def _own_columns(
    source: Source, place: Place | peft_experts.Fused, updates: dict[str, LowRank], about: dict[str, tuple[int, float]]
) -> dict[str, LowRank]:
    """Of what we fused ourselves, each part's own rows of a and columns of b. WeightsError where others are not
    zero."""
    present = [name for name in place.parts if name in about]
    total, start, own = sum(about[name][0] for name in present), 0, dict[str, LowRank]()
    scale = {update.alpha / update.rank for update in updates.values()}.pop()
    for name, (rank, _, a, b) in updates.items():
        if total != rank:
            raise WeightsError(f"{source.tensors.path}: '{place.module}' has rank {rank}, {MANIFEST} says {total}")
        here = slice(start, start + about[name][0]) if name in about else slice(0, 0)
        rest = torch.cat([b[..., : here.start], b[..., here.stop :]], -1)
        if rest.count_nonzero():
            raise WeightsError(f"{source.tensors.path}: '{place.module}' has values where '{name}' has no columns")
        if name in about:
            rank, start = about[name][0], here.stop
            own[name] = LowRank(rank, scale * rank, a[..., here, :].contiguous(), b[..., here].contiguous())
            if abs(own[name].alpha / about[name][1] - 1) < 1e-6:  # but for a part whose scale differed from the first
                own[name] = own[name]._replace(alpha=about[name][1])
    return own


def _read_own(source: Source, name: str, module: Any, dtype: torch.dtype) -> LowRank:
    """By our names."""
    about = _ranks_of(source) or {}
    if name not in about:
        raise WeightsError(f"{source.directory / MANIFEST}: says nothing of '{name}', which {FILE} has")
    rank, alpha = about[name]
    experts = (module.n_experts,) if isinstance(module, GROUPED) else ()
    shapes = {"a": (*experts, rank, module.in_features), "b": (*experts, module.out_features, rank)}
    for part, shape in shapes.items():
        source.expect(f"{OWN}{name}.{part}", shape)
    a, b = (source.take(f"{OWN}{name}.{part}", shape, dtype) for part, shape in shapes.items())
    return LowRank(rank, alpha, a, b)


def read(model: Any, source: Source) -> Callable[[], list[str]]:
    """See adapter_layout.Kind."""
    updates = read_updates(model, source)

    def put() -> list[str]:
        names = attach(model, {name: (update.rank, update.alpha) for name, update in updates.items()})
        for name, update in updates.items():
            module = model.get_submodule(name)
            module.a.data.copy_(update.a)
            module.b.data.copy_(update.b)
        return names

    return put


def _is_lora(source: Source) -> bool:
    return source.config.get("peft_type") == "LORA"


KIND = Kind("lora", (LoRA,), _is_lora, write, read)
