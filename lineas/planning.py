"""Where each site's map can go: the plan of a merge, made by watching one forward pass, before anything is changed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from . import sites
from .folding import CannotFoldError, Journal, Layer, layer
from .hosts import Host, State, hosts
from .probing import Probe
from .tracing import Trace

if TYPE_CHECKING:
    from .steering import Steering

Maps = dict[str, tuple[Tensor, Tensor]]


def maps_of(steering: "Steering", strength: float) -> Maps:
    """Scale and shift of every site at a strength, (units,) float64."""
    return {
        name: (
            torch.from_numpy(1 + strength * (steering.weight(name).astype(np.float64) - 1)),
            torch.from_numpy(strength * steering.bias(name).astype(np.float64)),
        )
        for name in steering.sites
    }


@dataclass(frozen=True)
class Fold:
    """One way to put a site's map into weights.

    The scale goes into `own`, or else into the consumers' weights; the shift into `own`'s bias, or the consumers'.
    """

    site: str
    scale: Tensor | None  # None: one, everywhere
    shift: Tensor | None  # None: zero, everywhere
    own: Layer | None
    consumers: tuple[Layer, ...] = ()

    @property
    def grown(self) -> list[Layer]:
        """Layers that must get a bias they do not have."""
        takers = self.consumers or ((self.own,) if self.own else ())
        return [taker for taker in takers if self.shift is not None and not taker.has_room]

    @property
    def needs(self) -> State:
        """The missing biases, by name, without values."""
        return {f"{x.path}.bias": torch.empty(x.outputs, device="meta") for x in self.grown}

    def rewritten(self) -> Iterator[tuple[Layer, str]]:
        """Parameters that get other values."""
        if self.own and (self.scale is not None or self.own.form == "table"):
            yield self.own, "weight"
        for taker in self.consumers or ((self.own,) if self.own else ()):
            if taker.bias is not None:
                yield taker, "bias"
            if self.own is None and self.scale is not None:
                yield taker, "weight"

    def apply(self, model: nn.Module, journal: Journal) -> None:
        """Into the layers of this name in a model."""
        own, consumers = self._layers(model)
        if own and not consumers:
            own.map_output(journal, self.scale, self.shift)
            return
        for taker in consumers:
            if self.shift is not None:
                taker.shift_input(journal, self.shift)
            if own is None and self.scale is not None:
                taker.scale_input(journal, self.scale)
        if own and self.scale is not None:
            own.map_output(journal, self.scale, None)

    def undo(self, model: nn.Module, journal: Journal) -> None:
        """The opposite of `apply`, to rounding."""
        own, consumers = self._layers(model)
        if own and not consumers:
            own.unmap_output(journal, self.scale, self.shift)
            return
        for taker in consumers:
            if own is None and self.scale is not None:
                taker.scale_input(journal, 1 / self.scale)
            if self.shift is not None:
                taker.shift_input(journal, self.shift, -1)
        if own and self.scale is not None:
            own.unmap_output(journal, self.scale, None)

    def _layers(self, model: nn.Module) -> tuple[Layer | None, list[Layer]]:
        def again(old: Layer) -> Layer:
            return Layer(old.path, model.get_submodule(old.path), old.form)

        return again(self.own) if self.own else None, [again(taker) for taker in self.consumers]

    def __str__(self) -> str:
        takers = _listed([taker.path.rpartition(".")[2] for taker in self.consumers])
        where = "" if self.own is None or self.own.path == self.site else f" ({self.own.path})"
        parts = []
        if self.own and not self.consumers:
            both = "weight and bias" if self.shift is not None and self.own.form != "table" else "weight"
            return f"into the {self.own.kind}'s {both}{where}"
        if self.scale is not None:
            parts.append(f"scale into {f'the {self.own.kind}{where}' if self.own else takers}")
        if self.shift is not None:
            parts.append(f"bias into the bias of {takers}")
        return ", ".join(parts)


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


def make_plan(steering: "Steering", model: nn.Module, strength: float, batch: Probe | None) -> MergePlan:
    """Look at the model, and decide. Without a batch, only layers that need no look can be folded into."""
    look = Look(model, batch.first(model, Trace) if batch else None)
    maps, found = maps_of(steering, strength), sites.find_sites(model, steering.sites)
    options: dict[str, list[Fold]] = {}
    whys: dict[str, str] = {}
    for site in sorted(found, key=look.time):
        scale, shift = maps[site.name]
        scale_or_none, shift_or_none = (None if (scale == 1).all() else scale), (shift if shift.any() else None)
        if scale_or_none is None and shift_or_none is None:
            continue
        options[site.name], whys[site.name] = look.options(site, len(scale), scale_or_none, shift_or_none)
    host, tried = _best_host(model, options)
    chosen = {name: next((f for f in folds if _fits(f, host)), None) for name, folds in options.items()}
    folds = [fold for fold in chosen.values() if fold]
    entries = tuple(_entry(name, options, chosen, host, whys, tried, model) for name in steering.sites)
    unties = any(look.shared_with(*changed) for fold in folds for changed in fold.rewritten())
    kind = type(model).__name__
    return MergePlan(kind, host.label if host else kind, entries, unties, host, tuple(folds))


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
        return SitePlan(name, "exact", f"exact, {fold}" if fold.own and not fold.consumers else f"exact: {fold}")
    if not options[name]:
        return SitePlan(name, "refused", f"refused: {whys[name]}")
    lacking = _listed([x.path for x in options[name][0].grown])
    have = "has" if len(options[name][0].grown) == 1 else "have"
    if hasattr(model, "save_pretrained"):
        looked = f", nor {' nor '.join(tried)}" if tried else ""
        why = f"{lacking} {have} no bias, and {type(model).__name__} has no place for one{looked}"
    else:
        why = f"{lacking} {have} no bias, and {type(model).__name__} would not load one; build it with one of zeros"
    return SitePlan(name, "refused", f"refused: {why}")


class Look:
    """A model, and what one forward pass showed of it."""

    def __init__(self, model: nn.Module, trace: Trace | None):
        self.model, self.trace = model, trace
        self.modules = dict(model.named_modules())
        self.names = {id(module): path for path, module in self.modules.items()}
        self.places: dict[int, list[str]] = {}
        for path, module in self.modules.items():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    self.places.setdefault(id(parameter), []).append(f"{path}.{name}")

    def path(self, site: sites.Site) -> str:
        """The module's first name, where it has several."""
        return self.names[id(self.model.get_submodule(site.path))]

    def time(self, site: sites.Site) -> int:
        """Sites in the order in which their hooks run: of two on one tensor, the inner one's map comes first."""
        calls = self.trace.outputs.get(self.path(site)) if self.trace else None
        return calls[0].time if calls else 0

    def options(self, site: sites.Site, units: int, scale: Tensor | None, shift: Tensor | None):
        """All ways to fold a site, the best first; and, where there are none, why."""
        outputs = self._outputs(site)
        if self.trace and not outputs:
            return [], "its module did not run on the probe"
        own: Layer | None = None
        folds, reasons = [], []
        try:
            own = self._own(site, units, outputs)
            fold = Fold(site.name, scale, shift, own)
            if not fold.grown or own.may_grow:
                folds.append(fold)
            else:
                reasons.append(f"{own.kind} has no bias")
        except CannotFoldError as error:
            reasons.append(str(error))
        if not folds or folds[0].grown:
            try:
                consumers = self._consumers(site, units, outputs)
                folds.append(Fold(site.name, scale, shift, own, consumers))
                if own and own.is_norm:  # a bias in what follows is more usual than one in a norm
                    folds.reverse()
            except CannotFoldError as error:
                reasons.append(str(error))
        allowed = [fold for fold in folds if not (tie := self._tied(fold)) or reasons.append(tie)]
        return allowed, "; ".join(reasons)

    def _outputs(self, site: sites.Site) -> list[tuple[int, Tensor]]:
        if self.trace is None:
            return []
        return [(time, sites.tensor_of(site, value)) for time, value in self.trace.outputs.get(self.path(site), [])]

    def _own(self, site: sites.Site, units: int, outputs: list[tuple[int, Tensor]]) -> Layer:
        """The layer that makes the site's output: the site's module, or one whose output it passes on as it is."""
        module = self.model.get_submodule(site.path)
        try:
            if site.item is not None:
                raise CannotFoldError(f"{type(module).__name__} returns several tensors")
            return layer(self.path(site), module, units)
        except CannotFoldError:
            for path in self._makers(outputs):
                try:
                    return layer(path, self.modules[path], units)
                except CannotFoldError:
                    continue
            raise

    def _makers(self, outputs: list[tuple[int, Tensor]]) -> Iterator[str]:
        """Modules that returned the site's very tensors, at every call, which nobody read before the site did."""
        if not self.trace or not outputs:
            return
        first = list(self.trace.returned_by(outputs[0][1], outputs[0][0]))
        for path, _ in first:
            calls = self.trace.outputs[path]
            if len(calls) == len(outputs) and all(
                any(name == path and not self.trace.uses(tensor, made, time) for name, made in
                    self.trace.returned_by(tensor, time))
                for time, tensor in outputs
            ):  # fmt: skip
                yield path

    def _consumers(self, site: sites.Site, units: int, outputs: list[tuple[int, Tensor]]) -> tuple[Layer, ...]:
        """All that reads the site's output, if these are linear layers that read nothing else."""
        if not self.trace:
            raise CannotFoldError("what reads its output can only be seen with a probe=")
        module = self.model.get_submodule(site.path)
        storages = {self.trace.storage(tensor) for _, tensor in outputs}
        found: dict[str, Layer] = {}
        for time, tensor in outputs:
            if self.trace.escapes(tensor):
                raise CannotFoldError("its output is an output of the model")
            for use in self.trace.uses(tensor, time):
                if use.path not in found:
                    found[use.path] = self._consumer(use.path, use.operation, units, storages, module, tensor)
        if not found:
            raise CannotFoldError("nothing was seen to read its output")
        return tuple(found.values())

    def _consumer(
        self, path: str, operation: str, units: int, storages: set[int], module: nn.Module, tensor: Tensor
    ) -> Layer:
        reader, where = self.modules[path], path or "the model itself"
        other = CannotFoldError(f"its output also goes to {operation} in {where}, not to linear layers alone")
        inputs = self.trace.inputs[path] if self.trace else []
        if any(x is None for x in inputs) or {self.trace.storage(x) for x in inputs} - storages:  # type: ignore[union-attr]
            raise other
        try:
            found = layer(path, reader, None)
        except CannotFoldError as error:
            raise (
                CannotFoldError(f"its output goes to {where}: {error}") if "quantised" in str(error) else other
            ) from None
        if found.is_norm or not found.takes(units, sites.channel_dim(module, tensor), tensor.ndim):
            raise other
        if any(not found.reads(x, units) for x in inputs):
            raise other
        return found

    def shared_with(self, changed: Layer, name: str) -> list[str]:
        """Other places of a parameter: the same tensor under another name."""
        parameter = changed.module._parameters[name]
        return [place for place in self.places[id(parameter)] if place != f"{changed.path}.{name}"]

    def _tied(self, fold: Fold) -> str:
        """Why parameters that others share cannot be changed; empty where they can."""
        for changed, name in fold.rewritten():
            if others := self.shared_with(changed, name):
                if name != "weight" or not self._may_untie(changed, others):
                    return f"{changed.path}.{name} is shared with {_listed(others)}"
        return ""

    def _may_untie(self, changed: Layer, others: list[str]) -> bool:
        """Embeddings and the output layer of a model of transformers: its config can say that they are two."""
        config: Any = getattr(self.model, "config", None)
        if not getattr(config, "tie_word_embeddings", False) or not hasattr(self.model, "get_output_embeddings"):
            return False
        pair = [self.names.get(id(x)) for x in (self.model.get_input_embeddings(), self.model.get_output_embeddings())]  # type: ignore[operator]
        return {changed.path, *(other.rpartition(".")[0] for other in others)} == set(pair)


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
