"""Types of the C extension. Arrays are C-contiguous, with these dtypes; anything else is a TypeError or ValueError."""

import numpy as np
from numpy.typing import NDArray

HAS_OPENMP: bool

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
