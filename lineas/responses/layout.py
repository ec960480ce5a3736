"""Where each site's units lie in the flat vectors."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import Floats, Vector
from ..network.sites import Site


@dataclass(frozen=True)
class Layout:
    """Where each site's units lie in the flat vectors: those of site k at offsets[k] to offsets[k + 1]."""

    sites: tuple[Site, ...]
    sizes: tuple[int, ...]
    channel_dims: tuple[int, ...]
    sides: tuple[str, ...]  # whose tokens a site has, see `Batch.mask_of`
    offsets: NDArray[np.int64] = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "offsets", np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)]))

    @property
    def units(self) -> int:
        return int(self.offsets[-1])

    def slice(self, k: int) -> slice:
        return slice(int(self.offsets[k]), int(self.offsets[k + 1]))

    def site_of(self, unit: int) -> Site:
        return self.sites[int(np.searchsorted(self.offsets, unit, side="right")) - 1]

    def identity(self) -> Vector:
        """The maps that change nothing, (2 N,): weights 1, biases 0."""
        return np.repeat(np.array([1, 0], np.float32), self.units)

    def coefficients(self) -> Floats:
        """(N,): what each unit's distance counts in the loss, a mean over sites of the mean over units."""
        return np.repeat(1.0 / (len(self.sizes) * np.array(self.sizes)), self.sizes)

    def pooled(self, ways: int) -> "Layout":
        """The layout of responses that are pooled in so many ways: at each site those of one way after the other's."""
        return replace(self, sizes=tuple(ways * size for size in self.sizes))

    def part(self, sites: Sequence[Site]) -> "Layout":
        """The layout of some of these sites, in this order."""
        keep = [k for k, site in enumerate(self.sites) if site in sites]
        return Layout(
            tuple(self.sites[k] for k in keep),
            tuple(self.sizes[k] for k in keep),
            tuple(self.channel_dims[k] for k in keep),
            tuple(self.sides[k] for k in keep),
        )
