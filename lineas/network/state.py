"""Leave a model, and the random generators, as they were found."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

from ..core.checks import whole
from .sharding import in_parts, is_sharded, reshard

# Modes, weights' requires_grad and random generators are of the process: threads that change them take turns.
TURN = threading.RLock()


def _renew_turn() -> None:
    """In a forked child, where a thread that had the turn is not."""
    global TURN
    TURN = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_turn)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """While open, the model is in evaluation mode and no weight asks for a gradient; as before afterwards.

    Of weights that `fully_shard` spreads, only a process's own part is kept afterwards: whole ones, as any pass may
    leave some, go.
    """
    with TURN:
        modes = {module: module.training for module in model.modules()}
        # By place, not by tensor: where weights are offloaded, every forward pass puts new tensors in their places.
        # What is in place between two passes asks for those that come; it is what must ask again afterwards, too.
        reshard(model)
        trainable = [
            (module, name, parameter)
            for module in modes
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.requires_grad and not parameter.is_inference()  # autograd records those never
        ]
        try:
            with in_parts(model):
                model.eval()
                for module, name, _ in trainable:
                    module.get_parameter(name).requires_grad_(False)
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for module, name, parameter in trainable:
                for one in (module.get_parameter(name), parameter):
                    one.requires_grad_(True)


@contextmanager
def eager() -> Iterator[None]:
    """While open, what `torch.compile` made runs as it was written: hooks that come and go would compile it anew."""
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):  # nothing compiled; torch < 2.6
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def make_new_to_compilers(module: nn.Module, hooked: bool) -> None:
    """Give a module a class of its own, a twin of its class, so that what `torch.compile` made of it no longer fits.

    Compiled code does not look again whether a module without hooks has got some, but it does look at its class. The
    module gets its own class back where it is no longer hooked.
    """
    plain = _plain_class(module)
    if hooked and "torch._dynamo" in sys.modules and not isinstance(module, torch.jit.ScriptModule):
        names = {
            "__module__": plain.__module__, "__qualname__": plain.__qualname__, "_lineas_twin_of": plain,
            "__reduce_ex__": _reduced,
        }  # fmt: skip
        module.__class__ = type(plain.__name__, (plain,), names)
    elif not hooked and plain is not type(module):
        module.__class__ = plain


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` was asked to make something of this module, its call or its forward."""
    return (
        module._compiled_call_impl is not None
        or isinstance(getattr(module, "_orig_mod", None), nn.Module)
        or hasattr(module.forward, "_torchdynamo_orig_callable")
    )


def _plain_class(module: nn.Module) -> type[nn.Module]:
    """Its class, or that of which it is a twin."""
    return vars(type(module)).get("_lineas_twin_of", type(module))


def _reduced(module: nn.Module, protocol: int) -> Any:
    """How a module with a class of its own is pickled and copied: by the class that can be imported."""
    plain = _plain_class(module)
    reduced: Any = plain.__reduce_ex__(module, protocol)
    make, arguments, *state = reduced
    known = (plain if argument is type(module) else argument for argument in arguments)
    return (_made_new, (make, *known), *state)


def _made_new(make: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
    module = make(*arguments)
    make_new_to_compilers(module, hooked=True)
    return module


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """While open, random numbers come from `seed`; the generators of the CPU and of the device are then restored."""
    seed, own = whole(seed, "seed", least=None), _own_generator(device)
    with TURN:
        before, before_own = torch.get_rng_state(), own.get_rng_state() if own else None
        try:
            reseed(seed, device)
            yield
        finally:
            torch.set_rng_state(before)
            if own:
                own.set_rng_state(before_own)


def _own_generator(device: torch.device) -> Any:
    """The module that draws for a device other than the CPU: torch.cuda, torch.mps, torch.xpu; None for the CPU."""
    module = getattr(torch, device.type, None)
    return module if device.type != "cpu" and hasattr(module, "get_rng_state") else None


def reseed(seed: int, device: torch.device) -> None:
    """Start the generators of the CPU and of one device anew; no other device's."""
    torch.default_generator.manual_seed(seed)
    if own := _own_generator(device):
        own.manual_seed(seed)


def device_of(model: nn.Module) -> torch.device:
    """Where inputs go: the device of the model's first weight, or to which accelerate will load it.

    ValueError where it has no value, and nothing would load one.
    """
    first = next(chain(model.parameters(), model.buffers()), None)
    if first is None or first.device.type != "meta":
        return torch.device("cpu") if first is None else first.device
    for module in model.modules():
        for hook in _accelerate_hooks(module):
            if (device := getattr(hook, "execution_device", None)) is not None:
                return torch.device(device)
    raise ValueError('model: expected weights, got none: they are on the "meta" device, and nothing would load them')


def dtype_of(model: nn.Module) -> torch.dtype:
    """What the model computes in, as far as its first floating-point weight tells."""
    floats = (w.dtype for w in chain(model.parameters(), model.buffers()) if w.is_floating_point())
    return next(floats, torch.float32)


def _accelerate_hooks(module: nn.Module) -> tuple[Any, ...]:
    hook = getattr(module, "_hf_hook", None)
    return tuple(getattr(hook, "hooks", (hook,)))


def moves_tensors(module: nn.Module) -> bool:
    """Whether hooks of accelerate move its inputs or weights about."""
    return getattr(module, "_hf_hook", None) is not None


def loaders(module: nn.Module) -> list[Any]:
    """The hooks of accelerate that load a module's weights before its forward pass, and drop them afterwards."""
    return [hook for hook in _accelerate_hooks(module) if getattr(hook, "offload", False)]


def must_finish(module: nn.Module) -> bool:
    """Whether no forward pass through this module may be cut short: at its end it drops the weights it had loaded, or
    gathered from other processes."""
    return is_sharded(module) or bool(loaders(module))
