"""Figures beside the results, as addresses that an image takes: what strengths cost, what they do, which units move."""

import base64
import io
import threading
from collections.abc import Callable
from typing import Any

from lineas import evaluation, plot

from .controls import Control

__all__ = ["data_address", "of_cost", "of_effect", "of_units"]

HERE = "#c2410c"  # where the slider stands: told from black and grey by the colour-blind, too
SIZE = (4.6, 2.6)  # inches
ONE = threading.RLock()  # matplotlib's mathematics of text is not for several threads


def of_cost(control: Control, strength: float) -> str:
    """What strengths of a steering cost, and where the slider stands. Empty where there is no dial."""
    dial = control.dial
    if dial is None:
        return ""

    def draw(ax: Any) -> None:
        plot.plot_dial(dial, ax)
        if 0 <= strength <= dial.strengths[-1]:
            price = dial.cost(strength).value
            ax.plot([strength, strength], [ax.get_ylim()[0], price], color=HERE, linewidth=1, zorder=1)
            ax.plot([strength], [price], "o", color=HERE, markersize=9, zorder=4, label="the slider")
            ax.legend(frameon=False)
        ax.set_title("What strengths cost")

    return _drawn(draw)


def of_units(control: Control) -> str:
    """Which units each site's maps move; the darker, the further."""

    def draw(ax: Any) -> None:
        plot.plot_support(control.steering, ax, units=True)
        ax.set_title(ax.get_title().replace("Support by unit", "Units that move"))

    return _drawn(draw)


def of_effect(report: evaluation.Report, effect: str | None = None) -> str:
    """Effect against price, as an evaluation found them. LookupError where the report has no such figures."""

    def draw(ax: Any) -> None:
        report.plot(effect, ax)
        ax.set_title("Effect against price")

    return _drawn(draw)


def data_address(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def of_picture(image: Any) -> str:
    """A PIL image."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return data_address(file.getvalue(), "image/png")


def _drawn(draw: Callable[[Any], None]) -> str:
    """Without pyplot, which keeps figures for whoever may ask, and is for one thread."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the app needs matplotlib; install it with: pip install 'lineas[app]'") from error
    with ONE, rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(figure.subplots())
        file = io.BytesIO()
        figure.savefig(file, format="svg")
    return data_address(file.getvalue(), "image/svg+xml")
