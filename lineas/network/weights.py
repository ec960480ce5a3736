"""A model's weights where they are: whole in memory, in parts in several processes, or where accelerate has put them.

Every weight can be had whole, one at a time, and given other values where it is. Of one that is spread over processes
all must ask at the same moment.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .sharding import gathered_weights, is_spread
from .state import loaders

FOLDER = "_lineas_folder"  # of a mapping of accelerate: where weights that changed are
Undo = Callable[[], None]


class Weights:
    """Those of a model; without one, those that are in memory.

    Parameters
    ----------
    model : nn.Module, optional
        It must not change, other than by `put`.

    Attributes
    ----------
    hooks : dict
        Of the modules whose weights accelerate loads whenever they run: the hook that does it, and what it puts before
        the names of a module's weights.
    """

    def __init__(self, model: nn.Module | None = None):
        self._gathered, self._dims = (set[int](), 0) if model is None else gathered_weights(model)
        self.hooks: dict[nn.Module, tuple[Any, str]] = {}
        if model is None:
            return
        for module in model.modules():
            for hook in loaders(module):
                parts = module.named_modules() if hook.place_submodules else [("", module)]
                self.hooks.update({part: (hook, f"{path}." if path else "") for path, part in parts})

    def are_gathered(self, parameter: Tensor | None) -> bool:
        """Whether `fully_shard` gathers a parameter, which is a part of it in between."""
        return id(parameter) in self._gathered

    def are_here(self, module: nn.Module, name: str) -> bool:
        """Whether a parameter has values that can be had."""
        return _is_here(module._parameters[name]) or self._stored(module, name) is not None

    def are_elsewhere(self, module: nn.Module, name: str, like: Tensor) -> bool:
        """Whether a parameter, or one that is to be beside another like it, is not simply a tensor in memory."""
        old = module._parameters.get(name)
        return is_spread(old) or (module in self.hooks and not _is_here(like if old is None else old))

    def whole(self, module: nn.Module, name: str) -> Tensor | None:
        """All values of a parameter, detached; None where there is no such parameter."""
        parameter: Any = module._parameters.get(name)
        if parameter is None:
            return None
        if is_spread(parameter):
            return parameter.detach().full_tensor()
        if _is_here(parameter) or (stored := self._stored(module, name)) is None:
            return parameter.detach()
        mapping, key = stored
        return mapping[key].detach()

    def put(self, module: nn.Module, name: str, value: Tensor, like: Tensor) -> Undo:
        """Give a parameter that is elsewhere other values, or put a new one there; what is returned takes it back."""
        old: Any = module._parameters.get(name)
        if is_spread(old):
            return _put_part(old, value)
        undo = _put_stored(*self._where(module, name), value)
        if old is not None:
            return undo
        module._parameters[name] = nn.Parameter(torch.empty_like(value, device="meta"), like.requires_grad)

        def remove() -> None:
            module._parameters[name] = None
            undo()

        return remove

    def new(self, value: Tensor, like: Tensor) -> nn.Parameter:
        """A parameter of the same kind as another one in its module: as that is spread, a bias with its rows.

        Beside one that `fully_shard` gathers it is whole in every process, and asks for no gradient, which nobody would
        sum over the processes.
        """
        spread: Any = like
        if not is_spread(like):
            return nn.Parameter(value.to(like.device), like.requires_grad)
        gathered = self.are_gathered(like)
        mesh, placements = spread.device_mesh, spread.placements
        value = value.to(like.device if like.device.type == mesh.device_type else mesh.device_type)
        if gathered:
            if mesh.ndim == self._dims:
                return nn.Parameter(value, requires_grad=False)
            mesh, placements = mesh[mesh.mesh_dim_names[self._dims :]], placements[self._dims :]
        from torch.distributed.tensor import DTensor, Replicate, Shard

        rows = [Shard(0) if one.is_shard(0) else Replicate() for one in placements]
        whole = DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)
        return nn.Parameter(whole.redistribute(placements=rows), like.requires_grad and not gathered)

    def identity(self, module: nn.Module, name: str) -> Any:
        """Equal for two places of one tensor, as far as can be told: what is on a disk has a place there for each."""
        parameter = module._parameters[name]
        if _is_here(parameter) or (stored := self._stored(module, name)) is None:
            return id(parameter)
        mapping, key = stored
        value = _in_memory(mapping).get(key)
        return id(parameter) if value is None else value.untyped_storage()._cdata

    def lasting(self) -> Iterator[Any]:
        """What a copy of the model can have too, where weights are loaded from: nothing is ever written into it."""
        mappings = {id(mapping): mapping for mapping, _ in (self._where(module, "") for module in self.hooks)}
        for mapping in mappings.values():
            yield from _in_memory(mapping).values()
            yield from filter(None, [getattr(mapping, FOLDER, None)])

    def _where(self, module: nn.Module, name: str) -> tuple[Any, str]:
        """The innermost mapping from which accelerate loads a module's parameter, and the name there."""
        hook, before = self.hooks[module]
        mapping, key = hook.weights_map, before + name
        while hasattr(mapping, "dataset") and hasattr(mapping, "prefix"):
            mapping, key = mapping.dataset, mapping.prefix + key
        return mapping, key

    def _stored(self, module: nn.Module, name: str) -> tuple[Any, str] | None:
        if module not in self.hooks:
            return None
        mapping, key = self._where(module, name)
        return (mapping, key) if key in getattr(mapping, "all_keys", mapping) else None


