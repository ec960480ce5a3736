"""Run a frozen model, collect the pooled responses of all sites into one host buffer."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from itertools import chain
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core import _core
from ..core.arrays import Vector
from ..core.errors import NonFiniteError
from ..core.mirror import Mirrors
from ..core.spill import OnDisk, Spill, Table
from ..network.batch import Batch
from ..network.blocks import PrefixRecord, checkpointed, checkpointing, neighbours, replaced
from ..network.calls import call
from ..network.hooks import hooked
from ..network.kept import sizes_of
from ..network.links import trail
from ..network.sharding import gathering, is_sharded, is_split, tied
from ..network.sites import Site
from ..network.state import device_of, dtype_of, must_finish, reseed
from .graphs import Graphs
from .layout import Layout
from .pooling import Part, as_poolings

Rows = TypeVar("Rows", Vector, OnDisk, Table)
Each = Callable[[Callable[[Batch], NDArray[np.float32]], Sequence[Batch]], Iterable[NDArray[np.float32]]]


class Begun(Exception):
    """The first map has been asked for."""


class Finished(Exception):
    """The last site that is looked at has been seen: the rest of the forward pass is not needed."""


@contextmanager
def blame(inputs: str) -> Iterator[None]:
    """Say of responses that are not finite which inputs made them."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{inputs}: {error}") from None


class MapTensors:
    """The flat vector [weights, biases], by site and on whatever device the site is; one gradient for it comes back.

    `before` is called when the first site asks for its map.
    """

    def __init__(self, x: Tensor, layout: Layout, before: Callable[[], None] | None = None):
        self.x, self.sizes, self.before = x, layout.sizes, before
        self.place = {site: k for k, site in enumerate(layout.sites)}
        self._by_device: dict[torch.device, tuple[Tensor, ...]] = {}

    def __call__(self, site: Site, device: torch.device) -> tuple[Tensor, Tensor]:
        if self.before and not self._by_device:
            self.before()
        if device not in self._by_device:
            self._by_device[device] = self.x.to(device).split([*self.sizes, *self.sizes])
        parts, k = self._by_device[device], self.place[site]
        return parts[k], parts[k + len(self.sizes)]


class Savings(NamedTuple):
    """What a runner may leave out, since the result is known.

    Attributes
    ----------
    cuts_padding : bool
        Samples pass in groups of similar length, without the columns that are padding in all of them.
    skips_prefix : bool
        What runs before the first mapped site runs once for each batch, and is recorded.
    room : int
        Bytes that such records may take together.
    """

    cuts_padding: bool = False
    skips_prefix: bool = False
    room: int = 0


NOTHING = Savings()


