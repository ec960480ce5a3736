"""What of the responses is rounding: a unit that is constant but for it has no deviation that a map could match.

A GroupNorm with a channel in each group is the plainest case: the mean over an image is the same for every image, up to
1e-8, and the ratio of two such deviations is noise, by which a map would scale activations that vary by 1.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core.arrays import Vector
from ..network.batch import Batch
from ..network.calls import call
from ..network.hooks import hooked
from ..network.sites import Site
from ..network.state import reseed
from .pooling import Part
from .runner import Runner

SAFETY = 4  # times the rounding that one operation leaves; that of the operations before adds to it


def resolution(runner: Runner, batch: Batch) -> Vector:
    """(1, N): below which standard deviation a unit's responses tell nothing, from a look at two samples.

    Of float32: a few units in the last place of the mean of its activations' sizes, padding aside. Activations in half
    precision are rounded each for itself, which a mean over tokens makes smaller.
    """
    layout, part = runner.compared, Part(batch.rows(0, 2), "mean")
    found = np.zeros((1, layout.units), np.float32)

    def watch(k: int, site: Site):
        identity = torch.ones(layout.sizes[k], device="cpu"), torch.zeros(layout.sizes[k], device="cpu")

        def see(module: nn.Module, h: Tensor) -> Tensor:
            maps = (half.to(h.device) for half in identity)
            size = part.pooled(h.abs(), layout.channel_dims[k], layout.sides[k], site, *maps)[1].mean(0)
            tokens = h.numel() // (part.batch.size * layout.sizes[k])
            averaged = max(tokens, 1) if runner.poolings == ("mean",) else 1
            own = torch.finfo(h.dtype).eps if h.dtype in (torch.float16, torch.bfloat16) else 0.0
            step = SAFETY * torch.finfo(torch.float32).eps + own / averaged**0.5
            found[0, layout.slice(k)] = (size * step).cpu().numpy()
            return h

        return see

    reseed(runner.seed + batch.number, runner.device)
    hooks = hooked(runner.model, {site: watch(k, site) for k, site in enumerate(layout.sites)}, part.batch.size)
    with torch.no_grad(), hooks, runner.half():
        call(runner.model, part.batch)
    return found


def settled(responses: NDArray, least: NDArray) -> NDArray:
    """The responses (n, d), those of a unit that spread by no more than `least` (d,) as their mean."""
    noise = responses.std(0, dtype=np.float64) <= least
    if not noise.any():
        return responses
    return np.where(noise, responses.mean(0, dtype=np.float64).astype(responses.dtype), responses)
