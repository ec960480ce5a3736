"""Hooks at sites: which tensor is a site's, where its channels are, and a function that it passes through."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .links import module_at
from .sharding import is_spread, kind_of
from .sites import Site, units_of

# Modules whose channels are dimension 1. Other modules have theirs last, except that 4-D outputs (images) count as
# channels-first unless a linear or layer normalisation, which works on the last dimension, made them.
CHANNELS_FIRST = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
)  # fmt: skip
CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding)


def channel_dim(module: nn.Module, output: Tensor) -> int:
    """1 where channels come first, -1 where they come last.

    That of the module's kind, unless only the other dimension has as many units as the module: a layer normalisation
    of images may put the channels back in front (ConvNeXt's, LayerNorm2d). Where both have, its name or format tells.
    """
    if "base_layer" in module._modules:  # under an adapter of PEFT
        module = module.get_submodule("base_layer")
    dim = _usual_dim(module, output)
    if output.ndim < 3 or kind_of(module) in CHANNELS_FIRST + CHANNELS_LAST:
        return dim
    other, units = -1 if dim == 1 else 1, units_of(module)
    if output.shape[dim] != units and output.shape[other] == units:
        return other
    if output.shape[dim] == output.shape[other] and isinstance(module, nn.LayerNorm) and output.ndim > 3:
        first = type(module).__name__.endswith("2d") or getattr(module, "data_format", "") == "channels_first"
        return 1 if first else dim
    return dim


def _usual_dim(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, CHANNELS_FIRST):
        return 1
    if isinstance(module, CHANNELS_LAST) or "RMSNorm" in type(module).__name__ or output.ndim < 4:
        return -1
    return 1


def tensor_of(site: Site, output: object) -> Tensor:
    """The site's tensor in what its module returned: the tensor itself, or item k of a tuple (the first by default)."""
    found: object = output
    if isinstance(output, (tuple, list)):
        if (site.item or 0) >= len(output):
            raise LookupError(f"site {site.name!r}: its module returned {len(output)} items, there is no {site.item}")
        found = output[site.item or 0]
    elif site.item is not None:
        raise TypeError(f"site {site.name!r}: expected its module to return a tuple, got {type(output).__name__}")
    if isinstance(found, Tensor) and is_spread(found):
        placements: Any = found
        raise TypeError(
            f"site {site.name!r}: expected a tensor (batch, ..., channels), got a DTensor {placements.placements}, of "
            "which each process has a part; tensor parallelism returns whole ones with Replicate() as the output's "
            "layout and use_local_output=True"
        )
    if isinstance(found, Tensor) and found.is_nested:
        raise TypeError(
            f"site {site.name!r}: expected a tensor (batch, ..., channels), got a nested one; nn.TransformerEncoder "
            "makes none with enable_nested_tensor=False"
        )
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.ndim < 2:
        got = f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(f"site {site.name!r}: expected a float tensor (batch, ..., channels), got {got}")
    return found


def replace_tensor(site: Site, output, tensor: Tensor):
    """What the module returned, with the site's tensor exchanged; the original is left alone."""
    if not isinstance(output, (tuple, list)):
        return tensor
    items = list(output)
    items[site.item or 0] = tensor
    if hasattr(output, "_fields"):  # a named tuple
        return type(output)(*items)
    return type(output)(items)


class Hook:
    """Passes a site's output through a function of the module and the tensor; out of place, as autograd needs.

    Where `rows` are told, tokens that are folded into them, (rows * tokens, channels), come by row.
    """

    def __init__(self, site: Site, function: Callable[[nn.Module, Tensor], Tensor], rows: int | None = None):
        self.site, self.function, self.rows = site, function, rows

    def __call__(self, module, args, output):
        h = tensor_of(self.site, output)
        if self.rows is None or h.ndim != 2 or len(h) == self.rows:
            return replace_tensor(self.site, output, self.function(module, h))
        return replace_tensor(self.site, output, self.function(module, by_row(self.site, h, self.rows)).flatten(0, 1))


def by_row(site: Site, h: Tensor, rows: int) -> Tensor:
    """(rows * tokens, channels), as OPT folds its tokens -> (rows, tokens, channels)."""
    if len(h) % rows:
        raise ValueError(
            f"site {site.name!r}: expected a multiple of {rows} samples in dimension 0, got {tuple(h.shape)}"
        )
    return h.unflatten(0, (rows, -1))


Functions = Mapping[Site, Callable[[nn.Module, Tensor], Tensor]]


def put_hooks(model: nn.Module, functions: Functions, rows: int | None = None) -> list[RemovableHandle]:
    """From now on each site's output passes through its function; no hook stays where one cannot be put."""
    handles: list[RemovableHandle] = []
    try:
        for site, function in functions.items():
            module = module_at(model, site.path)
            handles.append(module.register_forward_hook(Hook(site, function, rows)))
            _let_recorders_see(module)
    except BaseException:
        for handle in handles:
            handle.remove()
        raise
    return handles


def _let_recorders_see(module: nn.Module) -> None:
    """Behind all others, the hooks by which transformers keeps hidden states: what they keep is what goes on."""
    for key, hook in list(module._forward_hooks.items()):
        if str(getattr(hook, "__module__", "")).partition(".")[0] == "transformers":
            module._forward_hooks[key] = module._forward_hooks.pop(key)


@contextmanager
def hooked(model: nn.Module, functions: Functions, rows: int | None = None) -> Iterator[None]:
    """While open, each site's output passes through its function; `rows` as a `Hook` takes them."""
    handles = put_hooks(model, functions, rows)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
