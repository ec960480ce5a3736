"""Validate once, then C. The only file that holds an autograd Function, or hands tensors to `_core`.

Nothing here moves data between devices: tensors that C does not take (not on the CPU) go to `device`.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from . import _core, device
from .parts import quantile_parts
from .room import Room
from .threads import thread_count

REAL_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def runs_in_c(*tensors: Tensor) -> bool:
    """Whether C takes these tensors: real, on the CPU, with memory of their own, not traced by a compiler."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not traced and all(
        x.device.type == "cpu" and x.dtype in REAL_TYPES and not isinstance(x, FakeTensor) for x in tensors
    )


def _array(x: Tensor) -> NDArray:
    """The tensor's memory as NumPy, which knows no bfloat16, has it."""
    x = x.detach()
    return (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()


class _InC(NamedTuple):
    """The kernels of a CPU, as `fused` has those of a GPU."""

    threads: int

    def affine_pool(
        self, h: Tensor, scale: Tensor, shift: Tensor, pool: Tensor, channels_first: bool
    ) -> tuple[Tensor, Tensor]:
        arrays = _core.affine_pool(_array(h), _array(scale), _array(shift), _array(pool), channels_first, self.threads)
        out, pooled = (torch.from_numpy(a) for a in arrays)
        return out.view(h.dtype), pooled

    def affine_pool_grad(
        self, grad_out: Tensor | None, grad_pooled: Tensor, h: Tensor, scale: Tensor, pool: Tensor,
        channels_first: bool, wants_h: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        arrays = _core.affine_pool_grad(
            None if grad_out is None else _array(grad_out.contiguous()), _array(grad_pooled), _array(h),
            _array(scale), _array(pool), channels_first, self.threads,
        )  # fmt: skip
        grad_h, grad_scale, grad_shift = (torch.from_numpy(a) for a in arrays)
        return grad_h.view(h.dtype), grad_scale, grad_shift


class _AffinePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, scale, shift, pool, channels_first, kernels):
        ctx.save_for_backward(h, scale, pool)
        ctx.channels_first, ctx.kernels = channels_first, kernels
        ctx.set_materialize_grads(False)
        return kernels.affine_pool(h, scale, shift, pool, channels_first)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out, grad_pooled):
        h, scale, pool = ctx.saved_tensors
        if grad_pooled is None:  # a mapped site that is not a loss site
            grad_pooled = scale.new_zeros(len(h), len(scale))
        grads = ctx.kernels.affine_pool_grad(
            grad_out, grad_pooled.contiguous(), h, scale, pool, ctx.channels_first, ctx.needs_input_grad[0]
        )
        return *grads, None, None, None


def affine_pool(
    h: Tensor, scale: Tensor, shift: Tensor, pool: Tensor, *, channels_first: bool = False, threads: int | None = None
) -> tuple[Tensor, Tensor]:
    """Map every channel affinely and average the result over tokens, in one pass.

    Parameters
    ----------
    h : Tensor (batch, tokens, dim), or (batch, dim, tokens) with `channels_first`
        Activations, any float dtype and device.
    scale, shift : Tensor (dim,)
        The map, used in float32, in float64 for float64 activations; same device.
    pool : Tensor (batch, tokens)
        How much each token counts in its sample's response; not differentiated. Tokens of weight 0 are not looked at.
    threads : int, optional
        CPU threads; None means `torch.get_num_threads()`, and always 1 in a forked child.

    Returns
    -------
    out : Tensor like h, computed in the map's precision and rounded once.
    pooled : Tensor (batch, dim), in the map's precision, of what was not yet rounded.
        Both in activation units, and differentiable.

    Raises
    ------
    ValueError
        Where shapes disagree.

    Notes
    -----
    O(batch*tokens*dim); keeps h for backward. Runs in C on the CPU, in `device.affine_pool` elsewhere;
    `reference.affine_pool` writes it out.
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
        if kernels := device.fused(h):
            maps = (x.float().contiguous() for x in (scale, shift, pool))
            return _AffinePool.apply(h, *maps, channels_first, kernels)
        return device.affine_pool(h, scale, shift, pool, channels_first)
    precision = torch.promote_types(h.dtype, torch.float32)
    maps = (x.to(precision).contiguous() for x in (scale, shift, pool))
    return _AffinePool.apply(h.contiguous(), *maps, channels_first, _InC(thread_count(threads, h.numel())))


def affine(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale * h + shift, out of place and in h's dtype. Both broadcast over h; in float32 also where h is not."""
    if h.is_cuda:
        return device.affine(h, scale, shift)
    mapped = (h * scale).add_(shift)
    return mapped if mapped.dtype == h.dtype else mapped.to(h.dtype)


