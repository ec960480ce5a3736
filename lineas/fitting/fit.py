"""fit: from two sets of inputs to a Steering."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from .. import optim
from ..core.arrays import Vector
from ..maps.algebra import refuse_special
from ..maps.kinds import Affine, WithinRange
from ..maps.units import mask_of
from ..network import identity
from ..network.data import Batch, as_batches
from ..network.sites import Site, find_sites, unwrapped
from ..network.state import device_of, eager, frozen, is_sharded, seeded
from ..penalties import SparseGroupLasso
from ..responses.layout import Layout
from ..responses.probe import probe
from ..responses.runner import Runner, blame
from ..steering import Steering
from . import methods
from .callbacks import Entry
from .checkpoint import Checkpoint, Keeper, fingerprint, locate, read, refuse_another
from .differentiable import check_differentiable
from .distributed import Alone, processes
from .log import Log
from .model_loss import ModelLoss
from .options import Options
from .ridge import sensitivity

__all__ = ["fit"]


def fit(
    model: nn.Module,
    src: Any,
    tgt: Any,
    *,
    tokenizer: Any = None,
    sites: str | Sequence[str | Site] | None = None,
    loss_sites: str | Sequence[str | Site] | None = None,
    units: Mapping[str, ArrayLike] | None = None,
    method: str | methods.Formula = "lineas",
    schedule: str | None = None,
    within_range: bool = False,
    recipe: str = "fast",
    loss: str = "auto",
    ridge: float | None = None,
    penalty: SparseGroupLasso | None = None,
    optimizer: str | None = None,
    learning_rate: float | None = None,
    steps: int | None = None,
    max_evaluations: int | None = None,
    batch_size: int | None = None,
    max_length: int | None = None,
    compute_dtype: str | torch.dtype | None = None,
    pooling: str | None = None,
    position: str = "all",
    seed: int = 0,
    progress: bool = True,
    callbacks: Iterable[Callable[[Entry], Any]] = (),
    checkpoint_dir: str | os.PathLike | None = None,
    resume_from: Steering | str | os.PathLike | None = None,
    distributed: Any = False,
) -> Steering:
    """Learn the maps that make what `src` produces in a model look like what `tgt` produces.

    Parameters
    ----------
    model : nn.Module
        Any network whose modules return tensors, or tuples of them, with the samples in dimension 0. It is run in
        evaluation mode and left as it was: mode, `requires_grad`, hooks, random state.
    src, tgt : list of str, list of chats, tensor, dict of tensors, BatchEncoding, Dataset or DataLoader
        Two unpaired sets of at least 2 samples each; their sizes may differ. A tensor, or a tuple from a loader, is
        passed by position, a dict by name. Padding, where `attention_mask` is zero, never counts.
    tokenizer : optional
        For strings and chats; looked up from the model's own name if not given. A missing pad token is no problem.
    sites : str, list or None
        Where to put maps: a regular expression over whole module paths, a list of paths or of `Site`, or None for the
        normalisation that feeds each block's MLP. See `lineas.find_sites`.
    loss_sites : like sites
        Where to compare; `sites` if not given.
    units : dict of site name -> (k,) whole numbers or (d,) bool, optional
        Steer only these units, `Steering.support()` of another steering for instance; those of sites that are not in it
        stay as they are. All if not given.
    method : str or function
        "lineas" fits all maps jointly, end to end. The others compute maps from responses, in a forward pass over each
        set: "mean_act", "gaussian_act", "linear_act", "aura" and "det0" unit by unit (`lineas.transport`), "caa",
        "actadd", "iti_c" and "repe" along directions (`lineas.directions`). "actadd" takes a single pair, "det0" needs
        `units`.
        A function computes each site's weight (d,) and bias (d,) from source (n, d) and target (m, d).
    schedule : {"at_once", "sequential"}, optional
        For methods other than "lineas": compute all maps from what the unsteered network does, or each site's from what
        the network does under the maps of all earlier sites, for which several batches take a pass to each site. If not
        given, as the method's paper does.
    within_range : bool
        For methods other than "lineas": let a unit's map hold only between the smallest and the largest response of the
        source that it was computed from, and leave activations outside as they are, as Linear-AcT's paper does
        (`Steering.range`). Such maps cannot be merged into weights.
    recipe : {"fast", "published"}
        "fast" picks its own step sizes and stops by itself; "published" is the paper's schedule, number for number.
    loss : {"auto", "wasserstein", "excess", "significant"}
        What to minimise, as a mean over sites and units: W_2^2 ("wasserstein"); as much of it as sampling noise does
        not explain, max(0, W_2^2 - mean of the null) ("excess"); or W_2^2 of those units only whose distance fewer than
        5% of random relabellings of the samples reach ("significant"; the others count 0). "auto" is "excess" in
        the fast recipe and "wasserstein", the only one there, in the published.
    ridge : float, optional
        How much to hold back what the maps do to the model's output, in the fast recipe: a unit of average sensitivity
        goes about 1 / (1 + ridge) of its way, one that the output minds more goes less far. If not given, it is the
        share of sampling noise in the distance over the share that is not, so that more samples go further; 0 is none.
    penalty : SparseGroupLasso, optional
        In units of the recipe's loss: the published recipe's loss is n times that of the fast one (n source samples).
    optimizer : {"sgd", "momentum", "adam", "adamw"}, learning_rate : float
        For `recipe="published"` only; "sgd" at 0.1, the others at 0.01 if not given. The paper uses "sgd" and "adam";
        "momentum" is heavy ball with 0.9, "adamw" decays maps towards the identity by 0.01 times the rate.
    steps : int, optional
        At most so many accepted steps; 1000 in the published recipe, no limit in the fast one.
    max_evaluations : int, optional
        At most so many forward passes over the source set, trials of the line search included; 50 in the fast recipe.
    batch_size : int, optional
        Samples that pass through the model at once; all if not given. The fast recipe then still uses the exact
        gradient of the whole set, in two passes of flat memory; the published recipe takes a step for each batch.
    max_length : int, optional
        Longest text in tokens, what is beyond is cut; the tokenizer's own limit if not given.
    compute_dtype : {"bfloat16", "float16"} or torch.dtype, optional
        What to compute matrix products in, where the weights are float32: `torch.autocast`, which touches no weight.
        Maps, responses and loss stay float32. Faster where the hardware has such products.
    pooling : {"mean", "max", "min", "last"}, optional
        What a unit's response to a sample is: its mean, largest or smallest value over tokens or pixels, or its value
        at the last token. If not given, the mean; for methods other than "lineas" what the method's paper takes.
    position : {"all"}
        Which tokens are mapped.
    seed : int
        For models that draw random numbers: a batch meets the same ones at every evaluation, so that the loss is a
        function of the maps. The global random state is not touched.
    progress : bool
        Show a bar: objective and support at the last accepted evaluation, evaluations, and the time that is left if
        all that are allowed are used.
    callbacks : functions
        Each is called after every evaluation with what `history` gets, as a dict (`lineas.callbacks.Entry`), which also
        gives the maps of this evaluation; one that returns True ends the fit. See `lineas.callbacks` for
        `EarlyStopping` and `on_step`.
    checkpoint_dir : path, optional
        Keep a checkpoint there, one file, replaced as the fit goes on (`lineas.checkpoint`).
    resume_from : Steering or path, optional
        A steering: start from its maps, which must be for the same sites, rather than from the identity. The path of a
        checkpoint or its folder: go on where that fit was, with the same arguments, to the same result. The same path
        as `checkpoint_dir`: go on if there is a checkpoint, else start.
    distributed : bool or torch.distributed.ProcessGroup
        True where every process of the default group calls `fit` with its own part of `src` and `tgt`, at least 2 of
        each, and the same model and options otherwise. All samples count together, the parts may differ in size, and
        every process gets the same maps. With a group, the processes of that group.

    Returns
    -------
    Steering
        With `history`, empty for methods other than "lineas": for every evaluation `loss`, `ridge`, `penalty`,
        `objective` (their sum), `step_size`, `accepted`, and `site_loss`, one number a loss site whose mean is `loss`.

    Raises
    ------
    TypeError, ValueError, LookupError
        On input that cannot work, before any step; the model is as it was.
    OSError
        No checkpoint can be written or found, before any step: FileNotFoundError, FileExistsError, PermissionError.
    FloatingPointError
        The published recipe diverged.

    Notes
    -----
    An evaluation costs one forward pass to the last loss site, and a backward pass where it is accepted; the loss, its
    gradient, the prox and the update are C. Source: LinEAS, Rodriguez et al., NeurIPS 2025, arXiv 2503.10679.

    Examples
    --------
    >>> import torch, lineas
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch._C.Generator object at ...>
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> steering = lineas.fit(net, torch.randn(32, 4), torch.randn(40, 4) + 1, sites="0", progress=False)
    >>> steering.history["loss"][-1] < 0.1 * steering.history["loss"][0]
    True
    """
    started = time.perf_counter()
    options = Options.checked(
        method=method, schedule=schedule, within_range=bool(within_range), recipe=recipe, loss=loss, ridge=ridge,
        penalty=penalty, optimizer=optimizer, learning_rate=learning_rate, steps=steps,
        max_evaluations=max_evaluations, batch_size=batch_size, max_length=max_length, compute_dtype=compute_dtype,
        pooling=pooling, position=position, seed=seed,
    )  # fmt: skip
    model = _checked(model)
    world = processes(distributed)
    if distributed and (checkpoint_dir is not None or isinstance(resume_from, (str, os.PathLike))):
        raise ValueError("checkpoint_dir, resume_from: checkpoints are of one process; expected distributed=False")
    formula = options.in_closed_form
    if formula:
        _refuse(method, loss_sites, resume_from, checkpoint_dir, callbacks)
        if formula.needs_units and units is None:
            raise ValueError(f"units: expected some, got None; {method!r} of all units would leave nothing of a site")
    keeper, past = _past(resume_from, checkpoint_dir)
    mapped = find_sites(model, sites)
    compared = mapped if loss_sites is None else find_sites(model, loss_sites)
    device = device_of(model)
    with world, seeded(seed, device), frozen(model), eager(), torch.inference_mode(False), torch.enable_grad():
        sources, targets = (
            [
                batch.to(device)
                for batch in as_batches(inputs, name, model, tokenizer, batch_size, max_length, options.least)
            ]
            for name, inputs in (("src", src), ("tgt", tgt))
        )
        _check_batches(world.share((len(sources), len(targets))), recipe)
        runner = _runner(model, mapped, compared, sources, targets, options)
        maps = {site.name: size for site, size in zip(runner.mapped.sites, runner.mapped.sizes, strict=True)}
        free = None if units is None else mask_of(units, maps)
        facts = options.facts() | {
            "units": None if free is None else int(free.sum()),
            "samples": [sum(sizes) for sizes in zip(*world.share((_count(sources), _count(targets))), strict=True)],
            "loss_sites": [site.name for site in runner.compared.sites],
        }
        data = identity.of_data(world.share((identity.data_digest(sources), identity.data_digest(targets))))
        which: dict[str, Any] = {}
        if keeper or past:
            chosen = None if free is None else identity.digest([torch.from_numpy(free)])
            which = fingerprint(model, sources, targets, penalty, facts | {"sites": maps, "units": chosen})
        if past:
            refuse_another(which, past.problem, resume_from)
        past = past or Checkpoint(which, _start(runner.mapped, maps, resume_from))
        kinds: dict[str, Affine] = {}
        if formula:
            x, kinds, passes = methods.maps_of(
                formula,
                str(options.schedule),
                runner,
                sources,
                targets,
                free,
                world,
                WithinRange if options.within_range else Affine,
            )
            past = replace(past, maps=x, seconds=time.perf_counter() - started, stopped="computed")
        log = Log(
            past, maps, limit=options.max_evaluations, total=options.total, started=started,
            progress=progress and world.rank == 0, callbacks=callbacks, keeper=keeper, world=world,
        )  # fmt: skip
        end = past if past.stopped else _minimise(runner, sources, targets, free, options, log, world)
    info = {
        **identity.of_model(model), "data": data, **facts, "ridge": end.ridge,
        "evaluations": passes if formula else len(end.history["loss"]), "seconds": round(end.seconds, 3),
        "stopped": end.stopped,
    }  # fmt: skip
    return Steering.from_flat(maps, maps.values(), end.maps, kinds=kinds, history=end.history, info=info)


def _checked(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    model = unwrapped(model)
    if any(map(is_sharded, model.modules())):  # they are gone again when a backward pass from within wants them
        raise ValueError("model: expected whole weights, got weights that FSDP shards; fit first, then shard")
    return model


def _refuse(method: Any, loss_sites: Any, resume_from: Any, checkpoint_dir: Any, callbacks: Any) -> None:
    """What only a fit through the model can take."""
    given = {
        "loss_sites": loss_sites, "resume_from": resume_from, "checkpoint_dir": checkpoint_dir,
        "callbacks": tuple(callbacks) or None,
    }  # fmt: skip
    if names := [name for name, value in given.items() if value is not None]:
        raise ValueError(f'{", ".join(names)}: for method="lineas" only, got them with {method!r}')


def _count(batches: list[Batch]) -> int:
    return sum(batch.size for batch in batches)


def _check_batches(counts: list[tuple[int, int]], recipe: str) -> None:
    if recipe == "published" and len(set(counts)) > 1:  # which takes a step for each batch
        raise ValueError(f"expected as many batches in every process, got (src, tgt) {counts}")


def _runner(
    model: nn.Module, mapped: list[Site], compared: list[Site], sources: list[Batch], targets: list[Batch],
    options: Options,
) -> Runner:  # fmt: skip
    layout = probe(model, [*dict.fromkeys([*mapped, *compared])], sources[0])
    order = list(layout.sites)
    last = max(order.index(site) for site in compared)
    late = [site.name for site in mapped if order.index(site) > last]
    if late:
        raise ValueError(f"these sites run after the last loss site, so no loss can reach them: {', '.join(late)}")
    runner = Runner(model, layout.part(mapped), layout.part(compared), str(options.pooling), options.seed)
    if options.fits:
        check_differentiable(runner, sources[0])
        runner.economize([*sources, *targets])
    else:  # no site is passed twice under other maps: what comes before the first one cannot be spared
        runner.cut_padding([*sources, *targets])
    runner.compute_dtype = options.compute_dtype  # only now: those looks were for small differences
    return runner


def _minimise(
    runner: Runner, sources: list[Batch], targets: list[Batch], free: NDArray[np.bool_] | None, options: Options,
    log: Log, world: Alone,
) -> Checkpoint:  # fmt: skip
    """From the log's checkpoint on: from its maps, or from the optimiser's state where it has one."""
    past = log.past
    with log:
        with blame("tgt"):  # responses of the unsteered network never change, so they are collected once
            responses = [runner.collect([batch]) for batch in targets]
            held = options.ridge != 0
            ridge = sensitivity(runner.model, runner.mapped, targets, options.seed, world) if held else None
            problem = ModelLoss(runner, sources, responses, options.loss, ridge, options.ridge, world, free)
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
            return log.finish(x, why, problem.strength)


def _past(
    resume_from: Steering | str | os.PathLike | None, checkpoint_dir: str | os.PathLike | None
) -> tuple[Keeper | None, Checkpoint | None]:
    """Where checkpoints go, and the one to go on from, if there is one: before any work."""
    keeper = None if checkpoint_dir is None else Keeper(checkpoint_dir)
    there = locate(resume_from) if isinstance(resume_from, (str, os.PathLike)) else None
    if there is None and not isinstance(resume_from, Steering | None):
        raise TypeError(
            f"resume_from: expected a Steering or the path of a checkpoint, got {type(resume_from).__name__}"
        )
    if keeper and keeper.path.exists() and (there is None or there.resolve() != keeper.path.resolve()):
        raise FileExistsError(
            f"checkpoint_dir: {keeper.path} is there already; go on from it with resume_from={str(checkpoint_dir)!r}, "
            "or remove it"
        )
    if there is None or (keeper and not there.exists() and there.resolve() == keeper.path.resolve()):
        return keeper, None
    try:
        return keeper, read(there)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"resume_from: {error}") from None
    except ValueError as error:
        raise ValueError(f"resume_from: {error}") from error


def _start(layout: Layout, expected: dict[str, int], steering: Any) -> Vector:
    """The maps to start from: the identity where no steering is given."""
    if not isinstance(steering, Steering):
        return layout.identity()
    got = {name: len(steering.weight(name)) for name in steering.sites}
    if got != expected:
        raise ValueError(f"resume_from: expected maps for {expected}, got {got}")
    refuse_special("resume_from", steering.special)
    return np.concatenate([*map(steering.weight, expected), *map(steering.bias, expected)])
