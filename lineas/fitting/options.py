"""The options of a fit that are plain values: checked, and filled in where none were given."""

from dataclasses import asdict, dataclass, replace
from numbers import Integral
from typing import Any

import torch

from ..optim import OPTIMIZERS, PUBLISHED_STEPS
from ..penalties import SparseGroupLasso
from ..responses.pooling import POOLINGS
from .losses import AUTO, LOSSES
from .methods import METHODS as IN_CLOSED_FORM
from .methods import SCHEDULES, Formula, Method, find

METHODS, RECIPES, POSITIONS = ("lineas", *IN_CLOSED_FORM), ("fast", "published"), ("all",)
FAST_EVALUATIONS = 50  # the most the fast recipe may use unless told; it usually stops by itself after ten
OF_A_FIT = ("loss", "ridge", "penalty", "optimizer", "learning_rate", "steps", "max_evaluations")  # through the model
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Options:
    """As `lineas.fit` documents them."""

    method: str | Formula
    schedule: str | None
    within_range: bool
    recipe: str
    loss: str
    ridge: float | None
    penalty: SparseGroupLasso | None
    optimizer: str | None
    learning_rate: float | None
    steps: int | None
    max_evaluations: int | None
    batch_size: int | None
    max_length: int | None
    compute_dtype: torch.dtype | None
    pooling: str | None
    position: str
    seed: int

    @classmethod
    def checked(cls, *, compute_dtype: str | torch.dtype | None, **given: Any) -> "Options":
        """TypeError or ValueError, with what was expected and what came, where they cannot be."""
        options = cls(compute_dtype=_half(compute_dtype), **given)
        options._check_names()
        options._check_numbers()
        if options.penalty is not None and not isinstance(options.penalty, SparseGroupLasso):
            raise TypeError(f"penalty: expected one of lineas.penalties, got {type(options.penalty).__name__}")
        if options.method != "lineas":
            return options._in_closed_form()
        if options.schedule is not None:
            raise ValueError(
                'schedule goes with methods in closed form; method="lineas" fits all sites jointly; '
                f"got {options.schedule!r}"
            )
        if options.within_range:
            raise ValueError('within_range goes with methods in closed form; maps of method="lineas" hold everywhere')
        options = replace(options, pooling=options.pooling or "mean")
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
        to 1e-2 then (docs/performance.md). Whoever asks for the plain loss wants its minimum.
        """
        return 1e-3 if self.loss == "wasserstein" and self.ridge == 0 else 5e-3

    def descent(self) -> dict[str, Any]:
        """What the published recipe takes."""
        return {"optimizer": self.optimizer, "learning_rate": self.learning_rate, "steps": self.steps}

    def facts(self) -> dict[str, Any]:
        """All of them that have a part in the result, as JSON can hold them."""
        known = asdict(replace(self, penalty=None)) | {
            "method": getattr(self.method, "__name__", str(self.method)),
            "penalty": repr(self.penalty),
            "compute_dtype": self.compute_dtype and str(self.compute_dtype).removeprefix("torch."),
        }
        without = {"schedule"} if self.fits else {*OF_A_FIT, "recipe"}
        without |= set() if self.within_range else {"within_range"}
        return {name: value for name, value in known.items() if name not in without}

    def _check_names(self) -> None:
        valid = {
            "method": METHODS, "recipe": RECIPES, "loss": ("auto", *LOSSES), "pooling": (None, *POOLINGS),
            "position": POSITIONS, "schedule": (None, *SCHEDULES), "optimizer": (None, *OPTIMIZERS),
        }  # fmt: skip
        for name, values in valid.items():
            if (value := getattr(self, name)) not in values and not (name == "method" and callable(value)):
                known = ", ".join(repr(value) for value in values if value is not None)
                raise ValueError(f"{name}: expected one of {known}; got {value!r}")

    def _check_numbers(self) -> None:
        for name in ("steps", "max_evaluations", "batch_size", "max_length"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
        if self.ridge is not None and not (isinstance(self.ridge, (int, float)) and 0 <= self.ridge < float("inf")):
            raise ValueError(f"ridge: expected a number of at least 0, got {self.ridge!r}")

    def _in_closed_form(self) -> "Options":
        given = [name for name in OF_A_FIT if getattr(self, name) not in (None, "auto")]
        given += ["recipe"] * (self.recipe != "fast")
        if given:
            raise ValueError(f'{", ".join(given)}: for method="lineas" only; {self.method!r} fits nothing step by step')
        method = find(self.method)
        return replace(self, schedule=self.schedule or method.schedule, pooling=self.pooling or method.pooling)

    def _published(self) -> "Options":
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
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


def _half(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if not isinstance(dtype, (str, torch.dtype, type(None))):
        raise TypeError(f"compute_dtype: expected a torch.dtype or its name, got {type(dtype).__name__}")
    found = HALVES.get(dtype.removeprefix("torch."), torch.float32) if isinstance(dtype, str) else dtype
    if found not in (None, *HALVES.values()):
        raise ValueError(f"compute_dtype: expected 'bfloat16', 'float16' or None for the model's own; got {dtype!r}")
    return found
