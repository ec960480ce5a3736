"""The ways to fold one site: into what makes its output, into what modulates it, or into the layers that read it."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..network.hooks import channel_dim, tensor_of
from ..network.links import module_at
from ..network.sites import Site
from ..network.weights import Weights
from .adaptive import AdaptiveFold
from .folds import Fold, listed
from .layers import CannotFoldError, Layer, layer
from .modulation import Modulators
from .tracing import Output, Trace


class FoldFinder:
    """A model, and what one forward pass showed of it."""

    def __init__(self, model: nn.Module, trace: Trace | None, weights: Weights):
        self.model, self.trace, self.weights = model, trace, weights
        self.modules = dict(model.named_modules())
        self.modulators = Modulators(trace, self.modules, weights) if trace else None
        self.names = {id(module): path for path, module in self.modules.items()}
        self.places: dict[Any, list[str]] = {}
        for path, module in self.modules.items():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    self.places.setdefault(weights.identity(module, name), []).append(f"{path}.{name}")

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
        if self.trace and any(self.trace.is_twice_in(value, tensor_of(site, value)) for _, value in self._calls(site)):
            return [], "its module returns the tensor a second time, which the map leaves as it is"
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
                folds = [*folds, *self._adaptive(site, units, outputs, scale, shift, storages)]
                folds.sort(key=lambda fold: bool(fold.grown))
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
        ties = [self._tied(fold) or self._cast(fold) for fold in folds]
        allowed = [fold for fold, tie in zip(folds, ties, strict=True) if not tie]
        return allowed, "; ".join([*reasons, *filter(None, ties)])

    def _adaptive(
        self, site: Site, units: int, outputs: list[tuple[int, Tensor]], scale: Tensor | None, shift: Tensor | None,
        storages: frozenset[int],
    ) -> list[Fold]:  # fmt: skip
        """Into the rows that modulate it, where some do."""
        if self.modulators is None:
            return []
        dim = channel_dim(module_at(self.model, site.path), outputs[0][1])
        dim = dim - outputs[0][1].ndim if dim >= 0 else dim
        modulations, is_before = self.modulators.of(outputs, units, dim, shift is not None)
        fold = AdaptiveFold(site.name, scale, shift, None, (), storages, modulations, is_before)
        return [fold] if modulations else []

    def _require_units(self, site: Site, units: int, outputs: list[tuple[int, Tensor]]) -> None:
        for _, tensor in outputs:
            if tensor.shape[channel_dim(module_at(self.model, site.path), tensor)] != units:
                raise ValueError(
                    f"site {site.name!r}: the steering has weight ({units},), the model produced {tuple(tensor.shape)}"
                )

    def _outputs(self, site: Site) -> list[tuple[int, Tensor]]:
        return [(time, tensor_of(site, value)) for time, value in self._calls(site)]

    def _calls(self, site: Site) -> list[Output]:
        return self.trace.outputs.get(self.path(site), []) if self.trace else []

    def _own(self, site: Site, units: int, outputs: list[tuple[int, Tensor]]) -> Layer:
        """The layer that makes the site's output: the site's module, or one whose output it passes on as it is."""
        module = module_at(self.model, site.path)
        try:
            if site.item is not None:
                raise CannotFoldError(f"{type(module).__name__} returns several tensors")
            return layer(self.path(site), module, units, self.weights)
        except CannotFoldError:
            for path in self._makers(outputs):
                try:
                    return layer(path, self.modules[path], units, self.weights)
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
            found = layer(path, reader, None, self.weights)
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
        own = f"{changed.path}.{name}"
        places = [place for place in self.places[self.weights.identity(changed.module, name)] if place != own]
        if not places and changed.module in self.weights.hooks:  # from a disk, where each has a place of its own
            ties = getattr(self.model, "all_tied_weights_keys", None) or {}  # of transformers 5
            places = [name for pair in ties.items() if own in pair for name in pair if name != own]
        return places

    def _tied(self, fold: Fold) -> str:
        """Why parameters that others share, or read, cannot be changed; empty where they can."""
        for changed, name in fold.rewritten():
            others = self.shared_with(changed, name)
            if others and not (name == "weight" and self._may_untie(changed, others)):
                return f"{changed.path}.{name} is shared with {listed(others)}"
            if not others and self.modulators and (reader := self.modulators.reader_of(changed.path, name)):
                return f"{changed.path}.{name} also goes to {reader}"
        return ""

    def _cast(self, fold: Fold) -> str:
        """Why no layer can get a bias where `fully_shard` casts weights: it would not cast what it does not have."""
        for taker in fold.grown if self.trace else ():
            dtype = self.trace.dtypes.get((taker.path, "weight"), taker.weight.dtype)  # type: ignore[union-attr]
            if self.weights.are_gathered(taker.weight) and dtype != taker.weight.dtype:
                return f"{taker.path} has no bias, and beside weights that are cast to {dtype} there can be no new one"
        return ""

    def _may_untie(self, changed: Layer, others: list[str]) -> bool:
        """Embeddings and the output layer of a model of transformers: its config can say that they are two."""
        model: Any = self.model
        config: Any = getattr(model, "config", None)
        if self.weights.are_elsewhere(changed.module, "weight", changed.weight):
            return False
        if not getattr(config, "tie_word_embeddings", False) or not hasattr(model, "get_output_embeddings"):
            return False
        if config.get_text_config() is not config:  # which of the two settings counts, differs between models
            return False
        pair = [self.names.get(id(end)) for end in (model.get_input_embeddings(), model.get_output_embeddings())]
        return {changed.path, *(other.rpartition(".")[0] for other in others)} == set(pair)
