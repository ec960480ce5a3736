"""What callers give, checked once: samples, weights, exponent, numbers."""

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core


def real(values: ArrayLike, name: str) -> NDArray:
    given = np.asarray(values)
    if given.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected real numbers, got dtype {given.dtype}")
    return given


def samples(
    source: ArrayLike, target: ArrayLike, names: tuple[str, str] = ("source", "target")
) -> tuple[NDArray, NDArray]:
    """Both in one precision, C-contiguous, with the same columns, and finite; names are what messages call them."""
    x, y = real(source, names[0]), real(target, names[1])
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or 0 in x.shape or 0 in y.shape:
        raise ValueError(f"expected {names[0]} (n, d) and {names[1]} (m, d), none empty; got {x.shape} and {y.shape}")
    dtype = np.float32 if x.dtype == y.dtype == np.float32 else np.float64
    x, y = np.ascontiguousarray(x, dtype), np.ascontiguousarray(y, dtype)
    for name, values in zip(names, (x, y), strict=True):
        if (bad := _core.first_nonfinite(values)) >= 0:
            row, column = divmod(bad, values.shape[1])
            raise ValueError(f"{name}: expected finite values, got {values[row, column]} at [{row}, {column}]")
    return x, y


def weights(
    source_weights: ArrayLike | None, target_weights: ArrayLike | None, n: int, m: int
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Both summing to one; both None where neither is given, for which the core has a faster path."""
    if source_weights is None and target_weights is None:
        return None, None
    return _weights(source_weights, n, "source_weights"), _weights(target_weights, m, "target_weights")


def _weights(weights: ArrayLike | None, count: int, name: str) -> NDArray[np.float64]:
    if weights is None:
        return np.full(count, 1 / count)
    given = real(weights, name).astype(np.float64)
    if given.shape != (count,):
        raise ValueError(f"{name}: expected shape ({count},), one weight a sample; got {given.shape}")
    if not (np.isfinite(given).all() and (given >= 0).all() and given.max() > 0):
        raise ValueError(f"{name}: expected finite weights, none negative, not all zero; got {given}")
    given /= given.max()  # huge weights must not overflow their sum
    return given / given.sum()


def number(value: Any, name: str) -> float:
    """A finite one."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not np.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return float(value)


def whole(value: Any, name: str, least: int | None = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise ValueError(f"{name}: expected a whole number{bound}, got {value!r:.60}")
    return int(value)


def flag(value: Any, name: str) -> bool:
    """True or False as itself; TypeError for anything else, which Python would take for one of them."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r:.60}")
    return bool(value)


def power(p: float) -> float:
    if not isinstance(p, (int, float, np.number)):
        raise TypeError(f"p: expected a number, got {type(p).__name__}")
    if not 1 <= p < float("inf"):
        raise ValueError(f"p: expected a finite number of at least 1, got {p!r}")
    return float(p)
