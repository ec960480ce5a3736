"""What a steering's `info` says of the model that its maps were fitted on, and of what was on it."""

import math
import re
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from keyword import iskeyword
from typing import Any

from .maps import Maps

# Of arguments of a call that a file tells, which else would make it take all memory or time.
TEXT_LIMIT, NUMBER_LIMIT, PIXEL_LIMIT = 100, 4096, 1 << 26
SIZES = ("height", "width", "num_frames")
HUB_NAME = r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?"


def base_name(info: Mapping[str, Any]) -> str:
    """The name of the model that maps were fitted on; empty where `info` knows none."""
    name = info.get("model")
    if not isinstance(name, str) or name == info.get("model_class"):
        return ""
    is_name = "model_class" in info or "/" in name  # else it may be a class: the first files wrote one there
    return name if is_name else ""


def maps_digest(maps: Maps) -> str:
    """By which `info` tells the maps of one steering from those of another."""
    total = blake2b(repr(list(maps.sizes.items())).encode(), digest_size=16)
    parts = [part for name, kind in maps.special.items() for part in kind.parts]
    for array in (maps.weights, maps.biases, *parts):
        total.update(array.tobytes())
    if maps.gate is not None:
        total.update(maps.gate.key.encode())
    return total.hexdigest()


def maps_that_were_on(info: Mapping[str, Any]) -> list[str]:
    """Digests of the maps that were on the model while it was fitted; none where `info` cannot be read so."""
    entries = info.get("attached")
    lists = [entry.get("maps") for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    return [digest for found in lists if isinstance(found, list) for digest in found if isinstance(digest, str)]


def pipeline_facts(info: Mapping[str, Any]) -> dict[str, Any]:
    """What `info` says of the pipeline that maps were fitted in, with whatever values; empty where it says nothing."""
    facts = info.get("pipeline")
    return {str(key): value for key, value in facts.items()} if isinstance(facts, Mapping) else {}


def fitted_component(info: Mapping[str, Any]) -> str:
    """Which network of a pipeline maps are for; empty where `info` says none."""
    name = pipeline_facts(info).get("component")
    return name if isinstance(name, str) else ""


def component_of_fit(infos: Iterable[Mapping[str, Any]], component: str | None = None) -> str | None:
    """Which network of a pipeline is meant, if that is told: by the user, or by the `info` of steerings.

    ValueError where it is not the same for all.
    """
    fitted = dict.fromkeys(filter(None, map(fitted_component, infos)))
    names = " and ".join(f"{name!r:.60}" for name in fitted)
    if len(fitted) > 1:
        raise ValueError(f"steerings: expected maps of one network of the pipeline, got {names}; attach them apart")
    if fitted and component is not None and component not in fitted:
        raise ValueError(f"component: expected the network that was fitted, {names}, got {component!r:.60}")
    return next(iter(fitted), component)


def call_of_fit(info: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the pipeline's call that the maps were fitted with, as far as they may be told by anybody: plain
    values, none of which asks for much memory or time."""
    call = pipeline_facts(info).get("call")
    known = {key: value for key, value in call.items() if _is_argument(key, value)} if isinstance(call, Mapping) else {}
    pixels = math.prod(max(known.get(size) or 1, 1) for size in SIZES if not isinstance(known.get(size), str))
    return {key: value for key, value in known.items() if pixels <= PIXEL_LIMIT or key not in SIZES}


def _is_argument(key: Any, value: Any) -> bool:
    if not isinstance(key, str) or not key.isidentifier() or iskeyword(key) or len(key) > TEXT_LIMIT:
        return False
    if isinstance(value, str):
        return len(value) <= TEXT_LIMIT and value.isprintable()
    is_count = key.endswith("_per_prompt")
    is_number = isinstance(value, (int, float)) and abs(value) <= NUMBER_LIMIT  # which NaN is not
    return value is None or isinstance(value, bool) or (is_number and not is_count)


def hub_name(info: Mapping[str, Any]) -> str:
    """The same on the hub: what the user said it is, else what it was loaded by from there; empty where that is not
    known, as of a folder or a model made in memory."""
    said, name = info.get("base_model"), base_name(info)
    if not isinstance(said, str):
        said = name if "/" in name or info.get("revision") else ""
    return said if re.fullmatch(HUB_NAME, said) else ""


def check_hub_name(name: Any) -> str:
    """TypeError or ValueError where it can be no model's name on the hub, which would refuse a card with it."""
    if not isinstance(name, str):
        raise TypeError(f"base_model: expected a name on the hub, got {type(name).__name__}")
    if not re.fullmatch(HUB_NAME, name):
        raise ValueError(f"base_model: expected a name on the hub, such as 'organisation/model', got {name!r:.80}")
    return name
