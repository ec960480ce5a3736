"""Every operation of the C core again, in a few lines of plain torch: the oracle of the tests and the readable
specification, and nothing but that. Imports nothing of ours.
"""

import math

import numpy as np
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
    widths, x_parts, y_parts = _coupled(x, y, x_weights, y_weights)
    return (widths.to(x.dtype) * (x_parts - y_parts).abs() ** p).sum(0)


def _coupled(
    x: Tensor, y: Tensor, x_weights: Tensor | None = None, y_weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The parts of the unit interval on which both quantile functions are constant: widths, and F^-1 and G^-1 there."""
    x, x_steps = _quantile_steps(x, x_weights)
    y, y_steps = _quantile_steps(y, y_weights)
    steps = torch.cat([x_steps, y_steps]).sort(dim=0).values.clamp(max=1)
    widths = torch.diff(steps, dim=0, prepend=torch.zeros_like(steps[:1]))
    middles = steps - widths / 2
    return widths, _quantile(x, x_steps, middles), _quantile(y, y_steps, middles)


def _quantile_steps(x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    values, order = sort_columns(x)
    if weights is None:
        weights = torch.full((len(x),), 1 / len(x), dtype=torch.float64, device=x.device)
    return values, weights.double()[order].cumsum(0)


def _quantile(values: Tensor, steps: Tensor, at: Tensor) -> Tensor:
    index = torch.searchsorted(steps.T.contiguous(), at.T.contiguous()).T.clamp(max=len(values) - 1)
    return values.gather(0, index)


def permutation_null(x: Tensor, labels: Tensor, p: float = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled samples x (n + m, d); labels (1 + relabellings, n + m) say which rows are sources, the observed ones first
    -> mean and standard deviation of the relabellings' costs, and how often they reach the observed one, each (d,).

    Source: Phipson & Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010) 39, eq. 2.
    """
    costs = torch.stack([wasserstein(x[row], x[~row], p) for row in labels.bool()])
    observed, null = costs[0], costs[1:]
    return null.mean(0), null.std(0, unbiased=False), (1 + (null >= observed).to(x.dtype).sum(0)) / len(costs)


def sliced_wasserstein(
    x: Tensor, y: Tensor, directions: Tensor, p: float = 2, x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """p-th root of the mean W_p^p of x (n, d) and y (m, d) projected on each of directions (d, k).
    Source: Bonneel et al., J. Math. Imaging Vis. 51 (2015)."""
    return wasserstein(x @ directions, y @ directions, p, x_weights, y_weights).mean() ** (1 / p)


def max_sliced_wasserstein(
    x: Tensor, y: Tensor, directions: Tensor, p: float = 2, x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The same with the largest W_p^p instead of the mean. Source: Deshpande et al., arXiv 1904.05877."""
    return wasserstein(x @ directions, y @ directions, p, x_weights, y_weights).max() ** (1 / p)


def mean_act(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The map of x (n, d) to y (m, d) that moves the mean of each unit -> weight, bias, each (d,) as in all of these.
    Source: Rodriguez et al., arXiv 2410.23054."""
    return _through_means(x.new_ones(x.shape[1]), x, y)


def gaussian_act(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased standard deviations; weight 1 where one is not known, or that of the source is 0.
    Source: Peyre & Cuturi, arXiv 1803.00567, sec. 2.6."""
    known = min(len(x), len(y)) > 1
    spread = x.std(0) if known else x.new_zeros(x.shape[1])
    return _through_means(torch.where(spread > 0, y.std(0) / spread, 1.0) if known else spread + 1, x, y)


def linear_act(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares from the quantiles of x to those of y; weight 1 where x is constant.
    Source: Rodriguez et al., arXiv 2410.23054."""
    widths, x_parts, y_parts = _coupled(x - x.mean(0), y - y.mean(0))
    covariance, variance = (widths * x_parts * y_parts).sum(0), (widths * x_parts * x_parts).sum(0)
    return _through_means(torch.where(x.amax(0) > x.amin(0), covariance / variance, 1.0), x, y)


def _through_means(weight: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return weight, y.mean(0) - weight * x.mean(0)


def aura(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gini's coefficient, 2 AUROC - 1, is what each unit loses. Source: Suau et al., arXiv 2407.12824."""
    weight = 1 - (2 * auroc(x, y) - 1).clamp(min=0)
    return weight, torch.zeros_like(weight)


def det0(x: Tensor, y: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
    """Units under the mask (d,) get their mean over y. Source: Suau et al., arXiv 2110.02802."""
    return torch.where(units, 0.0, 1.0).to(y.dtype), torch.where(units, y.mean(0), 0.0)


def auroc(x: Tensor, y: Tensor) -> Tensor:
    """How many of the pairs of rows of x (n, d), positive, and y (m, d), negative, are in order; ties half -> (d,).
    Source: Mann & Whitney, Ann. Math. Statist. 18 (1947) 50."""
    a, b = x[:, None], y[None]
    return ((a > b).double() + (a == b).double() / 2).mean((0, 1))


def average_precision(x: Tensor, y: Tensor) -> Tensor:
    """Mean over positive rows x (n, d) of the precision among all rows that reach them, y (m, d) included -> (d,)."""
    hits, misses = ((rows[:, None] >= x[None]).double().sum(0) for rows in (x, y))
    return (hits / (hits + misses)).mean(0)


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


def penalty(v: Tensor, center: float, labels: Tensor, l1: float, group: float, ridge: float = 0.0) -> Tensor:
    """Sparse group lasso with a ridge on v - center, labels (d,) telling the groups apart (Simon et al., JCGS 2013)."""
    groups = [(v - center)[labels == k] for k in labels.unique()]
    return sum(l1 * u.abs().sum() + group * math.sqrt(len(u)) * u.norm() + ridge * u.square().sum() for u in groups)


def prox(
    v: Tensor, center: float, labels: Tensor, l1: float, group: float, ridge: float = 0.0, step: Tensor | float = 1.0
) -> Tensor:
    """argmin over w of penalty(w) + sum of (w - v)^2 / (2 step), step a number or one for each entry.

    Soft-threshold, then shrink each group's norm: where the group does not vanish, stationarity gives every entry from
    the norm that the group will have, and that norm by bisection. For one step size it is norm(s) - step * pressure.
    """

    def one(u: Tensor, step: Tensor) -> Tensor:
        s = u.sign() * (u.abs() - step * l1).clamp(min=0)
        damping, pressure = 1 + 2 * ridge * step, group * math.sqrt(len(u)) * step
        low, high = s.new_zeros(()), s.norm()
        for _ in range(100):
            norm = (low + high) / 2
            shrunk = torch.where(s == 0, 0, s / (norm * damping + pressure))
            low, high = (norm, high) if shrunk.norm() > 1 else (low, norm)
        vanishes = (s.abs() <= pressure).all() and torch.where(s == 0, 0, s / pressure).norm() <= 1
        return torch.where((s == 0) | (vanishes & (group > 0)), 0, s * high / (high * damping + pressure))

    step = torch.as_tensor(step, dtype=v.dtype).expand_as(v)
    out = torch.empty_like(v)
    for k in labels.unique():
        group_k = labels == k
        out[group_k] = one(v[group_k] - center, step[group_k]) + center
    return out


def sgd(x: Tensor, velocity: Tensor, gradient: Tensor, rate: float, momentum: float = 0.0) -> tuple[Tensor, Tensor]:
    """One step of heavy-ball descent -> new x, new velocity."""
    velocity = momentum * velocity + gradient
    return x - rate * velocity, velocity


def adam(
    x: Tensor, first: Tensor, second: Tensor, gradient: Tensor, rate: float, beta1: float, beta2: float,
    epsilon: float, decay: float, iteration: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One step of Adam, iterations counted from 1 -> new x, new moments (Kingma & Ba, arXiv 1412.6980, alg. 1).

    With a decay it is AdamW (Loshchilov & Hutter, arXiv 1711.05101, alg. 2) on maps x = [weights, biases], which decay
    towards the identity."""
    center = torch.cat([torch.ones(len(x) // 2), torch.zeros(len(x) // 2)]).to(x)
    first = beta1 * first + (1 - beta1) * gradient
    second = beta2 * second + (1 - beta2) * gradient**2
    unbiased = second / (1 - beta2**iteration)
    x = x - rate * decay * (x - center)
    return x - rate / (1 - beta1**iteration) * first / (unbiased.sqrt() + epsilon), first, second


def cosine(rate: float, floor: float, at: int, total: int) -> float:
    """Learning rate of iteration `at` (Loshchilov & Hutter, arXiv 1608.03983, eq. 5)."""
    return floor + (rate - floor) * (1 + math.cos(math.pi * at / total)) / 2


class Quadratic:
    """The fast recipe's model of the loss near x: gradient . m + m . B m / 2, B = damping A + the BFGS update of A.

    A holds a symmetric 2 x 2 block for each unit's (weight, bias): its own curvature (3, N), raised, and scaled by site
    to what the last three moves met; without moves, as much as keeps the promised gain below the loss. moves, changes
    (k, 2 N) are oldest first; the update is unrolled into a sum of b b' - a a' (Nocedal & Wright, Numerical
    Optimization, 2006, sec. 7.2). NumPy, float64, points float32.
    """

    def __init__(self, x, loss, gradient, curvature, moves, changes, damping, sizes):
        self.x, self.slope, self.damping, self.vectors, self.signs = x, gradient.astype(float), damping, [], []
        self.sizes = sizes
        moves, changes = moves.astype(float), changes.astype(float)
        weight, both, bias = curvature
        self.blocks = np.stack([1.3 * np.maximum(weight, 1e-3 * weight.mean()), both, 1.3 * bias])
        if len(moves):
            own = np.array([block_product(curvature, move) for move in moves[-3:]])
            met, expected = ((moves[-3:] * y).sum(0).reshape(2, -1).sum(0) for y in (changes[-3:], own))
            for units in np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]):
                if expected[units].sum() > 0:
                    self.blocks[:, units] *= np.clip(met[units].sum() / expected[units].sum(), 1, 10)
        elif loss > 0:
            self.blocks *= max(1, -self.slope @ self.newton(self.slope) / 2 / loss)
        for move, change in zip(moves, changes, strict=True):
            bent = self.product(move) - damping * block_product(self.blocks, move)
            self.vectors += [change / math.sqrt(move @ change), bent / math.sqrt(move @ bent)]
            self.signs += [1, -1]
        w, b = np.split(x.astype(float), 2)
        far, size = np.sqrt(curvature[0] / curvature[2]) / 2, np.maximum(np.abs(w), 0.1)
        self.low = np.concatenate([w - size / 4, b - far]).astype(np.float32)
        self.high = np.concatenate([w + size / 3, b + far]).astype(np.float32)

    def product(self, p):
        correction = sum(s * v * (v @ p) for s, v in zip(self.signs, self.vectors, strict=True))
        return (1 + self.damping) * block_product(self.blocks, p) + correction

    def value(self, point):
        move = point.astype(float) - self.x
        return self.slope @ move + move @ self.product(move) / 2

    def newton(self, slope, ridge=0.0):
        """The move that minimises slope . m + m . (B + 2 ridge) m / 2: conjugate gradients, preconditioned by A."""
        ww, wb, bb = (1 + self.damping) * self.blocks + 2 * ridge * np.array([[1], [0], [1]])
        inverse = np.stack([bb, -wb, ww]) / (ww * bb - wb**2)
        move, left = np.zeros_like(slope), -slope
        along = block_product(inverse, left)
        size = start = left @ along
        for _ in range(len(self.vectors) + 1):
            if size <= 1e-8 * start:
                break
            bent = self.product(along) + 2 * ridge * along
            move, left = move + size / (along @ bent) * along, left - size / (along @ bent) * bent
            ready, before = block_product(inverse, left), size
            size = left @ ready
            along = ready + size / before * along
        return move

    def step_sizes(self):
        """One over the diagonal, times what keeps proximal steps from overshooting: by power iteration."""
        diagonal, largest = (1 + self.damping) * self.blocks[[0, 2]].ravel(), 1.0
        v = np.cos(np.arange(len(diagonal)))
        for _ in range(10):
            v = self.product(v / (largest * np.sqrt(diagonal))) / np.sqrt(diagonal)
            largest = math.sqrt(v @ v)
        return (1 / (1.1 * largest * diagonal)).astype(np.float32)

    def minimise(self, prox):
        """At most a hundred accelerated proximal steps that restart, in the box; prox(point, step sizes) -> point.
        Source: O'Donoghue & Candes, Found. Comput. Math. 15 (2015), sec. 3.2."""
        x, steps = self.x.astype(float), self.step_sizes()
        point, ahead, speed = self.x, x, 1.0
        for _ in range(100):
            slope = self.slope + self.product(ahead - x)
            new = prox(ahead.astype(np.float32) - steps * slope.astype(np.float32), steps)
            new = np.clip(new.astype(np.float32), self.low, self.high)
            change = new.astype(float) - point
            if (ahead - new) / steps @ change > 0:
                speed = 1.0
            faster = (1 + math.sqrt(1 + 4 * speed**2)) / 2
            ahead, point, speed = new + (speed - 1) / faster * change, new, faster
            if change / steps @ change <= 3e-4**2 * ((new - x) / steps @ (new - x)):
                break
        return point

    def solve(self, l1, group, ridge):
        """Where this plus a sparse group lasso is least in the box; l1 and group: of weights and of biases, by site.

        Thousands of accelerated proximal steps that restart, each with the box inside the proximal step, as a penalty
        without an end: C solves the same equations by Newton's method.
        """
        center = np.repeat([1.0, 0.0], len(self.x) // 2)
        low, high, here = self.low - center, self.high - center, self.x - center
        ends = np.cumsum(self.sizes * 2)[:-1]
        steps = self.step_sizes().astype(float)
        each = [np.split(a, ends) for a in (low, high, steps)]
        by = [(l1[k], group[k] * math.sqrt(size)) for k in (0, 1) for size in self.sizes]
        point, ahead, speed = here, here, 1.0
        for _ in range(5000):
            pulled = np.split(ahead - steps * (self.slope + self.product(ahead - here)), ends)
            parts = zip(pulled, *each, by, strict=True)
            new = np.concatenate([boxed_prox(v, t, a, b, one, two, ridge) for v, a, b, t, (one, two) in parts])
            change = new - point
            if ((ahead - new) / steps) @ change > 0:
                speed = 1.0
            faster = (1 + math.sqrt(1 + 4 * speed**2)) / 2
            ahead, point, speed = new + (speed - 1) / faster * change, new, faster
            if np.abs(change).max() <= 1e-10 * np.abs(new - here).max():
                break
        return (point + center).astype(np.float32)


def boxed_prox(v, step, low, high, l1, pressure, ridge):
    """argmin of l1 |u|_1 + pressure |u|_2 + ridge |u|_2^2 + sum of (u - v)^2 / (2 step), low <= u <= high: by bisection
    for the norm, which is that of u(norm) at one point only."""
    left = np.sign(v) * np.maximum(np.abs(v) - step * l1, 0)

    def at(norm):
        return np.clip(left * norm / (norm * (1 + 2 * ridge * step) + pressure * step), low, high)

    if not pressure or not len(v):
        return np.clip(left / (1 + 2 * ridge * step), low, high)
    if np.linalg.norm(left / step) <= pressure and (low <= 0).all() and (high >= 0).all():
        return np.zeros_like(v)
    least, most = 0.0, np.linalg.norm(np.maximum(np.abs(left), np.maximum(np.abs(low), np.abs(high)))) + 1e-300
    for _ in range(60):
        middle = (least + most) / 2
        least, most = (middle, most) if np.linalg.norm(at(middle)) > middle else (least, middle)
    return at(most)


def block_product(blocks, p):
    weight, bias = np.split(p, 2)
    return np.concatenate([blocks[0] * weight + blocks[1] * bias, blocks[1] * weight + blocks[2] * bias])


def ridge(x: Tensor, stretch: Tensor, cross: Tensor, shift: Tensor) -> Tensor:
    """The sum over units of stretch u^2 + 2 cross u b + shift b^2, where x = [weights, biases], u = weight - 1."""
    u, b = x[: len(x) // 2] - 1, x[len(x) // 2 :]
    return (stretch * u**2 + 2 * cross * u * b + shift * b**2).sum()
