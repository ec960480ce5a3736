"""What a steering does at each site, as rows, as text and as a table for notebooks."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, NamedTuple

import numpy as np

from ..core.text import printable
from .dial import predicted_kl
from .info import pipeline_facts
from .maps import Maps

HTML_ROWS = 200  # a notebook page with more is slow
NOTE = 500  # characters


class Row(NamedTuple):
    """One site: how many units, how many of them changed, how far on average, and the loss before and after."""

    site: str
    units: int
    support: int
    stretch: float  # mean of abs(weight - 1)
    shift: float  # mean of abs(bias)
    first: float | None  # the site's loss at the first accepted evaluation
    last: float | None

    def texts(self) -> list[str]:
        losses = ("" if loss is None else f"{loss:.4g}" for loss in (self.first, self.last))
        return [self.site, str(self.units), str(self.support), f"{self.stretch:.3g}", f"{self.shift:.3g}", *losses]


HEADS = ("site", "units", "support", "|w - 1|", "|b|", "loss: first", "last")


def rows(maps: Maps) -> list[Row]:
    losses = _site_losses(maps.history, maps.info)
    return [
        Row(
            name, len(maps.weight(name)), len(units), float(np.abs(maps.weight(name) - 1).mean()),
            float(np.abs(maps.bias(name)).mean()), *losses.get(name, (None, None)),
        )
        for name, units in maps.support().items()
    ]  # fmt: skip


def as_text(maps: Maps) -> str:
    table = [HEADS, *(row.texts() for row in rows(maps))]
    width = max(len(line[0]) for line in table)
    lines = [
        f"{site:{width}} {units:>6} {support:>8} {stretch:>8} {shift:>8} {first:>12} {last:>9}"
        for site, units, support, stretch, shift, first, last in table
    ]
    return "\n".join([repr(maps), *lines, *how_made(maps.info)])


def as_html(maps: Maps) -> str:
    """The same for a notebook. Names come from files, so that everything is escaped."""
    found = rows(maps)
    head = _html_cells("th", HEADS)
    body = "".join(f"<tr>{_html_cells('td', row.texts())}</tr>" for row in found[:HTML_ROWS])
    notes = how_made(maps.info)
    if len(found) > HTML_ROWS:
        notes.insert(0, f"and {len(found) - HTML_ROWS} sites more; summary() has all")
    below = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f"<div><p><b>{escape(repr(maps))}</b></p><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{below}</div>"
    )


def _html_cells(tag: str, texts: Iterable[str]) -> str:
    sides = ("left", *("right",) * len(HEADS))  # names to the left, numbers to the right
    return "".join(
        f'<{tag} style="text-align: {side}">{escape(text)}</{tag}>' for side, text in zip(sides, texts, strict=False)
    )


def how_made(info: Mapping[str, Any]) -> list[str]:
    """A line or two on where the maps come from, as far as `info` says."""
    notes = []
    if {"recipe", "evaluations", "seconds", "stopped"} <= info.keys():
        notes.append("{recipe} recipe, {evaluations} evaluations in {seconds} s; stopped: {stopped}".format(**info))
    if facts := pipeline_facts(info):
        steps = "" if facts.get("steps") is None else f" of {facts['steps']}"
        notes.append(f"{facts.get('component')} of a {facts.get('class')}, fitted at steps {facts.get('at')}{steps}")
    if (nats := predicted_kl(info)) is not None:
        notes.append(f"price: predicted to move next-token distributions by {nats:.3g} nats a token at strength 1")
    if "scaled_by" in info:
        notes.append(f"strength 1 costs {info.get('budget')}: {info['scaled_by']} of what was fitted")
    if "made" in info:
        notes.append(f"made from others: {info['made']}")
    return [printable(note[:NOTE]) for note in notes]


def _site_losses(history: Mapping[str, list], info: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    columns = zip(history.get("site_loss", ()), history.get("accepted", ()), strict=False)
    accepted = [row for row, kept in columns if kept]
    if not accepted:
        return {}
    pairs = zip(accepted[0], accepted[-1], strict=True)
    return dict(zip(info.get("loss_sites", ()), pairs, strict=False))
