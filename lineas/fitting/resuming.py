"""What a fit goes on from: a checkpoint, a steering, or the identity; and where it keeps checkpoints."""

import os
from typing import Any

import numpy as np

from ..core.arrays import Vector
from ..maps.algebra import refuse_special
from ..maps.gate import refuse_gated
from ..responses.layout import Layout
from ..steering import Steering
from .checkpoint import Checkpoint, Keeper, KeeperElsewhere, locate, read
from .distributed import Alone


def past_of(
    resume_from: Steering | str | os.PathLike | None, checkpoint_dir: str | os.PathLike | None, world: Alone
) -> tuple[Keeper | None, Checkpoint | None]:
    """Where checkpoints go, and the one to go on from, if there is one: before any work.

    Of several processes, which must be told alike, the first one writes and reads, wherever the others may run.
    """
    if checkpoint_dir is not None and not isinstance(checkpoint_dir, (str, os.PathLike)):
        raise TypeError(f"checkpoint_dir: expected a path, got {type(checkpoint_dir).__name__}")
    goes_on = isinstance(resume_from, (str, os.PathLike))
    if not goes_on and not isinstance(resume_from, Steering | None):
        raise TypeError(
            f"resume_from: expected a Steering or the path of a checkpoint, got {type(resume_from).__name__}"
        )
    if len(told := {*world.share((checkpoint_dir is not None, goes_on))}) > 1:
        raise ValueError(f"checkpoint_dir, resume_from: expected paths in every process or in none, got {sorted(told)}")
    keeper, past = world.of_first(lambda: _found(resume_from if goes_on else None, checkpoint_dir))
    return KeeperElsewhere() if keeper and world.rank else keeper, past


def _found(
    resume_from: Any, checkpoint_dir: str | os.PathLike | None
) -> tuple[Keeper | None, Checkpoint | None]:  # fmt: skip
    keeper = None if checkpoint_dir is None else Keeper(checkpoint_dir)
    resumed = None if resume_from is None else locate(resume_from)
    if keeper and keeper.path.exists() and (resumed is None or resumed.resolve() != keeper.path.resolve()):
        raise FileExistsError(
            f"checkpoint_dir: {keeper.path} is there already; go on from it with resume_from={str(checkpoint_dir)!r}, "
            "or remove it"
        )
    if resumed is None or (keeper and not resumed.exists() and resumed.resolve() == keeper.path.resolve()):
        return keeper, None
    try:
        return keeper, read(resumed)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"resume_from: {error}") from None
    except ValueError as error:
        raise ValueError(f"resume_from: {error}") from error


def start_of(layout: Layout, expected: dict[str, int], steering: Any) -> Vector:
    """The maps to start from: the identity where no steering is given."""
    if not isinstance(steering, Steering):
        return layout.identity()
    got = {name: len(steering.weight(name)) for name in steering.sites}
    if got != expected:
        raise ValueError(f"resume_from: expected maps for {expected}, got {got}")
    refuse_special("resume_from", steering.special)
    refuse_gated("resume_from", steering.gate)
    return np.concatenate([*map(steering.weight, expected), *map(steering.bias, expected)])
