"""Padding may hold anything, also what is not finite: no response and no gradient may change by it."""

import torch
from torch import Tensor

from ..network.batch import Batch


def padding_in(h: Tensor, dim: int, batch: Batch, side: str) -> Tensor | None:
    """(batch, tokens, 1) bool: where activations h, channels in `dim`, have padding; None where they have none."""
    mask = batch.mask_of(side) if h.ndim == 3 and dim != 1 else None  # pixels have no mask
    if mask is None or mask.shape != h.shape[:2] or bool((mask != 0).all()):
        return None
    return (mask == 0).unsqueeze(-1).to(h.device)


def set_aside(h: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """h with zeros for what is not finite in padding, and where that was; None where there is nothing of the kind."""
    if padding is None:
        return h, None
    odd = padding & ~h.isfinite()
    if h.device.type == "cpu" and not odd.any():  # elsewhere, to ask would be to wait
        return h, None
    return torch.where(odd, 0, h), odd


def put_back(mapped: Tensor, h: Tensor, odd: Tensor | None, padding: Tensor | None) -> Tensor:
    """The mapped activations, with what was set aside as it came; gradients that padding makes end there."""
    if odd is not None:
        mapped = torch.where(odd, h.detach(), mapped)
    if padding is not None and mapped.requires_grad:

        def finite(slope: Tensor | None) -> Tensor | None:  # None: layers behind pass nothing back
            return None if slope is None else torch.where(padding & ~slope.isfinite(), 0, slope)

        mapped.register_hook(finite)
    return mapped
