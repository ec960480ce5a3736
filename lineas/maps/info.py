"""What a steering's `info` says of the model that its maps were fitted on."""

import re
from collections.abc import Mapping
from typing import Any

HUB_NAME = r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?"


def base_name(info: Mapping[str, Any]) -> str:
    """The name of the model that maps were fitted on; empty where `info` knows none."""
    name = info.get("model")
    if not isinstance(name, str) or name == info.get("model_class"):
        return ""
    is_name = "model_class" in info or "/" in name  # else it may be a class: the first files wrote one there
    return name if is_name else ""


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