def affine_sparse_(
    h: Tensor, support: Tensor, scale: Tensor, shift: Tensor, *, channel_dim: int = -1, threads: int | None = None
) -> Tensor:
    """Map some channels of h in place, and leave the others alone.

    Parameters
    ----------
    h : Tensor (batch, ..., dim), or with its channels in dimension `channel_dim`
        Activations on the CPU, any float dtype, C-contiguous, in no autograd graph. They must be nobody else's: what a
        module returns may be its input (`nn.Identity`), so a hook clones first.
    support : Tensor (k,) int64, ascending
        Which channels.
    scale, shift : Tensor (k,)
        Their map, used in float32, in float64 for float64 activations.
    threads : int, optional
        As in `affine_pool`.

    Returns
    -------
    h, the same tensor.

    Raises
    ------
    RuntimeError
        Where autograd knows h: it may need the old values. A backward pass that saved h all the same refuses to run.
    ValueError
        Where shapes disagree, h is not C-contiguous (an expanded tensor never is), or support is out of order or range.

    Notes
    -----
    O(batch*tokens*k), whatever dim is. Written out in `reference.affine_sparse`.

    Examples
    --------
    >>> import torch
    >>> from lineas.core.ops import affine_sparse_
    >>> affine_sparse_(torch.ones(1, 4), torch.tensor([1]), torch.tensor([2.0]), torch.tensor([0.5]))
    tensor([[1.0000, 2.5000, 1.0000, 1.0000]])
    """
    if h.requires_grad:
        raise RuntimeError("h: expected a tensor without gradient, got one of an autograd graph; clone or detach it")
    if not runs_in_c(h, scale, shift):
        raise ValueError(f"expected real tensors on the CPU, got {h.dtype} on {h.device}, maps {scale.dtype}")
    if not h.is_contiguous():
        raise ValueError(f"h: expected a C-contiguous tensor, got shape {tuple(h.shape)} with strides {h.stride()}")
    if not scale.shape == shift.shape == support.shape or support.ndim != 1:
        raise ValueError(
            f"expected support, scale, shift (k,); got {tuple(support.shape)}, {tuple(scale.shape)}, "
            f"{tuple(shift.shape)}"
        )
    if not len(support) or not h.numel():
        return h
    precision = torch.promote_types(h.dtype, torch.float32)
    channel_dim %= h.ndim
    blocks = _array(h).reshape(-1, h.shape[channel_dim], math.prod(h.shape[channel_dim + 1 :]))
    w, b, at = (_array(x.contiguous()) for x in (scale.to(precision), shift.to(precision), support))
    _core.affine_sparse(blocks, at, w, b, thread_count(threads, len(blocks) * len(support) * blocks.shape[2]))
    if not h.is_inference():
        torch.autograd.graph.increment_version(h)
    return h


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
    parts = quantile_parts(n, len(values))
    means, spread = np.zeros((n, values.shape[1])), np.zeros(values.shape[1])
    for i, j, mass in parts:
        means[i] += n * mass * values[j]
    for i, j, mass in parts:
        spread += mass * (values[j] - means[i]) ** 2
    return Target(means.astype(values.dtype), spread)


def loss(
    responses: NDArray[np.float32], target: Target, coefficient: NDArray[np.float64], *, p: float = 2,
    threads: int | None = None, room: Room | None = None,
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
    room : Room, optional
        Where the results lie, until the next call with it.

    Returns
    -------
    unit_loss : (N,) float64, coefficient * W_p^p;  gradient : (n, N) float32 of its sum for the responses.

    Notes
    -----
    O(N (n log^2 n + m)), in C; without m where the target was prepared for n. Written out in `reference.wasserstein`.
    Source: LinEAS, arXiv 2503.10679.
    """
    if target.spread is not None and (p != 2 or len(responses) != len(target.values)):
        raise ValueError(
            f"target: prepared for p = 2 and {len(target.values)} sources, got p = {p} and {len(responses)}"
        )
    threads, room = thread_count(threads, responses.size), room or Room()
    cost, gradient = (
        room.take("unit loss", len(coefficient), np.float64),
        room.take("slopes", responses.shape, responses.dtype.type),
    )
    _core.unit_loss(cost, gradient, responses, target.values, coefficient, p, threads)
    if _core.first_nonfinite(cost) >= 0:  # say where it comes from, or that it overflowed
        _core.wasserstein_grad(responses, target.values, None, None, None, coefficient, p, threads)
    if target.spread is not None:
        cost += target.spread
    cost *= coefficient
    return cost, gradient
