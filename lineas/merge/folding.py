"""The ways to fold one site: into the layer that makes its output, or into the layers that read it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..network.hooks import channel_dim, tensor_of
from ..network.links import module_at
from ..network.sites import Site
from .layers import CannotFoldError, Journal, Layer, layer
from .tracing import Trace


@dataclass(frozen=True)
class Fold:
    """One way to put a site's map into weights.

    The scale goes into `own`, or else into the consumers' weights; the shift into `own`'s bias, or the consumers'.
    """

    site: str
    scale: Tensor | None  # None: one, everywhere
    shift: Tensor | None  # None: zero, everywhere
    maker: Layer | None
    consumers: tuple[Layer, ...] = ()
    storages: frozenset[int] = frozenset()  # of the site's outputs in the trace

    @property
    def grown(self) -> list[Layer]:
        """Layers that must get a bias they do not have."""
        takers = self.consumers or ((self.maker,) if self.maker else ())
        return [taker for taker in takers if self.shift is not None and not taker.has_room]

    @property
    def needs(self) -> dict[str, Tensor]:
        """The missing biases, by name, without values."""
        return {f"{x.path}.bias": torch.empty(x.outputs, device="meta") for x in self.grown}

    def rewritten(self) -> Iterator[tuple[Layer, str]]:
        """Parameters that get other values."""
        if self.maker and (self.scale is not None or self.maker.form == "table"):
            yield self.maker, "weight"
        if self.maker and not self.consumers and self.maker.bias is not None:
            yield self.maker, "bias"
        for taker in self.consumers:
            if self.shift is not None and taker.bias is not None:
                yield taker, "bias"
            if self.maker is None and self.scale is not None:
                yield taker, "weight"

    def apply(self, model: nn.Module, journal: Journal) -> None:
        """Into the layers of this name in a model."""
        maker, consumers = self._layers(model)
        if maker and not consumers:
            maker.map_output(journal, self.scale, self.shift)
            return
        for taker in consumers:
            if self.shift is not None:
                taker.shift_input(journal, self.shift)
            if maker is None and self.scale is not None:
                taker.scale_input(journal, self.scale)
        if maker and self.scale is not None:
            maker.map_output(journal, self.scale, None)

    def undo(self, model: nn.Module, journal: Journal) -> None:
        """The opposite of `apply`, to rounding."""
        maker, consumers = self._layers(model)
        if maker and not consumers:
            maker.unmap_output(journal, self.scale, self.shift)
            return
        for taker in consumers:
            if maker is None and self.scale is not None:
                taker.scale_input(journal, 1 / self.scale)
            if self.shift is not None:
                taker.shift_input(journal, self.shift, -1)
        if maker and self.scale is not None:
            maker.unmap_output(journal, self.scale, None)

    def _layers(self, model: nn.Module) -> tuple[Layer | None, list[Layer]]:
        def again(old: Layer) -> Layer:
            return Layer(old.path, model.get_submodule(old.path), old.form)

        return again(self.maker) if self.maker else None, [again(taker) for taker in self.consumers]

    def __str__(self) -> str:
        takers = listed([taker.path.rpartition(".")[2] for taker in self.consumers])
        where = "" if self.maker is None or self.maker.path == self.site else f" ({self.maker.path})"
        parts = []
        if self.maker and not self.consumers:
            both = "weight and bias" if self.shift is not None and self.maker.form != "table" else "weight"
            return f"into the {self.maker.kind}'s {both}{where}"
        if self.scale is not None:
            parts.append(f"scale into {f'the {self.maker.kind}{where}' if self.maker else takers}")
        if self.shift is not None:
            parts.append(f"bias into the bias of {takers}")
        return ", ".join(parts)


class FoldFinder:
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

    def path(self, site: Site) -> str:
        """The module's first name, where it has several."""
        return self.names[id(module_at(self.model, site.path))]

    def time(self, site: Site) -> int:
        """Sites in the order in which their hooks run: of two on one tensor, the inner one's map comes first."""
        calls = self.trace.outputs.get(self.path(site)) if self.trace else None
        return calls[0].time if calls else 0

    def options(self, site: Site, units: int, scale: Tensor | None, shift: Tensor | None):
        """All ways to fold a site, the best first; and, where there are none, why."""
        outputs = self._outputs(site)
        if self.trace and not outputs:
            return [], "its module did not run on the probe"
        self._require_units(site, units, outputs)
        maker: Layer | None = None
        storages = frozenset(self.trace.storage(tensor) for _, tensor in outputs) if self.trace else frozenset()
        folds, reasons = [], []
        try:
            maker = self._own(site, units, outputs)
            fold = Fold(site.name, scale, shift, maker, (), storages)
            if not fold.grown or maker.may_grow:
                folds.append(fold)
            else:
                reasons.append(f"{maker.kind} has no bias")
        except CannotFoldError as error:
            reasons.append(str(error))
        if not folds or folds[0].grown:
            try:
                consumers = self._consumers(site, units, outputs, storages)
                folds.append(Fold(site.name, scale, shift, maker, consumers, storages))
                if maker and maker.is_norm:  # a bias in what follows is more usual than one in a norm
                    folds.reverse()
            except CannotFoldError as error:
                reasons.append(str(error))
        ties = [self._tied(fold) for fold in folds]
        allowed = [fold for fold, tie in zip(folds, ties, strict=True) if not tie]
        return allowed, "; ".join([*reasons, *filter(None, ties)])

    def _require_units(self, site: Site, units: int, outputs: list[tuple[int, Tensor]]) -> None:
        for _, tensor in outputs:
            if tensor.shape[channel_dim(module_at(self.model, site.path), tensor)] != units:
                raise ValueError(
                    f"site {site.name!r}: the steering has weight ({units},), the model produced {tuple(tensor.shape)}"
                )

    def _outputs(self, site: Site) -> list[tuple[int, Tensor]]:
        if self.trace is None:
            return []
        return [(time, tensor_of(site, value)) for time, value in self.trace.outputs.get(self.path(site), [])]

    def _own(self, site: Site, units: int, outputs: list[tuple[int, Tensor]]) -> Layer:
        """The layer that makes the site's output: the site's module, or one whose output it passes on as it is."""
        module = module_at(self.model, site.path)
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

    def _consumers(
        self, site: Site, units: int, outputs: list[tuple[int, Tensor]], storages: frozenset[int]
    ) -> tuple[Layer, ...]:
        """All that reads the site's output, if these are linear layers that read nothing else."""
        if not self.trace:
            raise CannotFoldError("what reads its output can only be seen with a probe=")
        module = module_at(self.model, site.path)
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
        self, path: str, operation: str, units: int, storages: frozenset[int], module: nn.Module, tensor: Tensor
    ) -> Layer:
        reader, where = self.modules[path], path or "the model itself"
        other = CannotFoldError(f"its output also goes to {operation} in {where}, not to linear layers alone")
        trace: Any = self.trace
        inputs = trace.inputs[path]
        if any(x is None or trace.storage(x) not in storages for x in inputs):
            raise other
        try:
            found = layer(path, reader, None)
        except CannotFoldError as error:
            raise (
                CannotFoldError(f"its output goes to {where}: {error}") if "quantised" in str(error) else other
            ) from None
        if found.is_norm or not found.takes(units, channel_dim(module, tensor), tensor.ndim):
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
            others = self.shared_with(changed, name)
            if others and not (name == "weight" and self._may_untie(changed, others)):
                return f"{changed.path}.{name} is shared with {listed(others)}"
        return ""

    def _may_untie(self, changed: Layer, others: list[str]) -> bool:
        """Embeddings and the output layer of a model of transformers: its config can say that they are two."""
        model: Any = self.model
        config: Any = getattr(model, "config", None)
        if not getattr(config, "tie_word_embeddings", False) or not hasattr(model, "get_output_embeddings"):
            return False
        if config.get_text_config() is not config:  # which of the two settings counts, differs between models
            return False
        pair = [self.names.get(id(end)) for end in (model.get_input_embeddings(), model.get_output_embeddings())]
        return {changed.path, *(other.rpartition(".")[0] for other in others)} == set(pair)


def listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
