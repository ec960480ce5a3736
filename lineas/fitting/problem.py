"""What a fit minimises, made of a model and two sets of batches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import Vector
from ..core.spill import Table
from ..network.batch import Batch
from ..responses.runner import Runner, blame
from . import losses
from .distributed import Alone
from .model_loss import ModelLoss
from .options import Options
from .ridge import Ridge, sensitivity
from .source_passes import SourcePasses


def problem_of(
    runner: Runner, sources: Sequence[Batch], targets: Sequence[Batch], free: NDArray[np.bool_] | None,
    options: Options, world: Alone,
) -> ModelLoss:  # fmt: skip
    """What is to be minimised, with all that is known of the targets."""
    with blame("tgt"):  # responses of the unsteered network never change, so they are collected once
        # Of the published recipe a batch each, of which its minibatches are made.
        by_batch = options.recipe == "published"
        parts: list[Any] = [*world.each(lambda batch: runner.collect([batch]), targets)] if by_batch else []
        found: Table = np.concatenate(parts) if by_batch else runner.collect_table(targets, world.each)
        held = options.ridge != 0
        ridge = sensitivity(runner.model, runner.mapped, targets, options.seed, world) if held else None
    with blame("src"):
        found, _ = world.gather(lambda: found)
        return _problem(SourcePasses(runner, sources, world), parts, found, ridge, free, options)


def ridge_of(problem: ModelLoss, options: Options) -> float | None:
    """The strength of the ridge; what was asked for where there is none."""
    return options.ridge if problem.ridge is None else problem.strength


def predicted_kl(problem: ModelLoss, x: Vector) -> float | None:
    """What the maps are predicted to cost, in nats a token, where that is known."""
    ridge, world = problem.ridge, problem.passes.world
    nats = np.concatenate(world.share(np.empty(0) if ridge is None else ridge.divergences(x)))
    return float(nats.mean()) if len(nats) else None


def _problem(
    passes: SourcePasses, targets: list[Vector], everyone: Table, ridge: Ridge | None, free: NDArray[np.bool_] | None,
    options: Options,
) -> ModelLoss:  # fmt: skip
    """What is to be minimised. What it must know of the unsteered sources comes from a pass at the identity, where a
    fit usually starts: its first evaluation is then that pass."""
    loss, noise, strength = losses.find(options.loss), None, options.ridge
    layout, measures = passes.runner.compared, loss.needs_noise or strength is None
    coefficient = layout.coefficients()
    if measures or options.loss_weights != "equal":
        unsteered = passes.at(passes.runner.mapped.identity()).responses
        coefficient = losses.unit_weights(options.loss_weights, unsteered, everyone, layout)
        noise = losses.sampling_noise(unsteered, everyone, passes.runner.device) if measures else None
        if noise is not None and strength is None:
            strength = losses.share_of_noise(unsteered, everyone, noise, coefficient)
    return ModelLoss(
        passes, targets, loss, noise=noise, ridge=ridge, strength=strength or 0.0, free=free, coefficient=coefficient,
        everyone=everyone,
    )  # fmt: skip
