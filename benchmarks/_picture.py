"""Time for loss and gradient of one unit against the number of samples."""

from typing import Any

import matplotlib
import numpy as np
from _cases import cost_to_sorted, samples, with_gradient
from _timing import Case, race

import lineas

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw(file: str, facts: dict[str, Any], quick: bool) -> None:
    sizes = [2**k for k in range(1, 4 if quick else 14)]
    times: dict[str, list[float]] = {"lineas": [], "torch.sort": []}
    for n in sizes:
        units = min(1 << 14, (1 << 20) // n)
        x, y = samples((n, units), (n, units))
        target, ones = lineas.core.ops.prepare_target(y), np.ones(units)
        rivals = {
            "lineas": lambda x=x, t=target, c=ones: lineas.core.ops.loss(x, t, c),
            "torch.sort": with_gradient(cost_to_sorted, x, target.values),
        }
        figures = race(Case("", rivals), *(1, 0.0) if quick else (10, 0.03))["figures"]
        for name, each in times.items():
            each.append(1e6 * figures[name]["minimum"] / units)
    n, at = np.array(sizes, float), min(4, len(sizes) - 1)  # the lines go through lineas at n = 32
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.loglog(n, times["torch.sort"], "s-", color="tab:orange", label="torch.sort, difference, backward")
    axes.loglog(n, times["lineas"], "o-", color="tab:blue", label="lineas")
    for power, style in ((1, "--"), (2, ":")):
        line = n * np.log2(n) ** power
        label = r"$n\,\log n$" if power == 1 else r"$n\,\log^2 n$"
        axes.loglog(n, line / line[at] * times["lineas"][at], style, color="gray", lw=1, label=label)
    axes.set_xscale("log", base=2)
    axes.set(
        xlabel="samples n (as many targets)", ylabel="microseconds a unit",
        title=f"Loss and gradient of one unit: {facts['cpu']}, threads: {facts['threads']}",
    )  # fmt: skip
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=100)
