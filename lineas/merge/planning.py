"""Where each site's map can go: the plan of a merge, made by watching one forward pass, before anything is changed."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..maps.maps import Maps
from ..network.sharding import kind_of
from ..network.sites import find_sites
from ..network.weights import Weights
from .adaptive import AdaptiveFold
from .folding import FoldFinder
from .folds import Fold, listed
from .hosts import Host, hosts
from .layers import Journal
from .probing import Probe
from .tracing import Trace

GATED = "a gate says how much of it acts, by what is read, which no weight can express"


def folded_pairs(maps: Maps, strength: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Scale and shift of every site at a strength, (units,) float64."""
    found = {name: maps.at_strength(name, strength) for name in maps.sites}
    return {name: (torch.from_numpy(scale), torch.from_numpy(shift)) for name, (scale, shift, *_) in found.items()}


@dataclass(frozen=True)
class SitePlan:
    """What a merge does with one site.

    Attributes
    ----------
    site : str
    status : str
        "exact", "class" (exact, in another class or with other options of its config), "refused", or "unchanged" (the
        map is the identity).
    text : str
        How, or why not.
    """

    site: str
    status: str
    text: str


@dataclass(frozen=True)
class MergePlan:
    """What `Steering.merge` would do, site by site.

    Attributes
    ----------
    model_class : str
    target : str
        What the merged model is: the same class, the same with options on, or another.
    sites : tuple of SitePlan
    unties : bool
        Whether the output layer gets weights of its own, where it shared them with the embeddings.
    """

    model_class: str
    target: str
    sites: tuple[SitePlan, ...]
    unties: bool
    host: Host | None
    folds: tuple[Fold, ...]

    @property
    def exact(self) -> bool:
        """Whether every site folds exactly."""
        return not self.refused

    @property
    def refused(self) -> list[SitePlan]:
        return [entry for entry in self.sites if entry.status == "refused"]

    @property
    def folded(self) -> list[str]:
        return [entry.site for entry in self.sites if entry.status != "refused"]

    def apply(self, model: nn.Module, journal: Journal) -> None:
        for fold in self.folds:
            fold.apply(model, journal)

    def undo(self, model: nn.Module, journal: Journal) -> None:
        for fold in reversed(self.folds):
            fold.undo(model, journal)

    def __str__(self) -> str:
        width = max(len(entry.site) for entry in self.sites)
        head = f"{self.model_class} -> {self.target}: {len(self.folded)} of {len(self.sites)} sites fold exactly"
        tied = ["the output layer is untied from the embeddings"] if self.unties else []
        return "\n".join([head, *tied, *(f"{entry.site:{width}}  {entry.text}" for entry in self.sites)])

    __repr__ = __str__


def make_plan(
    maps: Maps, model: nn.Module, strength: float, batch: Probe | None, *, grows: bool = False,
    weights: Weights | None = None,
) -> MergePlan:  # fmt: skip
    """Look at the model, and decide. Without a batch, only layers that need no look can be folded into.

    With `grows`, any layer that would use a bias may get one: whoever carries out the plan has a place for it.
    `weights` reads those that are elsewhere.
    """
    finder = FoldFinder(model, batch.first(model, Trace) if batch else None, weights or Weights())
    pairs, found = folded_pairs(maps, strength), find_sites(model, maps.sites)
    options: dict[str, list[Fold]] = {}
    whys: dict[str, str] = {}
    for site in sorted(found, key=finder.time):
        scale, shift = pairs[site.name]
        scale_or_none, shift_or_none = (None if (scale == 1).all() else scale), (shift if shift.any() else None)
        if scale_or_none is None and shift_or_none is None:
            continue
        if why := maps.kind(site.name).not_merged or GATED * (maps.gate is not None):
            options[site.name], whys[site.name] = [], why
            continue
        options[site.name], whys[site.name] = finder.options(site, len(scale), scale_or_none, shift_or_none)
    host, tried = (None, []) if grows else _best_host(model, options)
    chosen = _chosen(options, host, whys, grows)
    # Those that rewrite rows come last: a map of a whole layer's output is inside the modulation that the rows make.
    folds = sorted(filter(None, chosen.values()), key=lambda fold: isinstance(fold, AdaptiveFold))
    entries = tuple(_entry(name, options, chosen, host, whys, tried, model) for name in maps.sites)
    unties = any(finder.shared_with(*changed) for fold in folds for changed in fold.rewritten())
    kind = kind_of(model).__name__
    return MergePlan(kind, host.label if host else kind, entries, unties, host, tuple(folds))


def _chosen(
    options: dict[str, list[Fold]], host: Host | None, whys: dict[str, str], grows: bool
) -> dict[str, Fold | None]:
    """The best fold of each site that the host can hold.

    Two maps of one tensor can share its layer. But one whose bias went on to the consumers has left the place where the
    other's scale would meet it.
    """
    chosen: dict[str, Fold | None] = {}
    for name, folds in options.items():
        fold = next((fold for fold in folds if grows or _fits(fold, host)), None)
        for other in filter(None, chosen.values()):
            if fold and fold.storages & other.storages and (fold.consumers or other.consumers):
                options[name], whys[name] = (
                    [],
                    f"{other.site} maps the same tensor, and its bias moves to what reads it",
                )
                fold = None
        chosen[name] = fold
    return chosen


def _fits(fold: Fold, host: Host | None) -> bool:
    return not fold.needs or (host is not None and host.holds(fold.needs))


def _best_host(model: nn.Module, options: dict[str, list[Fold]]) -> tuple[Host | None, list[str]]:
    """The class that holds most sites, the model's own where that is as good; and all that were looked at."""

    def held(host: Host | None) -> int:
        return sum(any(_fits(fold, host) for fold in folds) for folds in options.values())

    best: Host | None = None
    most, tried = held(None), []
    possible = sum(bool(folds) for folds in options.values())
    for host in hosts(model) if most < possible else ():
        if not host.is_own:
            tried.append(host.label)
        if (count := held(host)) > most:
            best, most = host, count
        if most == possible:
            break
    return best, tried


def _entry(
    name: str, options: dict[str, list[Fold]], chosen: dict[str, Fold | None], host: Host | None, whys: dict[str, str],
    tried: list[str], model: nn.Module,
) -> SitePlan:  # fmt: skip
    if name not in options:
        return SitePlan(name, "unchanged", "nothing to fold: the map is the identity")
    if fold := chosen[name]:
        if host and (fold.needs or not host.is_own):
            return SitePlan(name, "class", f"exact as {host.label}: {fold}")
        return SitePlan(name, "exact", f"exact, {fold}" if fold.maker and not fold.consumers else f"exact: {fold}")
    if not options[name]:
        return SitePlan(name, "refused", f"refused: {whys[name]}")
    lacking = listed([x.path for x in options[name][0].grown])
    have = "has" if len(options[name][0].grown) == 1 else "have"
    if hasattr(model, "save_pretrained"):
        looked = "".join(f", nor has {label}" for label in tried)
        why = f"{lacking} {have} no bias, and {kind_of(model).__name__} has no place for one{looked}"
    else:
        why = f"{lacking} {have} no bias, and {kind_of(model).__name__} would not load one; build it with one of zeros"
    return SitePlan(name, "refused", f"refused: {why}")
