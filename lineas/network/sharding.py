"""Models whose weights are spread over processes: whoever has a part of them, and what a pass must not leave behind.

Each module that `fully_shard` (FSDP2) has taken gathers its weights before it runs and gives them back afterwards, in
the forward and in the backward pass. All processes must do that at the same moments.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard`, or the older `FullyShardedDataParallel`, has spread a module's weights over processes."""
    return any(kind.__name__ in ("FSDPModule", "FullyShardedDataParallel") for kind in type(module).__mro__)


def kind_of(module: Any) -> type:
    """A module's class; where `fully_shard` made one of its own, the class that it was made of."""
    kinds = type(module).__mro__
    made = len(kinds) > 2 and kinds[1].__name__ == "FSDPModule"
    return kinds[2] if made else kinds[0]


def is_spread(tensor: Any) -> bool:
    """Whether it is a DTensor, of which this process may have a part only."""
    return any(kind.__name__ == "DTensor" for kind in type(tensor).__mro__)


def is_partitioned(tensor: Any) -> bool:
    """Whether DeepSpeed's ZeRO-3 holds it: empty but while a module of its own runs."""
    return hasattr(tensor, "ds_status")


def gathering(model: nn.Module) -> list[Any]:
    """The modules that gather their weights before they run, by `fully_shard`."""
    return [module for module in model.modules() if hasattr(module, "reshard") and is_sharded(module)]


def gathered_weights(model: nn.Module) -> tuple[set[int], int]:
    """The `id` of each weight that `fully_shard` spreads, and over how many dimensions of a mesh, its first ones: as
    many as the weights have that nothing else splits."""
    taken: list[Any] = [weight for module in gathering(model) for weight in module.parameters() if is_spread(weight)]
    return {id(weight) for weight in taken}, min((weight.device_mesh.ndim for weight in taken), default=0)


def teammates(model: nn.Module) -> tuple[int, ...]:
    """The processes that compute this one's passes together with it, by their ranks among all; none where each computes
    its own. Modules that tensor parallelism splits compute with parts of weights, and so perhaps parts of units.

    ValueError where `gathered_weights` cannot tell whose dimension is whose. Not to be asked within a pass, when
    weights are gathered.
    """
    gathered, first = gathered_weights(model)
    spread: list[Any] = [weight for weight in model.parameters() if is_spread(weight)]
    teams: set[tuple[int, ...]] = set()
    for weight in spread:
        mesh, own = weight.device_mesh, first if id(weight) in gathered else 0
        if any(sum(not one.is_replicate() for one in some) > 1 for some in _halves(weight.placements, own)):
            raise ValueError(
                "model: expected weights that fully_shard spreads, tensor parallelism, or both on dimensions of their "
                f"own of one mesh, the latter's last, and at least one weight that only fully_shard spreads; got "
                f"{weight.placements} on {mesh}"
            )
        if mesh.ndim > own:
            teams.add(tuple(sorted(mesh.mesh[tuple(mesh.get_coordinate()[:own])].flatten().tolist())))
    if len(teams) > 1:
        raise ValueError(f"model: expected one tensor parallelism for all weights, got several, over {sorted(teams)}")
    return next(iter(teams), ())


def _halves(placements: Sequence[Any], count: int) -> tuple[Sequence[Any], Sequence[Any]]:
    return placements[:count], placements[count:]


def is_split(model: nn.Module) -> bool:
    """Whether several processes compute each pass, by tensor parallelism."""
    return bool(teammates(model))


