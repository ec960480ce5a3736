"""What an evaluation found: every figure, its confidence interval, and how it differs from the base model's."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._storage.saving import read_whole, replace_file
from . import grid, intervals, tables
from .as_json import as_base64, lists_as_tuples, with_bytes, without_nan
from .best import Best, best
from .drawn import Drawn
from .intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

FORMAT, VERSION = "lineas evaluation", 1


@dataclass(frozen=True)
class Measure:
    """What a column of a report is.

    Attributes
    ----------
    role : str
        "utility", "effect", "diversity" or "distance".
    better : str
        "higher", "lower", or "" where neither is.
    samples : str
        What its samples are: "texts", "continuations", "pictures"; "" where there is one figure for all.
    is_log : bool
        The figure is the exponential of a mean.
    is_share : bool
        The samples are zeros and ones.
    """

    role: str
    better: str = ""
    samples: str = ""
    is_log: bool = False
    is_share: bool = False


@dataclass(frozen=True)
class Outcome:
    """One measure, of one steering at one strength, with one seed, in one run.

    The figure is the sum of `totals` by that of `counts`, which stand for 1 each where they are empty.
    """

    measure: str
    steering: str | None  # None is the base model
    strength: float
    totals: tuple[float, ...]
    counts: tuple[float, ...] = ()
    seed: int | None = None  # None where nothing is drawn
    error: float | None = None  # standard error, where it is not one of `totals`
    run: int = 0

    def __post_init__(self) -> None:
        if not self.totals or (self.counts and len(self.counts) != len(self.totals)):
            raise ValueError(f"expected totals, and as many counts or none; got {len(self.totals)}, {len(self.counts)}")

    def weights(self) -> tuple[float, ...]:
        return self.counts or (1.0,) * len(self.totals)

    def estimate(self, measure: Measure, confidence: float) -> Estimate:
        """Over the samples."""
        if measure.is_share:
            return intervals.share(self.totals, confidence)
        found = intervals.ratio(self.totals, self.weights(), confidence)
        if self.error is not None:
            found = intervals.normal(found.value, self.error, confidence, int(sum(self.weights())))
        return intervals.exponential(found) if measure.is_log else found

    def change(self, base: "Outcome", measure: Measure, confidence: float) -> Estimate:
        """From the base model, sample by sample: the difference, of a perplexity the relative one."""
        apart = np.subtract(self.totals, base.totals)
        if measure.is_share:
            return intervals.share_change(apart, confidence)
        found = intervals.ratio(apart, self.weights(), confidence)
        return intervals.exponential(found, minus=1.0) if measure.is_log else found


@dataclass(frozen=True)
class Written:
    """Continuations under one steering at one strength, with one seed, in one run."""

    steering: str | None
    strength: float
    seed: int
    texts: tuple[str, ...]
    run: int = 0


@dataclass(frozen=True)
class Report:
    """What `lineas.evaluate` found; print it, or ask it.

    `report + other` puts independent runs together, of steerings that were fitted on other data under the same names:
    figures are then means over runs, and so are their intervals.

    Attributes
    ----------
    measures : dict of str -> Measure
    outcomes : tuple of Outcome
    written : tuple of Written
    settings : tuple of dict
        One for each run.
    confidence : float
        Of the intervals.
    drawn : tuple of Drawn
        Of a pipeline.
    """

    measures: dict[str, Measure]
    outcomes: tuple[Outcome, ...]
    written: tuple[Written, ...] = ()
    settings: tuple[dict[str, Any], ...] = field(default=({},))
    confidence: float = 0.95
    drawn: tuple[Drawn, ...] = ()

    def __post_init__(self) -> None:
        if unknown := {outcome.measure for outcome in self.outcomes} - self.measures.keys():
            raise ValueError(f"outcomes: expected measures among {', '.join(self.measures)}; got {unknown}")

    # -- asking --

    @property
    def steerings(self) -> list[str]:
        """Names of the steerings that were compared, in the order given."""
        return list(dict.fromkeys(o.steering for o in self.outcomes if o.steering is not None))

    def strengths(self, steering: str | None = None) -> list[float]:
        """At which strengths a steering was measured; without 0, which is the base model."""
        name = self._name(steering)
        return sorted({o.strength for o in self.outcomes if o.steering == name and o.strength})

    def estimate(self, measure: str, strength: float = 0.0, steering: str | None = None) -> Estimate:
        """A figure with its confidence interval.

        Parameters
        ----------
        measure : str
            One of `measures`.
        strength : float
            0 is the base model.
        steering : str, optional
            Which one, where several were compared.

        Returns
        -------
        Estimate
            Over runs, where there are several; else over seeds, where there are several and the measure depends on
            them; else over samples: texts, continuations or pictures. `over` says which. Intervals are Student's t;
            that of a perplexity over texts is that of its logarithm, that of a share of pictures Wilson's.

        Raises
        ------
        LookupError
            Nothing of that name or strength.
        """
        outcomes, kind = self._outcomes(measure, strength, steering), self.measures[measure]
        return self._together(outcomes, [o.estimate(kind, self.confidence) for o in outcomes])

    def change(self, measure: str, strength: float, steering: str | None = None) -> Estimate:
        """How a figure differs from the base model's, with the interval of that difference.

        Parameters are those of `estimate`. Pairs are compared: the same run, the same seed and, where there is but one
        of these, the same sample. Of a perplexity it is the relative change, 0.02 for 2% more.
        """
        outcomes, kind = self._outcomes(measure, strength, steering), self.measures[measure]
        bases = {(o.run, o.seed): o for o in self._outcomes(measure, 0.0, None)}
        changes = [o.change(bases[o.run, o.seed], kind, self.confidence) for o in outcomes]
        return self._together(outcomes, changes)

    def continuations(self, strength: float = 0.0, steering: str | None = None, seed: int | None = None) -> list[str]:
        """What the model wrote, of all seeds or one: those of the first prompt, then those of the second, and so on."""
        name = self._name(steering) if strength else None
        found = [w for w in self.written if (w.steering, w.strength) == (name, strength) and seed in (None, w.seed)]
        if not found:
            raise LookupError(f"no continuations at strength {strength:g}, seed {seed}; {self._known(name)}")
        return [text for written in found for text in written.texts]

    def pictures(self, strength: float = 0.0, steering: str | None = None) -> "list[Image]":
        """What the pipeline drew for the first prompts, as PIL images of at most 256 pixels a side.

        `lineas.evaluate` says how many it keeps; of several runs, the first one's.
        """
        name = self._name(steering) if strength else None
        found = next((d for d in self.drawn if (d.steering, d.strength) == (name, strength)), None)
        if found is None:
            raise LookupError(f"no pictures at strength {strength:g}; {self._known(name)}")
        return found.images()

    def rows(self) -> list[dict[str, Any]]:
        """One dict for the base model and one for each steering and strength, for pandas or `plot.plot_strength`.

        Keys are "steering" (None for the base), "strength", and for each measure m "m", "m_error" (its standard error),
        "m_low", "m_high", "m_change", "m_change_low" and "m_change_high". NaN where a figure or an interval is lacking.
        """
        return [self._row(*cell) for cell in self.cells()]

    def _row(self, steering: str | None, strength: float) -> dict[str, Any]:
        row: dict[str, Any] = {"steering": steering, "strength": strength}
        for name in self.measures:
            figure, apart = self.cell(name, steering, strength)
            row |= {name: figure.value, f"{name}_error": figure.error}
            row |= {f"{name}_low": figure.low, f"{name}_high": figure.high}
            row |= {f"{name}_change": apart.value, f"{name}_change_low": apart.low, f"{name}_change_high": apart.high}
        return row

    def cells(self) -> list[tuple[str | None, float]]:
        """Steering and strength of every row; the base model comes first."""
        steered = [(name, strength) for name in self.steerings for strength in self.strengths(name)]
        return [(None, 0.0), *steered]

    def cell(self, measure: str, steering: str | None, strength: float) -> tuple[Estimate, Estimate]:
        """Figure and change; NaN where this was not measured."""
        if not self._found(measure, steering, strength):
            return Estimate(math.nan), Estimate(math.nan)
        return self.estimate(measure, strength, steering), self.change(measure, strength, steering)

    def _found(self, measure: str, steering: str | None, strength: float) -> list[Outcome]:
        wanted = measure, steering, strength
        return [o for o in self.outcomes if (o.measure, o.steering, o.strength) == wanted]

    def _outcomes(self, measure: str, strength: float, steering: str | None) -> list[Outcome]:
        if measure not in self.measures:
            raise LookupError(f"measure: expected one of {', '.join(self.measures)}; got {measure!r}")
        name = self._name(steering) if strength else None
        found = self._found(measure, name, float(strength))
        if not found:
            raise LookupError(f"{measure} was not measured at strength {strength:g}; {self._known(name)}")
        return found

    def _name(self, steering: str | None) -> str | None:
        names = self.steerings
        if steering is None and len(names) <= 1:
            return names[0] if names else None
        if steering not in names:
            raise LookupError(f"steering: expected one of {', '.join(names)}; got {steering!r}")
        return steering

    def _known(self, name: str | None) -> str:
        strengths = sorted({o.strength for o in self.outcomes if o.steering in (None, name)})
        return f"there is {', '.join(f'{strength:g}' for strength in strengths)}"

    def _together(self, outcomes: Sequence[Outcome], each: Sequence[Estimate]) -> Estimate:
        """One estimate of several runs and seeds."""
        if len(each) == 1:
            return each[0]
        by_run: dict[int, list[float]] = {}
        for outcome, estimate in zip(outcomes, each, strict=True):
            by_run.setdefault(outcome.run, []).append(estimate.value)
        if len(by_run) > 1:
            return intervals.mean([float(np.mean(values)) for values in by_run.values()], self.confidence, "runs")
        return intervals.mean([estimate.value for estimate in each], self.confidence, "seeds")

    def __add__(self, other: "Report") -> "Report":
        """Both, as independent runs. ValueError where a measure of both is not the same in them."""
        if not isinstance(other, Report):
            return NotImplemented
        measures = {**self.measures, **other.measures}
        for name in self.measures.keys() & other.measures.keys():
            own, its = self.measures[name], other.measures[name]
            measures[name] = replace(own, is_share=own.is_share and its.is_share)  # counts may be 0 and 1 by chance
            if measures[name] != replace(its, is_share=measures[name].is_share):
                raise ValueError(f"expected one meaning of {name}, got {own}, {its}")
        first = len(self.settings)
        return replace(
            self,
            measures=measures,
            outcomes=(*self.outcomes, *(replace(o, run=o.run + first) for o in other.outcomes)),
            written=(*self.written, *(replace(w, run=w.run + first) for w in other.written)),
            drawn=(*self.drawn, *(replace(d, run=d.run + first) for d in other.drawn)),
            settings=(*self.settings, *other.settings),
        )

    def best(self, price: "str | float" = "+5%", *, by: str | None = None, steering: str | None = None) -> Best:
        """The strength that was measured with the most effect whose price is within bounds.

        Parameters
        ----------
        price : str or float
            At most so much: '+5% perplexity', '0.05 nats', or a number of what the report has first of perplexity (its
            relative change), KL and pixel_change.
        by : str, optional
            The measure that counts; the first scorer if not given.
        steering : str, optional
            Which one, where several were compared; the best of all if not given.

        Returns
        -------
        Best
            `steering`, `strength`, `effect` and `price`, the last two with their intervals.

        Raises
        ------
        LookupError
            Nothing that was measured is within bounds; no such measure or steering.
        ValueError, TypeError
            No price.
        """
        return best(self, price, by, steering)

    # -- showing --

    def table(self, measures: Sequence[str] | None = None) -> str:
        """Figures with half of their intervals, a line for each steering and strength; notes below say over what.

        `measures` chooses columns and their order; by default all but distinct_1 and distinct_3.
        """
        return tables.as_text(self, measures)

    def __str__(self) -> str:
        return self.table()

    def to_markdown(self, measures: Sequence[str] | None = None) -> str:
        """The same as a Markdown table."""
        return tables.as_markdown(self, measures)

    def _repr_html_(self) -> str:
        """The same for a notebook, with the pictures, where there are some."""
        return (grid.as_html(self) if self.drawn else "") + tables.as_html(self)

    def grid(
        self, steerings: Sequence[str] | None = None, *, measures: Sequence[str] | None = None, size: int | None = None
    ) -> "Image":  # fmt: skip
        """Pictures side by side: a row for each prompt, a column for the base model and for each steering and strength.

        Parameters
        ----------
        steerings : list of str, optional
            Which ones, in which order; all if not given.
        measures : list of str, optional
            Whose figures stand below the columns; all if not given.
        size : int, optional
            Pixels a side of a picture; its own if not given, at least 96.

        Returns
        -------
        PIL.Image.Image

        Raises
        ------
        LookupError
            No pictures were kept; no such steering or measure.
        """
        return grid.grid(self, steerings, measures, size)

    def save_grid(self, path: str | os.PathLike, **options: Any) -> None:
        """Write `grid`, whose options are the same, to a file, whose name's ending says in which format."""
        grid.save(self.grid(**options), Path(path))

    def plot(
        self, effect: str | None = None, ax: "Axes | None" = None, *, budget: "str | float | None" = None
    ) -> "Axes":  # fmt: skip
        """Effect against cost, a point for each strength, a line for each steering (`plot.plot_strength`).

        The cost is perplexity, or of pictures pixel_change.

        Parameters
        ----------
        effect : str, optional
            A measure; the first scorer if not given.
        ax : matplotlib axes, optional
        budget : str or float, optional
            A price, '+5%' for instance, at which a line is drawn.
        """
        return tables.plot(self, effect, ax, budget)

    # -- keeping --

    def to_json(self, path: str | os.PathLike | None = None) -> str:
        """As JSON text, also written to a file if one is given. `from_json` reads it back, to the same report."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        if not self.drawn:
            del content["drawn"]
        text = json.dumps(without_nan(content), ensure_ascii=False, default=as_base64)
        if path is not None:
            replace_file(Path(path), text.encode())
        return text

    @classmethod
    def from_json(cls, source: str | os.PathLike) -> "Report":
        """From JSON text, or from a file's path.

        Raises
        ------
        ValueError
            It is not what `to_json` writes, or of a later version.
        """
        if isinstance(source, str) and source.lstrip().startswith("{"):
            text = source
        else:
            text = read_whole(lambda _: Path(source).read_text(encoding="utf-8"), Path(source).parent)
        try:
            content = json.loads(text)
            if content.pop("format") != FORMAT or content.pop("version") != VERSION:
                raise ValueError(f"expected {FORMAT!r}, version {VERSION}")
            report = cls(
                measures={name: Measure(**values) for name, values in content.pop("measures").items()},
                outcomes=tuple(Outcome(**lists_as_tuples(values)) for values in content.pop("outcomes")),
                written=tuple(Written(**lists_as_tuples(values)) for values in content.pop("written")),
                settings=tuple(content.pop("settings")),
                drawn=tuple(Drawn(**with_bytes(values)) for values in content.pop("drawn", ())),
                **content,
            )
            report.table()  # whatever stands in the file, it can be asked
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"expected what Report.to_json writes, got something else: {error!r}") from error
        return report
