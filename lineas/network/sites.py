"""Sites: the module outputs that can be mapped, by name."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core.text import nearest
from .default_sites import all_norms, default_names, outline
from .links import core, module_at, named_modules, trail
from .pipelines.components import is_denoiser, network_of
from .sharding import kind_of

__all__ = ["Site", "find_sites", "why_never_run"]


@dataclass(frozen=True)
class Site:
    """A module output that can be mapped.

    Attributes
    ----------
    name : str
        The module's path, or `path:k` for item k of a tuple.
    units : int or None
        Channels of the output, where the module itself tells; None where only a forward pass can.
    kind : str
        Class of the module.
    path : str
        The module's.
    item : int or None
        Which one of the tuple that it returns.
    """

    name: str
    units: int | None
    kind: str

    path: str = field(init=False, repr=False, compare=False)
    item: int | None = field(init=False, repr=False, compare=False)

    def __post_init__(self):  # here, since compilers trace no lazy property of Python 3.11, which takes a lock
        for name, value in zip(("path", "item"), split_name(self.name), strict=True):
            object.__setattr__(self, name, value)


def split_name(name: str) -> tuple[str, int | None]:
    """'path:k' -> (path, k); 'path' -> (path, None)."""
    path, colon, item = name.rpartition(":")
    return (path, int(item)) if colon and item.isdecimal() else (name, None)


def find_sites(
    model: Any, pattern: "str | Iterable[str | Site] | None" = None, *, component: str | None = None
) -> list[Site]:
    """What would be steered: a dry run that changes and calls nothing.

    Parameters
    ----------
    model : nn.Module or pipeline
    pattern : str, list of str or of Site, or None
        A regular expression that must match a module's whole path; a list of exact names; or None for the normalisation
        that feeds each block's MLP, as far as names tell: `lineas.fit` looks whether it does; of a pipeline's denoiser,
        all normalisations of activations. A name or pattern may end in `:k`, for item k of a module that returns a
        tuple.
    component : str, optional
        Which network of a pipeline; its denoiser if not given.

    Returns
    -------
    list of Site
        In the order of `model.named_modules()`; a list keeps its own order. Names are those of the network itself,
        without what `torch.compile`, `DistributedDataParallel` or PEFT put before them.

    Raises
    ------
    LookupError
        No module matches; the message has the nearest names. No default is known; it has candidates.
    TypeError, ValueError
        Neither a pattern nor a list; a bad pattern, an empty list, a site named twice, two names of one module; a
        module that never runs by itself: a container, or part of what `torch.jit` or `torch.export` made one piece.

    Examples
    --------
    >>> import torch, lineas
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> lineas.find_sites(net, "[02]")
    [Site(name='0', units=8, kind='Linear'), Site(name='2', units=2, kind='Linear')]
    """
    makes_pictures, model = is_denoiser(model, component), network_of(model, component)
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"model: expected modules that Python calls, got a {type(model).__name__}: what torch.jit makes is one "
            "piece, and no hook inside runs; take the model that it was made of"
        )
    everything = named_modules(model)
    modules = {name: module for name, module in everything.items() if name}
    if pattern is None:
        names = all_norms(everything) if makes_pictures else list(default_names(everything))
    elif isinstance(pattern, str):
        names = _matching_names(modules, pattern)
    elif not isinstance(pattern, Iterable):
        raise TypeError(f"sites: expected a regular expression, names or None, got {pattern!r:.60}")
    else:
        names = _listed_names(model, modules, [s.name if isinstance(s, Site) else s for s in pattern])
    for name in names:
        if why := why_never_run(model, split_name(name)[0]):
            raise ValueError(f"site {name!r}: expected a module that runs in a forward pass, got {why}")
    return [_site(name, module_at(model, split_name(name)[0])) for name in names]


def _matching_names(modules: dict[str, nn.Module], pattern: str) -> list[str]:
    path, item = split_name(pattern)
    try:
        matches = [name for name, module in modules.items() if re.fullmatch(path, name) and _has_forward(module)]
    except re.error as error:
        raise ValueError(f"sites: {pattern!r} is not a regular expression: {error}") from error
    if not matches:
        raise LookupError(
            f"no site matches {pattern!r} over a whole module path; {nearest(path, modules, outline(modules))}"
        )
    return [name if item is None else f"{name}:{item}" for name in matches]


def _listed_names(model: nn.Module, modules: dict[str, nn.Module], names: list[str]) -> list[str]:
    if not names:
        raise ValueError("sites: expected at least one name, got an empty list")
    seen: dict[tuple[int, int], str] = {}
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"sites: expected names (str), got {type(name).__name__} {name!r}")
        path, item = split_name(name)
        try:
            key = (id(module_at(model, path)), item or 0)
        except AttributeError:
            raise LookupError(f"no site {name!r}; {nearest(path, modules, outline(modules))}") from None
        if not path:
            raise LookupError("the model itself ('') is not a site; name one of its modules")
        if key in seen:
            raise ValueError(f"sites: {name!r} names the same output as {seen[key]!r}; expected each site once")
        seen[key] = name
    return names


def _has_forward(module: nn.Module) -> bool:
    """Containers have none, nor has what `torch.export` leaves of a module."""
    return getattr(module.forward, "__func__", None) is not nn.Module.forward


def why_never_run(model: nn.Module, path: str) -> str:
    """What tells, before any pass, that this module is not called in one; empty where nothing does."""
    *above, module = trail(model, path)
    if sealed := next((one for one in above if isinstance(one, torch.jit.ScriptModule)), None):
        return f"part of a {type(sealed).__name__}, which torch.jit made one piece"
    if type(above[-1]) is nn.MultiheadAttention and path.endswith("out_proj"):
        return "a weight that nn.MultiheadAttention reads without a call; its own output, item 0, is a site"
    if isinstance(module, torch.jit.RecursiveScriptModule):
        return f"a {type(module).__name__}, which takes no hooks"
    return "" if _has_forward(module) else "one without a forward: a container, or what torch.export left of a module"


def _site(name: str, module: nn.Module) -> Site:
    inner = core(module)
    return Site(name, units_of(inner), kind_of(inner).__name__)


def units_of(module: nn.Module) -> int | None:
    """How many units a module has, where that can be told before it runs."""
    for attribute in ("out_features", "out_channels", "num_channels", "num_features", "embedding_dim"):
        if isinstance(count := getattr(module, attribute, None), int):
            return count
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 1 and "norm" in type(module).__name__.lower():
        return len(weight)
    if kind_of(module).__name__ == "Conv1D" and isinstance(weight, Tensor):  # GPT-2's linear layer, (in, out)
        return weight.shape[1]
    return None
