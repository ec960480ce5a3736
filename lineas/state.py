"""Leave a model, and the random generators, as they were found."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """While open, the model is in evaluation mode and no weight asks for a gradient; as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """While open, random numbers come from `seed`; the generators of the CPU and of the device are then restored."""
    own = _own_generator(device)
    before, before_own = torch.get_rng_state(), own.get_rng_state() if own else None
    try:
        reseed(seed, device)
        yield
    finally:
        torch.set_rng_state(before)
        if own:
            own.set_rng_state(before_own)


def _own_generator(device: torch.device) -> Any:
    """The module that draws for a device other than the CPU: torch.cuda, torch.mps, torch.xpu; None for the CPU."""
    module = getattr(torch, device.type, None)
    return module if device.type != "cpu" and hasattr(module, "get_rng_state") else None


def reseed(seed: int, device: torch.device) -> None:
    """Start the generators of the CPU and of one device anew; no other device's."""
    torch.default_generator.manual_seed(seed)
    if own := _own_generator(device):
        own.manual_seed(seed)


def device_of(model: nn.Module) -> torch.device:
    """Where inputs go: the device of the model's first weight."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def dtype_of(model: nn.Module) -> torch.dtype:
    """What the model computes in, as far as its first floating-point weight tells."""
    floats = (w.dtype for w in chain(model.parameters(), model.buffers()) if w.is_floating_point())
    return next(floats, torch.float32)
