"""Every operation of the C core again, in a few lines of plain torch: the oracle of the tests, the readable
specification, and the path for tensors that C does not take (other devices). Imports nothing of ours.
"""

import math

import torch
from torch import Tensor


def sort_columns(x: Tensor) -> tuple[Tensor, Tensor]:
    """(n, d) -> each column ascending, and the stable permutation that does it."""
    return torch.sort(x, dim=0, stable=True)


def wasserstein(
    x: Tensor, y: Tensor, p: float = 2, x_weights: Tensor | None = None, y_weights: Tensor | None = None
) -> Tensor:
    """W_p^p between the columns of x (n, d) and of y (m, d), weights (n,) and (m,) summing to one -> (d,).

    The quantile functions are steps; between two neighbouring steps of either, both are constant, so that the integral
    of |F^-1 - G^-1|^p is a finite sum over the union of their steps.
    Source: Peyre & Cuturi, arXiv 1803.00567, sec. 2.6.
    """
    x, x_steps = _quantile_steps(x, x_weights)
    y, y_steps = _quantile_steps(y, y_weights)
    steps = torch.cat([x_steps, y_steps]).sort(dim=0).values.clamp(max=1)
    widths = torch.diff(steps, dim=0, prepend=torch.zeros_like(steps[:1]))
    middles = steps - widths / 2
    differences = _quantile(x, x_steps, middles) - _quantile(y, y_steps, middles)
    return (widths.to(x.dtype) * differences.abs() ** p).sum(0)


def _quantile_steps(x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    values, order = sort_columns(x)
    if weights is None:
        weights = torch.full((len(x),), 1 / len(x), dtype=torch.float64, device=x.device)
    return values, weights.double()[order].cumsum(0)


def _quantile(values: Tensor, steps: Tensor, at: Tensor) -> Tensor:
    index = torch.searchsorted(steps.T.contiguous(), at.T.contiguous()).T.clamp(max=len(values) - 1)
    return values.gather(0, index)


def affine(h: Tensor, scale: Tensor, shift: Tensor, channel_dim: int = -1) -> Tensor:
    """scale * h + shift along channel_dim, computed in the maps' precision, returned in that of h."""
    shape = [1] * h.ndim
    shape[channel_dim] = -1
    return (h * scale.view(shape) + shift.view(shape)).to(h.dtype)


def affine_pool(
    h: Tensor, scale: Tensor, shift: Tensor, pool: Tensor, channels_first: bool = False
) -> tuple[Tensor, Tensor]:
    """The map of h (batch, tokens, dim), or (batch, dim, tokens), and its average over tokens under weights pool
    (batch, tokens); tokens of weight 0 are not looked at. Halves are computed in float32 and rounded once."""
    wide = h.to(torch.promote_types(h.dtype, torch.float32))
    scale, shift, pool = (x.to(wide.dtype) for x in (scale, shift, pool))
    tokens_last, weights = wide if channels_first else wide.transpose(1, 2), pool.unsqueeze(1)
    # The map of the average is the average of the map; this way round, infinities in padding reach no gradient.
    average = (torch.where(weights != 0, tokens_last, 0) * weights).sum(2)
    out = affine(wide, scale, shift, 1 if channels_first else 2).to(h.dtype)
    return out, scale * average + shift * weights.sum(2)


def affine_sparse(h: Tensor, support: Tensor, scale: Tensor, shift: Tensor, channel_dim: int = -1) -> Tensor:
    """A copy of h in which the channels in support, and no others, are mapped."""
    mapped = affine(h.index_select(channel_dim, support), scale, shift, channel_dim)
    return h.index_copy(channel_dim, support, mapped)


def penalty(v: Tensor, center: float, sizes: list[int], l1: float, group: float, ridge: float = 0.0) -> Tensor:
    """Sparse group lasso with a ridge on v - center, groups side by side (Simon et al., JCGS 2013)."""
    groups = (v - center).split(sizes)
    return sum(l1 * u.abs().sum() + group * math.sqrt(len(u)) * u.norm() + ridge * u.square().sum() for u in groups)


def prox(
    v: Tensor, center: float, sizes: list[int], l1: float, group: float, ridge: float = 0.0, step: float = 1.0
) -> Tensor:
    """argmin over w of penalty(w) + |w - v|^2 / (2 step): soft-threshold, shrink each group's norm, scale down."""

    def one(u: Tensor) -> Tensor:
        u = u.sign() * (u.abs() - step * l1).clamp(min=0)
        norm = u.norm()
        if norm > 0:
            u = u * (1 - step * group * math.sqrt(len(u)) / norm).clamp(min=0)
        return u / (1 + 2 * step * ridge)

    return torch.cat([one(u) for u in (v - center).split(sizes)]) + center


def sgd(x: Tensor, velocity: Tensor, gradient: Tensor, rate: float, momentum: float = 0.0) -> tuple[Tensor, Tensor]:
    """One step of heavy-ball descent -> new x, new velocity."""
    velocity = momentum * velocity + gradient
    return x - rate * velocity, velocity


def adam(
    x: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    iteration: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of Adam, iterations counted from 1 -> new x, new moments (Kingma & Ba, arXiv 1412.6980, alg. 1)."""
    first = beta1 * first + (1 - beta1) * gradient
    second = beta2 * second + (1 - beta2) * gradient**2
    unbiased = second / (1 - beta2**iteration)
    return x - rate / (1 - beta1**iteration) * first / (unbiased.sqrt() + epsilon), first, second


def cosine(rate: float, floor: float, at: int, total: int) -> float:
    """Learning rate of iteration `at` (Loshchilov & Hutter, arXiv 1608.03983, eq. 5)."""
    return floor + (rate - floor) * (1 + math.cos(math.pi * at / total)) / 2
