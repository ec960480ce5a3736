"""What a steering's `info` says of the model that its maps were fitted on."""

from collections.abc import Mapping
from typing import Any


def base_name(info: Mapping[str, Any]) -> str:
    """The name of the model that maps were fitted on; empty where `info` knows none."""
    name = info.get("model")
    if not isinstance(name, str) or name == info.get("model_class"):
        return ""
    is_name = "model_class" in info or "/" in name  # else it may be a class: the first files wrote one there
    return name if is_name else ""
