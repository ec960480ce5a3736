"""A small batch to look at a model with, and how far two models' outputs on it are apart."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..network.identity import digest
from ..network.sharding import group_of, is_spread, kind_of
from ..network.state import device_of, dtype_of, frozen, seeded

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class Probe:
    """Runs models on one small batch: in evaluation mode, without gradients, always with the same random numbers.

    Parameters
    ----------
    model : nn.Module
        For which the batch is made, where none is given.
    given : tensor, tuple of arguments, mapping of keyword arguments (of what a pass takes, dicts inside too), or None
        None: random token ids, or random pixels, for a model of transformers.
    """

    def __init__(self, model: nn.Module, given: Any = None):
        device, dtype = device_of(model), dtype_of(model)
        arguments = _made(model) if given is None else given
        if isinstance(arguments, Mapping):
            self.args, self.kwargs = (), dict(arguments)
        elif isinstance(arguments, (Tensor, tuple)):
            self.args, self.kwargs = ((arguments,) if isinstance(arguments, Tensor) else arguments), {}
        else:
            raise TypeError(
                "probe: expected a tensor, a tuple of arguments or a dict of keyword arguments, got "
                f"{type(given).__name__}"
            )
        place = (lambda value: _placed(value, device, dtype)) if given is None else (lambda v: _placed(v, device, None))
        self.args = tuple(map(place, self.args))
        self.kwargs = {name: place(value) for name, value in self.kwargs.items()}
        self.group = group_of(model)

    def __call__(self, model: nn.Module) -> Any:
        with frozen(model), seeded(0, device_of(model)), torch.no_grad():
            return model(*self.args, **self.kwargs)

    def first(self, model: nn.Module, watch: Callable[[nn.Module, Callable[[], Any]], Any]) -> Any:
        """The first look at a model, which tells whether it takes the batch at all; ValueError where it does not."""
        try:
            with frozen(model), seeded(0, device_of(model)), torch.no_grad():
                return watch(model, lambda: model(*self.args, **self.kwargs))
        except Exception as error:
            given = [_each(value, lambda tensor: tuple(tensor.shape)) for value in (*self.args, *self.kwargs.values())]
            raise ValueError(
                f"probe: {kind_of(model).__name__} does not take it, {given}: {type(error).__name__}: {error}"
            ) from error

    def digest(self) -> str:
        """Of all tensors in it."""
        found: list[Tensor] = []
        for value in (*self.args, *self.kwargs.values()):
            _each(value, found.append)
        return digest(found)

    def difference(self, expected: Any, got: Any) -> float:
        """`relative_difference`; where processes share the model's weights, the largest that one of them has."""
        own = relative_difference(expected, got)
        if self.group is None:
            return own
        entries = [own] * dist.get_world_size(self.group)
        dist.all_gather_object(entries, own, group=self.group)
        return float(np.max(entries))  # passes a NaN on


def outputs(value: Any) -> list[Tensor]:
    """All floating-point tensors of an output, in float64; caches are left out."""
    if is_spread(value):
        value = value.full_tensor()
    if isinstance(value, Tensor):
        return [value.double()] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for item in value for tensor in outputs(item)] if isinstance(value, (tuple, list)) else []


def relative_difference(expected: Any, got: Any) -> float:
    """The largest difference, as a part of the largest entry of the tensor in which it is; NaN where one is NaN."""
    pairs = list(zip(outputs(expected), outputs(got), strict=True))
    if not pairs:
        raise ValueError("probe: expected the model to return tensors of numbers, got none")
    worst = torch.zeros((), dtype=torch.float64, device="cpu")
    for a, b in pairs:
        finite = a[a.isfinite()].abs()
        size = finite.max() if finite.numel() and finite.any() else 1.0
        gap = torch.where(a == b, 0.0, (a - b).abs()).max() / size
        worst = torch.maximum(worst, gap.cpu())  # passes a NaN on
    return float(worst)


def _made(model: nn.Module) -> dict[str, Tensor]:
    config: Any = getattr(model, "config", None)
    main = getattr(model, "main_input_name", None)
    draw = torch.Generator().manual_seed(0)
    if main == "pixel_values" and hasattr(config, "image_size"):
        side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        size = 2, getattr(config, "num_channels", 3), side, side
        return {"pixel_values": torch.randn(size, generator=draw, dtype=torch.float32, device="cpu")}
    if main != "input_ids" or config is None:
        raise ValueError(
            f"probe: {kind_of(model).__name__} is not a language model of transformers, so there is no batch to check "
            "the merge with; pass one as probe=, as a tensor, a tuple of arguments or a dict of keyword arguments"
        )
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    shape = (2, _length(text))
    batch = {"input_ids": torch.randint(text.vocab_size, shape, generator=draw, device="cpu")}
    if getattr(config, "is_encoder_decoder", False):
        batch["decoder_input_ids"] = torch.randint(text.vocab_size, shape, generator=draw, device="cpu")
    return batch


def _length(config: Any) -> int:
    """A few tokens; where attention has a short window, more than it holds, so that the window is seen to be there."""
    window = getattr(config, "sliding_window", None) or 0
    longest = getattr(config, "max_position_embeddings", None) or 16
    return max(1, min(longest - 4, 16 if window > 256 else max(16, window + 8)))


def _placed(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    return _each(value, lambda tensor: tensor.to(device, dtype if dtype and tensor.is_floating_point() else None))


def _each(value: Any, do: Callable[[Tensor], Any]) -> Any:
    """The same, with something done to every tensor in it, also in dicts, lists and tuples inside."""
    if isinstance(value, Tensor):
        return do(value)
    if type(value) is dict:
        return {name: _each(item, do) for name, item in value.items()}
    return type(value)(_each(item, do) for item in value) if type(value) in (list, tuple) else value
