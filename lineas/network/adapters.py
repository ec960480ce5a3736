"""Adapters of PEFT, which need not be installed: which are on, and the weights that the model has with them."""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .links import core, is_adapted, within


def adapters_of(model: nn.Module) -> list[str]:
    """Names of the adapters that are on."""
    layers = (module for module in model.modules() if _is_adapter(module))
    return sorted({name for layer in layers for name in _active(layer)})


def effective_weights(model: nn.Module) -> Iterator[Tensor]:
    """In the order of `parameters()`, the weights of what the model computes: with adapters, those that PEFT's
    `merge_and_unload` would leave, to the bit; without, its own."""
    seen: set[int] = set()

    def new(named: dict[str, Tensor], originals: dict[str, Tensor]) -> Iterator[Tensor]:
        for name, weight in named.items():
            key = id(originals.get(name, weight))
            if key not in seen:
                seen.add(key)
                yield weight

    def visit(module: nn.Module) -> Iterator[Tensor]:
        if _is_adapter(module):
            originals: dict[str, Tensor] = dict(core(module).named_parameters())
            yield from new(_merged(module), originals)
        elif is_adapted(module):
            yield from visit(within(module) or module)
        else:
            own: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
            yield from new(own, {})
            for child in module.children():
                yield from visit(child)

    return visit(model)


def _merged(layer: nn.Module) -> dict[str, Tensor]:
    """A layer's weights with its adapters in them; side by side with theirs where they cannot be merged."""
    known: Any = layer
    if not _active(layer) or known.merged:
        return dict(core(layer).named_parameters())
    if all(type(weight.detach()) is Tensor and not weight.is_meta for weight in layer.parameters()):
        # Not the hooks, in which a whole steered model may hang.
        hooks = [h for module in layer.modules() for h in (module._forward_hooks, module._forward_pre_hooks)]
        twin: Any = copy.deepcopy(layer, {id(hook): OrderedDict() for hook in hooks})
        try:
            twin.merge()
            return dict(core(twin).named_parameters())
        except Exception:  # whatever keeps this kind of adapter from being merged
            pass
    return dict(layer.named_parameters())


def _is_adapter(module: nn.Module) -> bool:
    return is_adapted(module) and "base_layer" in module._modules


def _active(layer: nn.Module) -> list[str]:
    known: Any = layer
    return [] if known.disable_adapters else list(known.active_adapters)
