"""A report's pictures side by side, with their labels and figures, as one image."""

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..core.text import printable
from .drawn import Drawn
from .intervals import Estimate
from .pictures import pillow

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST = 96  # pixels a side of a picture: beside a label, and to the eye
TEXT, LINE = 13, 17  # of a letter and of a line, in pixels
BESIDE = 150  # pixels for the prompts
GAP, WIDE_GAP = 4, 14  # between pictures, and between steerings
BLACK, GREY, WHITE = (0, 0, 0), (90, 90, 90), (255, 255, 255)


class Pictured(Protocol):
    """What a grid must know of a report."""

    @property
    def measures(self) -> Mapping[str, Any]: ...
    @property
    def steerings(self) -> list[str]: ...
    @property
    def drawn(self) -> tuple[Drawn, ...]: ...
    def cell(self, measure: str, steering: str | None, strength: float) -> tuple[Estimate, Estimate]: ...


def grid(
    report: Pictured, steerings: Sequence[str] | None, measures: Sequence[str] | None, size: int | None
) -> "Image":  # fmt: skip
    """`Report.grid`, which says what is what."""
    columns = _columns(report, steerings)
    shown = list(report.measures if measures is None else measures)
    if unknown := [name for name in shown if name not in report.measures]:
        raise LookupError(f"measures: expected some of {', '.join(report.measures)}; got {', '.join(unknown)}")
    first = columns[0].images()[0]
    side = size or max(LEAST, *first.size)
    scale = side / max(first.size)
    cell = (max(1, round(first.width * scale)), max(1, round(first.height * scale)))
    lefts = _lefts(columns, cell[0])
    sheet = Sheet(lefts[-1] + cell[0] + GAP, cell, len(columns[0].prompts), len(shown))
    sheet.label_rows(columns[0].prompts)
    for left, column in zip(lefts, columns, strict=True):
        sheet.add_column(left, column, [report.cell(name, column.steering, column.strength)[0] for name in shown])
    for name in dict.fromkeys(column.steering for column in columns if column.steering is not None):
        own = [left for left, column in zip(lefts, columns, strict=True) if column.steering == name]
        sheet.name(name, own[0], own[-1] + cell[0])
    sheet.label_figures(shown)
    return sheet.image


def _columns(report: Pictured, steerings: Sequence[str] | None) -> list[Drawn]:
    if not report.drawn:
        raise LookupError("the report has no pictures: of texts there are none, and pictures=0 keeps none")
    names = report.steerings if steerings is None else list(steerings)
    if unknown := [name for name in names if name not in report.steerings]:
        raise LookupError(f"steerings: expected some of {', '.join(report.steerings)}; got {', '.join(unknown)}")
    run = report.drawn[0].run
    of = {name: [d for d in report.drawn if (d.steering, d.run) == (name, run)] for name in (None, *names)}
    return [column for columns in of.values() for column in columns]


def _lefts(columns: Sequence[Drawn], width: int) -> list[int]:
    """Where each column begins; another steering's stand apart."""
    lefts, left, before = [], BESIDE, columns[0].steering
    for column in columns:
        left += WIDE_GAP - GAP if column.steering != before else 0
        lefts.append(left)
        left, before = left + width + GAP, column.steering
    return lefts


class Sheet:
    """A white image that is filled column by column: two lines of heads, the pictures, a line for each figure."""

    def __init__(self, width: int, cell: tuple[int, int], rows: int, figures: int):
        from PIL import ImageDraw

        self.cell, self.rows = cell, rows
        self.top = 2 * LINE + GAP
        self.below = self.top + rows * (cell[1] + GAP)
        self.image = pillow("grid").new("RGB", (width, self.below + figures * LINE + GAP), WHITE)
        self.pen, self.font = ImageDraw.Draw(self.image), _font()

    def write(self, left: float, top: float, text: str, anchor: str = "left", fill: Any = BLACK) -> None:
        """Names and prompts come from users and files."""
        text = printable(text)
        if anchor == "middle":
            left -= self.pen.textlength(text, font=self.font) / 2
        self.pen.text((left, top), text, font=self.font, fill=fill)

    def label_rows(self, prompts: Sequence[str]) -> None:
        for k, prompt in enumerate(prompts):
            lines = textwrap.wrap(prompt, BESIDE // 8, max_lines=max(1, self.cell[1] // LINE), placeholder=" ...")
            for number, line in enumerate(lines):
                self.write(GAP, self.top + k * (self.cell[1] + GAP) + number * LINE, line)

    def add_column(self, left: int, column: Drawn, figures: Sequence[Estimate]) -> None:
        middle = left + self.cell[0] / 2
        self.write(middle, LINE, "base" if column.steering is None else f"{column.strength:g}", "middle")
        for k, image in enumerate(column.images()):
            self.image.paste(image.resize(self.cell), (left, self.top + k * (self.cell[1] + GAP)))
        for k, figure in enumerate(figures):
            text = "" if math.isnan(figure.value) else f"{figure.value:.2f}"
            self.write(middle, self.below + k * LINE, text, "middle")

    def name(self, steering: str, left: int, right: int) -> None:
        """Above its columns, as much of it as there is room for."""
        while len(steering) > 1 and self.pen.textlength(printable(steering), font=self.font) > right - left:
            steering = steering[:-1]
        self.write(left, 0, steering)

    def label_figures(self, names: Sequence[str]) -> None:
        for k, name in enumerate(names):
            self.write(GAP, self.below + k * LINE, name, fill=GREY)


def _font() -> Any:
    from PIL import ImageFont

    try:
        return ImageFont.load_default(TEXT)
    except TypeError:  # before Pillow 10.1 it has one size
        return ImageFont.load_default()


def save(image: "Image", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def as_html(report: Pictured) -> str:
    file = io.BytesIO()
    grid(report, None, None, None).save(file, "PNG")
    content = base64.b64encode(file.getvalue()).decode("ascii")
    words = escape(f"pictures of {', '.join(map(printable, report.steerings)) or 'the base model'}")
    return f'<img alt="{words}" style="max-width: 100%" src="data:image/png;base64,{content}">'
