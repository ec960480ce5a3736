"""Types of the C extension. Arrays are C-contiguous, with these dtypes; anything else is a TypeError or ValueError."""

import numpy as np
from numpy.typing import NDArray

HAS_OPENMP: bool
INNER_STEPS: int

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

def sort_columns(x: NDArray, threads: int, /) -> tuple[NDArray, I32]: ...
def sort_values(x: NDArray, threads: int, /) -> NDArray: ...
def first_nonfinite(x: NDArray, /) -> int: ...
def wasserstein(
    x: NDArray, y: NDArray, y_index: I32 | None, x_weights: F64 | None, y_weights: F64 | None, p: float, threads: int, /
) -> F64: ...
def wasserstein_grad(
    x: NDArray, y: NDArray, y_index: I32 | None, x_weights: F64 | None, y_weights: F64 | None,
    coefficient: F64 | None, p: float, threads: int, /
) -> tuple[F64, NDArray]: ...  # fmt: skip
def unit_loss(
    cost: F64, gradient: NDArray, x: NDArray, y: NDArray, coefficient: F64, p: float, threads: int, /
) -> None: ...
def permutation_null(
    x: NDArray, labels: U64, n: int, relabellings: int, p: float, threads: int, /
) -> tuple[F64, F64, F64]: ...
def product(a: NDArray, b: NDArray, threads: int, /) -> NDArray: ...
def mean_shift(x: NDArray, y: NDArray, threads: int, /) -> F64: ...
def gaussian_map(x: NDArray, y: NDArray, threads: int, /) -> tuple[F64, F64]: ...
def linear_map(x: NDArray, y: NDArray, threads: int, /) -> tuple[F64, F64]: ...
def rank(positive: NDArray, negative: NDArray, threads: int, /) -> tuple[F64, F64]: ...
def affine_pool(
    h: NDArray, scale: NDArray, shift: NDArray, pool: NDArray, channels_first: bool, threads: int, /
) -> tuple[NDArray, NDArray]: ...
def affine_pool_grad(
    grad_out: NDArray | None, grad_pooled: NDArray, h: NDArray, scale: NDArray, pool: NDArray, channels_first: bool,
    threads: int, /
) -> tuple[NDArray, NDArray, NDArray]: ...  # fmt: skip
def affine_sparse(h: NDArray, support: I64, scale: NDArray, shift: NDArray, threads: int, /) -> None: ...
def proximal_step(
    x: F32, gradient: F32 | None, scales: F32 | None, offsets: I64, order: I64 | None, step: float,
    l1: float, group: float, l1_bias: float, group_bias: float, ridge: float, threads: int, /
) -> tuple[F32, float, float, float]: ...  # fmt: skip
def sgd(x: F32, velocity: F32 | None, gradient: F32, rate: float, momentum: float, threads: int, /) -> None: ...
def adam(
    x: F32, first: F32, second: F32, gradient: F32, rate: float, beta1: float, beta2: float, epsilon: float,
    decay: float, iteration: int, threads: int, /
) -> None: ...  # fmt: skip
def cosine(rate: float, floor: float, at: int, total: int, /) -> float: ...
def ridge(gradient: F32, x: F32, stretch: F64, cross: F64, shift: F64, strength: float, threads: int, /) -> float: ...
def dot(a: F64, b: F64, threads: int, /) -> float: ...
def largest(x: F32, threads: int, /) -> float: ...
def move_sums(to: F32, from_: F32, after: F32, before: F32, threads: int, /) -> tuple[float, float, float]: ...
def scale_columns(slopes: F32, factor: F64, threads: int, /) -> None: ...
def quadratic_make(
    low: F32, high: F32, curvature: F64, oldest: int, loss: float,
    x: F32, gradient: F32, blocks: F64, correction: F64 | None, moves: F32 | None,
    changes: F32 | None, offsets: I64, damping: float, threads: int, /
) -> None: ...  # fmt: skip
def quadratic_value(
    point: F32, pace: F64 | None, x: F32, gradient: F32, blocks: F64, correction: F64 | None, moves: F32 | None,
    changes: F32 | None, offsets: I64, damping: float, threads: int, /
) -> float: ...  # fmt: skip
def quadratic_newton(
    out: F32, ridge: float, x: F32, gradient: F32, blocks: F64, correction: F64 | None, moves: F32 | None,
    changes: F32 | None, offsets: I64, damping: float, threads: int, /
) -> None: ...  # fmt: skip
def quadratic_steps(
    steps: F32, p: F64, direction: F64, x: F32, gradient: F32, blocks: F64, correction: F64 | None, moves: F32 | None,
    changes: F32 | None, offsets: I64, damping: float, threads: int, /
) -> None: ...  # fmt: skip
def quadratic_ahead(
    ahead: F32, slope: F32, point: F32, before: F32, pace: F64,
    x: F32, gradient: F32, blocks: F64, correction: F64 | None, moves: F32 | None,
    changes: F32 | None, offsets: I64, damping: float, threads: int, /
) -> None: ...  # fmt: skip
def quadratic_settle(
    fresh: F32, pace: F64, point: F32, before: F32, low: F32, high: F32, steps: F32,
    x: F32, gradient: F32, blocks: F64, correction: F64 | None, moves: F32 | None,
    changes: F32 | None, offsets: I64, damping: float, threads: int, /
) -> bool: ...  # fmt: skip
def quadratic_minimise(
    points: F32, ahead: F32, slope: F32, pace: F64, low: F32, high: F32, steps: F32, group_offsets: I64,
    order: I64 | None, l1: float, group: float, l1_bias: float, group_bias: float, ridge: float,
    x: F32, gradient: F32, blocks: F64, correction: F64 | None, moves: F32 | None,
    changes: F32 | None, offsets: I64, damping: float, threads: int, /
) -> int: ...  # fmt: skip
def quadratic_solve(
    out: F32, pace: F64, room: F64, low: F32, high: F32, group_offsets: I64,
    order: I64 | None, l1: float, group: float, l1_bias: float, group_bias: float, ridge: float,
    x: F32, gradient: F32, blocks: F64, correction: F64 | None, moves: F32 | None,
    changes: F32 | None, offsets: I64, damping: float, threads: int, /
) -> bool: ...  # fmt: skip
