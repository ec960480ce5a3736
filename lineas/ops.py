"""Validate once, then C. The only file that holds an autograd Function, or hands tensors to `_core`.

Nothing here moves data between devices: tensors that C does not take (not on the CPU, not float32) go to `_reference`.
"""

import os
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import _core, _reference

_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


SMALL = 1 << 15  # numbers; for fewer, waking other threads costs more than they save


def thread_count(threads: int | None = None, work: int = SMALL) -> int:
    """Threads for a kernel over so many numbers: what was asked, else torch's number, or 1 where the work is small.

    Always 1 in a forked child, where GNU OpenMP hangs.
    """
    if _forked:
        return 1
    if threads is None:
        return torch.get_num_threads() if work >= SMALL else 1
    return threads


def runs_in_c(*tensors: Tensor) -> bool:
    """Whether C takes these tensors as they are: float32, on the CPU, not traced by a compiler."""
    return not torch.compiler.is_compiling() and all(
        x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors
    )


class _AffinePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, scale, shift, pool, channels_first, threads):
        ctx.save_for_backward(h, scale, pool)
        ctx.channels_first, ctx.threads = channels_first, threads
        ctx.set_materialize_grads(False)
        arrays = (h.detach().numpy(), scale.detach().numpy(), shift.detach().numpy(), pool.detach().numpy())
        out, pooled = _core.affine_pool(*arrays, channels_first, threads)
        return torch.from_numpy(out), torch.from_numpy(pooled)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out, grad_pooled):
        h, scale, pool = (x.detach() for x in ctx.saved_tensors)
        if grad_pooled is None:  # a mapped site that is not a loss site
            grad_pooled = torch.zeros(h.shape[0], len(scale))
        gradients = _core.affine_pool_grad(
            None if grad_out is None else grad_out.contiguous().numpy(), grad_pooled.contiguous().numpy(),
            h.numpy(), scale.numpy(), pool.numpy(), ctx.channels_first, ctx.threads,
        )  # fmt: skip
        return (*(torch.from_numpy(g) for g in gradients), None, None, None)


def affine_pool(
    h: Tensor, scale: Tensor, shift: Tensor, pool: Tensor, *, channels_first: bool = False, threads: int | None = None
) -> tuple[Tensor, Tensor]:
    """Map every channel affinely and average the result over tokens, in one pass.

    Parameters
    ----------
    h : Tensor (batch, tokens, dim), or (batch, dim, tokens) with `channels_first`
        Activations, any float dtype and device.
    scale, shift : Tensor (dim,)
        The map, float32 (float64 for float64 activations), same device.
    pool : Tensor (batch, tokens)
        How much each token counts in its sample's response; not differentiated. Tokens of weight 0 are not looked at.
    threads : int, optional
        CPU threads; None means `torch.get_num_threads()`, and always 1 in a forked child.

    Returns
    -------
    out : Tensor like h, and pooled : Tensor (batch, dim), in activation units, both differentiable.

    Raises
    ------
    ValueError
        Where shapes disagree.

    Notes
    -----
    O(batch*tokens*dim); keeps h for backward. CPU float32 runs in C, everything else in `_reference.affine_pool`.
    Source: LinEAS, arXiv 2503.10679 (the affine map of each channel and its pooled response).
    """
    dim = 1 if channels_first else 2
    if (
        h.ndim != 3
        or scale.shape != (h.shape[dim],)
        or shift.shape != scale.shape
        or pool.shape != (h.shape[0], h.shape[3 - dim])
    ):
        layout = "(batch, dim, tokens)" if channels_first else "(batch, tokens, dim)"
        raise ValueError(
            f"expected h {layout} with scale, shift (dim,) and pool (batch, tokens); got h {tuple(h.shape)}, "
            f"scale {tuple(scale.shape)}, shift {tuple(shift.shape)}, pool {tuple(pool.shape)}"
        )
    if not runs_in_c(h, scale, shift, pool):
        return _reference.affine_pool(h, scale, shift, pool, channels_first)
    tensors = (x.contiguous() for x in (h, scale, shift, pool))
    return _AffinePool.apply(*tensors, channels_first, thread_count(threads, h.numel()))


class NonFiniteError(ValueError):
    """A response is NaN or infinite; the message names its site."""


class Target(NamedTuple):
    """The target's samples, sorted once and used at every step."""

    values: NDArray  # (m, N), every column ascending; or the (n, N) means that n sources meet
    spread: NDArray[np.float64] | None = None  # (N,): with means, what W_2^2 exceeds W_2^2 to them by


def prepare_target(y: NDArray, n: int | None = None, *, threads: int | None = None) -> Target:
    """Sort every column of y (m, N), float32 or float64, for any number of sources and any p; or for n and p = 2.

    The i-th smallest of n sources meets the i-th n-th part of the target, whose mean is all that it pulls towards:
    W_2^2(x, y) = W_2^2(x, means) + spread. A step then costs the same however many samples the target has.
    ValueError on NaN or infinity.
    """
    values = _core.sort_values(np.ascontiguousarray(y), thread_count(threads, y.size))
    if n in (None, len(values)):
        return Target(values)
    parts = _parts(n, len(values))
    means, spread = np.zeros((n, values.shape[1])), np.zeros(values.shape[1])
    for i, j, mass in parts:
        means[i] += n * mass * values[j]
    for i, j, mass in parts:
        spread += mass * (values[j] - means[i]) ** 2
    return Target(means.astype(values.dtype), spread)


def _parts(n: int, m: int) -> list[tuple[int, int, float]]:
    """(i, j, mass): how much of the i-th of n equal parts of the unit interval lies in the j-th of m."""
    cuts = np.unique(np.concatenate([np.arange(n + 1) * m, np.arange(m + 1) * n]))  # in units of 1 / (n m)
    starts, masses = cuts[:-1], np.diff(cuts) / (n * m)
    return list(zip((starts // m).tolist(), (starts // n).tolist(), masses.tolist(), strict=True))


def loss(
    responses: NDArray[np.float32], target: Target, coefficient: NDArray[np.float64], *, p: float = 2,
    threads: int | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:  # fmt: skip
    """The training loss of all units at once, and its gradient.

    Parameters
    ----------
    responses : (n, N) float32, C-contiguous
        Pooled source responses of all sites side by side.
    target : Target of (m, N)
        From `prepare_target`; m need not be n unless it was prepared for n.
    coefficient : (N,) float64
        What one unit's W_p^p counts in the loss.

    Returns
    -------
    unit_loss : (N,) float64, coefficient * W_p^p;  gradient : (n, N) float32 of its sum for the responses.

    Notes
    -----
    O(N (n log^2 n + m)), in C; without m where the target was prepared for n. Written out in `_reference.wasserstein`.
    Source: LinEAS, arXiv 2503.10679.
    """
    if target.spread is not None and (p != 2 or len(responses) != len(target.values)):
        raise ValueError(
            f"target: prepared for p = 2 and {len(target.values)} sources, got p = {p} and {len(responses)}"
        )
    cost, gradient = _core.wasserstein_grad(
        responses, target.values, None, None, None, coefficient, p, thread_count(threads, responses.size)
    )
    return coefficient * (cost if target.spread is None else cost + target.spread), gradient
