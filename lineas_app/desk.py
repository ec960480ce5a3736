"""What a page asks for: a model with steerings, used by one visitor at a time, and nothing kept of any of them.

A request brings all that it depends on, prompts, sampling and strengths, and gets what the model makes of them under
these strengths alone: while it runs nobody else's does, and the model is left with nothing on it.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import lineas
from lineas import evaluation

from .controls import Control
from .makers import Maker, Sampling

__all__ = ["Comparison", "Desk", "Pair"]

LONGEST = 2000  # characters of a prompt
REMEMBERED = 32  # what the base model made, for as many requests: whoever moves a slider asks for the same


class Pair(NamedTuple):
    """What was made of a prompt without and with steering: two texts, or two pictures."""

    prompt: str
    base: Any
    steered: Any


class Comparison(NamedTuple):
    """The answer to a request, with the strengths that it was made at."""

    pairs: list[Pair]
    strengths: list[tuple[Control, float]]


class Desk:
    """A model, its steerings, and what can be asked of them; several threads may ask.

    Parameters
    ----------
    maker : Writer or Painter
    steerings : dict of name -> Steering
        Each is put on the model once, to see that it goes on.
    report : lineas.evaluation.Report, optional
        What an evaluation of them found, for the picture of effect against price.
    strict : bool
        As `Steering.attach` takes it.
    may_open : bool
        Whether a page may ask for other steerings by their folder.

    Raises
    ------
    LookupError, ValueError
        A steering is not for this model, with its name.
    """

    def __init__(
        self, maker: Maker, steerings: Mapping[str, lineas.Steering], *, report: evaluation.Report | None = None,
        strict: bool = True, may_open: bool = False,
    ):  # fmt: skip
        self.maker, self.report, self.strict, self.may_open = maker, report, strict, may_open
        self._turn = threading.Lock()
        self._base: OrderedDict[tuple[tuple[str, ...], Sampling], list[Any]] = OrderedDict()
        self.controls = [self._control(name, steering) for name, steering in steerings.items()]

    def open(self, folder: Any) -> Control:
        """A steering out of a folder, for whoever asks and nobody else; a name on the hub is none.

        Raises
        ------
        PermissionError
            The page may not open folders.
        ValueError, LookupError, OSError
            No folder with a steering in it, or one of another model.
        """
        if not self.may_open:
            raise PermissionError("folders are opened from this computer only; name them when you start `lineas app`")
        if not isinstance(folder, str) or not folder.strip():
            raise ValueError("expected the folder of a steering, got nothing")
        path = Path(folder.strip()).expanduser()
        try:
            is_there = path.is_dir()
        except ValueError:  # a NUL in it
            is_there = False
        if not is_there:
            raise FileNotFoundError(f"expected the folder of a steering, there is no folder {folder.strip()!r:.200}")
        return self._control(path.resolve().name, lineas.Steering.from_pretrained(path))

    def compare(self, prompts: Any, strengths: Sequence[tuple[Control, float]], sampling: Sampling) -> Comparison:
        """What the model makes of prompts, one a line, without and with steerings, from the same seed.

        Steerings are put on one after the other, in the order given, each at its strength, as `steering.apply` does:
        any kinds of maps go together so, and one alone is just what it is elsewhere. One of strength 0 is left out.

        Raises
        ------
        ValueError
            No prompts, too many, or too long ones.
        """
        lines = self._prompts(prompts)
        with self._turn:
            base = self._made_by_base(lines, sampling)
            on = [(control, strength) for control, strength in strengths if strength]
            steered = base
            if on:
                with ExitStack() as stack:
                    for control, strength in on:
                        stack.enter_context(control.steering.apply(self.maker.model, strength, strict=False))
                    steered = self.maker.make(lines, sampling)
        return Comparison([Pair(*row) for row in zip(lines, base, steered, strict=True)], list(strengths))

    def _control(self, name: str, steering: lineas.Steering) -> Control:
        control = Control(name, steering)
        try:
            control.dial  # noqa: B018 -- what a file has for one may be something else
            with self._turn, steering.apply(self.maker.model, strict=self.strict):
                pass
        except (LookupError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
        return control

    def _made_by_base(self, lines: tuple[str, ...], sampling: Sampling) -> list[Any]:
        asked = lines, sampling
        if asked not in self._base:
            self._base[asked] = self.maker.make(lines, sampling)
        self._base.move_to_end(asked)
        while len(self._base) > REMEMBERED:
            self._base.popitem(last=False)
        return self._base[asked]

    def _prompts(self, text: Any) -> tuple[str, ...]:
        lines = tuple(line.strip() for line in str(text or "").splitlines() if line.strip())
        if not 1 <= len(lines) <= self.maker.most:
            raise ValueError(f"prompts: expected 1 to {self.maker.most}, one a line, got {len(lines)}")
        if long := next((line for line in lines if len(line) > LONGEST), None):
            raise ValueError(f"prompts: expected at most {LONGEST} characters each, got {len(long)}")
        return lines
