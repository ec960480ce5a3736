"""What a steering on a pipeline knows of a pass of its network: which step it is, and whose rows the pass has."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..core.checks import number, whole
from ..core.text import warn
from ..maps.info import pipeline_facts
from ..network.batch import Listed
from ..network.links import arguments_of
from ..network.pipelines.components import components, is_denoiser, usual_part
from ..network.pipelines.passes import Steps, alike, leaves_of, timestep_in, timestep_of, with_lists
from .rows import Spread

__all__ = ["Denoising", "check_guided", "factors_of"]

At = str | slice | Sequence[int] | Mapping[int, float]
GUIDED = ("both", "prompt")
EMBEDDINGS = "encoder_hidden_states", "cap_feats"  # what the prompt is to most networks
MOST_PARTS = 4


def check_guided(guided: Any) -> str:
    if guided not in GUIDED:
        raise ValueError(f"guided: expected one of {', '.join(map(repr, GUIDED))}; got {guided!r:.60}")
    return guided


def factors_of(at: Any) -> "Mapping[int, float] | slice | None":
    """By step what the strength is multiplied by, or the steps that are steered; None for all of them alike."""
    if isinstance(at, str) and at in ("all", "first"):
        return None if at == "all" else {0: 1.0}
    if isinstance(at, slice):
        for bound in (at.start, at.stop, at.step):
            whole(0 if bound is None else bound, "at", least=0)
        return at
    if isinstance(at, Mapping) and at:
        return {whole(step, "at", least=0): number(value, f"at[{step!r}]") for step, value in at.items()}
    if isinstance(at, (list, tuple, range)) and len(at):
        return dict.fromkeys((whole(step, "at", least=0) for step in at), 1.0)
    raise (ValueError if isinstance(at, (str, list, tuple, range, Mapping)) else TypeError)(
        f'at: expected "all", "first", a list or slice of steps, or a dict of step -> strength; got {at!r:.60}'
    )


def known_part(infos: Iterable[Mapping[str, Any]], pipe: Any) -> int | None:
    """Which part of a pass under guidance has the prompt: what a fit on this class saw, or the order that is usual in
    diffusers; None where neither tells."""
    for info in infos:
        seen = pipeline_facts(info)
        parts, part = seen.get("parts"), seen.get("part")
        if not (isinstance(parts, int) and isinstance(part, int) and 0 <= part < parts):  # anybody may have written it
            continue
        if parts > 1 and seen.get("class") == type(pipe).__name__:
            return part
    return usual_part(pipe)


class Denoising:
    """Stands where `Tokens` does for a steering on a pipeline: pixels have no positions, but passes have steps.

    Parameters
    ----------
    pipe : the pipeline
    component : str
        Name of the network that is steered.
    at : see `lineas.attach`
    guided : {"both", "prompt"}
    infos : iterable of dict
        Of the steerings, which may tell which half has the prompt.

    Attributes
    ----------
    factor : float
        What the strength is multiplied by in the pass that goes on.
    tells_rows : bool
        Whether rows of a pass differ even where one strength is for all.
    """

    position, counting = "all", False

    def __init__(self, pipe: Any, component: str, at: At, guided: str, infos: Iterable[Mapping[str, Any]] = ()):
        self.pipe, self.component = pipe, component
        self.factors, self.guided = factors_of(at), check_guided(guided)
        self.has_parts, self.prompts_part = is_denoiser(pipe, component), known_part(infos, pipe)
        if self.guided == "prompt" and not self.has_parts:
            raise ValueError(f'guided: expected "both" for {component!r}; only a denoiser is guided')
        if self.guided == "prompt" and self.prompts_part is None:
            raise ValueError(
                f'guided: expected "both", since nothing tells which half of the passes of {type(pipe).__name__} has '
                "the prompt: it is no pipeline of diffusers, and the steering was not fitted under its guidance"
            )
        self.batch: tuple[str, int] | None = None
        self.hosts: list[nn.Module] = []
        self.factor, self.tells_rows = 1.0, self.guided == "prompt"
        self._hooks: list[Any] = []
        self._steps, self._schedule = Steps(), None
        self._first: float | None = None
        self._now: tuple[int, Spread] | None = None

    @property
    def is_needed(self) -> bool:
        """Whether passes must be watched, whatever the strengths are."""
        return self.factors is not None or self.tells_rows

    # -- on and off --

    def watch_passes(self, model: nn.Module) -> None:
        host = components(self.pipe)[self.component]  # what compiles it is outside of what is compiled
        self._names = list(arguments_of(model))
        if self.factors is not None and timestep_in(self._names) is None:
            raise ValueError(
                f"at: expected a network that takes a timestep, got {type(model).__name__}, which takes "
                f"{', '.join(self._names)}; its steps cannot be told"
            )
        self._hooks = [
            host.register_forward_pre_hook(PassHook(self, "begins"), with_kwargs=True),
            host.register_forward_hook(PassHook(self, "ends"), always_call=True),
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
        if self.is_needed and timestep_in(self._names):
            step, turn = self._step(timestep_of(self._names, args, kwargs))
            self.factor = self._factor(step)
        if self.batch is not None or self.tells_rows:
            self._now = self._rows(args, kwargs)
            if self.tells_rows and turn and self._now[1].parts == 1 and self._is_guided:
                self.factor = self._without_prompt()

    def ends(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._now = None

    def _step(self, timestep: float | None) -> tuple[int, int]:
        """A call begins where the scheduler has made a new schedule, or the timesteps start over."""
        schedule = getattr(getattr(self.pipe, "scheduler", None), "timesteps", None)
        last = self._steps.timestep
        begins = schedule is not self._schedule
        if timestep is not None and last is not None and timestep != last:
            begins |= timestep > last if schedule is None else timestep == self._first
        if begins or last is None:
            self._steps, self._schedule, self._first = Steps(), schedule, timestep
            if schedule is not None and not any(self._factor(step) for step in range(len(schedule))):
                warn(f"at: expected steps of a call, got none of its {len(schedule)}, so nothing is steered")
        return self._steps.next(timestep)

    @property
    def _is_guided(self) -> bool:
        return getattr(self.pipe, "do_classifier_free_guidance", None) is not False

    def _without_prompt(self) -> float:
        """The factor of a step's second pass, which guidance makes without the prompt, or else the scheduler makes."""
        if getattr(getattr(self.pipe, "scheduler", None), "order", 1) > 1:
            raise ValueError(
                f"guided: expected a scheduler of one pass a step, got {type(self.pipe.scheduler).__name__}, whose "
                "second pass cannot be told from that of guidance"
            )
        return 0.0

    def _factor(self, step: int) -> float:
        if self.factors is None:
            return 1.0
        if isinstance(self.factors, slice):
            return float(step in range(step + 1)[self.factors])
        return self.factors.get(step, 0.0)

    def _rows(self, args: tuple, kwargs: Mapping[str, Any]) -> tuple[int, Spread]:
        tensors = [leaf for _, leaf in leaves_of(*with_lists(args, dict(kwargs)))]
        rows, parts = len(tensors[0]), self._parts(tensors)
        only = None
        if self.tells_rows and parts > 1:
            if parts > 2:
                raise ValueError(f'guided: expected guidance of two parts, got {parts}; "both" steers all of them')
            assert self.prompts_part is not None
            only = self.prompts_part % parts
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

    def _parts(self, tensors: Sequence[Any]) -> int:
        """How many times a pass has all rows: under guidance twice, from the same noise, with something else beside."""
        rows, is_known = len(tensors[0]), hasattr(self.pipe, "do_classifier_free_guidance")
        if not (self.has_parts and self._is_guided) or (not is_known and self.batch and rows == self.batch[1]):
            return 1
        for parts in range(2, MOST_PARTS + 1):
            if rows % parts == 0 and _is_alike(tensors[0], parts):
                others = (tensor for tensor in tensors[1:] if len(tensor) == rows)
                return 1 if all(_is_alike(other, parts) for other in others) else parts
        return 1

    def _is_repeated(self, args: tuple, kwargs: Mapping[str, Any], rows: int, times: int) -> bool:
        """Whether the pass has as many pictures of each prompt: what the prompt is to the network tells."""
        args, kwargs = with_lists(args, dict(kwargs))
        name = next((name for name in EMBEDDINGS if name in self._names), "")
        place = self._names.index(name) if name else len(args)
        given = args[place] if place < len(args) else kwargs.get(name)
        if not isinstance(given, (Tensor, Listed)) or len(given) != rows:
            return False
        firsts = range(0, rows, times)
        return all(alike(given[k : k + 1], given[j : j + 1]) for k in firsts for j in range(k + 1, k + times))

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


class PassHook:
    """A hook that tells of a pass, beside what compilers trace; of a copied network it tells the copy."""

    def __init__(self, denoising: Denoising, method: str):
        self.denoising, self.method = denoising, method
        self.act = torch.compiler.disable(getattr(denoising, method))

    def __call__(self, *arguments: Any) -> None:
        self.act(*arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PassHook":
        memo[id(self)] = new = type(self)(deepcopy(self.denoising, memo), self.method)
        return new


def _is_alike(leaf: Any, parts: int) -> bool:
    size = len(leaf) // parts
    return all(alike(leaf[:size], leaf[k * size : (k + 1) * size]) for k in range(1, parts))
