"""What a forward hook does at one module of an engine.

Engines differ from transformers in what hooks see: tokens of all requests lie side by side, (tokens, channels); norms
and blocks return a pair, the second of which is the residual stream; linear layers return a pair with a bias that was
not added; layers are fused; a rank of tensor parallelism has a slice of a layer's channels. What a hook does is
recorded in a CUDA graph once and replayed: so nothing depends on the values of tensors, and maps lie on the device
before that.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..maps.kinds import common, neutral_parts
from ..maps.maps import Maps
from .places import STREAM, SUMMED, WHOLE, Place

ELSEWHERE = "PPMissingLayer"  # what engines put where another stage of the pipeline has a module
Section = tuple[int, int, int]  # first channel of a rank's output, first unit of the site there, how many


class EngineMap:
    """The maps of one or several sites that an engine has in one module.

    Parameters
    ----------
    maps : Maps
    places : list of Place
        All in the same module.
    strength : float

    Attributes
    ----------
    ran : bool
        Whether the module was called since.
    """

    def __init__(self, maps: Maps, places: Sequence[Place], strength: float):
        self.places, self.ran = tuple(places), False
        self.kind = common((maps.kind(place.site) for place in places), f"module {places[0].module!r}")
        self.units = {place.site: len(maps.weight(place.site)) for place in places}
        self.arrays = {place.site: maps.at_strength(place.site, strength) for place in places}
        self.table: tuple[Tensor, ...] | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        self.ran = True
        if self.places[0].part == STREAM and isinstance(output, tuple):
            return self._block(module, output)
        if not isinstance(output, tuple):
            return self._mapped(module, output)
        if len(output) > 1 and isinstance(output[1], Tensor) and output[1].ndim < output[0].ndim:
            raise ValueError(f"{self._names}: expected the layer to add its bias, got it apart (skip_bias_add)")
        return self._mapped(module, output[0]), *output[1:]

    def _block(self, module: nn.Module, output: tuple) -> tuple:
        """A block returns what is still to be added to the residual stream: the site is their sum."""
        hidden, *rest = output
        if not rest or rest[0] is None:
            return self._mapped(module, hidden), *rest
        if not isinstance(rest[0], Tensor) or rest[0].shape != hidden.shape:
            raise ValueError(f"{self._names}: expected the block to return the residual stream beside its own part")
        whole = hidden + rest[0]
        return hidden + (self._mapped(module, whole) - whole), *rest

    def _mapped(self, module: nn.Module, h: Tensor) -> Tensor:
        if self.table is None or self.table[0].device != h.device:
            if h.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(f"{self._names}: expected a pass before the CUDA graph is recorded, got none")
            self.table = self._laid_out(module, h.shape[-1], h.device)
        if self.table[0].shape[0] != h.shape[-1]:
            raise ValueError(f"{self._names}: expected {self.table[0].shape[0]} channels, got {tuple(h.shape)}")
        return self.kind.apply(h, *self.table)

    @torch.inference_mode(False)
    def _laid_out(self, module: nn.Module, width: int, device: torch.device) -> tuple[Tensor, ...]:
        """Scale, shift and what else maps have, for every channel of this rank's output: the identity between sites."""
        rows: list[NDArray] = [np.ones(width), np.zeros(width), *neutral_parts(self.kind, width)]
        for place in self.places:
            arrays: tuple[NDArray, ...] = self.arrays[place.site]
            if len(arrays) == 2:  # a plain map, perhaps beside others
                arrays = *arrays, *neutral_parts(self.kind, self.units[place.site])
            for at, first, count in sections(module, place, self.units[place.site], width):
                for row, array in zip(rows, arrays, strict=True):
                    row[at : at + count] = array[first : first + count]
        # Without dimensions for tokens: on a GPU that is one kernel of PyTorch's own, which is safe to record.
        return tuple(torch.from_numpy(row.astype(np.float32)).to(device) for row in rows)

    @property
    def _names(self) -> str:
        return ", ".join(place.site for place in self.places)


def sections(module: Any, place: Place, units: int, width: int) -> list[Section]:
    """Which units of a site a rank's output has, and where.

    Source: the attributes of `QKVParallelLinear`, `MergedColumnParallelLinear` and `ColumnParallelLinear`, which have
    the same names in SGLang and in vLLM.
    """
    ranks = getattr(module, "tp_size", 1)
    if ranks > 1 and not hasattr(module, "tp_rank"):
        raise ValueError(f"{place.site}: expected {place.module} to know which of {ranks} slices it has (tp_rank)")
    rank = getattr(module, "tp_rank", 0)
    if place.part in (WHOLE, STREAM, SUMMED):
        if place.part != WHOLE:
            _refuse_partial_sums(module, place)
        found, total = [(0, 0, width)], width
    elif place.part == "columns":
        found, total = [(0, rank * width if width < units else 0, width)], width * (ranks if width < units else 1)
    else:
        found, total = _fused(module, place, rank, ranks)
    last = max(at + count for at, _, count in found)
    if total != units or last > width:
        raise ValueError(f"{place.site}: the steering has weight ({units},), {place.module} of the engine has {total}")
    return found


def _fused(module: Any, place: Place, rank: int, ranks: int) -> tuple[list[Section], int]:
    """The wanted ones of the layers that are fused into one."""
    try:
        if place.part in ("q", "k", "v", "q k v"):
            # (name, channels here, which slice of the whole, channels of the whole); few heads are on several ranks
            query, key = module.num_heads * module.head_size, module.num_kv_heads * module.head_size
            value = module.num_kv_heads * getattr(module, "v_head_size", module.head_size)
            copies, heads = module.num_kv_head_replicas, module.total_num_kv_heads // module.num_kv_heads
            layers = [("q", query, rank, query * ranks)]
            layers += [(name, size, rank // copies, size * heads) for name, size in (("k", key), ("v", value))]
        else:
            sizes = module.output_sizes
            layers = [(name, size // ranks, rank, size) for name, size in zip(("gate", "up"), sizes, strict=True)]
    except AttributeError as error:
        raise ValueError(
            f"{place.site}: expected {place.module} to be a fused layer that knows its parts, got "
            f"{type(module).__name__}: {error}"
        ) from None
    found, at, total = [], 0, 0
    for name, size, part, whole in layers:
        if name in place.part.split():
            found.append((at, total + part * size, size))
            total += whole
        at += size
    return found, total


def _refuse_partial_sums(module: nn.Module, place: Place) -> None:
    """A rank's part of a sum would get the whole bias, once a rank; and engines put off the sum as they see fit."""
    if any(getattr(part, "tp_size", 1) > 1 for part in module.modules()):
        raise ValueError(
            f"{place.site}: its output is summed over ranks, perhaps later; expected norms, or layers before them, "
            "under tensor parallelism, or a merged checkpoint"
        )


def module_of(model: nn.Module, name: str) -> nn.Module | None:
    """The module of a name; None where another stage of the pipeline has it, LookupError where there is none."""
    part = model
    for step in name.split("."):
        if type(part).__name__ == ELSEWHERE:
            return None
        if (inner := part._modules.get(step)) is None:
            raise LookupError(f"{type(model).__name__} of the engine has no module {name!r}")
        part = inner
    return None if type(part).__name__ == ELSEWHERE else part


def unsteered(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The modules that did not run with their maps, since these were put there."""
    found = []
    for name in names:
        try:
            part = module_of(model, name)
        except LookupError:
            found.append(name)
            continue
        if part and not any(isinstance(hook, EngineMap) and hook.ran for hook in part._forward_hooks.values()):
            found.append(name)
    return found
