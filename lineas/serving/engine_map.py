"""What a forward hook does at one module of an engine.

Engines differ from transformers in what hooks see: tokens of all requests lie side by side, (tokens, channels); norms
and blocks return a pair, the second of which is the residual stream, or keep that elsewhere; linear layers return a
pair with a bias that was not added; layers are fused; a rank of tensor parallelism has a slice of a layer's channels.
What a hook does may be recorded in a CUDA graph once and replayed: so nothing depends on the values of tensors, and
maps lie on the device before that.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..maps.gate import refuse_gated
from ..maps.kinds import common, neutral_parts
from ..maps.maps import Maps
from .places import STREAM, SUMMED, WHOLE, Place

ELSEWHERE = "PPMissingLayer"  # what engines put where another stage of the pipeline has a module
PRECISIONS = torch.float16, torch.bfloat16, torch.float32, torch.float64
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
        Whether the module was called, since somebody asked (`unsteered`).
    """

    def __init__(self, maps: Maps, places: Sequence[Place], strength: float):
        refuse_gated("an engine's hooks", maps.gate)  # they know no rows, and nothing of what came before
        self.places, self.ran = tuple(places), False
        self.kind = common((maps.kind(place.site) for place in places), f"module {places[0].module!r}")
        self.units = {place.site: len(maps.weight(place.site)) for place in places}
        self.arrays = {place.site: maps.at_strength(place.site, strength) for place in places}
        self.table: tuple[Tensor, ...] | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        self.ran = True
        if self.places[0].part == STREAM:
            return self._block(module, output)
        if not isinstance(output, tuple):
            return self._mapped(module, output)
        if len(output) > 1 and isinstance(output[1], Tensor) and output[1].ndim == 1:
            raise ValueError(f"{self._names}: expected the layer to add its bias, got it apart (skip_bias_add)")
        return self._mapped(module, output[0]), *output[1:]

    def _block(self, module: nn.Module, output: Any) -> Any:
        """A block returns what is still to be added to the residual stream, and that: the site is their sum."""
        if isinstance(output, Tensor) and _adds_by_itself(self.places[0].module, module):
            return self._mapped(module, output)
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        if not rest or not isinstance(rest[0], Tensor) or rest[0].shape != hidden.shape:
            raise ValueError(f"{self._names}: expected the block to return the residual stream beside its own part")
        whole = hidden + rest[0]
        return hidden + (self._mapped(module, whole) - whole), *rest

    def _mapped(self, module: nn.Module, h: Any) -> Tensor:
        if not isinstance(h, Tensor) or h.dtype not in PRECISIONS:
            raise ValueError(f"{self._names}: expected activations, got {getattr(h, 'dtype', type(h).__name__)}")
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
    if place.part in (STREAM, SUMMED):
        _refuse_partial_sums(module, place)
    if place.part in (WHOLE, STREAM, SUMMED) or (place.part == "columns" and width == units):
        found, total = [(0, 0, width)], width
    elif place.part == "columns":
        rank, ranks = _rank(module, place)
        found, total = [(0, rank * width, width)], width * ranks
    else:
        found, total = _fused(module, place, *_rank(module, place))
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


def _told(module: Any) -> tuple[int, int] | None:
    """Rank and number of ranks, as a layer says in whichever way its engine has; None where it does not."""
    if hasattr(module, "tp_size"):
        return (getattr(module, "tp_rank", -1), module.tp_size) if module.tp_size > 1 else (0, 1)
    if not hasattr(module, "tp_group"):
        return None
    group = module.tp_group
    return (0, 1) if group is None else (group.rank_in_group, group.world_size)


def _processes() -> int:
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if there else 1


def _rank(module: Any, place: Place) -> tuple[int, int]:
    rank, ranks = _told(module) or ((0, 1) if _processes() == 1 else (-1, _processes()))
    group = getattr(module, "tp_group", None)
    if rank < 0 or getattr(module, "kv_tp_group", group) is not group:
        raise ValueError(
            f"{place.site}: expected {place.module} to know which of {ranks} slices it has, and it does not"
        )
    return rank, ranks


def _refuse_partial_sums(module: nn.Module, place: Place) -> None:
    """A rank's part of a sum would get the whole bias, once a rank; and engines put off the sum as they see fit."""
    told = [ranks for _, ranks in filter(None, map(_told, module.modules()))]
    if max(told, default=_processes()) > 1:
        raise ValueError(
            f"{place.site}: its output is summed over ranks, perhaps later; expected norms, or layers before them, "
            "under tensor parallelism, or a merged checkpoint"
        )


def _adds_by_itself(name: str, module: nn.Module) -> bool:
    """Whether a block that returns one tensor returns the residual stream: those of GPT-2 and its like do.

    Others of SGLang return their own part alone, and keep the stream in what they call boundaries.
    """
    return re.search(r"\bh\.\d+$", name) is not None and not any("boundary" in key for key in vars(module))


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
    """The modules that did not run with their maps since this was asked the last time."""
    found = []
    for name in names:
        try:
            part = module_of(model, name)
        except LookupError:
            found.append(name)
            continue
        hooks = [hook for hook in part._forward_hooks.values() if isinstance(hook, EngineMap)] if part else []
        if part and not any(hook.ran for hook in hooks):
            found.append(name)
        for hook in hooks:
            hook.ran = False
    return found
