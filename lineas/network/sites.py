"""Sites: the module outputs that can be mapped, by name."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._text import nearest

__all__ = ["Site", "find_sites"]

# The normalisation that feeds each block's MLP, by the names that architectures give it; the first that occurs counts.
MLP_NORMS = (
    r".*\.pre_feedforward_layernorm",  # Gemma 2 and 3, whose post_attention_layernorm is something else
    r".*\.post_attention_layernorm",  # Llama, Qwen, Mistral, Phi-3, GPT-NeoX, BLOOM
    r".*\.ln_2",  # GPT-2, GPT-Neo
    r".*\.layernorm_after",  # ViT, DeiT
    r".*\.layer_norm2",  # CLIP, SigLIP
    r".*\.norm_?2",  # MPT, timm, diffusers
    r".*\.(ffn|mlp)_(layer_?)?norm",  # Llama as published, DBRX
    r".*\.attention\.output\.LayerNorm",  # BERT, RoBERTa, ELECTRA
    r"(.*\.)?(encoder\.block\.\d+\.layer\.1|decoder\.block\.\d+\.layer\.2)\.layer_norm",  # T5
    r".*\.sa_layer_norm",  # DistilBERT
    r".*\.final_layer_norm",  # OPT, Whisper, Pegasus, mBART
)
# These name their norms as the last ones do, but normalise after adding: the block's class tells.
POST_NORM = r"(Bart|PLBart|Marian|BlenderbotSmall|Mvp|LED)(En|De)coderLayer"


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


LINKS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def unwrapped(model: Any) -> nn.Module:
    """The network itself, out of what `torch.compile`, `DataParallel` and `DistributedDataParallel` make of it.

    TypeError for what is no network.
    """
    check_network(model)
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def check_network(model: Any) -> None:
    """TypeError for what is no network; of an object that holds some, a pipeline for instance, with their names."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {_described(model)}")


def _described(other: Any) -> str:
    """What came instead of a network, and how to get at one."""
    if isinstance(other, type):
        return f"the class {other.__name__}; pass one that was made of it"
    if isinstance(other, (str, os.PathLike)):
        return f"{type(other).__name__} {str(other)!r:.80}; load it first, for instance with from_pretrained"
    held = [f".{name}" for name, value in getattr(other, "__dict__", {}).items() if isinstance(value, nn.Module)]
    return type(other).__name__ + (f"; pass what it holds: {' or '.join(held)}" if held else "")


def bare_name(path: str) -> str:
    """A module's path without the links that wrappers (`torch.compile`, checkpointing, FSDP) add to it."""
    return ".".join(part for part in path.split(".") if part not in LINKS)


