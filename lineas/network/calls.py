"""How a model is called, and which tensor of what it returns is its output."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .batch import Batch
from .blocks import checkpointing_off
from .links import core
from .sharding import is_spread


def call(model: nn.Module, batch: Batch) -> Any:
    args, kwargs = batch.plain()
    if "use_cache" in inspect.signature(core(model).forward).parameters:
        kwargs.setdefault("use_cache", False)  # a cache of keys and values would only cost memory
    with checkpointing_off(model):
        return model(*args, **kwargs)


def output_of(output: Any) -> tuple[Tensor, bool]:
    """The logits, or else the first tensor of floats; and whether it is logits."""
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor) and not is_spread(logits):
        return logits, True
    values = output.values() if isinstance(output, Mapping) else output
    many = values if isinstance(values, Iterable) and not isinstance(values, Tensor) else [values]
    found = [value for value in map(_stacked, many) if isinstance(value, Tensor) and value.is_floating_point()]
    if not found:
        raise TypeError(f"expected a model whose output is, or holds, a tensor; got {type(output).__name__}")
    if is_spread(found[0]):
        raise TypeError("expected a model whose output is a whole tensor, got a DTensor; each process has a part")
    return found[0], False


def _stacked(value: Any) -> Any:
    """A list with a tensor for each sample as one tensor; where they differ in size, all their numbers side by side."""
    if not (isinstance(value, list) and value and all(isinstance(item, Tensor) for item in value)):
        return value
    one_size = all(item.shape == value[0].shape for item in value)
    return torch.stack(value) if one_size else torch.cat([item.flatten() for item in value])