class Runner:
    """Runs a frozen model with maps at some sites and gathers responses at others, no further than it must.

    Parameters
    ----------
    compared : Layout
        Where responses are gathered. The runner's own has as many columns for each unit as there are poolings.
    pooling : str or sequence of str
    savings : Savings
        What it may leave out: nothing, or what another runner of the same sites found (`possible_savings`).
    compute_dtype : torch.dtype, optional
        To which matrix products are autocast, where it is not the weights'.
    graphs : bool
        Whether a GPU may replay trips (`graphs.Graphs`).

    Attributes
    ----------
    spill : Spill or None
        Where responses to a whole set lie; in memory where it is None.
    """

    def __init__(
        self, model: nn.Module, mapped: Layout, compared: Layout, pooling: str | Sequence[str], seed: int = 0, *,
        savings: Savings = NOTHING, compute_dtype: torch.dtype | None = None, graphs: bool = False,
    ):  # fmt: skip
        self.model, self.mapped, self.poolings = model, mapped, as_poolings(pooling)
        self.compared = compared.pooled(len(self.poolings))
        self.seed, self.device = seed, device_of(model)
        self.dims: dict[Site, int] = {}
        self.sides: dict[Site, str] = {}
        for layout in (compared, mapped):
            self.dims.update(zip(layout.sites, layout.channel_dims, strict=True))
            self.sides.update(zip(layout.sites, layout.sides, strict=True))
        around = {module for site in compared.sites for module in trail(model, site.path)[:-1]}
        self.may_stop = not any(map(must_finish, around))
        self.inside = {
            module: [site for site in compared.sites if module in trail(model, site.path)[:-1]]
            for module in gathering(model)
            if module in around and module is not model
        }
        self.checkpointing = checkpointing(model, compared.sites[-1])
        self.savings, self.compute_dtype = savings, compute_dtype
        self.graphs, self.mirrors = Graphs(self, graphs), Mirrors(self.device)
        self._skips_prefix, self._room = savings.skips_prefix, savings.room
        self.spill: Spill | None = None
        self._plans: WeakKeyDictionary[Batch, tuple[list[Part], Tensor | None]] = WeakKeyDictionary()

    def possible_savings(self, batches: Iterable[Batch], prefix: bool = True) -> Savings:
        """What this model allows to leave out, by a look with single samples; the runner itself leaves nothing out.

        Nothing, where weights are spread over processes: others may have samples that allow other things, and all must
        run the same passes.

        Padding, if a sample responds without it as it does with it, up to rounding. With `prefix`, what runs before the
        first mapped site, where no response changes a bit by that; what must be kept for it takes at most a sixteenth
        of the memory of the weights, or 16 MB.
        """
        if any(map(is_sharded, self.model.modules())) or is_split(self.model):
            return NOTHING
        with torch.no_grad():
            first = next(others := iter(batches))
            padded = next((batch for batch in chain([first], others) if batch.groups()), None)
            cuts_padding = padded is not None and self._is_padding_idle(padded)
            skips_prefix = prefix and self._is_prefix_constant(first.rows(0, 1))
        weights = sum(weight.numel() * weight.element_size() for weight in self.model.parameters())
        return Savings(cuts_padding, skips_prefix, max(weights // 16, 1 << 24))

    def _is_padding_idle(self, batch: Batch) -> bool:
        groups = batch.groups()
        pair = batch.take([groups[0][0], groups[-1][-1]])  # the shortest sample and the longest
        with_padding, without = self.run(pair)[:1], self.run(pair.take([0]).trimmed())
        tolerance = torch.finfo(dtype_of(self.model)).eps ** 0.5
        return bool((with_padding - without).norm() <= tolerance * without.norm())

    def _is_prefix_constant(self, sample: Batch) -> bool:
        """Two random maps, with what was recorded under the first of them: the same bits as in the ordinary way?"""
        lists = neighbours(self.model, self.mapped.sites[0])
        if not lists:
            return False
        identity, draw = torch.from_numpy(self.mapped.identity()), torch.Generator().manual_seed(self.seed)
        away = torch.randn(2, len(identity), generator=draw, dtype=torch.float32, device="cpu")
        maps = [MapTensors(x, self.mapped) for x in identity + 0.1 * away]
        part, record = Part(sample, self.poolings), PrefixRecord(lists)
        if self.may_stop and not self._runs_before(part, PrefixRecord(lists)):
            return False

        def respond(*how) -> Tensor:
            reseed(self.seed, self.device)
            return self._pass(part, *how)

        first, second = respond(maps[0], record), respond(maps[1])
        if not record.usable:
            return False
        try:
            return torch.equal(respond(maps[1], record), second) and torch.equal(respond(maps[0], record), first)
        except Exception:  # whatever this model misses when a block does not run, it shall have
            return False

    def _runs_before(self, part: Part, record: PrefixRecord) -> bool:
        """Whether any block runs before the first map; the pass ends there."""

        def stop() -> None:
            raise Begun

        identity = torch.from_numpy(self.mapped.identity())
        reseed(self.seed, self.device)
        with suppress(Begun):
            self._pass(part, MapTensors(identity, self.mapped, stop), record)
        return bool(record.ran)

    def run(self, batch: Batch, x: Tensor | None = None, before_maps: Callable[[], None] | None = None) -> Tensor:
        """Responses of the compared sites side by side, (batch, N), under the maps x = [weights, biases], or none.

        Differentiable for x. The forward pass ends at the last compared site, unless that would leave weights loaded. A
        model that draws random numbers draws the same ones for a batch every time, so that equal maps give equal
        responses; the caller restores the generators (`state.seeded`). `before_maps` is called when the pass comes to
        the first map: nothing before it depends on x.
        """
        if batch not in self._plans:
            self._plans[batch] = self._plan(batch)
        parts, order = self._plans[batch]
        maps = None if x is None else MapTensors(x, self.mapped, before_maps)
        reseed(self.seed + batch.number, self.device)
        responses = [self._pass(part, maps) if maps is None else self._short_pass(part, maps) for part in parts]
        return responses[0] if order is None else torch.cat(responses)[order]

    def _plan(self, batch: Batch) -> tuple[list[Part], Tensor | None]:
        """The batch in parts of samples of similar length, and where each sample is in them."""
        groups = batch.groups() if self.savings.cuts_padding else []
        if not groups:
            return [Part(batch, self.poolings)], None
        parts = [Part(batch.take(rows).trimmed(), self.poolings) for rows in groups]
        return parts, torch.from_numpy(np.argsort(np.concatenate(groups))).to(self.device)

    def _short_pass(self, part: Part, maps: MapTensors) -> Tensor:
        """A pass that begins at the first mapped site, if it may; the first one records what comes before it."""
        if part.record is not None and not part.record.usable:  # this model writes into what blocks return
            self._skips_prefix, part.record = False, None
        if not self._skips_prefix or part.record is not None:
            return self._pass(part, maps, part.record)
        record = PrefixRecord(neighbours(self.model, self.mapped.sites[0]))
        responses = self._pass(part, maps, record)
        if record.usable and record.nbytes <= self._room:
            self._room, part.record = self._room - record.nbytes, record
        return responses

    def _pass(self, part: Part, maps: MapTensors | None, record: PrefixRecord | None = None) -> Tensor:
        """One forward pass, to the last compared site; blocks that a record knows do not run, nor do its sites."""
        known = {} if record is None else record.responses
        found = dict(known)
        steered = {} if maps is None else maps.place
        differentiable = maps is not None and torch.is_grad_enabled()

        def watch(site: Site):
            def see(module: nn.Module, h: Tensor) -> Tensor:
                if maps is not None and site in steered:
                    if differentiable and not torch.is_grad_enabled():
                        raise RuntimeError(
                            f"site {site.name!r}: expected autograd to record it, but the model runs it under "
                            "torch.no_grad, or in a reentrant checkpoint of its own"
                        )
                    if record is not None and record.open:
                        record.close({site: responses.detach() for site, responses in found.items()})
                    scale, shift = maps(site, h.device)
                else:
                    units = h.shape[self.dims[site]]
                    scale, shift = torch.ones(units, device=h.device), torch.zeros(units, device=h.device)
                out, responses = part.pooled(h, self.dims[site], self.sides[site], site, scale, shift)
                if site in self.compared.sites and site not in found:  # a checkpointed block runs once more later
                    found[site] = responses
                    if len(found) == len(self.compared.sites) and self.may_stop:
                        raise Finished
                return out if h.requires_grad or site in steered else h

            return see

        needed = [site for site in self.dims if site in steered or site in self.compared.sites]
        functions = {site: watch(site) for site in needed if site not in known}
        hooks = partial(hooked, self.model, functions, part.batch.size)
        forwards = {} if record is None else record.forwards()
        if differentiable:
            forwards |= {b: checkpointed(b, hooks) for b in self.checkpointing if record is None or b not in record.ran}
        ties = tied(found, self.inside if differentiable else {})
        with hooks(), ties, replaced(forwards), self.half(), suppress(Finished):
            call(self.model, part.batch)
        if missing := [site.name for site in self.compared.sites if site not in found]:
            raise LookupError(f"not run in this forward pass, though it was in the first: {', '.join(missing)}")
        return torch.cat([found[site].to(self.device) for site in self.compared.sites], 1)

    def half(self) -> AbstractContextManager:
        """While open, matrix products are in `compute_dtype`."""
        return torch.autocast(self.device.type, self.compute_dtype) if self.compute_dtype else nullcontext()

    def gather(self, responses: Tensor, site: Site | None = None) -> NDArray[np.float32]:
        """Copy responses (batch, N), or those of one site, to the host.

        NonFiniteError names the site where one is not finite.
        """
        return self.checked(np.ascontiguousarray(responses.detach().to("cpu", torch.float32).numpy()), site)

    def checked(self, host: NDArray[np.float32], site: Site | None = None) -> NDArray[np.float32]:
        """These responses; NonFiniteError names the site where one is not finite."""
        bad = _core.first_nonfinite(host)
        if bad >= 0:
            site = site or self.compared.site_of(bad % self.compared.units)
            raise NonFiniteError(f"site {site.name!r}: expected finite responses, got {host.flat[bad]}")
        return host

    def collect(self, batches: Sequence[Batch], each: Each = map) -> Vector:
        """Responses of the unsteered model to all batches, one after another: (n, N) on the host.

        `each` runs the passes, where others have a say in that.
        """
        rows = np.empty((sum(sizes_of(batches)), self.compared.units), np.float32)
        with torch.no_grad():
            return _filled(rows, sizes_of(batches), each(self._unsteered, batches))

    def collect_table(self, batches: Sequence[Batch], each: Each = map) -> Table:
        """The same, where `spill` has them."""
        with torch.no_grad():
            return self.stacked(batches, each(self._unsteered, batches))

    def _unsteered(self, batch: Batch) -> Vector:
        return self.gather(self.run(batch))

    def stacked(self, batches: Sequence[Batch], parts: Iterable[Vector]) -> Table:
        """Responses to one batch after the other, (n, N), each made when the one before is in its place."""
        sizes = sizes_of(batches)
        shape = sum(sizes), self.compared.units
        return _filled(self.spill.table(*shape) if self.spill else np.empty(shape, np.float32), sizes, parts)


def _filled(rows: Rows, sizes: Sequence[int], parts: Iterable[Vector]) -> Rows:
    """Each part in its place, made when the one before is there."""
    # One buffer from the start: small arrays kept from pass to pass would lie in the gaps between passes, and the next
    # pass, finding none that is large enough any more, would take new memory every time.
    start = 0
    for size, part in zip(sizes, parts, strict=True):  # to the end of the parts: some passes may be for others
        rows[start : start + size] = part
        start += size
    return rows
