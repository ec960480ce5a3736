"""Optimal transport between samples on NumPy arrays: unit by unit, and along directions."""

from .columns import wasserstein_1d, wasserstein_1d_grad
from .null import PermutationNull, permutation_null
from .sliced import (
    max_sliced_wasserstein,
    max_sliced_wasserstein_grad,
    sliced_wasserstein,
    sliced_wasserstein_grad,
)

__all__ = [
    "PermutationNull",
    "max_sliced_wasserstein",
    "max_sliced_wasserstein_grad",
    "permutation_null",
    "sliced_wasserstein",
    "sliced_wasserstein_grad",
    "wasserstein_1d",
    "wasserstein_1d_grad",
]
