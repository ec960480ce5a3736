"""How many tokens passed each site, and how many of them were steered."""

import threading
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Count", "Coverage", "Seen"]


class Seen(NamedTuple):
    """Real tokens that passed a site, and those of them that were steered."""

    seen: int
    steered: int


class Coverage(dict[str, Seen]):
    """By name of site, what passed it; prints as a table."""

    def __repr__(self) -> str:
        width = max(map(len, [*self, "site"]))
        lines = [f"{name:{width}} {row.seen:>12} {row.steered:>12}" for name, row in self.items()]
        return "\n".join([f"{'site':{width}} {'tokens seen':>12} {'steered':>12}", *lines])


COUNTING = threading.Lock()  # of whichever site: a copied model may have it too


class Count:
    """Running totals of a site. Tensors are added up where they are, and read only when somebody asks."""

    def __init__(self):
        self.seen, self.steered = 0, 0
        self.on_device: dict[torch.device, Tensor] = {}

    def add(self, seen: int | Tensor, steered: int | Tensor, device: torch.device) -> None:
        if torch.compiler.is_compiling():
            self._add_there(seen, steered, device)
            return
        with COUNTING:
            if isinstance(seen, int) and isinstance(steered, int):
                self.seen, self.steered = self.seen + seen, self.steered + steered
            else:
                self._add_there(seen, steered, device)

    def _add_there(self, seen: int | Tensor, steered: int | Tensor, device: torch.device) -> None:
        device = next((part.device for part in (seen, steered) if isinstance(part, Tensor)), device)
        if device not in self.on_device:
            with torch.inference_mode(False):  # or it could never be added to outside of it
                self.on_device[device] = torch.zeros(2, dtype=torch.int64, device=device)
        total = self.on_device[device]
        total[0].add_(seen)  # in place: code compiled into a CUDA graph keeps no other tensor alive
        total[1].add_(steered)

    def read(self) -> Seen:
        totals = [(self.seen, self.steered), *(total.tolist() for total in self.on_device.values())]
        return Seen(*(sum(part) for part in zip(*totals, strict=True)))
