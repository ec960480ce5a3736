"""What a steering's `info` says of the model that its maps were fitted on, and of what was on it."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from .maps import Maps


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
    return total.hexdigest()


def maps_that_were_on(info: Mapping[str, Any]) -> list[str]:
    """Digests of the maps that were on the model while it was fitted; none where `info` cannot be read so."""
    entries = info.get("attached")
    lists = [entry.get("maps") for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    return [digest for found in lists if isinstance(found, list) for digest in found if isinstance(digest, str)]
