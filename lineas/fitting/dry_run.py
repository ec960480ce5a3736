"""dry_run: what a fit would need, of memory and of what processes send each other, before there are any weights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..core.checks import whole
from ..network.batch import Batch
from ..network.shadow import shadow, shadows
from ..network.sites import Site, find_sites
from ..optim.quadratic import bytes_of
from ..responses.probe import probe
from ..responses.runner import Runner
from .ridge import ROOM

__all__ = ["DryRun", "dry_run"]

FLOAT, DOUBLE = 4, 8
GIGABYTE = 1e9


@dataclass(frozen=True)
class DryRun:
    """What a fit would need, in bytes, in each process; print it for a table.

    Attributes
    ----------
    parameters : int
    sites, units : int
        That are mapped.
    processes, slices, batch_size : int
        Of the processes, so many compute each pass together and have a slice of each weight (tensor parallelism).
    weights : int
        Of the whole model.
    largest_block : int
        Of the weights of its largest block, which a sharded model has whole, and the next one's, at a time.
    outside : int
        Of the weights outside of blocks, which a sharded model has whole from where a pass needs them to its end.
    activations : int
        That a forward pass of one batch keeps for the way back.
    activations_checkpointed : int
        The same, where blocks are computed again (`gradient_checkpointing_enable`).
    responses : int
        On the host: of all sources and targets, and what the loss makes of them.
    optimiser : int
        On the host: past steps, the ridge and its rows.
    evaluation_traffic : int
        That a process receives in one evaluation, where each has whole weights: responses and gradients.
    weight_traffic : int
        That it receives beside these where weights are sharded over the processes (FSDP2).
    slice_traffic : int
        That it receives of those that compute a pass with it: what attention and MLP add to the residual stream.
    """

    parameters: int
    sites: int
    units: int
    processes: int
    slices: int
    batch_size: int
    weights: int
    largest_block: int
    outside: int
    activations: int
    activations_checkpointed: int
    responses: int
    optimiser: int
    evaluation_traffic: int
    weight_traffic: int
    slice_traffic: int

    @property
    def sharded_weights(self) -> int:
        """What a process holds of the weights where they are sharded, at most."""
        gathered = 2 * self.largest_block + self.outside if self.processes > self.slices else 0
        return min(ceil(self.weights / self.processes) + ceil(gathered / self.slices), ceil(self.weights / self.slices))

    def __str__(self) -> str:
        each = f"{self.processes} process{'es' * (self.processes > 1)}, batches of {self.batch_size}"
        kept, shares = "whole weights", self.processes > self.slices
        if self.slices > 1:
            each, kept = f"{each}, passes in {self.slices} slices", "slices"
        lines = [
            f"{self.parameters / 1e9:.3g} billion parameters, maps of {self.units} units at {self.sites} sites; {each}",
            f"{'in each process, GB':44}{kept:>16}" + f"{'sharded':>16}" * shares if self.processes > 1 else "GB",
        ]
        for name, whole_, sharded in (
            ("weights", ceil(self.weights / self.slices), self.sharded_weights),
            ("activations kept for the way back", self.activations, self.activations),
            ("the same with blocks computed again", self.activations_checkpointed, self.activations_checkpointed),
            ("responses, on the host", self.responses, self.responses),
            ("optimiser and ridge, on the host", self.optimiser, self.optimiser),
            ("received in an evaluation", self.evaluation_traffic, self.evaluation_traffic + self.weight_traffic),
            ("the same of those with the other slices", self.slice_traffic, self.slice_traffic),
        ):
            more = f"{sharded / GIGABYTE:16.3g}" * shares
            if whole_ or sharded:
                lines.append(f"{name:44}{whole_ / GIGABYTE:16.3g}{more}")
        return "\n".join(lines)


def dry_run(
    model: Any, samples: int | tuple[int, int] = 32, tokens: int = 32, *,
    sites: str | Sequence[str | Site] | None = None, loss_sites: str | Sequence[str | Site] | None = None,
    pooling: str | Sequence[str] = "mean", batch_size: int | None = None, dtype: torch.dtype | None = None,
    processes: int = 1, slices: int = 1,
    inputs: Tensor | Mapping[str, Tensor] | None = None,
) -> DryRun:  # fmt: skip
    """What `lineas.fit` would need, before there are weights: nothing is computed, shapes alone pass the network.

    Parameters
    ----------
    model : nn.Module or config of transformers
        Whose weights may be on the "meta" device; a config makes a causal language model.
    samples : int, or two
        Of the source and of the target, in all processes together.
    tokens : int
        Of each text.
    sites, loss_sites, pooling, batch_size : as in `lineas.fit`
    dtype : torch.dtype, optional
        In which the weights will be; as they are if not given, of a config what it says.
    processes : int
        That fit together, each with a share of the samples.
    slices : int
        So many of them compute each pass together, by tensor parallelism, and have one share: a divisor of `processes`.
    inputs : tensor or dict of tensors, optional
        One sample, as a network takes it that takes no token ids, samples in dimension 0.

    Returns
    -------
    DryRun

    Raises
    ------
    TypeError, ValueError, LookupError
        As in `lineas.fit`; a network whose way depends on numbers, which there are none of.

    Notes
    -----
    The forward pass is the one that `fit` makes, under PyTorch's fake tensors. Not counted: what libraries keep for
    themselves, the logits of the ridge's pass (a sample's at a time), and what a block needs while it runs. Slices
    count as if all weights were cut, and no activations.

    Examples
    --------
    >>> import torch, lineas
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> found = lineas.dry_run(net, 100, sites="0", inputs=torch.zeros(1, 4))
    >>> found.units, found.weights, found.activations >= 100 * 8 * 4
    (8, 232, True)
    """
    if whole(processes, "processes") % whole(slices, "slices"):
        raise ValueError(f"slices: expected a divisor of the {processes} processes, got {slices}")
    n, m = (whole(count, "samples", 2) for count in ((samples, samples) if isinstance(samples, int) else samples))
    network = _network(model)
    teams = processes // slices
    share = ceil(n / teams)
    size = min(share if batch_size is None else whole(batch_size, "batch_size"), share)
    twin = shadow(network, dtype)
    weights = _bytes_of({id(tensor): tensor for tensor in [*twin.parameters(), *twin.buffers()]}.values())
    blocks = _blocks(twin)
    of_blocks = [_bytes_of(block.parameters()) for block in blocks]
    with shadows(twin):
        batch = _batch(twin, size, whole(tokens, "tokens"), inputs)
        mapped = find_sites(twin, sites)
        compared = mapped if loss_sites is None else find_sites(twin, loss_sites)
        try:
            defaults = mapped if sites is None else ()
            layout = probe(twin, [*dict.fromkeys([*mapped, *compared])], batch, defaults, feed_mlps=False)
            runner = Runner(twin, layout.part(mapped), layout.part(compared), pooling)
            kept, checkpointed, residual = _kept(runner, batch, blocks)
        except RuntimeError as error:  # of fake tensors: what depends on numbers
            kind = type(network).__name__
            raise ValueError(
                f"model: expected a network that can run without numbers, got a {kind}: {str(error).splitlines()[0]}"
            ) from error
    units, compared_units = runner.mapped.units, runner.compared.units
    batches = ceil(share / size)
    trips = 2 if batches == 1 else 3 * batches  # several batches pass once for responses, and again for the way back
    return DryRun(
        parameters=sum(weight.numel() for weight in twin.parameters()), sites=len(runner.mapped.sites), units=units,
        processes=processes, slices=slices, batch_size=size, weights=weights, largest_block=max(of_blocks),
        outside=max(0, weights - sum(of_blocks)), activations=kept, activations_checkpointed=checkpointed,
        # Sources, their slopes, and those in units of their size; targets, sorted.
        responses=(2 * n + share + m) * compared_units * FLOAT,
        optimiser=bytes_of(units) + 3 * units * DOUBLE + min(m * 2 * units, ROOM) * FLOAT,
        evaluation_traffic=(n - share) * compared_units * FLOAT + (teams - 1) * 2 * units * FLOAT,
        # Every pass gathers each block's weights, and so does every way back.
        weight_traffic=trips * (weights // slices - weights // processes),
        # Two sums a block, there and back, each of which receives its size twice but for this process's own part.
        slice_traffic=trips * 2 * (2 * (slices - 1) * residual // slices),
    )  # fmt: skip


def _network(model: Any) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    if not hasattr(model, "model_type"):
        raise TypeError(f"model: expected a network or a config of transformers, got {type(model).__name__}")
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(model)


def _batch(twin: nn.Module, size: int, tokens: int, inputs: Tensor | Mapping[str, Tensor] | None) -> Batch:
    if inputs is None:
        return Batch((), {"input_ids": torch.zeros(size, tokens, dtype=torch.long)}, size)
    given: dict[str, Tensor] = {"": inputs} if isinstance(inputs, Tensor) else dict(inputs)
    made = {}
    for name, value in given.items():
        if not isinstance(value, Tensor) or not value.ndim:
            raise TypeError(f"inputs: expected tensors with a sample in dimension 0, got {type(value).__name__}")
        made[name] = torch.empty(size, *value.shape[1:], dtype=value.dtype)
    return Batch((made[""],), {}, size) if "" in made else Batch((), made, size)


def _blocks(twin: nn.Module) -> list[nn.Module]:
    """The modules of its lists, those inside others aside."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in twin.modules():
        if isinstance(module, nn.ModuleList) and module not in inside:
            found += list(module)
            inside.update(part for block in module for part in block.modules())
    return found or [twin]


