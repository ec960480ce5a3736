"""What the first forward pass tells of a steering that is on: sites that did not run are not steered."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..core.text import first_few, warn
from ..network.links import trail
from ..network.sites import Site
from ..network.state import is_compiled
from .site_map import SiteMap

SOMETIMES = r"(.*[._])?experts?([._].*)?"  # a mixture's: each token goes to some of them, and a text to few


class FirstPass:
    """A hook after the steered model, once: it warns of sites that did not run.

    Not of those in compiled code, which does not tell, nor of a mixture's experts.
    """

    def __init__(self, model: nn.Module, site_maps: Mapping[Site, SiteMap]):
        self.site_maps = dict(site_maps)
        self.is_to_come = [True]  # a list, of which only one thread can take it
        self.hook: RemovableHandle = model.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        try:
            self.is_to_come.pop()
        except IndexError:
            return
        self.hook.remove()
        if not next(iter(self.site_maps.values())).handle.is_chosen:
            warn(
                "expected rows, or handle.select, to say which of the attached steerings is meant; got neither, so "
                "nothing was steered"
            )
        missing = [
            site.name
            for site, one in self.site_maps.items()
            if not one.has_run
            and not re.fullmatch(SOMETIMES, site.path)
            and not any(map(is_compiled, trail(module, site.path)))
        ]
        if missing:
            warn(
                f"{len(missing)} of {len(self.site_maps)} steered sites did not run in the first forward pass of "
                f"{type(module).__name__}, so it was not steered there: {first_few(missing)}"
            )
