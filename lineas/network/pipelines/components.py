"""Which networks a pipeline holds, and which of them is meant."""

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ...core.text import nearest
from ..links import check_network, unwrapped

__all__ = [
    "arguments_taken",
    "component_of",
    "is_denoiser",
    "is_pipeline",
    "network_of",
    "networks_of",
    "quiet",
    "usual_part",
    "with_component",
]

DENOISERS = ("unet", "transformer", "prior", "denoiser")  # which network is steered unless told, the first there is
OTHERS = ("transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3", "image_encoder", "vae", "controlnet")
# Of diffusers, those whose passes under guidance have the prompt's half in front.
PROMPT_FIRST = re.compile(r"(StableCascade|Wuerstchen|ZImage)\w*Pipeline|Lumina(Text2Img)?Pipeline|DiTPipeline")
NETWORKS = (*DENOISERS, *OTHERS)  # as pipelines of diffusers usually call them, and their folders


def is_pipeline(model: Any) -> bool:
    """Whether it calls a network, and is none."""
    return (
        not isinstance(model, (nn.Module, type)) and callable(model) and any(d in components(model) for d in DENOISERS)
    )


def components(pipe: Any) -> dict[str, nn.Module]:
    """The networks that a pipeline holds, by name."""
    held = getattr(pipe, "__dict__", {})
    return {name: value for name, value in held.items() if isinstance(value, nn.Module)}


def component_of(pipe: Any, component: str | None = None) -> str:
    """The name of the network that is meant: the denoiser's, unless told. LookupError where there is none of it."""
    known = components(pipe)
    if component is None:
        return next(name for name in DENOISERS if name in known)
    if not isinstance(component, str):
        raise TypeError(f"component: expected the name of a network of the pipeline, got {component!r:.60}")
    if component not in known:
        raise LookupError(
            f"component: {type(pipe).__name__} has no network {component!r:.60}; {nearest(component, known)}"
        )
    return component


def network_of(model: Any, component: str | None = None) -> nn.Module:
    """The network itself: a model out of its wrappers, or the component of a pipeline.

    TypeError for what is neither; ValueError for a component of what is no pipeline.
    """
    if is_pipeline(model):
        return unwrapped(components(model)[component_of(model, component)])
    check_network(model)
    if component is not None:
        raise ValueError(f"component: goes with a pipeline, got {component!r} with a {type(model).__name__}")
    return unwrapped(model)


def networks_of(model: Any) -> list[nn.Module]:
    """The model itself, or all networks that a pipeline holds."""
    return list(map(unwrapped, components(model).values())) if is_pipeline(model) else [network_of(model)]


def is_denoiser(model: Any, component: str | None = None) -> bool:
    """Whether the network that is meant is the one of a pipeline that makes its pictures."""
    return is_pipeline(model) and component_of(model, component) in DENOISERS


def with_component(pipe: Any, component: str, network: nn.Module) -> Any:
    """A pipeline of the same class with another network in this place; all others are shared."""
    new = object.__new__(type(pipe))
    vars(new).update(vars(pipe))
    setattr(new, component, network)  # diffusers writes the class of the new one down
    return new


def arguments_taken(pipe: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """What the pipeline's call takes by name, also what it passes on to its base class's; and whether it takes more.

    Not what a pipeline of diffusers lets through to say that it is no longer taken: it says nothing of other names.
    """
    found: dict[str, inspect.Parameter] = {}
    calls = [kind.__dict__["__call__"] for kind in type(pipe).__mro__ if "__call__" in kind.__dict__]
    for one in calls:
        _, *taken = inspect.signature(one).parameters.values()  # but for self
        named = {p.name: p for p in taken if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        found = {**named, **found}
        if not any(p.kind is p.VAR_KEYWORD for p in taken):
            return found, False
    return found, not is_of_diffusers(pipe)


def is_of_diffusers(pipe: Any) -> bool:
    return any(kind.__module__.partition(".")[0] == "diffusers" for kind in type(pipe).__mro__)


def usual_part(pipe: Any) -> int | None:
    """Which part of a pass under guidance has the prompt in a pipeline of this class, as an index; None where nothing
    tells."""
    if not is_of_diffusers(pipe):
        return None
    return 0 if PROMPT_FIRST.fullmatch(type(pipe).__name__) else -1


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """While open, a pipeline of diffusers shows no bar of its steps."""
    held, name = vars(pipe), "_progress_bar_config"
    before = held.get(name)
    if not hasattr(pipe, "progress_bar"):
        yield
        return
    held[name] = {**(before or {}), "disable": True}
    try:
        yield
    finally:
        if before is None:
            held.pop(name, None)
        else:
            held[name] = before