def holders(model: nn.Module) -> tuple[int, ...]:
    """The processes that have parts of a model's weights, by their ranks among all; none where weights are whole.

    ValueError for weights that are spread in a way that nothing here knows.
    """
    reshard(model)
    if name := next((name for name, weight in model.named_parameters() if is_partitioned(weight)), None):
        raise ValueError(
            f"model: expected whole weights, or those that fully_shard spreads; DeepSpeed's ZeRO-3 has partitioned "
            f"{name!r}, which is gone when a backward pass from within wants it: fit before deepspeed.initialize"
        )
    for path, module in model.named_modules():
        if is_sharded(module) and not hasattr(module, "reshard"):
            raise ValueError(
                f"model: expected whole weights, or those that fully_shard spreads; {path or 'it'} is a "
                f"{type(module).__name__}, whose weights are gone when a backward pass from within wants them"
            )
    spread: list[Any] = [weight for weight in model.parameters() if is_spread(weight)]
    if not spread and (getattr(model, "tp_size", None) or 1) > 1:
        raise ValueError(
            f"model: expected the weights of a model of tp_size {model.tp_size} as DTensors, which say what a process "
            "has of them, got plain ones; a newer version of transformers makes DTensors"
        )
    teammates(model)
    return tuple(sorted({rank for weight in spread for rank in weight.device_mesh.mesh.flatten().tolist()}))


def group_of(model: nn.Module) -> Any:
    """The process group of all that have parts of the weights; None where weights are whole."""
    ranks = holders(model)
    if not ranks or len(ranks) == dist.get_world_size():
        return dist.group.WORLD if ranks else None
    meshes = {weight.device_mesh for weight in model.parameters() if is_spread(weight)}  # type: ignore[attr-defined]
    if len(meshes) > 1 or next(iter(meshes)).ndim > 1:
        raise ValueError(
            f"model: its weights are spread over processes {ranks}, which have no group of their own; expected a mesh "
            "of one dimension, or of all processes"
        )
    return next(iter(meshes)).get_group()


def refuse_others(model: nn.Module, name: str, told: Callable[[], str]) -> None:
    """ValueError where processes that share a model's weights were told different things; nothing where it is whole.

    A pass gathers weights, or sums what each has computed: all must run the same ones.
    """
    if (group := group_of(model)) is None:
        return
    entries: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(entries, (name, told()), group=group)
    if len(set(entries)) > 1:
        raise ValueError(f"{name}: expected the same in every process that shares the model's weights, got others")


class Team(NamedTuple):
    """The processes that compute passes together, by their ranks among all, and a group that they are in."""

    ranks: tuple[int, ...]
    group: Any


def team_of(model: nn.Module) -> Team | None:
    """This process's, before a pass; None where each computes its own."""
    group = group_of(model)
    return Team(ranks, group) if (ranks := teammates(model)) else None


def refuse_slices(team: Team | None, found: Mapping[str, Tensor]) -> None:
    """ValueError where the processes of a team have different parts of what a module returns.

    Parameters
    ----------
    found : dict of name -> (units,)
        By what messages call it, such as "site 'a'": the mean of each unit on inputs that the team has alike.
    """
    if team is None:
        return
    entries: list[Any] = [None] * dist.get_world_size(team.group)
    own = {name: value.detach().float().cpu().numpy() for name, value in found.items()}
    dist.all_gather_object(entries, own, group=team.group)
    ranks = dist.get_process_group_ranks(team.group)
    mates = [entry for rank, entry in zip(ranks, entries, strict=True) if rank in team.ranks]
    for name, value in own.items():
        others = [entry.get(name) for entry in mates]
        if any(other is None or not _alike(value, other) for other in others):
            raise ValueError(
                f"{name}: expected all units in every process, got another part of them in each: tensor parallelism "
                "splits what this module returns. Whole is that of a block, of its attention or MLP, of a norm on the "
                "residual stream, or what is made so by output_layouts=Replicate()"
            )


