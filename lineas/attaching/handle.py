"""A steering that is on: the handle that changes its strength and takes it off, and what is on a model."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ContextDecorator
from itertools import count as counted
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..core.text import warn
from ..maps.info import maps_digest
from ..maps.maps import Maps
from ..network.hooks import Hook, put_hooks
from ..network.links import module_at
from ..network.pipelines.components import networks_of
from ..network.sites import Site
from ..network.state import make_new_to_compilers
from .coverage import Coverage
from .denoising import Denoising
from .first_pass import FirstPass
from .gating import Reader
from .positions import TokenHook, Tokens
from .rows import choose
from .site_map import SiteMap, copy_but

__all__ = ["Application", "Handle", "attached", "detach", "what_is_on"]

NUMBERS = counted()  # of handles, in the order in which they were made


class Handle:
    """Steering that is on; `remove()` ends it, and so does leaving a `with` block.

    It stays on until then, whether anybody keeps the handle or not: `attached` finds it again.

    Attributes
    ----------
    active : bool
        Whether it is still on.
    is_chosen : bool
        Whether it was told which of several steerings to use.
    rows, strength
        What was chosen last: see `select` and `set_strength`.
    position : str or callable
        Which tokens are steered.
    """

    def __init__(
        self, model: nn.Module, steerings: dict[Any, Maps], site_maps: Mapping[Site, SiteMap],
        tokens: Tokens | Denoising, rows: Any, strength: Any, readers: Mapping[Site, Reader],
    ):  # fmt: skip
        self._model, self._steerings, self._maps, self._tokens = model, steerings, site_maps, tokens
        self.active, self.position = True, tokens.position
        self.is_chosen = rows is not ... or len(steerings) == 1
        if rows is ...:
            rows = next(iter(steerings)) if self.is_chosen else None
        self._modules: list[nn.Module] = []
        self._hooks: list[RemovableHandle] = []
        self._number = next(NUMBERS)
        for one in site_maps.values():
            one.handle = self  # what the hooks know, lives as long as they do
        try:
            self._set(rows, strength)
            self._hooks += put_hooks(model, readers)  # first: at a site of both, a gate reads what is not mapped yet
            self._hooks += [*put_hooks(model, site_maps), FirstPass(model, site_maps).hook]
            self._are_hooked([module_at(model, site.path) for site in (*readers, *site_maps)])
            if tokens.is_needed:
                self._watch_passes()
        except BaseException:
            self.remove()
            raise

    # -- while it is on --

    def set_strength(self, strength: float | Sequence[float] | Tensor) -> None:
        """Another strength from now on: a number, or one for each row of the batch. See `lineas.attach`."""
        self._set(self.rows, strength)

    def select(self, rows: Any, strength: float | Sequence[float] | Tensor | None = None) -> None:
        """Which steering each row of the batch gets from now on, and perhaps at which strength. See `lineas.attach`.

        Parameters
        ----------
        rows : id or None, or a list of them
            One for all rows, or one for each row; None is none.
        strength : float, or one for each row, optional
            As it was, if not given.
        """
        self._set(rows, self.strength if strength is None else strength)
        self.is_chosen = True

    def prompt(self, lengths: int | Sequence[int] | Tensor) -> AbstractContextManager[None]:
        """While open, the first tokens of each row are its prompt: a number for all rows, or one for each.

        To compare cached generation with one full forward pass over prompt and answer, to score an answer, and to fill
        a cache piece by piece in a loop of your own. Within `generate` the prompt is known otherwise.

        Raises
        ------
        ValueError
            Negative lengths; in a pass, not as many as rows.

        Examples
        --------
        >>> import lineas
        >>> def answers(steering, model, ids, lengths):
        ...     with steering.apply(model, position="generated") as handle, handle.prompt(lengths):
        ...         return model(ids).logits
        """
        return self._tokens.prompt(lengths)

    def coverage(self) -> Coverage:
        """Tokens seen and steered so far, by site: `coverage()[site].seen` and `.steered`. Padding does not count.

        Also after `remove`. Tokens are counted once for each time that they pass: with `use_cache=False` those of the
        prompt do at every step, and candidates of assisted generation also where they are rejected.

        Raises
        ------
        RuntimeError
            Nothing was counted: with position "all" only `count=True` counts.
        """
        if not self._tokens.counting:
            raise RuntimeError("no tokens were counted; expected count=True when the steering was attached")
        return Coverage({site.name: one.count.read() for site, one in self._maps.items()})

    def openness(self) -> dict[Any, Tensor]:
        """How far gates were open in the last forward pass of this thread, 0 to 1, by id of their steering.

        (rows, tokens), of a gate with pooling "all" (rows,). Empty where no steering has a gate.

        Raises
        ------
        RuntimeError
            There was no pass yet.
        """
        gates = {key: maps.gate for key, maps in self._steerings.items() if maps.gate is not None}
        last = self._tokens.ongoing.last_reading if isinstance(self._tokens, Tokens) else None
        if not gates:
            return {}
        if last is None or not all(gate.key in last.openness for gate in gates.values()):
            raise RuntimeError("openness: expected a forward pass of the steered model before, got none in this thread")
        return {key: last.openness[gate.key] for key, gate in gates.items()}

    # -- on and off --

    def _set(self, rows: Any, strength: Any) -> None:
        if not self.active:
            raise RuntimeError("expected a handle that is on, got one that was removed")
        choice = choose(self._steerings, rows, strength)
        if choice.by_row is not None:
            self._watch_passes()
        self._tokens.batch = None if choice.by_row is None else (choice.argument, len(choice.by_row))
        for one in self._maps.values():
            one.set(choice)
        self.rows, self.strength = rows, strength

    def _watch_passes(self) -> None:
        if not self._tokens.hosts:
            self._tokens.watch_passes(self._model)
            self._are_hooked(self._tokens.hosts)

    def _are_hooked(self, modules: Sequence[nn.Module]) -> None:
        self._modules.extend(modules)
        for module in modules:
            make_new_to_compilers(module, hooked=True)

    def remove(self) -> None:
        """Take the hooks off; a second call does nothing."""
        if self.active:
            self.active = False
            if waiting := max(one.recomputed.waiting for one in self._maps.values()):
                warn(
                    f"a steering was taken off before the backward of {waiting} passes under reentrant checkpointing, "
                    "which computes them again, now unsteered: their gradients will be wrong. Call backward first, or "
                    "checkpoint with use_reentrant=False"
                )
            for hook in self._hooks:
                hook.remove()
            self._tokens.leave()
            for module in self._modules:
                make_new_to_compilers(module, hooked=_is_hooked(module))

    def __repr__(self) -> str:
        state = "on" if self.active else "removed"
        chosen = "" if self.rows == 0 and len(self._steerings) == 1 else f", rows {self.rows!r}"
        return (
            f"Handle({state}: {len(self._steerings)} steering{'s' * (len(self._steerings) > 1)} at {len(self._maps)} "
            f"site{'s' * (len(self._maps) > 1)}, strength {self.strength!r}, position {self.position!r}{chosen})"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Handle":
        """A copy of a steered model is steered, by a handle of its own, with the same steerings."""
        return copy_but(self, memo, "_steerings")

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *exception) -> None:
        self.remove()


class Application(ContextDecorator):
    """Steering that is on inside a `with` block; warns where it was made and there never was one."""

    def __init__(self, attach_now: Callable[[], Handle]):
        self._attach_now, self._is_used = attach_now, False
        self._handles: list[Handle] = []

    def __enter__(self) -> Handle:
        self._is_used = True
        self._handles.append(self._attach_now())
        return self._handles[-1]

    def __exit__(self, *exception) -> None:
        self._handles.pop().remove()

    def _recreate_cm(self) -> "Application":  # as a decorator: for each call of the function
        self._is_used = True
        return Application(self._attach_now)

    def __del__(self) -> None:
        if not getattr(self, "_is_used", True):
            warnings.warn(
                "apply(model) steers inside a `with` block, and was left without one, so nothing was steered; "
                "attach(model) stays on until it is removed",
                RuntimeWarning,
                stacklevel=2,
            )


def attached(model: Any) -> list[Handle]:
    """The handles of all that is on a model, or on the networks of a pipeline, in the order in which it was attached.

    Examples
    --------
    >>> import torch, lineas
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2))
    >>> _ = lineas.Steering({"0": ([1, 1], [5, 5])}).attach(net)
    >>> lineas.attached(net)
    [Handle(on: 1 steering at 1 site, strength 1.0, position 'all')]
    >>> lineas.detach(net)
    >>> lineas.attached(net)
    []
    """
    modules = (module for network in networks_of(model) for module in network.modules())
    hooks = (hook for module in modules for hook in module._forward_hooks.values())
    maps = (hook.function for hook in hooks if isinstance(hook, Hook) and isinstance(hook.function, SiteMap))
    found = {id(one.handle): one.handle for one in maps}
    return sorted(found.values(), key=lambda handle: handle._number)


def what_is_on(model: nn.Module) -> dict[str, Any]:
    """What `info` has of it: under "attached", digests of the maps of each handle, its strengths, positions, and rows
    where they differ; empty where nothing is on."""
    entries = [
        {
            "maps": [maps_digest(maps) for maps in handle._steerings.values()],
            "strength": np.asarray(handle.strength).tolist(),
            "position": getattr(handle.position, "__name__", str(handle.position)),
            "rows": None if handle.rows is None else str(handle.rows),
        }
        for handle in attached(model)
    ]
    return {"attached": entries} if entries else {}


def detach(model: Any) -> None:
    """Take off all steerings that are on a model or a pipeline, the last one first."""
    for handle in reversed(attached(model)):
        handle.remove()


def _is_hooked(module: nn.Module) -> bool:
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(isinstance(hook, (Hook, TokenHook)) for hook in hooks)
