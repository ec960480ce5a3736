"""An array on the host that has a twin on a device, for copies that hold nobody up."""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def wait(device: torch.device) -> None:
    """Until the device has done what it was given so far; the only place where lineas waits for a GPU on purpose."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def memory_used(device: torch.device) -> int:
    """Bytes of tensors on a GPU; 0 elsewhere."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def memory_free(device: torch.device) -> int:
    """Bytes that a GPU still has for tensors, what PyTorch holds ready for them included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


class Mirror:
    """float32 numbers that go to and fro between host and device, at the same places every time.

    Attributes
    ----------
    host : Tensor
        In pinned memory where the device is a GPU: from pageable memory a copy would wait.
    there : Tensor
        On the device; made when it is first asked for.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device):
        self.device = device
        self.host = torch.empty(shape, dtype=torch.float32, device="cpu", pin_memory=device.type == "cuda")

    @cached_property
    def there(self) -> Tensor:
        return torch.empty(self.host.shape, dtype=torch.float32, device=self.device)

    def write(self, values: NDArray[np.float32]) -> None:
        """Into the host's; nothing may still be on its way from there."""
        np.copyto(self.host.numpy(), values)

    @torch.no_grad()
    def upload(self) -> Tensor:
        self.there.copy_(self.host, non_blocking=True)
        return self.there

    @torch.no_grad()
    def fetch(self, values: Tensor) -> None:
        """From the device into the host's, which has them once the device is waited for."""
        self.host.copy_(values, non_blocking=True)


class Mirrors:
    """Those that the passes of a fit share, by name and shape: what one holds lasts until the next pass.

    Batches take turns, so that pinned memory does not grow with their number.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._made: dict[tuple[str, tuple[int, ...]], Mirror] = {}

    def of(self, name: str, shape: tuple[int, ...]) -> Mirror:
        if (name, shape) not in self._made:
            self._made[name, shape] = Mirror(shape, self.device)
        return self._made[name, shape]
