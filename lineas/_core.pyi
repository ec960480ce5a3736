"""Types of the C extension. Arrays are C-contiguous, with these dtypes; anything else is a TypeError or ValueError."""

import numpy as np
from numpy.typing import NDArray

HAS_OPENMP: bool

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

def sort_columns(x: NDArray, threads: int, /) -> tuple[NDArray, I32]: ...
def first_nonfinite(x: NDArray, /) -> int: ...
def wasserstein(
    x: NDArray, y: NDArray, y_index: I32 | None, x_weights: F64 | None, y_weights: F64 | None, p: float, threads: int, /
) -> F64: ...
def wasserstein_grad(
    x: NDArray, y: NDArray, y_index: I32 | None, x_weights: F64 | None, y_weights: F64 | None,
    coefficient: F64 | None, p: float, threads: int, /
) -> tuple[F64, NDArray]: ...  # fmt: skip
def affine_pool(
    h: NDArray, scale: NDArray, shift: NDArray, pool: NDArray, channels_first: bool, threads: int, /
) -> tuple[NDArray, NDArray]: ...
def affine_pool_grad(
    grad_out: NDArray | None, grad_pooled: NDArray, h: NDArray, scale: NDArray, pool: NDArray, channels_first: bool,
    threads: int, /
) -> tuple[NDArray, NDArray, NDArray]: ...  # fmt: skip
def affine_sparse(h: NDArray, support: I64, scale: NDArray, shift: NDArray, threads: int, /) -> None: ...
def penalty(v: F32, center: float, offsets: I64, l1: float, group: float, ridge: float, /) -> float: ...
def prox(v: F32, center: float, offsets: I64, l1: float, group: float, ridge: float, step: float, /) -> F32: ...
def sgd(x: F32, velocity: F32 | None, gradient: F32, rate: float, momentum: float, /) -> None: ...
def adam(
    x: F32, first: F32, second: F32, gradient: F32, rate: float, beta1: float, beta2: float, epsilon: float,
    iteration: int, /
) -> None: ...  # fmt: skip
def gradient_step(x: F32, gradient: F32, step: float, /) -> F32: ...
def movement(to: F32, from_: F32, gradient: F32, /) -> tuple[float, float]: ...
def cosine(rate: float, floor: float, at: int, total: int, /) -> float: ...
