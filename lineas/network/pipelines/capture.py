"""What a pipeline gives its network: the pipeline is run, and broken off at the network's pass, whatever its class."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...core.checks import whole
from ...core.text import first_few, warn
from .. import tree
from ..batch import Batch
from ..links import arguments_of
from ..state import eager, reseed
from .components import arguments_taken, component_of, is_of_diffusers, network_of, quiet
from .passes import (
    Given,
    Rows,
    Steps,
    batch_of,
    joined,
    part_with_prompt,
    rows_of,
    timestep_in,
    timestep_of,
    with_lists,
)
from .rows import check_call, columns_of, images_of_a_prompt, noise_of_rows, plain_arguments

__all__ = ["Capture", "check_at"]

At = str | Sequence[int] | None
Columns = dict[str, list]


class BrokenOff(Exception):
    """The pass that was waited for has come: nothing else of the pipeline's call is needed."""


def check_at(at: Any) -> tuple[int, ...] | None:
    """The steps that are meant; None for all of them."""
    if at is None or at == "first":
        return (0,)
    if isinstance(at, str) and at == "all":
        return None
    if isinstance(at, str) or not isinstance(at, Iterable):
        raise ValueError(f'at: expected "first", "all" or a list of steps, counted from 0; got {at!r:.60}')
    steps = tuple(whole(step, "at", least=0) for step in at)
    if not steps or len(set(steps)) < len(steps):
        raise ValueError(f"at: expected steps, each once, got {list(steps)}")
    return tuple(sorted(steps))


