"""Names without wrappers: what torch.compile, checkpointing, FSDP and PEFT put around modules is not in their names."""

import inspect
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from .sharding import is_sharded

LINKS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
# Of PEFT, which need not be installed: by a class's name, the child that it wraps.
PEFT = {
    "PeftModel": "base_model", "PeftMixedModel": "base_model", "BaseTuner": "model", "BaseTunerLayer": "base_layer",
    "AuxiliaryTrainingWrapper": "original_module",
}  # fmt: skip
FOUND: WeakKeyDictionary[type, str | None] = WeakKeyDictionary()  # of classes that were looked at, which child that is


def unwrapped(model: Any) -> nn.Module:
    """The network as it is called, out of what `torch.compile`, `DataParallel`, `DistributedDataParallel` or DeepSpeed
    made.

    What `torch.compile` made stays where `fully_shard` was called on that: only its call gathers the weights.

    TypeError for what is no network.
    """
    check_network(model)
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module) and not is_sharded(model):
            model = inner
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or _is_engine(model):
            model = model.module
        else:
            return model


def _is_engine(model: nn.Module) -> bool:
    """Whether it is DeepSpeed's, which need not be installed."""
    return any(kind.__name__ == "DeepSpeedEngine" for kind in type(model).__mro__) and hasattr(model, "module")


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


def within(module: nn.Module) -> nn.Module | None:
    """What a wrapper wraps; None where the module is none."""
    name = next((name for name in LINKS if name in module._modules), None) or _peft_link(type(module))
    inner = module._modules[name] if name and name in module._modules else None
    if name == "original_module":
        known: Any = module
        copies = module._modules.get("modules_to_save")
        active = known.active_adapters if copies is not None and not known.disable_adapters else []
        inner = next((copies[key] for key in active if key in copies), inner)  # type: ignore[index, operator]
    return inner


def core(module: nn.Module) -> nn.Module:
    """What is in all wrappers: a model of transformers in one of PEFT, the linear layer under an adapter."""
    while (inner := within(module)) is not None:
        module = inner
    return module


def _peft_link(kind: type) -> str | None:
    if kind not in FOUND:
        peft = {c.__name__ for c in kind.__mro__ if c.__module__.partition(".")[0] == "peft"}
        FOUND[kind] = next((link for name, link in PEFT.items() if name in peft), None)
    return FOUND[kind]


def arguments_of(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """What a model's forward takes; of a wrapper that passes on whatever it is given, what the wrapped one takes."""
    while True:
        taken = inspect.signature(model.forward).parameters
        inner = within(model)
        if inner is None or not any(one.kind is one.VAR_POSITIONAL for one in taken.values()):
            return taken
        model = inner


def is_adapted(module: nn.Module) -> bool:
    """Whether PEFT has put something around this module."""
    return _peft_link(type(module)) is not None


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by its bare name, "" for the model; of a wrapper and what it wraps the wrapper, which is called."""
    found: dict[str, nn.Module] = {}
    seen: set[nn.Module] = set()

    def visit(path: str, module: nn.Module) -> None:
        if module in seen:
            return
        seen.add(module)
        found.setdefault(path, module)
        inner = within(module)
        if inner is not None:
            visit(path, inner)
        for name, child in module.named_children():
            visit(f"{path}.{name}" if path else name, child)

    visit("", model)
    return found


def trail(model: nn.Module, path: str) -> list[nn.Module]:
    """The modules on the way to a bare name, wrappers too: from the model itself to the named one.

    A name with what PEFT puts before a network's own names leads there too, with adapters or without. AttributeError
    where no module has this name.
    """
    for name in _readings(path):
        if found := _followed(model, name):
            return found
    raise AttributeError(f"no module {path!r}")


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module of a bare name, as `trail` finds it."""
    return trail(model, path)[-1]


def _followed(model: nn.Module, path: str) -> list[nn.Module]:
    passed = [model]
    for name in path.split(".") if path else ():
        holders = list(_wrappers(passed[-1]))
        child = next((c for h in reversed(holders) if isinstance(c := getattr(h, name, None), nn.Module)), None)
        if child is None:
            return []
        passed += [*holders[1:], child]
    return passed


def _wrappers(module: nn.Module) -> Iterator[nn.Module]:
    """The module, and what is in it, from the outermost to the innermost."""
    yield module
    while (inner := within(module)) is not None:
        yield (module := inner)


def _readings(path: str) -> Iterator[str]:
    """The name as it is; and without what PEFT puts before the network's own names, and between them."""
    yield path
    plain = re.sub(r"\.(base_layer|original_module|modules_to_save\.[^.]+)(?=\.|$)", "", path)
    for before in ("", "base_model.model.", "base_model."):
        if plain.startswith(before) and (name := plain.removeprefix(before)) != path:
            yield name
