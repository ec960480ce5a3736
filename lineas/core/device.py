"""The operations of `ops` for tensors that C does not take: on another device than the CPU, or traced by a compiler.

Three ways, the first that can: kernels in Triton (`fused`), on a GPU for which PyTorch has it; one operation of PyTorch
that reads and writes once; plain expressions, which a compiler fuses and autograd records.
"""

import functools
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .parts import quantile_parts

LARGE = 1 << 22  # numbers; for fewer, starting a kernel of Triton's costs more than the kernel
COSTS = 1 << 26  # of relabellings and units, or samples and units, at a time
FUSED_TYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def _kernels(device: torch.device) -> tuple[ModuleType | None, str]:
    """The kernels, if a GPU has them and they do what they say; else why not."""
    try:
        from . import fused

        h, ones = torch.arange(24.0, device=device).view(2, 3, 4), torch.ones(4, device=device)
        out, pooled = fused.affine_pool(h, 2 * ones, ones, torch.ones(2, 3, device=device) / 3, False)
    except Exception as error:  # no Triton, no compiler for it, or one that does not go with this PyTorch or GPU
        return None, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    is_right = torch.equal(out, 2 * h + 1) and torch.allclose(pooled, (2 * h + 1).mean(1))
    return (fused, "") if is_right else (None, "they compute something else than they should")


def kernels_of(device: torch.device | str | None) -> ModuleType | None:
    """Those for a device, if there are any."""
    return None if device is None or torch.device(device).type != "cuda" else _kernels(torch.device(device))[0]


def facts(device: torch.device) -> dict[str, bool | str]:
    """For a fit's `info`: whether a GPU has kernels, or why not; nothing on other devices."""
    return {"kernels": _kernels(device)[1] or True} if device.type == "cuda" else {}


def fused(h: Tensor) -> ModuleType | None:
    """The kernels that take this tensor, if there are any."""
    if not h.is_cuda or h.dtype not in FUSED_TYPES or not h.numel() or torch.compiler.is_compiling():
        return None
    span = sum((size - 1) * step for size, step in zip(h.shape[1:], h.stride()[1:], strict=True))
    return _kernels(h.device)[0] if span < 1 << 31 else None  # they count a row's numbers in 32 bits


def permutation_null(
    kernels: ModuleType, pooled: NDArray[np.float32], labels: NDArray[np.uint64], sources: int, count: int,
    device: torch.device | str,
) -> tuple[NDArray[np.float64], ...]:  # fmt: skip
    """As C's: mean and deviation of the costs of `count` labellings but the first, and its p-value, each (d,)."""
    bits = np.unpackbits(labels.view(np.uint8), axis=2, bitorder="little")
    by_labelling = np.ascontiguousarray(bits.swapaxes(1, 2).reshape(-1, len(pooled))[:count])
    columns = zip(*quantile_parts(sources, len(pooled) - sources), strict=True)
    kinds = torch.int32, torch.int32, torch.float32
    parts = [torch.tensor(column, dtype=kind, device=device) for column, kind in zip(columns, kinds, strict=True)]
    drawn, found = torch.from_numpy(by_labelling).to(device), []
    step = max(1, COSTS // max(count, len(pooled)))
    for start in range(0, pooled.shape[1], step):
        some = torch.from_numpy(np.ascontiguousarray(pooled[:, start : start + step])).to(device)
        costs = kernels.relabelled_costs(some, drawn, sources, parts)
        reached = 1 + (costs[1:] >= costs[0]).sum(0)
        null = costs[1:].double()
        found.append(torch.stack([null.mean(0), null.std(0, unbiased=False), reached / count]).cpu().numpy())
    mean, deviation, p_value = np.concatenate(found, 1)
    return mean, deviation, p_value


def affine(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """As `ops.affine`, on a GPU. Where no gradient is asked for, without a copy in float32."""
    recorded = torch.is_grad_enabled() and (h.requires_grad or scale.requires_grad or shift.requires_grad)
    if recorded or torch.compiler.is_compiling():
        mapped = (h * scale).add_(shift)
        return mapped if mapped.dtype == h.dtype else mapped.to(h.dtype)
    if h.numel() >= LARGE and (kernels := fused(h)) and (dim := _channel_dim(h, scale)) is not None:
        flat = scale.reshape(-1, h.shape[dim]), shift.reshape(-1, h.shape[dim])
        return kernels.affine(h, *(x[0] if len(x) == 1 else x for x in flat), dim)
    return torch.addcmul(shift, h, scale, out=torch.empty_like(h))


def _channel_dim(h: Tensor, scale: Tensor) -> int | None:
    """Which dimension of h the maps are for, where h is dense and the maps are one for all rows or one for each."""
    images = h.ndim == 4 and h.is_contiguous(memory_format=torch.channels_last)
    if scale.ndim != h.ndim or scale.dtype != torch.float32 or not (h.is_contiguous() or images):
        return None
    dims = [k for k in range(1, h.ndim) if scale.shape[k] != 1]
    return dims[0] if len(dims) == 1 and scale.shape[0] in (1, len(h)) else None


def affine_pool(
    h: Tensor, scale: Tensor, shift: Tensor, pool: Tensor, channels_first: bool = False
) -> tuple[Tensor, Tensor]:
    """As `ops.affine_pool`, which has checked the shapes, in plain expressions. Halves are computed in float32 and
    rounded once."""
    wide = h.to(torch.promote_types(h.dtype, torch.float32))
    scale, shift, pool = (x.to(wide.dtype) for x in (scale, shift, pool))
    tokens, channels = (2, 1) if channels_first else (1, 2)
    shape = [1, 1, 1]
    shape[channels] = -1
    out = torch.addcmul(shift.view(shape), wide, scale.view(shape)).to(h.dtype)
    counts = pool.unsqueeze(channels)
    # The average is taken before the map, so that infinities in padding reach no gradient.
    average = (torch.where(counts != 0, wide, 0) * counts).sum(tokens)
    return out, torch.addcmul(shift * pool.sum(1, keepdim=True), scale, average)
