"""Whether a model is the one that maps were fitted on, with what was on it then."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..core.text import printable, warn
from ..maps.info import base_name, fitted_component, maps_digest, maps_that_were_on
from ..maps.maps import Maps
from ..network.adapters import adapters_of
from ..network.identity import folder_in_pipeline, has_digest, has_whole_weights, name_of
from ..network.links import core
from ..network.pipelines.components import NETWORKS
from ..network.sharding import kind_of
from ..network.state import dtype_of
from .handle import what_is_on

HALVES = (torch.bfloat16, torch.float16)
MERGED = "lineas_merge"  # the attribute of a merged model that says what was done


def check_base(info: Mapping[str, Any], model: nn.Module) -> None:
    """ValueError where maps were fitted on another network of a pipeline, or on a model of another name, whose weights
    were others too; a warning where only the weights were.

    Names are compared by their last part, since a folder on one disk is a repository elsewhere. A model that was made
    in memory has none, nor has a steering made by hand: then shapes alone tell. Weights are compared where all of them
    are here, and in no lower precision than at the fit; those of a merged model are no longer its base's. Those of
    adapters that are on count as if they were merged. "unet", which the first files had for that of any pipeline, and a
    folder of that name tell nothing.
    """
    base, given, known = base_name(info), name_of(model), info.get("weights")
    if known is not None and has_digest(model, known, HALVES):
        return
    _check_component(info, model)
    if given and base and _last(base) != _last(given) and not {_last(base), _last(given)} & {*NETWORKS}:
        raise ValueError(
            f"expected the model that the steering was fitted on, {base!r}, or one of that name; got {given!r}, with "
            "other weights. If it shall be steered all the same, pass strict=False"
        )
    if known is not None and _can_tell(info, model):
        then, now = (f" with adapters {', '.join(names)}" if names else "" for names in _adapters(info, model))
        name = (base or info.get("model_class") or "a model") + then
        why = "other adapters, another checkpoint" if then or now else "another checkpoint"
        warn(
            f"expected the weights that the steering was fitted on, those of {name}; got a {given or 'model'}{now} "
            f"with others: {why}, or trained since. Its maps may not fit; strict=False says that they shall"
        )


def check_others(info: Mapping[str, Any], model: nn.Module, beside: Iterable[Maps]) -> None:
    """A warning where maps were fitted on what other maps had made of the activations, and those are neither on nor
    attached beside."""
    if not (wanted := maps_that_were_on(info)):
        return
    there = {*maps_that_were_on(what_is_on(model)), *map(maps_digest, beside)}
    if missing := [digest for digest in wanted if digest not in there]:
        warn(
            f"expected the {len(missing)} steerings that were on when this one was fitted, see its info['attached'], "
            "to be on the model; got one without. strict=False says that this one shall steer alone"
        )


def merged_into(model: nn.Module) -> list[str]:
    """Digests of the maps that `merge` put into a model's weights."""
    record = getattr(model, MERGED, None)
    return list(record.get("maps", ())) if isinstance(record, Mapping) else []


def check_merged(maps: Maps, model: nn.Module) -> None:
    """A warning where the maps are in the model's weights already."""
    if (known := merged_into(model)) and maps_digest(maps) in known:
        warn(
            "expected a model without this steering, got one with it in the weights, by merge: attached as well, it "
            "steers twice. strict=False says that it shall"
        )


def _check_component(info: Mapping[str, Any], model: nn.Module) -> None:
    """ValueError where maps were fitted on one network of a pipeline, and the model is another one of a pipeline.

    What tells is the folder that it was loaded from, else its class; a merged model may be of another.
    """
    fitted, kind, known = fitted_component(info), kind_of(core(model)).__name__, info.get("model_class")
    if not fitted:
        return
    folder = folder_in_pipeline(model)
    is_another = folder != fitted if folder in NETWORKS else isinstance(known, str) and known != kind
    if is_another and not hasattr(model, MERGED):
        was = f", a {printable(known)[:60]}" if isinstance(known, str) else ""
        raise ValueError(
            f"expected the network that the steering was fitted on, {fitted!r:.60} of a pipeline{was}; got a {kind}"
            + f", {folder!r} of one" * bool(folder)
            + ". If it shall be steered all the same, pass strict=False"
        )


def _can_tell(info: Mapping[str, Any], model: nn.Module) -> bool:
    """Whether weights of another digest are others. Those of a fit in float32 cannot be found in halves of them."""
    now = dtype_of(model)
    rounded_since = now in HALVES and info.get("dtype") != str(now).removeprefix("torch.")
    return has_whole_weights(model) and not rounded_since and not hasattr(model, MERGED)


def _adapters(info: Mapping[str, Any], model: nn.Module) -> tuple[list[str], list[str]]:
    """Those that were on at the fit, and those that are now."""
    then = info.get("adapters")
    return ([str(name) for name in then] if isinstance(then, list) else []), adapters_of(model)


def _last(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower()