class Capture:
    """Makes batches for a pipeline's network of what the pipeline gives it for prompts.

    Parameters
    ----------
    pipe : see `pipelines.is_pipeline`
    component : str, optional
        Which network; the denoiser if not given.
    call : mapping, optional
        Arguments of the pipeline's call, the same for all rows.
    at : "first", "all" or list of int
        At which steps; `None` is "first", and warns where there are more.
    seed : int
        Of the noise that row k starts from, which is the same whatever its prompt is.
    """

    def __init__(self, pipe: Any, component: str | None, call: Any, at: At, seed: int):
        self.pipe, self.component = pipe, component_of(pipe, component)
        self.network = network_of(pipe, component)
        self.call, self.at, self.seed, self.wanted = check_call(call, pipe), at, seed, check_at(at)
        self.takes = arguments_taken(pipe)[0]
        self.names = list(arguments_of(self.network))
        self.rows: Rows | None = None
        self._had = 0  # steps of the last call, as far as it went
        self.generators = self.call.pop("generator", None)
        self.images = images_of_a_prompt(self.call)

    # -- what is asked of it --

    def columns(self, inputs: Any, name: str) -> Columns:
        return columns_of(inputs, name, self.pipe)

    def learn(self, *sets: Columns) -> None:
        """How rows lie in a pass, from short calls with two rows that differ in their prompts alone, if they do."""
        if any(list(columns) != list(sets[0]) for columns in sets):
            raise ValueError(f"expected the same arguments in all sets, got {' and '.join(str(list(c)) for c in sets)}")
        everything = {key: [value for columns in sets for value in columns[key]] for key in sets[0]}
        if both := [key for key in everything if key in self.call]:
            raise ValueError(f"call: expected what is the same for all rows, got {first_few(both)}, which each row has")
        prompts = {key: values for key, values in everything.items() if "prompt" in key and "negative" not in key}
        if prompts and _two_that_differ(prompts)[1]:
            alike = [key for key in everything if key not in prompts]
        else:
            alike = ["generator"] * ("generator" in everything and len(everything) > 1)
        everything |= {key: everything[key][:1] * len(everything[key]) for key in alike}
        pair = _two_that_differ(everything)
        two, three = (
            self._run({k: [v[r] for r in rows] for k, v in everything.items()}, [0] * len(rows), None)
            for rows in (pair, [*pair, pair[1]])
        )
        self.rows = rows_of(two, three, self.images, f"{type(self.pipe).__name__} and its {self.component}")
        self._tell_steps()

    def batches(self, columns: Columns, name: str, batch_size: int | None, least: int) -> list[Batch]:
        """Inputs of the network, a batch for each step and each `batch_size` rows."""
        assert self.rows is not None
        count = len(next(iter(columns.values())))
        if count < least:
            why = "; one sample has no distribution" * (least > 1)
            raise ValueError(f"{name}: expected at least {least} sample{'s' * (least > 1)}, got {count}{why}")
        found: list[tuple[int, Batch]] = []
        for start in range(0, count, batch_size or count):
            numbers = range(start, min(start + (batch_size or count), count))
            part = {key: [values[k] for k in numbers] for key, values in columns.items()}
            given = [one for one in self._run(part, numbers, self._last) if one.turn == self.rows.turn]
            if missing := set(self.wanted or (0,)) - {one.step for one in given}:
                raise ValueError(f"at: expected steps of a call, which had {self._had}, got {sorted(missing)}")
            found += [(one.step, batch_of(one, len(numbers), self.rows)) for one in given]
        ordered = [batch for _, batch in sorted(found, key=lambda pair: pair[0])]
        return [replace(batch, number=k) for k, batch in enumerate(ordered)]

    def facts(self) -> dict[str, Any]:
        """What `info` keeps of it."""
        plain = plain_arguments(self.call)
        return {
            "class": type(self.pipe).__name__, "component": self.component, "call": plain,
            "at": "all" if self.wanted is None else list(self.wanted), "steps": self.steps,
            "parts": None if self.rows is None else self.rows.parts,
            "part": None if self.rows is None else self.rows.part,
        }  # fmt: skip

    # -- how --

    @property
    def steps(self) -> int | None:
        """How many the scheduler has been told to take; None where there is no scheduler that says so."""
        timesteps = getattr(getattr(self.pipe, "scheduler", None), "timesteps", None)
        return None if timesteps is None else len(timesteps)

    @property
    def _last(self) -> tuple[int, int] | None:
        """The step and the turn after which nothing is needed."""
        assert self.rows is not None
        return None if self.wanted is None else (self.wanted[-1], self.rows.turn)

    def _tell_steps(self) -> None:
        if self.at is None and (self.steps or 1) > 1 and timestep_in(self.names):
            warn(
                f"the first of {self.steps} steps counts, while maps act at all of them: expected a model of one step, "
                'with call={"num_inference_steps": 1, "guidance_scale": 0.0} or the like. With at="all" all steps '
                'count; at="first" says that the first is meant'
            )

    def _run(self, columns: Columns, numbers: Sequence[int], last: tuple[int, int] | None) -> list[Given]:
        """The passes at the steps that are wanted; where `last` is not told, those of the first step."""
        if is_of_diffusers(self.pipe):
            return self._called(columns, numbers, last)
        each = [self._called({k: [v[j]] for k, v in columns.items()}, [n], last) for j, n in enumerate(numbers)]
        return joined(each)

    def _called(self, columns: Columns, numbers: Sequence[int], last: tuple[int, int] | None) -> list[Given]:
        passes: list[Given] = []
        steps, probing = Steps(), last is None and self.rows is None
        many = len(numbers) > 1  # only rows that are side by side can be told apart

        def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            step, turn = steps.next(timestep_of(self.names, args, kwargs) if timestep_in(self.names) else 0.0)
            if probing and step:
                raise BrokenOff
            if probing or self.wanted is None or step in self.wanted:
                passes.append(Given(step, turn, *with_lists(*tree.mapped(_kept, (args, kwargs)))))
            if (step, turn) == last or (probing and many and part_with_prompt(passes[-1], len(numbers), self.images)):
                raise BrokenOff

        hook = self.network.register_forward_pre_hook(note, with_kwargs=True)
        try:
            with quiet(self.pipe), eager(), torch.no_grad(), suppress(BrokenOff):
                self.pipe(**self.arguments(columns, numbers))
        finally:
            hook.remove()
            if hasattr(self.pipe, "maybe_free_model_hooks"):
                self.pipe.maybe_free_model_hooks()
        self._had = steps.step + 1
        if not self._had:
            raise LookupError(f"component: {type(self.pipe).__name__} did not run its {self.component} in a call")
        return passes

    def arguments(self, columns: Columns, numbers: Sequence[int]) -> dict[str, Any]:
        count = len(numbers)
        given = {
            k: [v] * count if isinstance(v, str) and "prompt" in k and k != "prompt_template" else v
            for k, v in self.call.items()
        }
        given |= {k: torch.stack(v) if v and isinstance(v[0], Tensor) else v for k, v in columns.items()}
        if "batch_size" in self.takes and "prompt" not in self.takes:
            given.setdefault("batch_size", count)
        if "output_type" in self.takes and is_of_diffusers(self.pipe):
            given.setdefault("output_type", "latent")  # nothing is decoded where all steps are wanted
        noise = self._noise(columns.get("generator"), numbers)
        if "generator" in self.takes:
            given["generator"] = noise if is_of_diffusers(self.pipe) else noise[0]
        else:
            reseed(noise[0].initial_seed(), torch.device("cpu"))
        return given

    def _noise(self, own: list | None, numbers: Sequence[int]) -> list[torch.Generator]:
        """A generator for each picture: the row's own, that of its number in `call`, or one that `seed` tells."""
        given, rows = self.generators, [n * self.images + k for n in numbers for k in range(self.images)]
        if own is not None:  # of several pictures the first begins with it
            return [one for each in map(_copied, own) for one in (each, *self._further(each))]
        if isinstance(given, (list, tuple)):
            if max(rows) >= len(given):
                raise ValueError(
                    f"call: expected a generator for each of at least {max(rows) + 1} rows, got {len(given)}"
                )
            return [_copied(given[row]) for row in rows]
        return noise_of_rows(self.seed if given is None else _copied(given).initial_seed(), rows)

    def _further(self, generator: torch.Generator) -> list[torch.Generator]:
        """Of the other pictures of a row that has a generator of its own."""
        return noise_of_rows(generator.initial_seed(), range(1, self.images))


def _kept(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _copied(generator: Any) -> torch.Generator:
    """One that draws the same numbers, so that the user's own draws none."""
    if isinstance(generator, int) and not isinstance(generator, bool):
        return torch.Generator("cpu").manual_seed(generator)
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator or a seed, got {type(generator).__name__}")
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    return copy


def _two_that_differ(columns: Columns) -> list[int]:
    """The first row, and the first that has something else; the first twice where none has."""
    for k in range(len(next(iter(columns.values())))):
        if any(not _same(values[0], values[k]) for values in columns.values()):
            return [0, k]
    return [0, 0]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool((a == b).all())
    try:
        return a is b or bool(a == b)
    except (ValueError, RuntimeError):  # arrays
        return False
