"""A ridge on the maps, measured by how far they move the model's output."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core import _core
from ..core.arrays import Floats
from ..core.errors import NonFiniteError
from ..core.mirror import memory_free
from ..core.threads import thread_count
from ..network.batch import Batch
from ..network.calls import call, output_of
from ..network.hooks import hooked
from ..network.kept import sizes_of
from ..network.sharding import refuse_slices, team_of
from ..network.sites import Site
from ..responses.layout import Layout
from ..responses.padding import put_back, set_aside
from ..responses.pooling import Part
from .distributed import Alone

# Output numbers at a time: a language model's logits are the largest thing that a fit ever holds. On a GPU, where a
# small pass costs as much as a large one, no more than there is memory for.
LARGEST, LARGEST_ON_GPU, BYTES = 1 << 23, 1 << 28, 24
ROOM = 1 << 25  # numbers of all rows that are kept: 128 MB
FLOOR = 0.3  # of the mean: estimates from few samples must leave no unit free to go anywhere


@dataclass(frozen=True)
class Ridge:
    """The sum over units of stretch u^2 + 2 cross u b + shift b^2, where u = weight - 1 and b = bias.

    Parameters
    ----------
    stretch, cross, shift : (N,) float64
        What a unit's map does to the model's output, to second order; shift has mean 1.
    rows : (samples, 2 N) float32
        By sample, the gradient of a drawn label's log-likelihood, for all weights and then all biases, divided by the
        root of twice the sample's tokens; of as many samples as `ROOM` has place for. None of what is no logits, unless
        asked for: then the gradient of the output along a random direction, divided by the output's length.
    in_nats : bool
        Whether rows are of logits.
    """

    stretch: Floats
    cross: Floats
    shift: Floats
    rows: NDArray[np.float32] | None = None
    in_nats: bool = True

    def divergences(self, x: NDArray[np.float32]) -> Floats:
        """KL(model, steered model) a token, in nats, that the maps x are predicted to make of each row's sample; where
        rows are of no logits, the squared change of its output by that of its length.

        To second order, (samples,). The whole Fisher form along the maps, which few samples know well; of its diagonal,
        which is what the ridge has, units that move together make several times less.
        """
        if self.rows is None:
            return np.empty(0)
        moves = np.concatenate([x[: len(x) // 2] - 1, x[len(x) // 2 :]]).astype(np.float64)
        return np.square(self.rows @ moves)

    def value_and_gradient(
        self, x: NDArray[np.float32], strength: float, out: NDArray[np.float32] | None = None
    ) -> tuple[float, NDArray[np.float32]]:
        """strength times this at the maps x = [weights, biases], and its gradient (2 N,), in `out` if given."""
        out, threads = np.empty_like(x) if out is None else out, thread_count(None, x.size)
        return _core.ridge(out, x, self.stretch, self.cross, self.shift, strength, threads), out

    def curvature(self) -> Floats:
        """(3, N): second derivatives of each unit for (weight, weight), (weight, bias) and (bias, bias)."""
        return 2 * np.stack([self.stretch, self.cross, self.shift])


def sensitivity(
    model: nn.Module, layout: Layout, batches: Sequence[Batch], seed: int, world: Alone | None = None, *,
    rows_of_any: bool = False,
) -> Ridge:  # fmt: skip
    """How much the model's output minds each unit's map, from one forward and backward pass through all of it.

    For logits it is the Fisher information of the maps, 2 KL(model, steered model) a sample to second order: labels are
    drawn from the model's own distribution, and the gradients of their log-likelihood squared, sample by sample. For
    any other output it is the squared move of its numbers, along random directions.

    Parameters
    ----------
    layout : of the mapped sites
    batches : samples that the model should go on to handle as it does: the target's
    seed : of the labels and directions
    world : the processes whose samples count together
    rows_of_any : bool
        Whether rows are kept of an output that is no logits, too.

    Notes
    -----
    One evaluation, through the whole model; memory is that of a few samples at a time. `FLOOR` times the mean is added
    to every unit. Source: Amari, Natural Gradient Works Efficiently in Learning, Neural Computation 10 (1998).
    """
    world = world or Alone()
    first = world.earlier(sum(sizes_of(batches)))
    totals = np.zeros((3, layout.units))
    most = most_at_once(batches[0])
    rows = max(1, most // bound(model, batches[0]))
    room, team, in_nats = min(ROOM // (2 * layout.units), sum(sizes_of(batches))), team_of(model), True
    kept, count = np.empty((room, 2 * layout.units), np.float32), 0  # where nothing is written there are no pages

    def parts() -> Iterator[tuple[int, Batch]]:
        """A few samples at a time, and the seed of the first one."""
        start = seed + first
        for batch in batches:
            stop = 0
            while stop < batch.size:
                part = batch.rows(stop, min(stop + rows, batch.size))
                yield start + stop, part
                stop += part.size
            start += batch.size

    def slopes(numbered: tuple[int, Batch]) -> tuple[Tensor, Tensor, Floats | None] | None:
        """Of each sample, for all weights and all biases; and what its row is multiplied by, where one is kept."""
        nonlocal rows, in_nats
        number, part = numbered
        output, is_logits, leaves = outputs_of(model, layout, part)
        rows = max(1, most * part.size // output.numel())
        if team:
            refuse_slices(team, {"the model's output": output.transpose(0, -1).flatten(1).mean(1)})
        if not output.requires_grad:  # quantised layers behind the last loss site may pass nothing back
            return None
        direction = _direction(output, is_logits, part, number)
        with world.way_back():
            gradients = torch.autograd.grad(output, leaves, direction, materialize_grads=True, allow_unused=True)
        half = len(layout.sites)
        w, b = (side_by_side(g) for g in (gradients[:half], gradients[half:]))
        if not (is_logits or rows_of_any) or output.shape[:1] != (part.size,):
            return w, b, None
        in_nats = is_logits
        return w, b, _scales(output, is_logits, part)

    for found in world.each(slopes, parts()):
        if found is None:
            continue
        w, b, scales = found
        totals += torch.stack([(w * w).sum(0), (w * b).sum(0), (b * b).sum(0)]).cpu().numpy()
        if scales is not None and count < room:
            few = min(len(w), room - count)
            rows_of_both = torch.cat([w[:few], b[:few]], 1) * torch.from_numpy(scales[:few, None]).to(w.device)
            kept[count : count + few] = rows_of_both.float().cpu().numpy()
            count += few
    totals = world.total(totals)
    if not np.isfinite(totals).all():
        raise NonFiniteError("expected finite gradients of the model's output, got others; pass ridge=0")
    mean = totals[2].mean()
    if not mean > 0:
        return Ridge(np.ones(layout.units), np.zeros(layout.units), np.ones(layout.units))
    stretch, cross, shift = totals / mean / (1 + FLOOR)
    by_sample = kept[:count] if count else None
    return Ridge(stretch + FLOOR / (1 + FLOOR), cross, shift + FLOOR / (1 + FLOOR), by_sample, in_nats)


def most_at_once(batch: Batch) -> int:
    """How many numbers of output a pass may have."""
    device = next(batch.tensors()).device
    if device.type != "cuda":
        return LARGEST
    return min(LARGEST_ON_GPU, memory_free(device) // BYTES)


def bound(model: nn.Module, batch: Batch) -> int:
    """At most how many numbers a sample's output has, where that is known: for tokens and their mask, no dimension of
    a weight a token is larger. Else that is for the first sample alone to tell."""
    if batch.mask is None or next(batch.tensors()).device.type != "cuda":
        return 1 << 62
    return batch.mask.shape[1] * max(max(weight.shape, default=1) for weight in model.parameters())


def _mask(output: Tensor, batch: Batch) -> Tensor | None:
    """Which of the output's places count, (samples, tokens); None where there is no padding."""
    has_decoder = any(key.startswith("decoder_") for key in batch.kwargs)  # whose output it then is
    mask = batch.mask_of("decoder_" if has_decoder else "")
    return mask != 0 if mask is not None and mask.shape == output.shape[:2] else None


