"""Whether a model is the one that maps were fitted on."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..maps.info import base_name
from ..network.identity import name_of, weights_digest


def check_base(info: Mapping[str, Any], model: nn.Module) -> None:
    """ValueError where maps were fitted on a model of another name, whose weights were others too.

    Names are compared by their last part, since a folder on one disk is a repository elsewhere. A model that was made
    in memory has none, nor has a steering made by hand: then shapes alone tell.
    """
    base, given = base_name(info), name_of(model)
    if not given or not base or _last(base) == _last(given) or info.get("weights") == weights_digest(model):
        return
    raise ValueError(
        f"expected the model that the steering was fitted on, {base!r}, or one of that name; got {given!r}, with other "
        "weights. If it shall be steered all the same, pass strict=False"
    )


def _last(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower()
