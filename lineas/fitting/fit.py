"""fit: from two sets of inputs to a Steering."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from .. import optim
from ..attaching.handle import what_is_on
from ..core.device import facts as kernel_facts
from ..core.text import warn
from ..maps.kinds import Affine, WithinRange
from ..maps.units import mask_of
from ..network import identity
from ..network.batch import Batch
from ..network.data import is_stream
from ..network.inputs import Inputs
from ..network.kept import Kept
from ..network.outputs import OUTPUT, output_name
from ..network.pipelines.components import is_denoiser
from ..network.sites import Site, find_sites
from ..network.state import device_of, eager, frozen, seeded
from ..penalties import Penalty
from ..responses.probe import probe
from ..responses.runner import Runner, blame
from ..steering import Steering
from . import methods
from .budget import at_budget, check_budget
from .callbacks import Entry, listened
from .checkpoint import Checkpoint, fingerprint, refuse_another
from .differentiable import check_differentiable
from .distributed import Alone, processes
from .doubts import doubts
from .gates import check_gate, gated, site_of
from .log import Log, bar_of, note_read, reading_bar
from .losses import Loss
from .memory import Memory, any_on_disk, count_of
from .option_table import DEFAULT, described
from .options import Options
from .problem import predicted_kl, problem_of, ridge_of
from .resuming import past_of, start_of

__all__ = ["fit", "fitted"]

OF_CALIBRATE = "tokenizer", "component", "call", "batch_size", "max_length", "seed", "progress"
OF_GATE = "tokenizer", "batch_size", "max_length", "seed"
Minimise = Callable[..., list[Checkpoint]]  # of runner, sources, targets, free units, options, log and processes


def fit(
    model: Any,
    src: Any,
    tgt: Any,
    *,
    tokenizer: Any = DEFAULT.tokenizer,
    sites: str | Sequence[str | Site] | None = DEFAULT.sites,
    loss_sites: str | Sequence[str | Site] | None = DEFAULT.loss_sites,
    units: Mapping[str, ArrayLike] | None = DEFAULT.units,
    method: str | methods.Formula = DEFAULT.method,
    schedule: str | None = DEFAULT.schedule,
    within_range: bool = DEFAULT.within_range,
    recipe: str = DEFAULT.recipe,
    loss: str | Loss = DEFAULT.loss,
    loss_weights: str = DEFAULT.loss_weights,
    ridge: float | None = DEFAULT.ridge,
    penalty: Penalty | None = DEFAULT.penalty,
    optimizer: str | None = DEFAULT.optimizer,
    learning_rate: float | None = DEFAULT.learning_rate,
    steps: int | None = DEFAULT.steps,
    max_evaluations: int | None = DEFAULT.max_evaluations,
    batch_size: int | None = DEFAULT.batch_size,
    max_length: int | None = DEFAULT.max_length,
    compute_dtype: str | torch.dtype | None = DEFAULT.compute_dtype,
    pooling: str | Sequence[str] | None = DEFAULT.pooling,
    position: str = DEFAULT.position,
    budget: str | float | None = DEFAULT.budget,
    gate: bool | str | None = DEFAULT.gate,
    neutral: Any = DEFAULT.neutral,
    component: str | None = DEFAULT.component,
    call: Mapping[str, Any] | None = DEFAULT.call,
    at: str | Sequence[int] | None = DEFAULT.at,
    memory: str | int | None = DEFAULT.memory,
    graphs: bool = DEFAULT.graphs,
    seed: int = DEFAULT.seed,
    progress: bool = DEFAULT.progress,
    callbacks: Iterable[Callable[[Entry], Any]] = DEFAULT.callbacks,
    checkpoint_dir: str | os.PathLike | None = DEFAULT.checkpoint_dir,
    resume_from: Steering | str | os.PathLike | None = DEFAULT.resume_from,
    distributed: Any = DEFAULT.distributed,
) -> Steering:
    """Learn the maps that make what `src` produces in a model look like what `tgt` produces.

    Parameters
    ----------
    model : nn.Module whose modules return tensors or tuples of them, samples first; or a pipeline that calls one
    src, tgt : list of str or of chats, tensor, dict of tensors, BatchEncoding, Dataset, DataLoader, stream of samples
        Two unpaired sets of at least 2 samples. For a pipeline prompts, or a dict of what its call takes for each row.
    {options}

    Returns
    -------
    Steering with a `history` of evaluations (none unless method="lineas"), and what made it in `info`

    Raises
    ------
    TypeError, ValueError, LookupError, OSError, FloatingPointError
        On input that cannot work, before any step; a checkpoint that is not to be had; a published recipe diverged.

    Notes
    -----
    `docs/guide.md` says more, and what it costs. Source: LinEAS, Rodriguez et al., NeurIPS 2025, arXiv 2503.10679.

    Examples
    --------
    >>> import torch, lineas; net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> steering = lineas.fit(net, torch.randn(32, 4), torch.randn(40, 4) + 1, sites="0", progress=False)
    """
    return fitted(locals(), _minimise)[0]


fit.__doc__ = (fit.__doc__ or "").replace("    {options}", described())


def fitted(given: Mapping[str, Any], minimise: Minimise, name: str = "") -> list[Steering]:
    """What `fit` does with its arguments: the steerings at the ends that `minimise` comes to.

    `name`: of the concept, for warnings, where there are several.
    """
    asked = SimpleNamespace(**given)
    callbacks = listened(asked.callbacks)
    options = Options.checked(given, is_denoiser(asked.model, asked.component))
    started = time.perf_counter()
    inputs = Inputs(asked.model, component=asked.component, call=asked.call, at=asked.at, seed=options.seed)
    network, formula = inputs.network, options.in_closed_form
    streams = [key for key in ("src", "tgt") if is_stream(given[key])]
    _refuse_early(asked, options, streams)
    world = processes(asked.distributed, network)
    mapped, compared, behind = _sites_of(asked, network)
    device = device_of(network)
    shows = asked.progress and world.rank == 0 and options.fits
    with (
        world,
        nullcontext(past_of(asked.resume_from, asked.checkpoint_dir, world)) as (keeper, past),
        bar_of(options.total, _evaluations(past), shows) as bar,
        reading_bar(bool(streams) and shows) as reading,
        Memory(asked.memory, world, options.fits and options.recipe == "fast") as memory,
        seeded(options.seed, device),
        frozen(network),
        world.passes(network),
        eager(),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        sets, are_default = {"src": asked.src, "tgt": asked.tgt}, asked.sites is None
        how = asked.tokenizer, options.batch_size, options.max_length, options.least
        read = inputs.batches(sets, *how, memory.kept, partial(note_read, reading))
        sources, targets = (batches.on(device) for batches in read)
        reading.close()
        data = identity.of_data(world.of_parts((identity.data_digest(sources), identity.data_digest(targets))))
        _check_batches(world.share((len(sources), len(targets))), options.recipe)
        if compared is None:
            compared = find_sites(network, [output_name(network, sources[0].rows(0, 1))])
        feeding = not inputs.makes_pictures
        runner = _runner(network, mapped, compared, sources, targets, options, are_default, feeding, behind)
        if are_default and inputs.makes_pictures and shows:
            bar.write(f"lineas.fit: maps at all normalisations, {len(runner.mapped.sites)} sites")
        maps = {site.name: size for site, size in zip(runner.mapped.sites, runner.mapped.sizes, strict=True)}
        free = None if asked.units is None else mask_of(asked.units, maps)
        counts = world.of_parts((count_of(sources), count_of(targets)))
        facts = options.facts() | {
            "units": None if free is None else int(free.sum()),
            "samples": [sum(sizes) for sizes in zip(*counts, strict=True)],
            "loss_sites": [site.name for site in runner.compared.sites],
            **inputs.facts(), **what_is_on(network),
        }  # fmt: skip
        if (told := memory.place_responses(runner, sources, targets, facts["samples"], options.ridge != 0)) and shows:
            bar.write(told)
        of_model = identity.of_model(network, world.share)
        problem_facts = (
            _problem_facts(data, of_model["weights"], options, facts, maps, free, counts) if keeper or past else {}
        )
        if past:
            refuse_another(problem_facts, past.problem, asked.resume_from)
        past = past or Checkpoint(problem_facts, start_of(runner.mapped, maps, asked.resume_from))
        kinds: dict[str, Affine] = {}
        passes = None
        if formula:
            kind = WithinRange if options.within_range else Affine
            schedule_of_method = str(options.schedule)
            x, kinds, passes = methods.maps_of(formula, schedule_of_method, runner, sources, targets, free, world, kind)
            past = replace(past, maps=x, seconds=time.perf_counter() - started, stopped="computed")
        log = Log(
            past, maps, limit=options.max_evaluations, bar=bar, started=started, callbacks=callbacks, keeper=keeper,
            world=world,
        )  # fmt: skip
        if past.stopped:
            log.is_over()
        ends = [past] if past.stopped else minimise(runner, sources, targets, free, options, log, world)
    facts = {**of_model, "data": data, **facts}
    engine = {**kernel_facts(runner.device), **runner.graphs.facts()}
    found = [
        Steering.from_flat(
            maps, maps.values(), end.maps, kinds=kinds, history=end.history, info=_info(end, facts, engine, passes)
        )
        for end in ends
    ]
    is_priced = asked.budget is not None or len(ends) > 1
    said = doubts(ends[-1], options, facts["samples"], data["src"] == data["tgt"], is_priced=is_priced)
    if world.rank == 0 and said:
        warn(f"{name}: {said}" if name else said)
    return [_priced_and_gated(one, given) for one in found]


def _refuse_early(asked: SimpleNamespace, options: Options, streams: Sequence[str]) -> None:
    """Options that do not go together, before anything is read or run."""
    if asked.distributed and (asked.budget is not None or asked.gate):
        raise ValueError("budget, gate: expected distributed=False; see to them in one process afterwards")
    if asked.budget is not None:
        check_budget(asked.budget, asked.model, asked.src)
    if streams and (asked.budget is not None or asked.gate):
        raise ValueError(
            f"budget, gate: read {' and '.join(streams)} once more, expected what can be; got a stream. See to them "
            "afterwards: lineas.calibrate, lineas.fit_gate"
        )
    check_gate(asked.gate, asked.neutral, asked.model)
    formula = options.in_closed_form
    if formula and formula.needs_units and asked.units is None:
        raise ValueError(
            f"units: expected some, got None; {options.method!r} of all units would leave nothing of a site"
        )


def _sites_of(asked: SimpleNamespace, network: nn.Module) -> tuple[list[Site], list[Site] | None, Site | None]:
    """Where maps are asked for; where the loss is, None for the output, of which a pass tells; where a gate reads."""
    mapped = find_sites(asked.model, asked.sites, component=asked.component)
    compared: list[Site] | None = mapped
    if isinstance(asked.loss_sites, str) and asked.loss_sites == OUTPUT and not hasattr(network, OUTPUT):
        compared = None
    elif asked.loss_sites is not None:
        compared = find_sites(asked.model, asked.loss_sites, component=asked.component)
    reads = site_of(asked.gate)
    return mapped, compared, None if reads is None else find_sites(asked.model, [reads])[0]


def _problem_facts(
    data: Mapping[str, str], weights: str, options: Options, facts: Mapping[str, Any], maps: Mapping[str, int],
    free: NDArray[np.bool_] | None, counts: Sequence[tuple[int, int]],
) -> dict[str, Any]:  # fmt: skip
    """By which a checkpoint knows its fit again."""
    chosen = None if free is None else identity.digest([torch.from_numpy(free)])
    of_all = {**facts, "sites": maps, "units": chosen}
    if len(counts) > 1:
        of_all["sources of each process"] = [count for count, _ in counts]
    return fingerprint(data, weights, options.penalty, of_all)


def _info(end: Checkpoint, facts: Mapping[str, Any], engine: Mapping[str, Any], passes: int | None) -> dict[str, Any]:
    """`passes`: over the source, of a closed form; a fit has counted its evaluations."""
    info = {
        **facts, "ridge": end.ridge, "evaluations": len(end.history["loss"]) if passes is None else passes,
        "seconds": round(end.seconds, 3), "stopped": end.stopped, **engine,
    }  # fmt: skip
    return info if end.predicted_kl is None else info | {"predicted_kl": end.predicted_kl}


def _priced_and_gated(steering: Steering, given: Mapping[str, Any]) -> Steering:
    """The price is that of the maps as such: where the gate is open."""
    model, src, tgt = (given[key] for key in ("model", "src", "tgt"))
    if given["budget"] is not None:
        steering = at_budget(steering, model, src, given["budget"], **{key: given[key] for key in OF_CALIBRATE})
    if given["gate"]:
        known = {key: given[key] for key in OF_GATE}
        steering = gated(steering, model, src, tgt, given["gate"], given["neutral"], **known)
    return steering


def _evaluations(past: Checkpoint | None) -> int:
    return len(past.history.get("loss", ())) if past else 0


def _check_batches(counts: list[tuple[int, int]], recipe: str) -> None:
    if recipe == "published" and len(set(counts)) > 1:  # which takes a step for each batch
        raise ValueError(f"expected as many batches in every process, got (src, tgt) {counts}")


def _runner(
    model: nn.Module, mapped: list[Site], compared: list[Site], sources: Kept, targets: Kept,
    options: Options, are_default: bool, feed_mlps: bool, behind: Site | None,
) -> Runner:  # fmt: skip
    """With `behind`, default sites before that one are left out; ValueError where others are."""
    sites = [*dict.fromkeys([*([] if behind is None else [behind]), *mapped, *compared])]
    layout = probe(model, sites, sources[0], mapped if are_default else (), feed_mlps=feed_mlps)
    order = list(layout.sites)
    if behind is not None:
        early = [site for site in mapped if site in order and order.index(site) < order.index(behind)]
        if early and (not are_default or len(early) == len(mapped)):
            raise ValueError(
                f"gate: expected a site that runs before every map, got {behind.name!r}, behind {early[0].name!r}; "
                "leave out sites that run before it"
            )
        mapped, compared = ([site for site in some if site not in early] for some in (mapped, compared))
    mapped, compared = ([site for site in sites if site in order] for sites in (mapped, compared))
    last = max(order.index(site) for site in compared)
    late = [site.name for site in mapped if order.index(site) > last]
    if late:
        raise ValueError(f"these sites run after the last loss site, so no loss can reach them: {', '.join(late)}")
    where = model, layout.part(mapped), layout.part(compared), options.poolings, options.seed
    passing = any_on_disk(sources, targets)  # what is kept from pass to pass of a batch would go with it
    graphs = options.graphs and options.fits and not passing
    plain = Runner(*where, graphs=graphs)  # in the weights' own dtype: it looks for small differences
    if options.fits:
        check_differentiable(plain, sources[0])
    # Where nothing is fitted no site is passed twice, and what comes before the first one cannot be spared; where
    # graphs are, it is spared by them.
    prefix = options.fits and not plain.graphs.wanted and not passing
    savings = plain.possible_savings(chain(sources, targets), prefix=prefix)
    return Runner(*where, savings=savings, compute_dtype=options.compute_dtype, graphs=graphs)


def _minimise(
    runner: Runner, sources: Sequence[Batch], targets: Sequence[Batch], free: NDArray[np.bool_] | None,
    options: Options, log: Log, world: Alone,
) -> list[Checkpoint]:  # fmt: skip
    """From the log's checkpoint on: from its maps, or from the optimiser's state where it has one."""
    past = log.past
    with log:
        problem = problem_of(runner, sources, targets, free, options, world)
        log.begins()
        with blame("src"):
            if options.recipe == "published":
                x, why = optim.published(
                    problem, past.maps, options.penalty, log, **options.descent(), save=log.save, state=past.state
                )
            else:
                x, why = optim.fast(
                    problem, past.maps, options.penalty, log, steps=options.steps, tolerance=options.tolerance,
                    save=log.save, state=past.state,
                )  # fmt: skip
        return [log.finish(x, why, ridge_of(problem, options), predicted_kl(problem, x))]
