"""Which pooling, sites, loss and ridge steer an image generator best: concepts that come and go by the judge's word.

    python benchmarks/image_poolings.py [--concepts heart,snow] [--tasks induce,remove] [--settings "mean;mean,max"]
                                        [--draws 0] [--count 96] [--samples 32] [--max-evaluations N] [--json FILE]
                                        [--table]

The model is that of `examples/image_model`. A fit sees 32 + 32 captions (`--samples`) of one plain subject, unpaired
and each with noise of its own, and pictures are of other captions and noise. A row has, at every strength, the share of
pictures in which the judge finds the concept, and in which it still finds the subject; extras other than the concept, a
picture; and the mean change of a pixel. The table shows each setting at the strength that is best where the subject is
lost in at most one picture in 20, beside no steering and beside `words`, which is what the caption itself does: means
over concepts and draws, with standard errors. `net` is what a setting does less the subjects it loses, at the best of
all strengths; beside it, how far it is above that of `max` with the same concepts and draws. The JSON file gains a line
for every fit, and what it holds is not fitted again.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _image_model import CALL, CONCEPTS, MAY_LOSE, TASKS, Captions, Studio, captions

import lineas

STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0)
LOST = 0.15  # of the subjects, where no stronger strength is looked at
FIGURES = ("concept", "subject", "others", "change")
NORMS = r".*norm\w*"
SETTINGS: dict[str, dict[str, Any]] = {
    "words": {},
    "mean": {"pooling": "mean"},
    "max": {"pooling": "max"},
    "mean,max": {"pooling": ("mean", "max")},
    "mean,max,min": {"pooling": ("mean", "max", "min")},
    "max, cross-attention": {"pooling": "max", "sites": r".*attn2\.to_out\.0"},
    "max, attention": {"pooling": "max", "sites": r".*attn\d\.to_out\.0"},
    "max, convolutions": {"pooling": "max", "sites": r".*resnets\.\d\.conv\d"},
    "max, resnets": {"pooling": "max", "sites": r".*resnets\.\d"},
    "max, no ridge": {"pooling": "max", "ridge": 0},
    "max,min": {"pooling": ("max", "min")},
    "max, conv_out too": {"pooling": "max", "loss_sites": NORMS + "|conv_out"},
    "max, resnets too": {"pooling": "max", "loss_sites": NORMS + r"|conv_out|.*resnets\.\d|.*attn\d\.to_out\.0"},
    "max, wasserstein": {"pooling": "max", "loss": "wasserstein"},
    "max, no ridge, wasserstein": {"pooling": "max", "ridge": 0, "loss": "wasserstein"},
}


class Bench:
    """Fits and their pictures. The pictures without a steering are made once for each task.

    The goal of the subjects is what the judge finds of them without a steering, or where the caption asks for the
    change, where that is less: of what is grey or dark it knows few.
    """

    def __init__(self, count: int, samples: int, more: Mapping[str, Any]):
        self.count, self.samples, self.more = count, samples, dict(more)
        self.studio = Studio(batch_size=count)
        self._pictures: dict[Any, list[np.ndarray]] = {}

    def row(self, concept: str, task: str, setting: str, draw: int) -> dict[str, Any]:
        told, key = captions(concept, task, draw, self.count, self.samples), (concept, task, draw)
        if key not in self._pictures:
            self._pictures = {key: [self.pictures(told.test, draw), self.pictures(told.asked, draw)]}
        plain, asked = self._pictures[key]

        def found(pictures: np.ndarray) -> dict[str, Any]:
            known = self.studio.found(pictures, plain, concept, told)._asdict()
            return {name: known[name] for name in (*FIGURES, "extras")}

        points, words = [{"strength": 0.0, **found(plain)}], {"strength": 1.0, **found(asked)}
        row = {"concept": concept, "task": task, "setting": setting, "draw": draw, "count": self.count}
        row["goal"] = min(points[0]["subject"], words["subject"])
        if setting == "words":
            return row | {"points": [*points, words]}
        steering = self.fit(told, draw, {"sites": NORMS, **SETTINGS[setting], **self.more})
        for strength in STRENGTHS:
            with steering.apply(self.studio.pipe, strength):
                points.append({"strength": strength, **found(self.pictures(told.test, draw))})
            if points[-1]["subject"] < row["goal"] - LOST:
                break
        return row | cost(steering) | {"points": points}

    def pictures(self, prompts: Sequence[str], seed: int) -> np.ndarray:
        return self.studio.pictures(prompts, [torch.Generator().manual_seed(one) for one in seeds(seed, prompts)])

    def fit(self, told: Captions, draw: int, options: Mapping[str, Any]) -> lineas.Steering:
        """Each side with noise of its own."""
        source, target = (
            {"prompt": side, "generator": seeds(500 + 2 * draw + k, side)} for k, side in enumerate(told[:2])
        )
        return lineas.fit(self.studio.pipe, source, target, call=CALL, progress=False, **options)


def seeds(seed: int, prompts: Sequence[str]) -> list[int]:
    """The k-th prompt has the k-th noise of the seed, whatever it asks for."""
    return [1000 * seed + k for k in range(len(prompts))]


def cost(steering: lineas.Steering) -> dict[str, Any]:
    """What the fit took, and what it left of the loss."""
    history = steering.history
    last = max(k for k, accepted in enumerate(history["accepted"]) if accepted)
    return {
        "evaluations": len(history["loss"]), "left": history["loss"][last] / history["loss"][0],
        "seconds": steering.info["seconds"], "ridge": steering.info["ridge"],
    }  # fmt: skip


def front(row: Mapping[str, Any], subjects: float = MAY_LOSE) -> dict[str, float]:
    """The best that a fit does at a strength, between those measured too, that leaves the subjects at their goal.

    `net` is the best of all strengths by the concepts that came, or went, less the subjects that were lost.
    """
    points = row["points"]
    at = [point["strength"] for point in points]
    grid = np.linspace(0, at[-1], 1 + round(20 * at[-1])) if row["setting"] != "words" else np.array(at)
    lines = {key: np.interp(grid, at, [point[key] for point in points]) for key in FIGURES}
    effect = (lines["concept"] - lines["concept"][0]) * (1 if row["task"] == "induce" else -1)
    lost = row["goal"] - lines["subject"]
    kept = lost <= subjects
    best = int(np.where(kept, effect, -np.inf).argmax())
    net = float((effect - np.maximum(lost, 0)).max())
    return {"strength": float(grid[best]), "net": net} | {key: float(line[best]) for key, line in lines.items()}


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    best = {(row["task"], row["setting"], row["concept"], row["draw"]): front(row) for row in rows}
    taken = {key: row.get("evaluations", 0) for key, row in zip(best, rows, strict=True)}
    heads = f"{'concept':13}  {'net':13}  less that of max  {'others':13}  strength evaluations"
    yield f"task    {'setting':26} fits  {heads}"
    for task, setting in sorted({key[:2] for key in best}):
        mine = [key for key in best if key[:2] == (task, setting)]
        told = [_mean([best[key][what] for key in mine]) for what in ("concept", "net", "others")]
        beside = [(key, (task, "max", key[2], key[3])) for key in mine]
        told.insert(2, _mean([best[own]["net"] - best[other]["net"] for own, other in beside if other in best]))
        strength, evaluations = np.mean([best[key]["strength"] for key in mine]), np.mean([taken[key] for key in mine])
        cells = "  ".join(f"{cell:{width}}" for cell, width in zip(told, (13, 13, 16, 13), strict=True))
        yield f"{task:7} {setting:26} {len(mine):4}  {cells} {strength:9.2f} {evaluations:11.1f}"


def _mean(values: Sequence[float]) -> str:
    """With its standard error; empty where there is nothing."""
    if not values:
        return ""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return f"{np.mean(values):.3f} ± {error:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", default=",".join(CONCEPTS))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--settings", default=";".join(SETTINGS))
    parser.add_argument("--draws", default="0")
    parser.add_argument("--count", type=int, default=96, help="pictures at each strength")
    parser.add_argument("--samples", type=int, default=32, help="captions of source and of target that a fit sees")
    parser.add_argument("--max-evaluations", type=int, help="of a fit, where it shall not stop by itself")
    parser.add_argument("--json", metavar="FILE", type=Path, help="one line for each fit")
    parser.add_argument("--table", action="store_true", help="fit nothing; show what the file holds")
    asked = parser.parse_args()
    settings = asked.settings.split(";")
    if unknown := set(settings) - set(SETTINGS):
        sys.exit(f"--settings: expected some of {', '.join(SETTINGS)}, got {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    lines = asked.json.read_text().splitlines() if asked.json and asked.json.exists() else []
    rows = [json.loads(line) for line in lines]
    if not asked.table:
        bench = Bench(
            asked.count, asked.samples, {"max_evaluations": asked.max_evaluations} if asked.max_evaluations else {}
        )
        known = {(row["concept"], row["task"], row["setting"], row["draw"]) for row in rows}
        cells = [
            (concept, task, setting, draw)
            for draw in map(int, asked.draws.split(","))
            for concept in asked.concepts.split(",")
            for task in asked.tasks.split(",")
            for setting in settings
        ]
        for cell in cells:
            if cell in known:
                continue
            rows.append(bench.row(*cell))
            print(*cell, front(rows[-1]), flush=True)
            if asked.json:
                with asked.json.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print("\n" + "\n".join(table(rows)))


if __name__ == "__main__":
    main()
