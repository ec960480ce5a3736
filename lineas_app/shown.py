"""Results as HTML. Whatever comes from models, files and visitors is escaped."""

from collections.abc import Sequence
from html import escape
from typing import Any

from lineas import evaluation

from . import pictures
from .controls import Control
from .desk import Comparison, Pair

__all__ = ["comparison", "figures", "title"]

STYLE = """<style>
.lns { color: var(--body-text-color); font-size: 15px; line-height: 1.45; }
.lns .pairs { display: grid; grid-template-columns: 1fr 1fr; column-gap: 28px; }
.lns .head { font-weight: 600; padding: 0 0 6px; }
.lns .prompt { grid-column: 1 / 3; font-weight: 600; padding-top: 7px; }
.lns .prompt { border-top: 1px solid var(--border-color-primary); }
.lns .made { padding: 1px 0 8px; overflow-wrap: anywhere; }
.lns .same { opacity: 0.62; }
.lns .other { background: #ffedd5; color: #7c2d12; border-radius: 3px; padding: 1px 2px; }
.lns .pictures .made img { width: 100%; max-width: 224px; image-rendering: pixelated; border-radius: 6px; }
.lns .at { color: #c2410c; font-weight: 400; padding-left: 6px; }
.lns .figures { display: flex; flex-wrap: wrap; gap: 12px; }
.lns figure { margin: 0; flex: 1 1 260px; max-width: 400px; min-width: 0; }
.lns figure img { width: 100%; background: white; border-radius: 6px; }
.lns h4 { margin: 6px 0 4px; font-size: 15px; color: inherit; }
.lns details { overflow-x: auto; margin: 4px 0 10px; font-size: 13px; }
</style>"""


def comparison(found: Comparison) -> str:
    """Base and steered side by side, a row for each prompt."""
    on = [f"{escape(control.name)}: {escape(control.said(s))}" for control, s in found.strengths if s]
    at = "; ".join(on) or "all sliders at 0: the base model"
    heads = f'<div class="head">base model</div><div class="head">steered<span class="at">{at}</span></div>'
    kind = "texts" if all(isinstance(pair.base, str) for pair in found.pairs) else "pictures"
    return f'{STYLE}<div class="lns"><div class="pairs {kind}">{heads}{"".join(map(_row, found.pairs))}</div></div>'


def _row(pair: Pair) -> str:
    if isinstance(pair.base, str):
        same, base, steered = _parted(_one_line(pair.base), _one_line(pair.steered))
        left, right = _text(same, base, ""), _text(same, steered, "other")
    else:
        left, right = (_picture(image, pair.prompt) for image in (pair.base, pair.steered))
    made = "".join(f'<div class="made">{side or "(nothing)"}</div>' for side in (left, right))
    return f'<div class="prompt">{escape(pair.prompt)}</div>{made}'


def _text(same: str, rest: str, kind: str) -> str:
    parts = [("same", same), (kind, rest)]
    return "".join(f'<span class="{name}">{escape(part)}</span>' for name, part in parts if part)


def _parted(a: str, b: str) -> tuple[str, str, str]:
    """The words that both begin with, and what is left of each."""
    first, second = a.split(" "), b.split(" ")
    alike = next((k for k, (x, y) in enumerate(zip(first, second, strict=False)) if x != y), None)
    if alike is None:
        alike = min(len(first), len(second))
    same = " ".join(first[:alike])
    gap = " " if same and alike < max(len(first), len(second)) else ""
    return same + gap, " ".join(first[alike:]), " ".join(second[alike:])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _picture(image: Any, prompt: str) -> str:
    return f'<img alt="{escape(prompt, quote=True)}" src="{pictures.of_picture(image)}">'


def figures(strengths: Sequence[tuple[Control, float]], report: evaluation.Report | None) -> str:
    """What it costs and which units move, a row for each steering; first of all what was evaluated."""
    parts = []
    if report is not None:
        parts.append(_figures("What was measured", [("effect against price", pictures.of_effect(report))], ""))
    for control, strength in strengths:
        each = [("what strengths cost", pictures.of_cost(control, strength)), ("units", pictures.of_units(control))]
        table = control.steering._repr_html_()  # as a notebook shows it
        note = "" if control.dial is not None else "<p>No dial: lineas.calibrate measures what strengths cost.</p>"
        parts.append(_figures(control.name, each, f"{note}<details><summary>by site</summary>{table}</details>"))
    return f'{STYLE}<div class="lns">{"".join(parts)}</div>'


def _figures(title: str, each: Sequence[tuple[str, str]], below: str) -> str:
    drawn = "".join(
        f'<figure><img alt="{escape(f"{title}: {name}", quote=True)}" src="{address}"></figure>'
        for name, address in each
        if address
    )
    return f'<h4>{escape(title)}</h4><div class="figures">{drawn}</div>{below}'


def title(name: str) -> str:
    """Of the page, with the model's name."""
    return f'{STYLE}<div class="lns"><b>lineas</b> <span class="same">{escape(name)}</span></div>'
