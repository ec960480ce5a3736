"""What an evaluation must know of a text-to-image pipeline of diffusers."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from ..network.pipelines.components import arguments_taken, network_of, networks_of, quiet
from ..network.state import device_of, eager, frozen, seeded


def check_takes_prompts(pipe: Any) -> None:
    """TypeError for a pipeline that draws from something else."""
    takes, more = arguments_taken(pipe)
    if "prompt" not in takes and not more:
        names = ", ".join(takes)
        raise TypeError(f"expected a pipeline that is called with a prompt, got {type(pipe).__name__}: {names:.80}")


@contextmanager
def left_alone(pipe: Any) -> Iterator[None]:
    """While open, the pipeline's networks are in evaluation mode, and it draws no bars; as before afterwards."""
    with ExitStack() as stack:
        for network in networks_of(pipe):
            stack.enter_context(frozen(network))
        for context in (eager(), torch.no_grad(), quiet(pipe)):
            stack.enter_context(context)
        yield


def fresh(pipe: Any, noise: torch.Generator) -> AbstractContextManager[None]:
    """While open, what the pipeline draws beside its own generators begins anew, the same every time."""
    return seeded(noise.initial_seed(), device_of(network_of(pipe)))