def _alike(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    if one.shape != other.shape:
        return False
    return np.array_equal(one, other, equal_nan=True) or bool(np.linalg.norm(one - other) <= 1e-2 * np.linalg.norm(one))


def reshard(model: nn.Module) -> None:
    """Give back all weights that were gathered; only this process's own part stays. It needs no other process."""
    for module in gathering(model):
        module.reshard()


def gather(model: nn.Module) -> None:
    """Gather what the model itself holds, beside its blocks, for a backward pass that does not begin at its output."""
    if hasattr(model, "unshard") and is_sharded(model):
        model.unshard()  # type: ignore[operator]


class Owed:
    """What a process owes the others of a forward pass that breaks off here: its part of the weights that they will
    gather in the rest of theirs."""

    def __init__(self, model: nn.Module):
        self.order = gathering(model)  # until a pass has told in which they run
        self.gathered: list[Any] = []
        self.handles = [module.register_forward_pre_hook(self._note) for module in self.order]

    def begin(self) -> None:
        self.gathered = []

    def end(self) -> None:
        self.order = self.gathered

    def pay(self) -> None:
        for module in self.order[len(self.gathered) :]:
            module.unshard()
            module.reshard()

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _note(self, module: nn.Module, args: Any) -> None:
        self.gathered.append(module)


@contextmanager
def in_parts(model: nn.Module) -> Iterator[None]:
    """While open, whole weights last no longer than they are used; where a pass breaks off, they go all the same."""
    try:
        yield
    except BaseException:
        for module in gathering(model):
            if hasattr(module, "reset_iter_state"):  # of newer versions of torch
                with suppress(RuntimeError, AttributeError):  # it is inside another one, or it never ran
                    module.reset_iter_state()
        raise
    finally:
        reshard(model)


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, output: Tensor) -> Tensor:
        ctx.output = output.shape, output.dtype, output.device
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
        shape, dtype, device = ctx.output
        return slope, torch.zeros((), dtype=dtype, device=device).expand(shape)


@contextmanager
def tied(found: dict[Any, Tensor], inside: Mapping[nn.Module, Iterable[Any]]) -> Iterator[None]:
    """While open, a gradient for what was found inside these modules goes to their outputs first, as zeros.

    A gradient for its output is what makes a module gather its weights again. Without one, a backward pass that begins
    inside reads memory that has been given back.
    """

    def tie(module: nn.Module, args: Any, output: Any) -> None:
        values = output.values() if isinstance(output, Mapping) else output
        several = values if isinstance(values, Iterable) and not isinstance(values, Tensor) else [values]
        ends = (value for value in several if isinstance(value, Tensor) and value.requires_grad)
        if (end := next(ends, None)) is not None:
            found.update({key: _Tied.apply(found[key], end) for key in inside[module] if key in found})

    handles = [module.register_forward_hook(tie) for module in inside]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def own_numbers(weight: Tensor, step: int) -> tuple[Tensor, Tensor] | None:
    """Of every `step`-th number of a weight, counted row by row, those that this process has: which ones, and what
    they are. None where the weight is spread in a way that cannot be told."""
    known: Any = weight
    local, starts, sizes = known.to_local().detach(), [0] * known.ndim, list(known.shape)
    # What fully_shard cuts after tensor parallelism has cut the same dimension is a _StridedShard.
    for k, placement in sorted(enumerate(known.placements), key=lambda item: type(item[1]).__name__ == "_StridedShard"):
        if type(placement).__name__ in ("Shard", "_StridedShard"):
            mesh, dim = known.device_mesh, placement.dim
            chunk = -(-sizes[dim] // mesh.size(k))
            begin = min(mesh.get_local_rank(k) * chunk, sizes[dim])
            starts[dim], sizes[dim] = starts[dim] + begin, min(chunk, sizes[dim] - begin)
        elif type(placement).__name__ != "Replicate":
            return None
    if tuple(sizes) != tuple(local.shape):
        return None
    places = np.arange(0, known.numel(), step)
    where = np.stack(np.unravel_index(places, known.shape)) - np.array(starts)[:, None]
    is_here = ((where >= 0) & (where < np.array(sizes)[:, None])).all(0)
    index = tuple(torch.from_numpy(row[is_here]).to(local.device) for row in where)
    return torch.from_numpy(np.flatnonzero(is_here)), local[index].cpu()