def _is_here(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.device.type != "meta"


def _put_part(parameter: Any, value: Tensor) -> Undo:
    """This process's part of new values into a parameter that is spread; whoever holds it has them then."""
    local = parameter.detach().to_local()
    if any(type(placement).__name__ not in ("Shard", "Replicate") for placement in parameter.placements) and not (
        torch.equal(_part(parameter, parameter.detach().full_tensor()), local)
    ):
        raise ValueError(f"expected weights of which a process has some rows or columns, got {parameter.placements}")
    part, before = _part(parameter, value.to(local.device)), local.clone()
    local.copy_(part)  # in its place, where what gathers it looks

    def undo() -> None:
        local.copy_(before)

    return undo


def _part(parameter: Any, value: Tensor) -> Tensor:
    """Of whole values, those that this process would have of a parameter."""
    from torch.distributed.tensor import DTensor, Replicate

    mesh = parameter.device_mesh
    whole: Any = DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(placements=parameter.placements).to_local()


def _in_memory(mapping: Any) -> dict[str, Tensor]:
    """Of what accelerate loads weights from, the dict that it looks in first."""
    return mapping if isinstance(mapping, dict) else getattr(mapping, "state_dict", {})


def _put_stored(mapping: Any, key: str, value: Tensor) -> Undo:
    """New values where accelerate will load them from: in memory, or in a new file that goes with the model.

    Files that weights were loaded from stay as they are.
    """
    known = getattr(mapping, "all_keys", None)
    held = _in_memory(mapping)
    if not isinstance(mapping, dict):
        if known is None or not isinstance(getattr(mapping, "state_dict", None), dict):
            raise ValueError(f"expected offloaded weights in a dict, or on a disk, of accelerate; got {type(mapping)}")
        if key in mapping.index or key not in known:
            value = _on_disk(mapping, value)
    was_known, before = known is None or key in known, held.get(key)
    held[key] = value.cpu()
    if not was_known:
        known.append(key)  # type: ignore[union-attr]

    def undo() -> None:
        if before is None:
            del held[key]
        else:
            held[key] = before
        if not was_known:
            known.remove(key)  # type: ignore[union-attr]

    return undo


def _on_disk(mapping: Any, value: Tensor) -> Tensor:
    """The same, in a file in a folder that is removed when the mapping is gone."""
    folder = vars(mapping).get(FOLDER)
    if folder is None:
        folder = vars(mapping)[FOLDER] = tempfile.TemporaryDirectory(prefix="lineas-", dir=mapping.save_folder)
    file = Path(folder.name, f"{len(list(Path(folder.name).iterdir()))}.dat")
    numbers = value.detach().cpu().contiguous()
    numbers.flatten().view(torch.uint8).numpy().tofile(file)  # which says where there is no room
    mapped = torch.from_file(str(file), shared=False, size=numbers.numel(), dtype=numbers.dtype, device="cpu")
    return mapped.view(value.shape)


def on_disk(empty: nn.Module, values: Iterable[tuple[str, Tensor]], device: torch.device) -> nn.Module:
    """A model whose weights are on a disk, and loaded whenever a module runs.

    Parameters
    ----------
    empty : nn.Module
        Of which only buffers have values.
    values : iterable of (name, tensor)
        All weights, taken one after another.
    device : torch.device
        Where modules run.
    """
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_align_device_hook
    from accelerate.utils import OffloadedWeightsLoader

    loader = OffloadedWeightsLoader(state_dict={}, index={})
    for name, value in values:
        _put_stored(loader, name, value)
    add_hook_to_module(empty, AlignDevicesHook(device, io_same_device=True))
    skipped = getattr(empty, "_skip_keys_device_placement", None)
    attach_align_device_hook(empty, device, offload=True, weights_map=loader, skip_keys=skipped)
    empty.hf_device_map = {"": "disk"}  # type: ignore[assignment]  # by which transformers knows when it saves the model
    return empty
