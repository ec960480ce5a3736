"""The operations of `ops` for tensors that C does not take: on another device than the CPU, or traced by a compiler."""

import torch
from torch import Tensor


def affine_pool(
    h: Tensor, scale: Tensor, shift: Tensor, pool: Tensor, channels_first: bool = False
) -> tuple[Tensor, Tensor]:
    """As `ops.affine_pool`, which has checked the shapes. Halves are computed in float32 and rounded once."""
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
