"""What is timed. Every generator yields its cases one at a time, so that only one holds memory."""

import math
import os
import shutil
from collections.abc import Callable, Iterator

import numpy as np
import ot as pot
import scipy.stats
import sklearn.metrics
import torch
from _timing import Case

import lineas
from lineas.core import _core, reference
from lineas.core.room import Room
from lineas.optim.published import SGD, Adam, AdamW, Momentum
from lineas.optim.quadratic import MEMORY, Quadratic

UNITS = 17280  # of SmolLM2-135M's 30 norms
SIZES = ((32, UNITS), (64, UNITS), (256, UNITS), (1024, 4096))
FASTER_THAN_SORT = {32: 20.0, 64: 10.0, 256: 5.0, 1024: 3.0}


class Plan:
    """How large, with how many threads, and against which rivals."""

    def __init__(self, threads: int, quick: bool) -> None:
        self.threads, self.quick = threads, quick
        compiler = shutil.which(os.environ.get("CXX", "g++"))
        self.compiles = not quick and compiler is not None

    def units(self, units: int) -> int:
        return min(units, 128) if self.quick else units

    def compiled(self, function: Callable) -> dict[str, Callable]:
        return {"torch.compile": torch.compile(function, dynamic=False)} if self.compiles else {}


def samples(*shapes: tuple[int, ...], dtype: type = np.float32) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.normal(size=shape).astype(dtype) for shape in shapes]


# ---- loss and gradient of all units ----


def cost_to_sorted(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.sort(0).values - y).square().mean(0)


def cost_of_both(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.sort(0).values - y.sort(0).values).square().mean(0)


def with_gradient(cost: Callable, x: np.ndarray, y: np.ndarray) -> Callable:
    target = torch.from_numpy(y)

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        source = torch.from_numpy(x).requires_grad_()
        costs = cost(source, target)
        return costs.detach(), torch.autograd.grad(costs.sum(), source)[0]

    return call


