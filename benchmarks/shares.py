"""How what a steering does to the model's output is spread over units: how few of them do most of it.

    python benchmarks/shares.py [--tasks sentiment,toxicity] [--seeds 0,1] [--parts 0.01,0.03,0.1,0.3]

A fit's ridge measures what the map of each unit does to the output, to second order and as if it were alone. The share
of some units is their part of the sum over all. For every draw of the sentences of examples/compare_methods.py it
prints the share of the units that do most, and of those that tell source from target best (AUROC either way).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import compare_methods  # noqa: E402
import embedded_model  # noqa: E402

import lineas  # noqa: E402
from lineas.fitting.ridge import sensitivity  # noqa: E402


def moved(draw: compare_methods.Draw) -> tuple[lineas.Steering, NDArray[np.float64]]:
    """The default fit, and (N,) what each unit's map does to the output."""
    ridges = []

    def watch(*given):
        ridges.append(sensitivity(*given))
        return ridges[-1]

    with mock.patch.object(sys.modules["lineas.fitting.problem"], "sensitivity", watch):
        steering = draw.fit()
    u, b = (
        np.concatenate([np.asarray(part(site), float) for site in steering.sites])
        for part in (lambda site: steering.weight(site) - 1, steering.bias)
    )
    (ridge,) = ridges
    return steering, ridge.stretch * u**2 + 2 * ridge.cross * u * b + ridge.shift * b**2


def shares(draw: compare_methods.Draw, parts: Sequence[float]) -> list[tuple[float, float]]:
    """For every part of the units: the share of those that do most, and of the first by AUROC."""
    steering, each = moved(draw)
    ranking = compare_methods.ranking(draw)
    first = np.cumsum([0, *(len(steering.bias(site)) for site in steering.sites)])
    starts = dict(zip(steering.sites, first, strict=False))
    most, found = np.sort(each)[::-1], []
    for part in parts:
        k = max(round(part * len(each)), 1)
        known = [starts[site] + units for site, units in ranking.top(k).items()]
        found.append((most[:k].sum() / each.sum(), each[np.concatenate(known)].sum() / each.sum()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(compare_methods.TASKS))
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--parts", default="0.01,0.03,0.1,0.3", help="of the units")
    asked = parser.parse_args()
    parts = [float(part) for part in asked.parts.split(",")]
    model, tokenizer = embedded_model.load()
    print(f"{'task':10} seed units, the share of those that do most, of the first by AUROC")
    for task in asked.tasks.split(","):
        for seed in map(int, asked.seeds.split(",")):
            draw = compare_methods.Draw(model, tokenizer, task, seed, count=0)
            for part, (most, known) in zip(parts, shares(draw, parts), strict=True):
                print(f"{task:10} {seed:4} {part:5.0%} {most:6.3f} {known:6.3f}", flush=True)


if __name__ == "__main__":
    main()