def find_sites(model: nn.Module, pattern: "str | Iterable[str | Site] | None" = None) -> list[Site]:
    """What would be steered: a dry run that changes and calls nothing.

    Parameters
    ----------
    model : nn.Module
    pattern : str, list of str or of Site, or None
        A regular expression that must match a module's whole path; a list of exact names; or None for the normalisation
        that feeds each block's MLP. A name or pattern may end in `:k`, for item k of a module that returns a tuple.

    Returns
    -------
    list of Site
        In the order of `model.named_modules()`; a list keeps its own order. Names are those of the network itself,
        without what `torch.compile` or `DistributedDataParallel` put before them.

    Raises
    ------
    LookupError
        No module matches; the message has the nearest names.
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
    model = unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"model: expected modules that Python calls, got a {type(model).__name__}: what torch.jit makes is one "
            "piece, and no hook inside runs; take the model that it was made of"
        )
    modules = {name: module for path, module in model.named_modules() if (name := bare_name(path))}
    if pattern is None:
        names = _default_names(modules)
    elif isinstance(pattern, str):
        names = _matching_names(modules, pattern)
    elif not isinstance(pattern, Iterable):
        raise TypeError(f"sites: expected a regular expression, names or None, got {pattern!r:.60}")
    else:
        names = _listed_names(model, modules, [s.name if isinstance(s, Site) else s for s in pattern])
    for name in names:
        if why := _why_never_run(model, split_name(name)[0]):
            raise ValueError(f"site {name!r}: expected a module that runs in a forward pass, got {why}")
    return [_site(name, model.get_submodule(split_name(name)[0])) for name in names]


def _default_names(modules: dict[str, nn.Module]) -> list[str]:
    last = {"En": "self_attn_layer_norm", "De": "encoder_attn_layer_norm"}
    blocks = {path: re.fullmatch(POST_NORM, type(module).__name__) for path, module in modules.items()}
    names = [f"{path}.{last[found[2]]}" for path, found in blocks.items() if found]
    if names := [name for name in names if name in modules]:
        return names
    for pattern in MLP_NORMS:
        if names := [path for path in modules if re.fullmatch(pattern, path)]:
            return names
    raise LookupError(
        "found no normalisation that feeds an MLP, so there is no default: pass sites=, a list of module paths or a "
        f"regular expression. Candidates here: {_outline(modules) or 'none, it has no modules inside'}"
    )


def _matching_names(modules: dict[str, nn.Module], pattern: str) -> list[str]:
    path, item = split_name(pattern)
    try:
        matches = [name for name, module in modules.items() if re.fullmatch(path, name) and _has_forward(module)]
    except re.error as error:
        raise ValueError(f"sites: {pattern!r} is not a regular expression: {error}") from error
    if not matches:
        raise LookupError(
            f"no site matches {pattern!r} over a whole module path; {nearest(path, modules, _outline(modules))}"
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
            key = (id(model.get_submodule(path)), item or 0)
        except AttributeError:
            raise LookupError(f"no site {name!r}; {nearest(path, modules, _outline(modules))}") from None
        if not path:
            raise LookupError("the model itself ('') is not a site; name one of its modules")
        if key in seen:
            raise ValueError(f"sites: {name!r} names the same output as {seen[key]!r}; expected each site once")
        seen[key] = name
    return names


def _has_forward(module: nn.Module) -> bool:
    """Containers have none, nor has what `torch.export` leaves of a module."""
    return getattr(module.forward, "__func__", None) is not nn.Module.forward


def _why_never_run(model: nn.Module, path: str) -> str:
    """What tells, before any pass, that this module is not called in one; empty where nothing does."""
    module = model
    for name in path.split("."):
        if isinstance(module, torch.jit.ScriptModule):
            return f"part of a {type(module).__name__}, which torch.jit made one piece"
        if type(module) is nn.MultiheadAttention and name == "out_proj":
            return "a weight that nn.MultiheadAttention reads without a call; its own output, item 0, is a site"
        module = getattr(module, name)
    if isinstance(module, torch.jit.RecursiveScriptModule):
        return f"a {type(module).__name__}, which takes no hooks"
    return "" if _has_forward(module) else "one without a forward: a container, or what torch.export left of a module"


def _site(name: str, module: nn.Module) -> Site:
    return Site(name, units_of(module), type(module).__name__)


def units_of(module: nn.Module) -> int | None:
    """How many units a module has, where that can be told before it runs."""
    for attribute in ("out_features", "out_channels", "num_channels", "num_features", "embedding_dim"):
        if isinstance(count := getattr(module, attribute, None), int):
            return count
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 1 and "norm" in type(module).__name__.lower():
        return len(weight)
    if type(module).__name__ == "Conv1D" and isinstance(weight, Tensor):  # GPT-2's linear layer, (in, out)
        return weight.shape[1]
    return None


def _outline(modules: dict[str, nn.Module], limit: int = 8) -> str:
    """Leaf modules by shape of name, layer numbers folded: 'blocks.*.norm (12 LayerNorm)'."""
    leaves = Counter(
        (re.sub(r"\d+", "*", path), type(module).__name__)
        for path, module in modules.items()
        if next(module.children(), None) is None
    )
    ranked = sorted(leaves.items(), key=lambda entry: ("norm" not in entry[0][1].lower(), -entry[1]))
    return ", ".join(f"{path} ({count} {kind})" for (path, kind), count in ranked[:limit])
