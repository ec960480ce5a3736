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
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

import lineas

MODEL = Path(__file__).resolve().parents[1] / "examples" / "image_model"
CONCEPTS = ("heart", "star", "snow", "night", "flowers", "hat", "greyscale", "blurred")
STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0)
MAY_LOSE, LOST = 0.05, 0.15  # of the subjects: at the best strength, and where no stronger one is looked at
UNSURE = ("glasses", "rain")  # extras that the judge does not know well
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
    "max, wasserstein": {"pooling": "max", "loss": "wasserstein"},
    "max, no ridge, wasserstein": {"pooling": "max", "ridge": 0, "loss": "wasserstein"},
}


class Steered(Exception):
    """The UNet has been called: the rest of the pipeline is not needed."""


class Judge(nn.Module):
    """What is in a 64 x 64 picture; examples/image_model/README.md says how it is made."""

    def __init__(self, path: Path = MODEL / "judge.safetensors"):
        super().__init__()
        with safe_open(path, "pt") as file:
            self.words = {key: json.loads(file.metadata()[key]) for key in ("subjects", "extras", "styles")}
            self.weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 -- not a dict

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        def conv(name: str, h: Tensor, stride: int = 1) -> Tensor:
            return nn.functional.conv2d(h, *self._pair(name), stride=stride, padding=1)

        def group(name: str, h: Tensor) -> Tensor:
            return nn.functional.silu(nn.functional.group_norm(h, 8, *self._pair(name)))

        h = conv("stem", 2 * x - 1)
        for k in range(4):
            h = group(f"norms.{k}", conv(f"down.{k}", h, 2))
            h = h + group(f"norms2.{k}", conv(f"more.{k}", h))
        seen = torch.cat([h.mean((2, 3)), h.amax((2, 3)), x.mean((2, 3)), x.std((2, 3))], 1)
        return {key: nn.functional.linear(seen, *self._pair(f"heads.{key}")) for key in ("subject", "extra", "style")}

    def _pair(self, name: str) -> tuple[Tensor, Tensor]:
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]


class Captions(NamedTuple):
    """What a draw of a task fits on and is tested with; `asked` are the test captions that say the change in words."""

    source: list[str]
    target: list[str]
    test: list[str]
    asked: list[str]
    subjects: list[str]


def captions(
    prompts: Mapping[str, Any], concept: str, task: str, draw: int, count: int, samples: int = 32
) -> Captions:  # fmt: skip
    sides = [prompts["without"], prompts["with"][concept]]
    source, target = sides if task == "induce" else sides[::-1]
    lots = random.Random(draw)
    fitted = [lots.sample(side["fit"], samples) for side in (source, target)]
    rows = lots.sample(range(len(source["test"])), count)
    test, asked = ([side["test"][k]["prompt"] for k in rows] for side in (source, target))
    return Captions(*fitted, test, asked, [source["test"][k]["subject"] for k in rows])


class Generator:
    """The one-step pipeline: its pictures, and what its UNet is called with."""

    def __init__(self):
        from diffusers import StableDiffusionPipeline

        self.pipe = StableDiffusionPipeline.from_pretrained(MODEL / "pipeline").to(torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self.unet = self.pipe.unet

    def pictures(self, prompts: Sequence[str], seed: int) -> Tensor:
        """One of each prompt, (n, 3, 64, 64); the k-th has the k-th noise of the seed whatever it asks for."""
        noise = [torch.Generator().manual_seed(1000 * seed + k) for k in range(len(prompts))]
        options = {"num_inference_steps": 1, "guidance_scale": 0.0, "generator": noise, "output_type": "pt"}
        return self.pipe(list(prompts), **options).images

    def inputs(self, prompts: Sequence[str], seed: int) -> dict[str, Tensor]:
        """What the UNet is called with for these prompts."""
        kept: dict[str, Any] = {}

        def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            kept.update(zip(("sample", "timestep"), args, strict=True), **kwargs)
            raise Steered

        handle = self.unet.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            self.pictures(prompts, seed)
        except Steered:
            pass
        finally:
            handle.remove()
        given = {key: kept[key] for key in ("sample", "timestep", "encoder_hidden_states")}
        return given | {"timestep": given["timestep"].expand(len(prompts)).clone()}

    def fit(self, told: Captions, draw: int, options: Mapping[str, Any]) -> lineas.Steering:
        source, target = (self.inputs(side, 500 + 2 * draw + k) for k, side in enumerate(told[:2]))
        return lineas.fit(self.unet, source, target, progress=False, **{"sites": NORMS, **options})


class Found(NamedTuple):
    """What the judge finds in pictures, each a share or a mean of them."""

    concept: float
    subject: float
    others: float
    change: float
    extras: dict[str, float]


def judged(judge: Judge, pictures: Tensor, plain: Tensor, concept: str, subjects: Sequence[str]) -> Found:
    said = judge(pictures)
    right = said["subject"].argmax(1) == torch.tensor([judge.words["subjects"].index(s) for s in subjects])
    extras = dict(zip(judge.words["extras"], (said["extra"] > 0).float().mean(0).tolist(), strict=True))
    styles = said["style"].argmax(1)
    if concept in extras:
        there = extras[concept]
    else:
        there = float((styles == judge.words["styles"].index(concept)).float().mean())
    others = {name: round(share, 4) for name, share in extras.items() if name not in (concept, *UNSURE)}
    change = float((pictures - plain).abs().mean())
    return Found(there, float(right.float().mean()), sum(others.values()), change, others)


class Bench:
    """Fits and their pictures. The pictures without a steering are made once for each task.

    The goal of the subjects is what the judge finds of them without a steering, or where the caption asks for the
    change, where that is less: of what is grey or dark it knows few.
    """

    def __init__(self, count: int, samples: int, more: Mapping[str, Any]):
        self.count, self.samples, self.more = count, samples, dict(more)
        self.prompts = json.loads((MODEL / "prompts.json").read_text())
        self.generator, self.judge = Generator(), Judge()
        self._pictures: dict[Any, list[Tensor]] = {}

    @torch.no_grad()
    def row(self, concept: str, task: str, setting: str, draw: int) -> dict[str, Any]:
        told = captions(self.prompts, concept, task, draw, self.count, self.samples)
        key = concept, task, draw
        if key not in self._pictures:
            self._pictures = {
                key: [self.generator.pictures(told.test, draw), self.generator.pictures(told.asked, draw)]
            }
        plain, asked = self._pictures[key]

        def found(pictures: Tensor) -> dict[str, Any]:
            return judged(self.judge, pictures, plain, concept, told.subjects)._asdict()

        points, words = [{"strength": 0.0, **found(plain)}], {"strength": 1.0, **found(asked)}
        row = {"concept": concept, "task": task, "setting": setting, "draw": draw, "count": self.count}
        row["goal"] = min(points[0]["subject"], words["subject"])
        if setting == "words":
            return row | {"points": [*points, words]}
        steering = self.generator.fit(told, draw, {**SETTINGS[setting], **self.more})
        for strength in STRENGTHS:
            with steering.apply(self.generator.unet, strength):
                points.append({"strength": strength, **found(self.generator.pictures(told.test, draw))})
            if points[-1]["subject"] < row["goal"] - LOST:
                break
        return row | cost(steering) | {"points": points}


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
    keys = ("concept", "subject", "others", "change")
    lines = {key: np.interp(grid, at, [point[key] for point in points]) for key in keys}
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
    parser.add_argument("--tasks", default="induce,remove")
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
