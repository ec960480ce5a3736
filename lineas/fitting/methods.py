"""Methods that look at responses and compute maps from them, site by site; nothing is minimised through the model."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from .. import directions, transport
from ..core.arrays import Vector
from ..maps.kinds import Affine, neutral_parts
from ..network.batch import Batch
from ..network.calls import call
from ..network.hooks import hooked
from ..network.sites import Site
from ..network.state import reseed
from ..responses.layout import Layout
from ..responses.pooling import Part
from ..responses.rounding import resolution, settled
from ..responses.runner import Finished, Runner, blame
from .distributed import Alone

SCHEDULES = ("at_once", "sequential")
Formula = Callable[[Vector, Vector], tuple[ArrayLike, ArrayLike]]  # (n, d), (m, d) -> weight (d,), bias (d,)


class Method(NamedTuple):
    """How one site's maps come from responses there, and what the paper that has it does."""

    maps: Formula
    schedule: str
    pooling: str
    least: int = 2  # samples of each set
    needs_units: bool = False  # of all units it would leave nothing


METHODS = {
    "mean_act": Method(transport.mean_act, "sequential", "mean"),
    "gaussian_act": Method(transport.gaussian_act, "sequential", "mean"),
    "linear_act": Method(transport.linear_act, "sequential", "mean"),
    "aura": Method(transport.aura, "at_once", "max"),
    "det0": Method(transport.det0, "at_once", "max", needs_units=True),
    "caa": Method(directions.caa, "at_once", "last"),
    "actadd": Method(directions.actadd, "at_once", "last", least=1),
    "iti_c": Method(directions.iti_c, "at_once", "last"),
    "repe": Method(directions.repe, "at_once", "last"),
}


def find(method: "str | Formula") -> Method:
    """The method of that name, or a user's own formula as one."""
    return METHODS[method] if isinstance(method, str) else Method(method, "at_once", "mean")


def maps_of(
    method: Method, schedule: str, runner: Runner, sources: Sequence[Batch], targets: Sequence[Batch],
    free: NDArray[np.bool_] | None, world: Alone, kind: type[Affine] = Affine,
) -> tuple[Vector, dict[str, Affine], int]:  # fmt: skip
    """The maps of all sites, [weights, biases], the identity where a unit is not free; and passes over the sources.

    Between them, by site, what the kind of map has beside these, measured on the responses that they came from.

    Parameters
    ----------
    runner : Runner
        Its mapped and compared sites are the same, and its pooling is one.
    schedule : one of SCHEDULES
        "at_once" takes what the sources do in the unsteered network. "sequential" takes what they do at a site under
        the maps of all earlier ones: in one forward pass where they are one batch, else in a pass to each site.
    free : (N,) bool, optional
        Which units may have a map; all if not given.
    """
    with blame("tgt"):
        goal, _ = world.gather(lambda: runner.collect(targets, world.each))
        least, _ = world.gather(lambda: resolution(runner, targets[0]))
    everywhere = np.ones(runner.mapped.units, bool)
    fitting = _Fitting(method, runner.mapped, goal, everywhere if free is None else free, world, kind, least.max(0))
    with blame("src"):
        passes = _fit_all(schedule, runner, sources, fitting)
    return fitting.x, fitting.kinds_by_site(), passes


def _fit_all(schedule: str, runner: Runner, sources: Sequence[Batch], fitting: "_Fitting") -> int:
    layout, world = fitting.layout, fitting.world
    if schedule == "at_once":
        responses, _ = world.gather(lambda: runner.collect(sources, world.each))
        for k in range(len(layout.sites)):
            fitting.fit(k, responses[:, layout.slice(k)])
        return 1
    if max(world.share(len(sources))) == 1:
        _in_one_pass(runner, sources[0], fitting)
        return 1
    _site_by_site(runner, sources, fitting)
    return len(layout.sites)


