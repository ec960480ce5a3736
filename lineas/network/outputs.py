"""Which module makes what a network puts out."""

from typing import Any

import torch
from torch import Tensor, nn

from . import tree
from .batch import Batch
from .calls import call, output_of
from .links import core, named_modules

__all__ = ["OUTPUT", "head_of", "output_name"]

OUTPUT = "output"  # for loss_sites: whatever the network puts out


def output_name(model: nn.Module, batch: Batch) -> str:
    """The site whose output is the network's own; of a language model what its output layer reads.

    From one pass over a batch. LookupError where no module makes it: something is done with it afterwards. TypeError
    where it is nothing to compare.
    """
    made: list[tuple[str, Tensor]] = []  # in the order in which modules end
    read: list[Tensor] = []
    head = head_of(model)
    modules = {name: module for name, module in named_modules(model).items() if name}

    def note(name: str):
        def see(module: nn.Module, args: Any, output: Any) -> None:
            for path, leaf in tree.leaves(output):
                is_site = not path or path.isdigit()  # and no item of a dict
                if isinstance(leaf, Tensor) and is_site:  # kept, so that no other tensor takes its place in memory
                    made.append((name if path in ("", "0") else f"{name}:{path}", leaf))

        return see

    hooks = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    if head is not None:
        hooks.append(head.register_forward_pre_hook(lambda module, args: read.append(args[0])))
    try:
        with torch.no_grad():
            output = output_of(call(model, batch))[0]
    finally:
        for hook in hooks:
            hook.remove()
    wanted = read[-1] if read else output
    if wanted.ndim < 2 or not wanted.is_floating_point():
        raise TypeError(
            f"loss_sites: expected an output (samples, ..., channels) of floats to compare, but the "
            f"{type(core(model)).__name__} puts out {tuple(wanted.shape)} {wanted.dtype}: name a site"
        )
    found = [name for name, leaf in made if _same(leaf, wanted)]
    innermost = [name for name in found if not any(other.startswith(f"{name}.") for other in found)]
    if not innermost:
        last = made[-1][0] if made else "none"
        raise LookupError(
            f"loss_sites: expected a module that returns what the {type(core(model)).__name__} puts out, found none; "
            f"the last to end is {last}: name a site"
        )
    return innermost[-1]


def head_of(model: nn.Module) -> nn.Module | None:
    """The output layer of a language model."""
    inner = core(model)
    find = getattr(inner, "get_output_embeddings", None)
    return find() if callable(find) else None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.data_ptr() == b.data_ptr()
