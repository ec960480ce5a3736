"""fit: from two sets of inputs to a Steering."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from . import ops, optim
from .data import as_batches
from .differentiable import check_differentiable
from .distributed import Alone, processes
from .losses import AUTO, LOSSES
from .model_loss import ModelLoss
from .penalties import SparseGroupLasso
from .responses import POOLINGS, Layout, Runner, probe
from .ridge import sensitivity
from .sites import Site, find_sites, unwrapped
from .state import device_of, eager, frozen, is_sharded, seeded
from .steering import Steering

__all__ = ["fit"]

METHODS, RECIPES, POSITIONS = ("lineas",), ("fast", "published"), ("all",)
FAST_EVALUATIONS = 50  # the most the fast recipe may use unless told; it usually stops by itself after ten to twenty


def fit(
    model: nn.Module,
    src: Any,
    tgt: Any,
    *,
    tokenizer: Any = None,
    sites: str | Sequence[str | Site] | None = None,
    loss_sites: str | Sequence[str | Site] | None = None,
    method: str = "lineas",
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
    pooling: str = "mean",
    position: str = "all",
    seed: int = 0,
    progress: bool = True,
    callbacks: Iterable[Callable[[dict[str, Any]], Any]] = (),
    resume_from: Steering | None = None,
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
    method : {"lineas"}
    recipe : {"fast", "published"}
        "fast" picks its own step sizes and stops by itself; "published" is the paper's schedule, number for number.
    loss : {"auto", "wasserstein", "excess", "significant"}
        What to minimise, as a mean over sites and units: W_2^2 ("wasserstein"); as much of it as sampling noise does
        not explain, max(0, W_2^2 - mean of the null) ("excess"); or W_2^2 of those units only whose distance fewer than
        5% of random relabellings of the samples reach ("significant"; the others count 0). "auto" is at present
        "wasserstein", which is the only one of the published recipe.
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
    pooling : {"mean", "last"}
        What a unit's response to a sample is: its mean over tokens or pixels, or its value at the last token.
    position : {"all"}
        Which tokens are mapped.
    seed : int
        For models that draw random numbers: a batch meets the same ones at every evaluation, so that the loss is a
        function of the maps. The global random state is not touched.
    progress : bool
        Show a bar.
    callbacks : functions
        Each is called after every evaluation with what `history` gets, as a dict; one that returns True ends the fit.
    resume_from : Steering, optional
        Start from its maps, which must be for the same sites, rather than from the identity.
    distributed : bool or torch.distributed.ProcessGroup
        True where every process of the default group calls `fit` with its own part of `src` and `tgt`, at least 2 of
        each, and the same model and options otherwise. All samples count together, the parts may differ in size, and
        every process gets the same maps. With a group, the processes of that group.

    Returns
    -------
    Steering
        With `history`: for every evaluation `loss`, `ridge`, `penalty`, `objective` (their sum), `step_size`,
        `accepted`, and `site_loss`, one number a loss site whose mean is `loss`.

    Raises
    ------
    TypeError, ValueError, LookupError
        On input that cannot work, before any step; the model is as it was.
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
    if ridge is not None and not (isinstance(ridge, (int, float)) and 0 <= ridge < float("inf")):
        raise ValueError(f"ridge: expected a number of at least 0, got {ridge!r}")
    loss, optimizer = _check_options(method, recipe, loss, ridge, optimizer, learning_rate, pooling, position)
    _check_limits(steps=steps, max_evaluations=max_evaluations, batch_size=batch_size, max_length=max_length)
    half = _half(compute_dtype)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if penalty is not None and not isinstance(penalty, SparseGroupLasso):
        raise TypeError(f"penalty: expected one of lineas.penalties, got {type(penalty).__name__}")
    model = unwrapped(model)
    if any(map(is_sharded, model.modules())):  # they are gone again when a backward pass from within wants them
        raise ValueError("model: expected whole weights, got weights that FSDP shards; fit first, then shard")
    world = processes(distributed)
    mapped = find_sites(model, sites)
    compared = mapped if loss_sites is None else find_sites(model, loss_sites)
    device = device_of(model)
    with world, seeded(seed, device), frozen(model), eager(), torch.inference_mode(False), torch.enable_grad():
        reading = (model, tokenizer, batch_size, max_length)
        sources = [batch.to(device) for batch in as_batches(src, "src", *reading)]
        targets = [batch.to(device) for batch in as_batches(tgt, "tgt", *reading)]
        _check_batches(world.share((len(sources), len(targets))), recipe)
        layout = probe(model, [*dict.fromkeys([*mapped, *compared])], sources[0])
        runner = _runner(model, layout, mapped, compared, pooling, seed)
        check_differentiable(runner, sources[0])
        runner.economize([*sources, *targets])
        runner.compute_dtype = half  # from here on: that look was for small differences
        with _blame("tgt"):  # responses of the unsteered network never change, so they are collected once
            responses = [runner.collect([batch]) for batch in targets]
            held = sensitivity(model, runner.mapped, targets, seed, world) if recipe == "fast" and ridge != 0 else None
            problem = ModelLoss(runner, sources, responses, loss, held, ridge, world)
        limit = max_evaluations or (FAST_EVALUATIONS if recipe == "fast" else None)
        log = _Log(limit, progress and world.rank == 0, callbacks, world)
        with log, _blame("src"):
            x, why = _minimise(problem, penalty, log, recipe, optimizer, learning_rate, steps, resume_from)
    info = {
        "model": getattr(model, "name_or_path", "") or type(model).__name__,
        "samples": [problem.samples, problem.target_samples],
        "loss_sites": [site.name for site in problem.runner.compared.sites],
        "method": method, "recipe": recipe, "loss": loss, "optimizer": optimizer, "ridge": problem.strength,
        "penalty": repr(penalty),
        "compute_dtype": half and str(half).removeprefix("torch."),
        "pooling": pooling, "position": position, "seed": seed,
        "evaluations": len(log.history["loss"]), "seconds": round(time.perf_counter() - started, 3), "stopped": why,
    }  # fmt: skip
    here = problem.runner.mapped
    return Steering._from_flat([site.name for site in here.sites], here.sizes, x, history=log.history, info=info)


def _check_options(method, recipe, loss, ridge, optimizer, learning_rate, pooling, position) -> tuple[str, str | None]:
    """Refuse unknown names; returns the loss and the optimizer to use."""
    options = {
        "method": (method, METHODS), "recipe": (recipe, RECIPES), "loss": (loss, ("auto", *LOSSES)),
        "pooling": (pooling, POOLINGS), "position": (position, POSITIONS),
    }  # fmt: skip
    if optimizer is not None:
        options["optimizer"] = (optimizer, tuple(optim.OPTIMIZERS))
    for name, (value, valid) in options.items():
        if value not in valid:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, valid))}; got {value!r}")
    if recipe == "published":
        if learning_rate is not None and not 0 < learning_rate < float("inf"):
            raise ValueError(f"learning_rate: expected a number above 0, got {learning_rate!r}")
        if loss not in ("auto", "wasserstein"):
            raise ValueError(f'loss: expected "wasserstein", which is the published recipe\'s, got {loss!r}')
        if ridge:
            raise ValueError(f"ridge goes with the fast recipe; the published one stops early instead; got {ridge!r}")
        return "wasserstein", optimizer or "sgd"
    if optimizer is not None or learning_rate is not None:
        raise ValueError('optimizer and learning_rate go with recipe="published"; the fast recipe picks its own steps')
    return AUTO if loss == "auto" else loss, None


def _half(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        found = dtype
    elif isinstance(dtype, str):
        found = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(dtype.removeprefix("torch."), torch.float32)
    else:
        raise TypeError(f"compute_dtype: expected a torch.dtype or its name, got {type(dtype).__name__}")
    if found not in (None, torch.bfloat16, torch.float16):
        raise ValueError(f"compute_dtype: expected 'bfloat16', 'float16' or None for the model's own; got {dtype!r}")
    return found


def _check_limits(**limits: int | None) -> None:
    for name, value in limits.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
            raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")


def _check_batches(counts: list[tuple[int, int]], recipe: str) -> None:
    if recipe == "published" and len(set(counts)) > 1:  # which takes a step for each batch
        raise ValueError(f"expected as many batches in every process, got (src, tgt) {counts}")


def _runner(
    model: nn.Module, layout: Layout, mapped: list[Site], compared: list[Site], pooling: str, seed: int
) -> Runner:
    order = list(layout.sites)
    last = max(order.index(site) for site in compared)
    late = [site.name for site in mapped if order.index(site) > last]
    if late:
        raise ValueError(f"these sites run after the last loss site, so no loss can reach them: {', '.join(late)}")
    return Runner(model, layout.part(mapped), layout.part(compared), pooling, seed)


@contextmanager
def _blame(inputs: str) -> Iterator[None]:
    """Say of responses that are not finite which inputs made them."""
    try:
        yield
    except ops.NonFiniteError as error:
        raise ops.NonFiniteError(f"{inputs}: {error}") from None


class _Log:
    """Takes note of evaluations, shows them, asks the callbacks, says when enough is enough."""

    def __init__(
        self, limit: int | None, progress: bool, callbacks: Iterable[Callable[[dict[str, Any]], Any]], world: Alone
    ):
        self.limit, self.callbacks, self.world = limit, tuple(callbacks), world
        self.history: dict[str, list] = {
            key: [] for key in ("loss", "ridge", "penalty", "objective", "step_size", "accepted", "site_loss")
        }
        self.bar = tqdm(total=limit, desc="lineas.fit", unit=" evaluations", disable=not progress)

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *exception) -> None:
        self.bar.close()

    def __call__(self, at: optim.Evaluation, penalty: float, step_size: float, accepted: bool = True) -> str:
        entry = {
            "loss": at.loss - at.ridge, "ridge": at.ridge, "penalty": penalty, "objective": at.loss + penalty,
            "step_size": step_size, "accepted": accepted, "site_loss": at.site_loss.tolist(),
        }  # fmt: skip
        for key, value in entry.items():
            self.history[key].append(value)
        self.bar.set_postfix_str(f"objective {entry['objective']:.4g}", refresh=False)
        self.bar.update()
        asked = [callback(dict(entry)) is True for callback in self.callbacks]  # every callback hears of it
        if any(self.world.share(any(asked))):
            return "a callback asked"
        return "max_evaluations used up" if len(self.history["loss"]) == self.limit else ""


def _minimise(problem, penalty, log, recipe, optimizer, learning_rate, steps, resume_from):
    x = problem.identity() if resume_from is None else _start(problem, resume_from)
    if recipe == "published":
        steps = steps or optim.PUBLISHED_STEPS
        if log.limit is None:
            log.bar.reset(steps)
        return optim.published(problem, x, penalty, log, optimizer=optimizer, learning_rate=learning_rate, steps=steps)
    return optim.fast(problem, x, penalty, log, steps=steps)


def _start(problem: ModelLoss, steering: Steering) -> optim.Vector:
    expected = {site.name: size for site, size in zip(problem.runner.mapped.sites, problem.sizes, strict=True)}
    got = {name: len(steering.weight(name)) for name in steering.sites}
    if got != expected:
        raise ValueError(f"resume_from: expected maps for {expected}, got {got}")
    parts = [steering.weight(name) for name in expected] + [steering.bias(name) for name in expected]
    return np.concatenate(parts)