def _kept(runner: Runner, batch: Batch, blocks: Sequence[nn.Module]) -> tuple[int, int, int]:
    """Bytes that a pass keeps for its way back, weights aside; those that it would with blocks computed again: what
    goes into each, and the most that one keeps; and the former of these alone."""
    weights = {_storage(tensor)[0] for tensor in [*runner.model.parameters(), *runner.model.buffers()]}
    kept: dict[int, int] = {}
    of_block: dict[int, dict[int, int]] = {}
    goes_in: dict[int, int] = {}
    now: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        key, nbytes = _storage(tensor)
        if key not in weights:
            kept[key] = nbytes
            held.append(tensor)  # or another one could have its place
            if now:
                of_block.setdefault(now[-1], {})[key] = nbytes
        return tensor

    def enter(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        now.append(id(module))
        goes_in.update(_storage(value) for value in _tensors((args, kwargs)) if value.requires_grad)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        now.pop()

    held: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in blocks]
    hooks += [block.register_forward_hook(leave) for block in blocks]
    leaf = torch.empty(2 * runner.mapped.units, requires_grad=True)
    try:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            runner.run(batch, leaf)
    finally:
        for hook in hooks:
            hook.remove()
    inner = {key for found in of_block.values() for key in found}
    outside = sum(nbytes for key, nbytes in kept.items() if key not in inner)
    most = max((sum(found.values()) for found in of_block.values()), default=0)
    residual = sum(goes_in.values())
    return sum(kept.values()), min(outside + residual + most, sum(kept.values())), residual


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ():
        yield from _tensors(item)


def _storage(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage._cdata, storage.nbytes()


def _bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
