"""The recipes side by side, and what a step costs beside the model."""

from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HATCHES = ("", "//", "..", "xx")
COSTS = ("step", "padding", "precision", "prefix")  # tables of two rows, the second in units of the first


def draw(file: str, facts: dict[str, Any], tables: dict[str, list[dict[str, Any]]]) -> None:
    """Whichever of the tables there are."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    keys = ("fitted", "held out", "perplexity")
    rows = tables.get("recipes", [])
    for k, row in enumerate(rows):
        places = [place + (k - (len(rows) - 1) / 2) * 0.25 for place in range(len(keys))]
        label = f"{row['']}: {row['evaluations']} evaluations"
        left.bar(places, [row[key] for key in keys], 0.25, label=label, color=f"{0.35 + 0.25 * k}", hatch=HATCHES[k])
    left.axhline(1, color="black", lw=1, ls=":")
    left.set_xticks(range(len(keys)), ["loss, fitted", "loss, held out", "perplexity"])
    left.set(ylabel="relative to no steering", title="The same 32 + 32 sentences", ylim=(0, 1.65))
    if rows:
        left.legend(fontsize=8, loc="upper left")
    there = [name for name in COSTS if name in tables]
    for place, name in enumerate(there):
        first, second = tables[name]
        bar = right.bar(place, second["ratio"], 0.6, color="0.6", hatch="//")
        right.bar_label(bar, [f"{second['ratio']:.2f}"])
        right.text(place, 0.03, f"{second['']}\nover\n{first['']}", ha="center", fontsize=7, backgroundcolor="white")
    right.axhline(1, color="black", lw=1, ls=":")
    right.set_xticks(range(len(there)), there)
    right.set(ylabel="time of a step", title=f"A step: {facts['cpu']}, threads: {facts['threads']}", ylim=(0, 1.25))
    for axes in (left, right):
        axes.title.set_fontsize(9)
    figure.savefig(file, dpi=100)
