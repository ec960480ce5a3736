"""One way to put a site's map into weights: into the layer that makes its output, or into the layers that read it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import Journal, Layer


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


def listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