class _Fitting:
    """The maps so far, and how to add a site's."""

    def __init__(
        self, method: Method, layout: Layout, targets: Vector, free: NDArray[np.bool_], world: Alone,
        kind: type[Affine], least: Vector,
    ):  # fmt: skip
        self.method, self.layout, self.free, self.world = method, layout, free, world
        self.targets, self.least = settled(targets, least), least
        self.x, self.kind, self.parts = layout.identity(), kind, neutral_parts(kind, layout.units)

    def fit(self, k: int, responses: Vector) -> None:
        """From all processes' responses (n, d) at site k, its maps."""
        where = self.layout.slice(k)
        sources = settled(responses, self.least[where])
        weight, bias = self.method.maps(np.ascontiguousarray(sources), np.ascontiguousarray(self.targets[:, where]))
        part_of_site = [half[where] for half in np.split(self.x, 2)]
        for name, part, value in zip(("weight", "bias"), part_of_site, (weight, bias), strict=True):
            if np.shape(value) != part.shape or not np.isfinite(value).all():
                raise ValueError(
                    f"site {self.layout.sites[k].name!r}: expected a finite {name} {part.shape} from the method, got "
                    f"{np.shape(value)}{' with NaN or infinity' * (np.shape(value) == part.shape)}"
                )
            np.copyto(part, np.asarray(value, np.float32), where=self.free[where])
        for part, value in zip(self.parts, self.kind.measured(responses), strict=True):
            np.copyto(part[where], value, where=self.free[where])

    def mapped(self, k: int, h: Tensor) -> Tensor:
        """What site k's maps make of its activations, as `attach` does it."""
        where, shape = self.layout.slice(k), [1] * h.ndim
        shape[self.layout.channel_dims[k]] = -1
        parts = [*np.split(self.x, 2), *self.parts]
        return self.kind.apply(h, *(torch.from_numpy(part[where]).to(h.device).view(shape) for part in parts))

    def kinds_by_site(self) -> dict[str, Affine]:
        places = ((site.name, self.layout.slice(k)) for k, site in enumerate(self.layout.sites))
        return {name: self.kind(*(part[where] for part in self.parts)) for name, where in places}


def _in_one_pass(runner: Runner, batch: Batch, fitting: _Fitting) -> None:
    """Each site's responses become its maps, and these go on at once, before the pass goes on."""
    part, layout = Part(batch, runner.poolings), fitting.layout

    def watch(k: int, site: Site):
        def see(module: nn.Module, h: Tensor) -> Tensor:
            def respond() -> Tensor:
                identity = torch.ones(layout.sizes[k], device=h.device), torch.zeros(layout.sizes[k], device=h.device)
                return part.pooled(h, layout.channel_dims[k], layout.sides[k], site, *identity)[1]

            responses, _ = fitting.world.gather(lambda: runner.gather(respond(), site))
            fitting.fit(k, responses)
            if k + 1 == len(layout.sites) and runner.may_stop:
                raise Finished
            return fitting.mapped(k, h)

        return see

    reseed(runner.seed + batch.number, runner.device)
    hooks = hooked(runner.model, {site: watch(k, site) for k, site in enumerate(layout.sites)}, batch.size)
    with torch.no_grad(), hooks, runner.half(), suppress(Finished):
        call(runner.model, batch)


def _site_by_site(runner: Runner, sources: Sequence[Batch], fitting: _Fitting) -> None:
    layout = fitting.layout
    earlier: dict[Site, Callable[[nn.Module, Tensor], Tensor]] = {}
    for k, site in enumerate(layout.sites):
        of_site = Runner(
            runner.model, layout.part([]), layout.part([site]), runner.poolings, runner.seed, savings=runner.savings,
            compute_dtype=runner.compute_dtype,
        )  # fmt: skip
        with hooked(runner.model, earlier):
            collect = partial(of_site.collect, sources, fitting.world.each)
            responses, _ = fitting.world.gather(collect)
        fitting.fit(k, responses)
        earlier[site] = lambda module, h, k=k: fitting.mapped(k, h)  # type: ignore[misc]
