"""What an evaluation must know of a text-to-image pipeline of diffusers."""

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ..network.state import device_of, eager, frozen, seeded
from ..steering import Steering

DENOISERS = ("unet", "transformer", "prior")


def is_pipeline(other: Any) -> bool:
    """Whether this is a callable that holds a denoiser, and no network itself."""
    return callable(other) and not isinstance(other, (nn.Module, type)) and denoiser_of(other) is not None


def denoiser_of(pipe: Any) -> nn.Module | None:
    found = (getattr(pipe, name, None) for name in DENOISERS)
    return next((one for one in found if isinstance(one, nn.Module)), None)


def check_takes_prompts(pipe: Any) -> None:
    """TypeError for a pipeline that draws from something else."""
    parameters = inspect.signature(pipe).parameters.values()
    if not any(one.name == "prompt" or one.kind == one.VAR_KEYWORD for one in parameters):
        names = ", ".join(one.name for one in parameters)
        raise TypeError(f"expected a pipeline that is called with a prompt, got {type(pipe).__name__}: {names:.80}")


def steered(pipe: Any, steering: Steering, strength: float, strict: bool) -> AbstractContextManager[Any]:
    return steering.apply(denoiser_of(pipe), strength, strict=strict)  # type: ignore[arg-type]


@contextmanager
def left_alone(pipe: Any) -> Iterator[None]:
    """While open, the pipeline's networks are in evaluation mode, and it draws no bars; as before afterwards."""
    networks = [value for value in vars(pipe).values() if isinstance(value, nn.Module)]
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(frozen(network))
        for context in (eager(), torch.no_grad(), _without_bars(pipe)):
            stack.enter_context(context)
        yield


def fresh(pipe: Any, noise: torch.Generator) -> AbstractContextManager[None]:
    """While open, what the pipeline draws beside its own generators begins anew, the same every time."""
    return seeded(noise.initial_seed(), device_of(denoiser_of(pipe)))  # type: ignore[arg-type]


@contextmanager
def _without_bars(pipe: Any) -> Iterator[None]:
    missing = object()
    before = getattr(pipe, "_progress_bar_config", missing)
    if not hasattr(pipe, "set_progress_bar_config"):
        yield
        return
    try:
        pipe.set_progress_bar_config(disable=True)
        yield
    finally:
        if before is missing:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before
