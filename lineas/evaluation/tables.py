"""A report as text, as Markdown, as a table for notebooks, and as a picture."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Protocol

from ..core.text import printable
from ..maps.dial import Price, said
from .intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Column(Protocol):
    """What a table must know of a measure."""

    @property
    def role(self) -> str: ...
    @property
    def better(self) -> str: ...
    @property
    def samples(self) -> str: ...


class Figures(Protocol):
    """What a table must know of a report."""

    @property
    def measures(self) -> Mapping[str, Column]: ...
    @property
    def confidence(self) -> float: ...
    @property
    def steerings(self) -> list[str]: ...
    def rows(self) -> list[dict[str, Any]]: ...
    def cells(self) -> list[tuple[str | None, float]]: ...
    def cell(self, measure: str, steering: str | None, strength: float) -> tuple[Estimate, Estimate]: ...


LEFT_OUT = ("distinct_1", "distinct_3")
FORMATS = {"perplexity": ".1f", "kl": ".4f"}
WIDTH = 120  # of a text table; what is beyond it goes below
CHANGE = "change"
COSTS = ("perplexity", "pixel_change")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")


def _cell(found: Estimate, form: str, sign: str = "") -> str:
    """A figure and half of its interval, as far as there are such."""
    if math.isnan(found.value):
        return ""
    value = format(found.value, sign + form)
    if not value.strip("-0.%"):  # rounded to zero from below
        value = value.removeprefix("-")
    half = (found.high - found.low) / 2
    return value if math.isnan(half) else f"{value} +- {half:{form}}"


def columns(report: Figures, measures: Sequence[str] | None) -> list[str]:
    if measures is None:
        return [name for name in report.measures if name not in LEFT_OUT]
    if unknown := [name for name in measures if name not in report.measures]:
        raise LookupError(f"measures: expected some of {', '.join(report.measures)}; got {', '.join(unknown)}")
    return list(measures)


def cells(report: Figures, measures: Sequence[str] | None) -> tuple[list[str], list[list[str]], list[str]]:
    """Heads, rows and notes."""
    chosen = columns(report, measures)
    changes = {name for name in chosen if name == "perplexity" or report.measures[name].role == "effect"}
    heads = ["steering", "strength"]
    for name in chosen:
        heads += [_plain(name), CHANGE] if name in changes else [_plain(name)]
    rows: list[list[str]] = []
    over: dict[str, Estimate] = {}
    for steering, strength in report.cells():
        row = ["base model" if steering is None else _plain(steering), f"{strength:g}"]
        for name in chosen:
            figure, apart = report.cell(name, steering, strength)
            form = FORMATS.get(name, ".3f")
            row.append(_cell(figure, form))
            if name in changes:
                row.append("" if steering is None else _cell(apart, ".1%" if name == "perplexity" else form, "+"))
            if figure.over:
                over.setdefault(name, figure)
        rows.append(row)
    return heads, rows, [*_interval_notes(report, over), *_direction_notes(report, chosen)]


def _interval_notes(report: Figures, over: dict[str, Estimate]) -> list[str]:
    by_kind: dict[str, list[str]] = {}
    for name, found in over.items():
        what = found.over if found.over != "samples" else report.measures[name].samples
        by_kind.setdefault(f"{found.n} {what}" if found.n else what, []).append(_plain(name))
    if not by_kind:
        return []
    parts = "; ".join(f"{', '.join(names)} over {kind}" for kind, names in by_kind.items())
    return [f"+- is half of the {report.confidence:.0%} interval: {parts}.",
            "A change is that from the base model, pair by pair."]  # fmt: skip


def _direction_notes(report: Figures, chosen: Sequence[str]) -> list[str]:
    parts = []
    for way in ("lower", "higher"):
        names = [_plain(name) for name in chosen if report.measures[name].better == way]
        parts += [f"{way}: {', '.join(names)}"] if names else []
    return [f"Better is {'; '.join(parts)}."] if parts else []


def _plain(name: str) -> str:
    """Names come from files and from users: a terminal obeys some characters."""
    return printable(name)


def as_text(report: Figures, measures: Sequence[str] | None = None) -> str:
    heads, rows, notes = cells(report, measures)
    columns = list(zip(heads, *rows, strict=True))
    first, *others = _padded(columns)
    blocks = [_side_by_side(first, block) for block in _blocks(others, WIDTH - len(first[0]))]
    return "\n".join(["\n\n".join(blocks), *notes])


def _padded(columns: Sequence[Sequence[str]]) -> list[list[str]]:
    """Each as wide as its widest cell; a change stays with what changes."""
    found: list[list[str]] = []
    for column in columns:
        width = max(map(len, column))
        cells = [cell.rjust(width) if found else cell.ljust(width) for cell in column]
        if column[0] == CHANGE:
            cells = ["  ".join(pair) for pair in zip(found.pop(), cells, strict=True)]
        found.append(cells)
    return found


def _blocks(columns: Sequence[list[str]], room: int) -> list[list[list[str]]]:
    """As many columns beside one another as there is room for; each block begins with the strengths."""
    strengths, *others = columns
    blocks = [[strengths]]
    for column in others:
        if sum(2 + len(each[0]) for each in [*blocks[-1], column]) > room and len(blocks[-1]) > 1:
            blocks.append([strengths])
        blocks[-1].append(column)
    return blocks


def _side_by_side(first: list[str], block: list[list[str]]) -> str:
    return "\n".join("  ".join(row).rstrip() for row in zip(first, *block, strict=True))


def as_markdown(report: Figures, measures: Sequence[str] | None = None) -> str:
    heads, rows, notes = cells(report, measures)
    rule = ["---", *["---:"] * (len(heads) - 1)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (heads, rule, *rows)]
    return "\n".join([*lines, "", *notes])


def as_html(report: Figures, measures: Sequence[str] | None = None) -> str:
    """Names come from files, so that everything is escaped."""
    heads, rows, notes = cells(report, measures)

    def line(tag: str, row: Sequence[str]) -> str:
        sides = ("left", *["right"] * (len(row) - 1))
        each = zip(row, sides, strict=True)
        return "".join(f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>' for cell, side in each)

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    below = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f"<div><table><thead><tr>{line('th', heads)}</tr></thead><tbody>{body}</tbody></table>{below}</div>"


def plot(report: Figures, effect: str | None, ax: "Axes | None", budget: Any = None) -> "Axes":
    from ..plot import plot_strength

    if effect is None:
        effect = next((name for name, measure in report.measures.items() if measure.role == "effect"), None)
    cost = next((name for name in COSTS if name in report.measures), None)
    if effect is None or effect not in report.measures or cost is None:
        raise LookupError(
            f"expected {' or '.join(COSTS)}, and an effect, among the measures {list(report.measures)}; got {effect!r}"
        )
    base, *steered = report.rows()
    names: list[Any] = report.steerings or [None]
    for k, name in enumerate(names):
        rows = [base, *(row for row in steered if row["steering"] == name)]
        ax = plot_strength(
            rows, ax, effect=effect, cost=cost, error=f"{effect}_error", marker=MARKERS[k % len(MARKERS)],
            label="steered" if len(names) == 1 else name,
        )  # fmt: skip
    assert ax is not None
    if budget is not None:
        _draw_budget(ax, cost, base[cost], Price.of(budget, "budget"))
    return ax


def _draw_budget(ax: "Axes", cost: str, base: float, price: Price) -> None:
    if price.measure not in (None, cost):
        raise LookupError(f"budget: expected one in {cost}, which is drawn; got {price.measure}")
    where = base * (1 + price.value) if cost == "perplexity" else price.value
    ax.axvline(where, color="0.3", linewidth=1.2, linestyle="--", label=f"budget, {said(cost, price.value)}")
    ax.legend(frameon=False)
