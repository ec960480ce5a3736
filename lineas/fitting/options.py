"""The options of a fit: checked as `option_table` says, and filled in where none were given."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from ..core.checks import flag, whole
from ..maps.dial import Price
from ..optim import OPTIMIZERS, PUBLISHED_STEPS
from ..penalties import Penalty
from ..responses.pooling import as_poolings
from .losses import AUTO, LOSSES, WEIGHTINGS, Loss
from .losses import find as find_loss
from .memory import bytes_of
from .methods import METHODS, SCHEDULES, Formula, Method, find
from .option_table import OPTIONS, Option

METHOD_NAMES, RECIPES, POSITIONS = ("lineas", *METHODS), ("fast", "published"), ("all",)
FAST_EVALUATIONS = 50  # the most the fast recipe may use unless told; it usually stops by itself after ten
OF_PICTURES = "max"  # pooling: a small object is nothing to a mean over pixels; see docs/results.md
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES: dict[str, tuple[str | None, ...]] = {
    "loss_weights": WEIGHTINGS, "method": METHOD_NAMES, "recipe": RECIPES, "loss": ("auto", *LOSSES),
    "position": POSITIONS, "schedule": (None, *SCHEDULES), "optimizer": (None, *OPTIMIZERS),
}  # fmt: skip
OWN: dict[str, Any] = {"method": Callable, "loss": Loss}  # what a user may give instead of a name


@dataclass(frozen=True)
class Options:
    """Those that are plain values, as `option_table.OPTIONS` has them: all that have a part in the result."""

    method: str | Formula
    schedule: str | None
    within_range: bool
    recipe: str
    loss: str | Loss
    loss_weights: str
    ridge: float | None
    penalty: Penalty | None
    optimizer: str | None
    learning_rate: float | None
    steps: int | None
    max_evaluations: int | None
    batch_size: int | None
    max_length: int | None
    compute_dtype: torch.dtype | None
    pooling: str | tuple[str, ...] | None
    position: str
    graphs: bool
    seed: int

    @classmethod
    def checked(cls, given: Mapping[str, Any], makes_pictures: bool = False) -> "Options":
        """From a fit's arguments by name; those that were not given have their defaults, for pictures others.

        TypeError or ValueError, with what was expected and what came, where they cannot be.
        """
        values = {option.name: given.get(option.name, option.default) for option in OPTIONS}
        for option in OPTIONS:
            _check(option, values[option.name])
        values["compute_dtype"], values["within_range"] = _half(values["compute_dtype"]), bool(values["within_range"])
        values["pooling"] = _one_or_several(values["pooling"])
        if isinstance(penalty := values["penalty"], type):
            raise TypeError(
                f"penalty: expected one of lineas.penalties, got the class {penalty.__name__}; make one of it"
            )
        if penalty is not None and not isinstance(penalty, Penalty):
            name = type(penalty).__name__
            raise TypeError(
                f"penalty: expected one of lineas.penalties, got {name}, which has no value and proximal_step"
            )
        _refuse_what_does_not_go_with(values)
        options = cls(**{field.name: values[field.name] for field in fields(cls)})
        if not options.fits:
            method = find(options.method)
            schedule, pooling = options.schedule or method.schedule, options.pooling or method.pooling
            if not isinstance(pooling, str):
                raise ValueError(
                    f"pooling: expected one, since {options.method!r} makes a map of one response to each sample; got "
                    f"{pooling!r}"
                )
            return replace(options, schedule=schedule, pooling=pooling)
        of_pictures = makes_pictures and options.recipe == "fast"
        options = replace(options, pooling=options.pooling or (OF_PICTURES if of_pictures else "mean"))
        return options._published() if options.recipe == "published" else options._fast()

    @property
    def fits(self) -> bool:
        """Whether maps are fitted through the model, and not computed from responses."""
        return self.method == "lineas"

    @property
    def in_closed_form(self) -> Method | None:
        """The method, where it computes maps from responses."""
        return None if self.fits else find(self.method)

    @property
    def poolings(self) -> tuple[str, ...]:
        return as_poolings(self.pooling or "mean")

    @property
    def least(self) -> int:
        """How many samples each set must have."""
        return self.in_closed_form.least if self.in_closed_form else 2

    @property
    def total(self) -> int | None:
        """The most evaluations there can be, if that is known."""
        counts = (self.max_evaluations, self.steps if self.recipe == "published" else None)
        return min((count for count in counts if count), default=None)

    @property
    def tolerance(self) -> float:
        """Where the fast recipe stops: what is left to gain, as a share of all that was gained.

        Where noise counts for nothing, more of a gain than this is still one; held-out distances are the same from 1e-3
        to 1e-2 then. Whoever asks for the plain loss wants its minimum.
        """
        return 1e-3 if self.ridge == 0 and not find_loss(self.loss).needs_noise else 5e-3

    def descent(self) -> dict[str, Any]:
        """What the published recipe takes."""
        return {"optimizer": self.optimizer, "learning_rate": self.learning_rate, "steps": self.steps}

    def facts(self) -> dict[str, Any]:
        """All of them that have a part in the result, as JSON can hold them."""
        known = asdict(replace(self, penalty=None, loss="")) | {
            "method": getattr(self.method, "__name__", str(self.method)),
            "penalty": repr(self.penalty),
            "loss": self.loss if isinstance(self.loss, str) else repr(self.loss),
            "compute_dtype": self.compute_dtype and str(self.compute_dtype).removeprefix("torch."),
            "pooling": list(self.pooling) if isinstance(self.pooling, tuple) else self.pooling,
        }
        other = "formula" if self.fits else "fit"
        without = {"graphs"} | {option.name for option in OPTIONS if option.only == other}
        without |= set() if self.within_range else {"within_range"}
        return {name: value for name, value in known.items() if name not in without}

    def _published(self) -> "Options":
        rate = self.learning_rate
        if rate is not None and not (_is_number(rate) and 0 < rate < float("inf")):
            raise ValueError(f"learning_rate: expected a number above 0, got {self.learning_rate!r}")
        if self.loss not in ("auto", "wasserstein"):
            raise ValueError(f'loss: expected "wasserstein", which is the published recipe\'s, got {self.loss!r}')
        if self.ridge:
            raise ValueError(
                f"ridge goes with the fast recipe; the published one stops early instead; got {self.ridge!r}"
            )
        return replace(
            self, loss="wasserstein", ridge=0.0, optimizer=self.optimizer or "sgd", steps=self.steps or PUBLISHED_STEPS
        )

    def _fast(self) -> "Options":
        if self.optimizer is not None or self.learning_rate is not None:
            raise ValueError(
                'optimizer and learning_rate go with recipe="published"; the fast recipe picks its own steps'
            )
        loss = AUTO if self.loss == "auto" else self.loss
        return replace(self, loss=loss, max_evaluations=self.max_evaluations or FAST_EVALUATIONS)


def _check(option: Option, value: Any) -> None:
    """What the table says that the option must be."""
    name, is_own = option.name, isinstance(value, OWN.get(option.name, ())) and not isinstance(value, str)
    if option.check == "a name" and not is_own and value not in NAMES[name]:
        known = ", ".join(repr(value) for value in NAMES[name] if value is not None)
        raise ValueError(f"{name}: expected one of {known}; got {value!r}")
    if option.check == "flag":
        flag(value, name)
    if value is None:
        return
    if option.check == "names":
        as_poolings(value)
    if option.check == "whole":
        whole(value, name)
    if option.check == "bytes":
        bytes_of(value, name)
    if option.check == "price":
        Price.of(value, name)
    if option.check == "share" and not (_is_number(value) and 0 <= value < float("inf")):
        raise ValueError(f"{name}: expected a number of at least 0, got {value!r:.60}")


def _one_or_several(pooling: str | Sequence[str] | None) -> str | tuple[str, ...] | None:
    if pooling is None:
        return None
    several = as_poolings(pooling)
    return several if len(several) > 1 else several[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _refuse_what_does_not_go_with(values: Mapping[str, Any]) -> None:
    """What only a fit through the model can take, and what only methods that compute maps can."""
    method = values["method"]
    changed = [o.name for o in OPTIONS if o.only and not _is_default(o, values[o.name])]
    for_formulas = [option.name for option in OPTIONS if option.only == "formula"]
    if method != "lineas":
        if given := [name for name in changed if name not in for_formulas]:
            raise ValueError(f'{", ".join(given)}: for method="lineas" only; {method!r} fits nothing step by step')
        return
    if "memory" in changed and values["recipe"] == "published":
        raise ValueError(
            f"memory goes with the fast recipe; the published one takes batch by batch, and keeps all responses; got "
            f"{values['memory']!r:.60}"
        )
    if "schedule" in changed:
        raise ValueError(
            'schedule goes with methods in closed form; method="lineas" fits all sites jointly; '
            f"got {values['schedule']!r}"
        )
    if "within_range" in changed:
        raise ValueError('within_range goes with methods in closed form; maps of method="lineas" hold everywhere')


def _is_default(option: Option, value: Any) -> bool:
    plain = isinstance(value, (str, int, float, tuple))
    return value is option.default or (plain and value == option.default)


def _half(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if not isinstance(dtype, (str, torch.dtype, type(None))):
        raise TypeError(f"compute_dtype: expected a torch.dtype or its name, got {type(dtype).__name__}")
    found = HALVES.get(dtype.removeprefix("torch."), torch.float32) if isinstance(dtype, str) else dtype
    if found not in (None, *HALVES.values()):
        raise ValueError(f"compute_dtype: expected 'bfloat16', 'float16' or None for the model's own; got {dtype!r}")
    return found