def numpy_cost(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = x.argsort(0, kind="stable")
    difference = np.take_along_axis(x, order, 0) - np.sort(y, axis=0)
    gradient = np.empty_like(x)
    np.put_along_axis(gradient, order, 2 / len(x) * difference, 0)
    return np.square(difference).mean(0), gradient


def scipy_columns(x: np.ndarray, y: np.ndarray, columns: int) -> list[float]:
    return [scipy.stats.wasserstein_distance(x[:, k], y[:, k]) for k in range(columns)]


def loss(plan: Plan) -> Iterator[Case]:
    """A training step, whose target is sorted beforehand on both sides, and a single call that sorts both."""
    for n, m, units in [(n, n, plan.units(d)) for n, d in SIZES] + [(32, 100, plan.units(UNITS))]:
        x, y = samples((n, units), (m, units))
        target, ones = lineas.core.ops.prepare_target(y), np.ones(units)
        once = {"lineas": lambda x=x, y=y: lineas.ot.wasserstein_1d_grad(x, y)}
        every = {"lineas": lambda x=x, t=target, c=ones: lineas.core.ops.loss(x, t, c)}
        if plan.threads > 1:
            every["lineas, 1 thread"] = lambda x=x, t=target, c=ones: lineas.core.ops.loss(x, t, c, threads=1)
        goals = {"lineas, 1 thread": 1.8} if plan.threads == 2 else {}
        copies = {"copy": (1 + (m / n + 1)) / 2}  # read both, write the gradient
        against_pot = {"POT, no gradient": lambda x=x, y=y: pot.wasserstein_1d(x, y, p=2)}
        few = min(units, 8)
        slow = against_pot | {"SciPy, p = 1, no gradient": lambda x=x, y=y, k=few: scipy_columns(x, y, k)}
        copy = {"copy": x.copy}
        if n == m:
            goals |= {"torch": FASTER_THAN_SORT[n]}
            every |= {
                name: with_gradient(cost, x, target.values)
                for name, cost in ({"torch": cost_to_sorted} | plan.compiled(cost_to_sorted)).items()
            }
            once |= {
                name: with_gradient(cost, x, y)
                for name, cost in ({"torch": cost_of_both} | plan.compiled(cost_of_both)).items()
            }
            once["NumPy"] = lambda x=x, y=y: numpy_cost(x, y)
            agree = ("torch",)
        else:
            goals |= {"POT, no gradient": 50.0}
            every |= against_pot
            agree = ()
        shape = f"{n} x {m}, {units} units"
        yield Case(f"loss, a training step: {shape}", every | copy, goals, copies, agree)
        both = agree and (*agree, "NumPy")
        goals.pop("lineas, 1 thread", None)
        yield Case(
            f"loss, a single call: {shape}", once | slow | copy, goals,
            copies | {"SciPy, p = 1, no gradient": units / few}, both,
        )  # fmt: skip


# ---- sorting ----


def numpy_sort(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = x.argsort(0, kind="stable")
    return np.take_along_axis(x, order, 0), order


def sort(plan: Plan) -> Iterator[Case]:
    for n, units in (SIZES[0], SIZES[2], SIZES[3]):
        units = plan.units(units)
        (x,) = samples((n, units))
        tensor, threads = torch.from_numpy(x), plan.threads
        yield Case(
            f"sort with permutation: {n}, {units} columns",
            {
                "lineas": lambda x=x, t=threads: _core.sort_columns(x, t),
                "torch": lambda x=tensor: torch.sort(x, dim=0, stable=True),
                "NumPy": lambda x=x: numpy_sort(x),
                "copy": x.copy,
            },
            scale={"copy": 1.5}, agree=("torch", "NumPy"),
        )  # fmt: skip
        yield Case(
            f"sort, values only: {n}, {units} columns",
            {
                "lineas": lambda x=x, t=threads: _core.sort_values(x, t),
                "torch": lambda x=tensor: torch.sort(x, dim=0),
                "NumPy": lambda x=x: np.sort(x, axis=0),
                "copy": x.copy,
            },
        )


# ---- sliced distances ----


def pot_sliced_gradient(x: np.ndarray, y: np.ndarray, directions: np.ndarray) -> tuple[float, torch.Tensor]:
    source, target, projections = (torch.from_numpy(a) for a in (x, y, directions))
    source.requires_grad_()
    value = pot.sliced_wasserstein_distance(source, target, projections=projections)
    return value.detach(), torch.autograd.grad(value, source)[0]


def sliced(plan: Plan) -> Iterator[Case]:
    n, d, count = (50, 8, 16) if plan.quick else (1000, 64, 128)
    for dtype in (np.float32, np.float64):
        x, y, directions = samples((n, d), (n, d), (d, count), dtype=dtype)
        directions /= np.linalg.norm(directions, axis=0)
        shape = f"{n} x {n} in {d}, {count} directions, {np.dtype(dtype)}"
        yield Case(
            f"sliced distance: {shape}",
            {
                "lineas": lambda x=x, y=y, k=directions: [lineas.ot.sliced_wasserstein(x, y, projections=k)],
                "POT": lambda x=x, y=y, k=directions: [pot.sliced_wasserstein_distance(x, y, projections=k)],
            },
            {"POT": 10.0}, agree=("POT",),
        )  # fmt: skip
        yield Case(
            f"sliced distance and gradient: {shape}",
            {
                "lineas": lambda x=x, y=y, k=directions: lineas.ot.sliced_wasserstein_grad(x, y, projections=k),
                "POT on torch": lambda x=x, y=y, k=directions: pot_sliced_gradient(x, y, k),
            },
            {"POT on torch": 10.0}, agree=("POT on torch",),
        )  # fmt: skip


# ---- permutation null ----


def numpy_null(pooled: np.ndarray, n: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorts once: a relabelling only picks the sources and the targets out of the sorted samples."""
    draw = np.random.default_rng(0)
    order = pooled.argsort(0).T
    values = np.take_along_axis(pooled.T, order, 1)
    costs = np.empty((count, len(values)))
    for r in range(count):
        is_source = (draw.permutation(len(pooled)) < n)[order]
        sources, targets = values[is_source].reshape(-1, n), values[~is_source].reshape(-1, n)
        costs[r] = np.square(sources - targets).mean(1)
    return costs.mean(0), costs.std(0)


def null(plan: Plan) -> Iterator[Case]:
    count, few = (20, 5) if plan.quick else (1000, 10)
    x, y = samples((32, plan.units(UNITS)), (32, plan.units(UNITS)))
    pooled = np.concatenate([x, y])
    yield Case(
        f"permutation null: {count} relabellings, 32 + 32, {x.shape[1]} units",
        {
            "lineas": lambda: lineas.ot.permutation_null(x, y, n_permutations=count),
            "NumPy": lambda: numpy_null(pooled, len(x), few),
        },
        {"NumPy": 20.0}, {"NumPy": count / few}, limit=3.0,
    )  # fmt: skip


# ---- maps in closed form, and ranking of units ----


def numpy_linear_act(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.sort(x, axis=0).astype(np.float64), np.sort(y, axis=0).astype(np.float64)
    x_mean, y_mean = x.mean(0), y.mean(0)
    weight = ((x - x_mean) * (y - y_mean)).sum(0) / np.square(x - x_mean).sum(0)
    return weight, y_mean - weight * x_mean


def torch_linear_act(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = x.sort(0).values.double(), y.sort(0).values.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    weight = ((x - x_mean) * (y - y_mean)).sum(0) / (x - x_mean).square().sum(0)
    return weight, y_mean - weight * x_mean


def closed(plan: Plan) -> Iterator[Case]:
    for n, units in SIZES[:3:2]:
        x, y = samples((n, plan.units(units)), (n, plan.units(units)))
        tensors = torch.from_numpy(x), torch.from_numpy(y)
        yield Case(
            f"linear_act: {n} x {n}, {x.shape[1]} units",
            {
                "lineas": lambda x=x, y=y: lineas.transport.linear_act(x, y),
                "NumPy": lambda x=x, y=y: numpy_linear_act(x, y),
                "torch": lambda both=tensors: torch_linear_act(*both),
            },
            agree=("NumPy", "torch"),
        )


def by_ranks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """AUROC of all columns from the mean ranks of the positive samples."""
    ranks = scipy.stats.rankdata(np.concatenate([x, y]), axis=0)[: len(x)].sum(0)
    return (ranks - len(x) * (len(x) + 1) / 2) / (len(x) * len(y))


def column_by_column(score: Callable, x: np.ndarray, y: np.ndarray, columns: int) -> list[float]:
    labels, values = np.repeat([1, 0], [len(x), len(y)]), np.concatenate([x, y])
    return [score(labels, values[:, k]) for k in range(columns)]


def rank(plan: Plan) -> Iterator[Case]:
    few = 8 if plan.quick else 100
    for name, score, theirs in (
        ("auroc", lineas.experts.auroc, sklearn.metrics.roc_auc_score),
        ("average_precision", lineas.experts.average_precision, sklearn.metrics.average_precision_score),
    ):
        x, y = samples((32, plan.units(UNITS)), (32, plan.units(UNITS)))
        rivals = {
            "lineas": lambda x=x, y=y, s=score: [s(x, y)],
            "scikit-learn": lambda x=x, y=y, s=theirs: [column_by_column(s, x, y, few)],
        }
        if name == "auroc":
            rivals["SciPy's ranks, all units"] = lambda x=x, y=y: [by_ranks(x, y)]
        yield Case(
            f"{name}: 32 + 32, {x.shape[1]} units", rivals, {"scikit-learn": 50.0},
            {"scikit-learn": x.shape[1] / few}, tuple(rivals)[2:],
        )  # fmt: skip


# ---- the map and its pooling ----


def torch_affine(
    h: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, pool: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    mapped = h * scale + shift
    return mapped.to(h.dtype), (mapped * pool[..., None]).sum(1)


def affine(plan: Plan) -> Iterator[Case]:
    batch, tokens, dim = (2, 3, 16) if plan.quick else (32, 64, 2304)
    for dtype in (torch.float32, torch.bfloat16):
        draw = torch.Generator().manual_seed(0)
        h, grad_out = (torch.randn(batch, tokens, dim, generator=draw).to(dtype) for _ in range(2))
        scale, shift = (torch.randn(dim, generator=draw).requires_grad_() for _ in range(2))
        grad_pooled, pool = torch.randn(batch, dim, generator=draw), torch.full((batch, tokens), 1 / tokens)
        h.requires_grad_()

        def both(
            function: Callable, inputs=(h, scale, shift), pool=pool, gradients=(grad_out, grad_pooled)
        ) -> Callable:
            return lambda: [g.detach().float() for g in torch.autograd.grad(function(*inputs, pool), inputs, gradients)]

        arrays = [x.detach().view(torch.uint8).numpy() for x in (h, grad_out)]
        rivals = {"lineas": lineas.core.ops.affine_pool, "torch": torch_affine} | plan.compiled(torch_affine)
        yield Case(
            f"map and pooling, forward and backward: ({batch}, {tokens}, {dim}) {dtype}",
            {name: both(f) for name, f in rivals.items()} | {"copy": lambda a=arrays: [x.copy() for x in a]},
            {"torch": 3.0, "torch.compile": 1.0, "copy": 0.7},
            {"copy": 2.5 / 2},  # read h, write out; read grad_out and h, write grad_h
            ("torch",),
        )


# ---- updates of the flat vector ----


def foreach_step(
    x: list[torch.Tensor], gradient: list[torch.Tensor], step: float, l1: float, group: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `SparseGroupLasso.proximal_step` returns, for weights and biases of the groups: a tensor each."""
    centers = [1.0] * (len(x) // 2) + [0.0] * (len(x) // 2)
    pressure = group * torch.tensor([math.sqrt(len(v)) for v in x])
    u = torch._foreach_sub(torch._foreach_sub(x, gradient, alpha=step), centers)
    sign = torch._foreach_sign(u)
    torch._foreach_abs_(u)
    torch._foreach_sub_(u, step * l1)
    torch._foreach_clamp_min_(u, 0.0)
    norms = torch.stack(torch._foreach_norm(u))
    shrink = (1 - step * pressure / norms).nan_to_num().clamp(min=0)
    torch._foreach_mul_(u, shrink.tolist())
    penalty = l1 * torch.stack(torch._foreach_norm(u, 1)).sum() + (pressure * shrink * norms).sum()
    torch._foreach_mul_(u, sign)
    torch._foreach_add_(u, centers)
    move = torch._foreach_sub(u, x)
    slope = sum(torch.dot(a, b) for a, b in zip(gradient, move, strict=True))
    return torch.cat(u), penalty, slope, torch.stack(torch._foreach_norm(move)).square().sum()


def torch_optimizers(kind: type, x: list[torch.Tensor], gradient: list[torch.Tensor], **settings) -> dict:
    steps = {}
    for how in ("foreach", "fused"):
        parameters = [v.clone().requires_grad_() for v in x]
        for v, g in zip(parameters, gradient, strict=True):
            v.grad = g
        steps[f"torch {how}"] = kind(parameters, lr=1e-5, **settings, **{how: True}).step
    return steps


def updates(plan: Plan) -> Iterator[Case]:
    units = 260 if plan.quick else 240_000
    sizes = [units // 26 + (k < units % 26) for k in range(26)]
    flat, gradient = samples((2 * units,), (2 * units,))
    x, g = (list(torch.from_numpy(a).split(sizes * 2)) for a in (flat, gradient))
    penalty = lineas.penalties.SparseGroupLasso(l1=0.1, group=0.1)
    shape = f"{units} units in 26 groups"
    yield Case(
        f"proximal step: {shape}",
        {
            "lineas": lambda: penalty.proximal_step(flat, gradient, sizes, 0.1),
            "torch foreach": lambda: foreach_step(x, g, 0.1, 0.1, 0.1),
            "copy": flat.copy,
        },
        {"torch foreach": 10.0}, {"copy": 1.5}, ("torch foreach",),
    )  # fmt: skip
    whole, own, at = torch_optimizers(torch.optim.SGD, x, g)["torch foreach"], SGD(), flat.copy()
    yield Case(
        f"SGD and its prox, a step of the published recipe: {shape}",
        {
            "lineas": lambda: (own.step(at, gradient, 1e-5), penalty.proximal_step(at, None, sizes, 1e-5)),
            "torch foreach": lambda: (whole(), foreach_step(x, g, 1e-5, 0.1, 0.1)),
        },
        {"torch foreach": 10.0},
    )
    for name, ours, kind, settings, copies in (
        ("SGD", SGD, torch.optim.SGD, {}, 1.5),
        ("momentum", Momentum, torch.optim.SGD, {"momentum": 0.9}, 2.5),
        ("Adam", Adam, torch.optim.Adam, {"betas": (0.9, 0.9)}, 3.5),
        ("AdamW", AdamW, torch.optim.AdamW, {}, 3.5),
    ):
        at, update = flat.copy(), ours()
        rivals = torch_optimizers(kind, x, g, **settings)
        yield Case(
            f"{name}: {shape}",
            {"lineas": lambda u=update, at=at: u.step(at, gradient, 1e-5)} | rivals | {"copy": flat.copy},
            {"torch foreach": 10.0}, {"copy": copies},
        )  # fmt: skip


# ---- the fast recipe's model of the loss ----


def quadratic(plan: Plan) -> Iterator[Case]:
    """Made from a full memory and minimised, with a group penalty; beside it the proximal steps that somebody else's
    penalty takes, in C, and those of the NumPy twin, once. They agree in the objective, nearly: steps end at 100."""
    for sizes in ((576,) * 30, (2304,) * 26, (5120,) * 28) if not plan.quick else ((20, 30),):
        units = sum(sizes)
        rng = np.random.default_rng(0)
        curvature = rng.uniform(0.1, 3, (3, units)) / units
        curvature[1] = 0.5 * np.sqrt(curvature[0] * curvature[2]) * rng.uniform(-1, 1, units)
        steep = 0.1 * rng.normal(size=(6, 2 * units))

        def bend(p, curvature=curvature, steep=steep, units=units):
            return (
                1.5 * reference.block_product(curvature, p)
                + np.einsum("kj,k->j", steep, np.einsum("kj,j->k", steep, p)) / units
            )

        moves = np.array([0.02 * rng.normal(size=2 * units) for _ in range(MEMORY)], np.float32)
        changes = np.array([bend(move.astype(float)) for move in moves], np.float32)
        x = np.repeat(np.array([1, 0], np.float32), units)
        slope = bend(0.02 * rng.normal(size=2 * units)).astype(np.float32)
        penalty = lineas.penalties.SparseGroupLasso(0.01 / units, 0.02 / units)
        known = {"x": x, "loss": 1.0, "gradient": slope, "curvature": curvature, "damping": 0.2}
        model = Quadratic(sizes)
        model.moves[:], model.changes[:] = moves, changes

        def ours(model=model, known=known, penalty=penalty):
            model.make(rows=MEMORY, oldest=0, **known)
            there, value = model.minimise(penalty)
            return (value + penalty.value(*np.split(there, 2), model.sizes),)

        def by_steps(model=model, known=known, penalty=penalty):
            model.make(rows=MEMORY, oldest=0, **known)
            there, value = model.minimise_by_steps(penalty)
            return (value + penalty.value(*np.split(there, 2), model.sizes),)

        def twin(sizes=sizes, known=known, penalty=penalty, moves=moves, changes=changes):
            right = reference.Quadratic(**known, moves=moves, changes=changes, sizes=sizes)
            there = right.minimise(lambda v, t: np.concatenate(penalty.prox(*np.split(v, 2), sizes, t)))
            return (right.value(there) + penalty.value(*np.split(there, 2), sizes),)

        yield Case(
            f"quadratic: {units} units, {MEMORY} moves",
            {"lineas": ours, "proximal steps": by_steps, "NumPy": twin}, agree=("proximal steps", "NumPy"),
        )  # fmt: skip


def steps_loss(plan: Plan) -> Iterator[Case]:
    """Loss and gradient into arrays that are kept from step to step, and into new ones."""
    for units in (17_280, 143_360) if not plan.quick else (30,):
        x, y = samples((32, units), (32, units))
        target, ones, room = lineas.core.ops.prepare_target(y), np.ones(units), Room()
        yield Case(
            f"loss of a step: 32 x {units}",
            {
                "lineas": lambda x=x, t=target, c=ones, room=room: lineas.core.ops.loss(x, t, c, room=room),
                "new arrays": lambda x=x, t=target, c=ones: lineas.core.ops.loss(x, t, c),
            },
            agree=("new arrays",),
        )


GROUPS = {
    "loss": loss, "sort": sort, "sliced": sliced, "null": null, "closed": closed, "rank": rank, "affine": affine,
    "updates": updates, "quadratic": quadratic, "steps": steps_loss,
}  # fmt: skip
