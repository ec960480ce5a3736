"""What a steering on a pipeline knows of a pass of its network: which step it is, and whose rows the pass has."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..core.checks import number, whole
from ..network import tree
from ..network.links import arguments_of
from ..network.pipelines.components import components
from ..network.pipelines.passes import Steps, timestep_of
from .rows import Spread

__all__ = ["Denoising", "check_guided", "factors_of"]

At = str | slice | Sequence[int] | Mapping[int, float]
GUIDED = ("both", "prompt")
EMBEDDINGS = "encoder_hidden_states"  # what the prompt is to most networks
MOST_PARTS = 4


def check_guided(guided: Any) -> str:
    if guided not in GUIDED:
        raise ValueError(f"guided: expected one of {', '.join(map(repr, GUIDED))}; got {guided!r:.60}")
    return guided


def factors_of(at: Any) -> "Mapping[int, float] | slice | None":
    """By step what the strength is multiplied by, or the steps that are steered; None for all of them alike."""
    expected = 'at: expected "all", "first", a list or slice of steps, or a dict of step -> strength'
    if isinstance(at, str):
        if at not in ("all", "first"):
            raise ValueError(f"{expected}; got {at!r:.60}")
        return None if at == "all" else {0: 1.0}
    if isinstance(at, slice):
        bounds = [bound for bound in (at.start, at.stop, at.step) if bound is not None]
        if any(whole(bound, "at", least=0) < 0 for bound in bounds):
            raise ValueError(expected)
        return at
    if isinstance(at, Mapping):
        return {whole(step, "at", least=0): number(value, f"at[{step!r}]") for step, value in at.items()}
    if isinstance(at, (list, tuple, range)) and len(at):
        return dict.fromkeys((whole(step, "at", least=0) for step in at), 1.0)
    raise TypeError(f"{expected}; got {type(at).__name__}")


class Denoising:
    """Stands where `Tokens` does for a steering on a pipeline: pixels have no positions, but passes have steps.

    Parameters
    ----------
    pipe : the pipeline
    component : str
        Name of the network that is steered.
    at : see `lineas.attach`
    guided : {"both", "prompt"}

    Attributes
    ----------
    factor : float
        What the strength is multiplied by in the pass that goes on.
    tells_rows : bool
        Whether rows of a pass differ even where one strength is for all.
    """

    position, counting = "all", False

    def __init__(self, pipe: Any, component: str, at: At, guided: str):
        self.pipe, self.component = pipe, component
        self.factors, self.guided = factors_of(at), check_guided(guided)
        self.batch: tuple[str, int] | None = None
        self.hosts: list[nn.Module] = []
        self.factor, self.tells_rows = 1.0, self.guided == "prompt"
        self._hooks: list[Any] = []
        self._steps, self._schedule = Steps(), None
        self._now: tuple[int, Spread] | None = None

    @property
    def is_needed(self) -> bool:
        """Whether passes must be watched, whatever the strengths are."""
        return self.factors is not None or self.tells_rows

    # -- on and off --

    def watch_passes(self, model: nn.Module) -> None:
        host = components(self.pipe)[self.component]  # what compiles it is outside of what is compiled
        self._names = list(arguments_of(model))
        if self.factors is not None and "timestep" not in self._names:
            raise ValueError(
                f"at: expected a network that takes a timestep, got {type(model).__name__}, which takes "
                f"{', '.join(self._names)}; its steps cannot be told"
            )
        self._hooks = [
            host.register_forward_pre_hook(torch.compiler.disable(self.begins), with_kwargs=True),
            host.register_forward_hook(torch.compiler.disable(self.ends), always_call=True),
        ]
        self.hosts.append(host)

    def leave(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Denoising":
        """Of a copied network alone the pipeline is the same; of a copied pipeline it is the copy."""
        new = object.__new__(type(self))
        memo[id(self)] = new
        for name, value in vars(self).items():
            setattr(new, name, memo.get(id(value), value) if name == "pipe" else deepcopy(value, memo))
        return new

    # -- what is going on --

    def begins(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A pass begins: its step, and its rows where they differ."""
        turn = 0
        if "timestep" in self._names:
            step, turn = self._step(timestep_of(self._names, args, kwargs))
            self.factor = self._factor(step)
        if self.tells_rows and turn:  # guidance in a pass of its own
            self.factor = 0.0
        if self.batch is not None or self.tells_rows:
            self._now = self._rows(args, kwargs)

    def ends(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._now = None

    def _step(self, timestep: float | None) -> tuple[int, int]:
        """A call begins where the scheduler has made a new schedule; without one, where the timestep grows again."""
        schedule = getattr(getattr(self.pipe, "scheduler", None), "timesteps", None)
        last = self._steps.timestep
        grows = schedule is None and timestep is not None and last is not None and timestep > last
        if schedule is not self._schedule or grows:
            self._steps, self._schedule = Steps(), schedule
        return self._steps.next(timestep)

    def _factor(self, step: int) -> float:
        if self.factors is None:
            return 1.0
        if isinstance(self.factors, slice):
            return float(step in range(step + 1)[self.factors])
        return self.factors.get(step, 0.0)

    def _rows(self, args: tuple, kwargs: Mapping[str, Any]) -> tuple[int, Spread]:
        tensors = [leaf for _, leaf in tree.leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim]
        rows, parts = len(tensors[0]), self._parts(tensors[0])
        only = parts - 1 if self.tells_rows and parts > 1 else None
        if only and parts > 2:
            raise ValueError(f'guided: expected guidance of two parts, got {parts}; "both" steers all of them')
        if self.batch is None:
            return rows, Spread(1, parts, only)
        name, given = self.batch
        if rows % (parts * given):
            raise ValueError(f"{name}: expected one for each prompt of {type(self.pipe).__name__}'s call, got {given}")
        times = rows // (parts * given)
        if times > 1 and not self._is_repeated(args, kwargs, rows, times):
            raise ValueError(
                f"{name}: expected one for each of {rows // parts} prompts, got {given}; pictures of a prompt share one"
            )
        return rows, Spread(times, parts, only)

    def _parts(self, first: Tensor) -> int:
        """How many times a pass has all rows: under guidance twice, from the same noise."""
        said, rows = getattr(self.pipe, "do_classifier_free_guidance", None), len(first)
        if said is False or (said is None and self.batch is not None and rows == self.batch[1]):
            return 1
        for parts in range(2, MOST_PARTS + 1):
            if rows % parts == 0 and all(torch.equal(first[: rows // parts], part) for part in first.chunk(parts)[1:]):
                return parts
        return 1

    def _is_repeated(self, args: tuple, kwargs: Mapping[str, Any], rows: int, times: int) -> bool:
        """Whether the pass has as many pictures of each prompt: what the prompt is to the network tells."""
        place = self._names.index(EMBEDDINGS) if EMBEDDINGS in self._names else len(args)
        given = args[place] if place < len(args) else kwargs.get(EMBEDDINGS)
        if not isinstance(given, Tensor) or len(given) != rows:
            return False
        by_prompt = given.unflatten(0, (-1, times))
        return bool((by_prompt == by_prompt[:, :1]).all())

    # -- what a site asks --

    def spread_at(self, site: str, h: Tensor, given: int | None, name: str) -> Spread:
        """How the rows that the user spoke of lie in a site's output."""
        if self._now is None:
            raise ValueError(
                f"site {site!r}: expected to run inside a call of the pipeline, got one of its network's modules by "
                f"itself; there, {name or 'guided'} means nothing"
            )
        rows, spread = self._now
        if len(h) != rows:
            raise ValueError(f"site {site!r}: expected activations of the {rows} rows of a pass, got {tuple(h.shape)}")
        return spread

    def folded(self, site: str, module: nn.Module, h: Tensor) -> None:
        return None

    def prompt(self, lengths: Any) -> Any:
        raise ValueError("prompt: expected a language model, got a pipeline; pixels have no prompt among them")
