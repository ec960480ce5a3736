"""A steering that is on: forward hooks that map the sites' outputs, and the handle that takes them off."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from . import _reference, ops, sites
from .state import make_new_to_compilers

if TYPE_CHECKING:
    from .steering import Steering


class Map:
    """A site's map at one strength, on whatever device and in whatever dtype the activations come."""

    def __init__(self, steering: "Steering", name: str, strength: float):
        self.steering, self.name = steering, name  # `attach` knows its own hooks by this
        scale = 1 + strength * (steering.weight(name).astype(np.float64) - 1)
        shift = strength * steering.bias(name).astype(np.float64)
        self.scale, self.shift = (torch.from_numpy(part.astype(np.float32)) for part in (scale, shift))
        self.by_device: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.support = ((self.scale != 1) | (self.shift != 0)).nonzero().flatten()
        self.sparse = self.support, self.scale[self.support], self.shift[self.support]

    def __call__(self, module: nn.Module, h: Tensor) -> Tensor:
        dim = sites.channel_dim(module, h)
        if h.shape[dim] != len(self.scale):
            raise ValueError(
                f"site {self.name!r}: the steering has weight ({len(self.scale)},), the model produced {tuple(h.shape)}"
            )
        if self._is_cheaper_sparse(h):
            return ops.affine_sparse_(h.clone(), *self.sparse, channel_dim=dim)
        if h.device not in self.by_device:
            self.by_device[h.device] = self.scale.to(h.device), self.shift.to(h.device)
        return _reference.affine(h, *self.by_device[h.device], dim)

    def _is_cheaper_sparse(self, h: Tensor) -> bool:
        """Few channels of many numbers, and no autograd to record it. The result is the same."""
        few = 4 * len(self.support) <= len(self.scale) and h.numel() >= ops.SMALL
        return few and not torch.is_grad_enabled() and h.is_contiguous() and ops.runs_in_c(h)


class Handle:
    """Steering that is on; `remove()` ends it, and so does leaving a `with` block."""

    def __init__(self, model: nn.Module, maps: Mapping[sites.Site, Map]):
        self._open = sites.hooked(model, maps)
        self._open.__enter__()
        self._modules = [model.get_submodule(site.path) for site in maps]
        for module in self._modules:
            make_new_to_compilers(module, hooked=True)
        self.active = True

    def remove(self) -> None:
        """Take the hooks off; a second call does nothing."""
        if self.active:
            self.active = False
            self._open.__exit__(None, None, None)
            for module in self._modules:
                others = any(isinstance(hook, sites.Hook) for hook in module._forward_hooks.values())
                make_new_to_compilers(module, hooked=others)

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *exception) -> None:
        self.remove()
