"""Merging into a network of a pipeline: the pipeline makes the probe itself, and holds the result."""

from collections.abc import Callable, Mapping
from typing import Any

from ..maps.info import call_of_fit, component_of_fit
from ..maps.maps import Maps
from ..network.links import arguments_of
from ..network.pipelines.capture import Capture
from ..network.pipelines.components import arguments_taken, component_of, network_of, with_component
from ..network.state import device_of, frozen, seeded
from . import merging

PROMPTS = ["a photo of a cat", "a drawing of a house by the sea"]  # any two that differ
SEEDS = {"generator": [0, 1]}  # for what takes no prompts


def merge(
    maps: Maps, pipe: Any, strength: float, *, component: str | None, call: Mapping[str, Any] | None, probe: Any,
    inplace: bool, undo: bool = False, **how: Any,
) -> Any:  # fmt: skip
    """`merging.merge`, or `unmerge`, of a pipeline's network: a pipeline of the same class around the result."""
    name, probe = _chosen(maps, pipe, component, call, probe)
    act: Callable = merging.unmerge if undo else merging.merge
    merged = act(maps, network_of(pipe, name), strength, inplace=inplace, probe=probe, **how)
    return pipe if inplace else with_component(pipe, name, merged)


def merge_plan(
    maps: Maps, pipe: Any, strength: float, *, component: str | None, call: Mapping[str, Any] | None, probe: Any
) -> merging.MergePlan:
    """`merging.merge_plan` of a pipeline's network."""
    name, probe = _chosen(maps, pipe, component, call, probe)
    return merging.merge_plan(maps, network_of(pipe, name), strength, probe=probe)


def _chosen(
    maps: Maps, pipe: Any, component: str | None, call: Mapping[str, Any] | None, probe: Any
) -> tuple[str, dict[str, Any]]:
    """The network's name, and what it is given for two prompts, or those of `probe`."""
    name = component_of(pipe, component_of_fit([maps.info], component))
    said = call_as_fitted(maps, pipe) if call is None else call
    capture = Capture(pipe, name, said, "first", 0)
    is_told = "prompt" in capture.takes or "generator" not in capture.takes
    columns = capture.columns((PROMPTS if is_told else SEEDS) if probe is None else probe, "probe")
    try:
        with frozen(capture.network), seeded(0, device_of(capture.network)):
            capture.learn(columns)
            batch = capture.batches(columns, "probe", None, 1)[0]
    except Exception as error:
        if probe is not None:
            raise
        raise ValueError(
            f"probe: expected one, since {type(pipe).__name__} wants more than two plain prompts ({error}); pass what "
            'its call takes for each row, {"prompt": [...], "image": [...]} for instance, and call='
        ) from error
    args, kwargs = batch.plain()
    return name, dict(zip(arguments_of(capture.network), args, strict=False)) | kwargs


def call_as_fitted(maps: Maps, pipe: Any) -> dict[str, Any]:
    """Arguments of the call that the maps were fitted with, without those that this pipeline does not take."""
    takes = arguments_taken(pipe)[0]
    return {key: value for key, value in call_of_fit(maps.info).items() if key in takes and key != "prompt"}
