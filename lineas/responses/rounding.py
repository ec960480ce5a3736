"""What of the responses is rounding: a unit that is constant but for it has no deviation that a map could match.

A GroupNorm with a channel in each group is the plainest case: the mean over an image is the same for every image, up to
1e-8, and the ratio of two such deviations is noise, by which a map would scale activations that vary by 1.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core.arrays import Vector
from ..network.calls import call
from ..network.data import Batch
from ..network.hooks import hooked
from ..network.state import reseed
from .runner import Runner

SAFETY = 4  # times the rounding that one operation leaves; that of the operations before adds to it


def resolution(runner: Runner, batch: Batch) -> Vector:
    """(1, N): below which standard deviation a unit's responses tell nothing, from a look at two samples.

    Of float32: a few units in the last place of the root mean square of its activations. Activations in half precision
    are rounded each for itself, which a mean over tokens makes smaller.
    """
    batch = batch.rows(0, 2)
    found = np.zeros((1, runner.compared.units), np.float32)

    def watch(k: int):
        def see(module: nn.Module, h: Tensor) -> Tensor:
            dim = runner.compared.channel_dims[k]
            others = [d for d in range(h.ndim) if d != dim % h.ndim]
            size = h.float().square().mean(others).sqrt()
            tokens = h.numel() // (batch.size * h.shape[dim])
            averaged = max(tokens, 1) if runner.pooling == "mean" else 1
            own = torch.finfo(h.dtype).eps if h.dtype in (torch.float16, torch.bfloat16) else 0.0
            step = SAFETY * torch.finfo(torch.float32).eps + own / averaged**0.5
            found[0, runner.compared.slice(k)] = (size * step).cpu().numpy()
            return h

        return see

    reseed(runner.seed + batch.number, runner.device)
    hooks = hooked(runner.model, {site: watch(k) for k, site in enumerate(runner.compared.sites)})
    with torch.no_grad(), hooks, runner.half():
        call(runner.model, batch)
    return found


def settled(responses: NDArray, least: NDArray) -> NDArray:
    """The responses (n, d), those of a unit that spread by no more than `least` (d,) as their mean."""
    noise = responses.std(0, dtype=np.float64) <= least
    if not noise.any():
        return responses
    return np.where(noise, responses.mean(0, dtype=np.float64).astype(responses.dtype), responses)