def _scales(output: Tensor, is_logits: bool, batch: Batch) -> Floats:
    """What each sample's row is multiplied by, (samples,): a squared row is then nats a token, or a relative change."""
    if is_logits:
        return 1 / np.sqrt(2 * _tokens(output, batch))
    squares = output.detach().float().square()
    squares = squares[:, None] if squares.ndim < 2 else squares.flatten(2).sum(2) if squares.ndim > 2 else squares
    mask = _mask(output, batch)
    lengths = (squares if mask is None else squares * mask).sum(1).sqrt().cpu().double().numpy()
    return np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)


def _tokens(output: Tensor, batch: Batch) -> Floats:
    """How many distributions the logits of each sample are, (samples,)."""
    mask = _mask(output, batch)
    if mask is not None:
        return mask.sum(1).cpu().double().numpy()
    return np.full(batch.size, output.numel() / (batch.size * output.shape[-1]))


def side_by_side(gradients: Sequence[Tensor]) -> Tensor:
    """(samples, N) float64, on a GPU if they are, else on the CPU: not every device has float64."""
    flat = torch.cat([g.flatten(1) for g in gradients], 1)
    return (flat if flat.device.type == "cuda" else flat.cpu()).double()


def outputs_of(model: nn.Module, layout: Layout, batch: Batch) -> tuple[Tensor, bool, list[Tensor]]:
    """The model's output, and a weight and a bias of its own for each sample at each site: weights first."""
    weights: dict[Site, Tensor] = {}
    biases: dict[Site, Tensor] = {}
    part = Part(batch, "mean")

    def watch(site: Site, dim: int, side: str):
        def see(module: nn.Module, h: Tensor) -> Tensor:
            shape = [len(h), *(h.shape[k] if k == dim % h.ndim else 1 for k in range(1, h.ndim))]
            weights[site] = torch.ones(shape, dtype=h.dtype, device=h.device, requires_grad=True)
            biases[site] = torch.zeros(shape, dtype=h.dtype, device=h.device, requires_grad=True)
            padding = part.padding(h, dim, side)
            safe, odd = set_aside(h, padding)
            return put_back(safe * weights[site] + biases[site], h, odd, padding)

        return see

    where = zip(layout.sites, layout.channel_dims, layout.sides, strict=True)
    with hooked(model, {site: watch(site, dim, side) for site, dim, side in where}, batch.size):
        output, is_logits = output_of(call(model, batch))
    return output, is_logits, [*(weights[s] for s in layout.sites), *(biases[s] for s in layout.sites)]


def _direction(output: Tensor, is_logits: bool, batch: Batch, seed: int) -> Tensor:
    """Which move of the output to look at: p - e_label for logits, a label drawn from p at each token; else any.

    Every sample draws from a seed of its own, and nothing for padding: how samples are batched changes nothing.
    """
    direction = torch.zeros_like(output)
    apart = output.shape[:1] == (batch.size,)  # else one number, or whatever, for all samples
    masks = _mask(output, batch)
    rows, moves = (x.detach() if apart else x.detach()[None] for x in (output, direction))
    for k, (row, move) in enumerate(zip(rows, moves, strict=True)):
        draw = torch.Generator(output.device).manual_seed(seed + k)
        where = ... if masks is None else masks[k]
        if is_logits:
            p = row[where].float().softmax(-1)
            label = torch.multinomial(p.reshape(-1, p.shape[-1]), 1, generator=draw).view(*p.shape[:-1], 1)
            drawn = p.scatter_add(-1, label, torch.full_like(p[..., :1], -1))
        else:
            drawn = torch.randn(row[where].shape, generator=draw, device=row.device, dtype=torch.float32)
        move[where] = drawn.to(move.dtype)
    return direction
