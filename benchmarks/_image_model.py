"""The image model of `examples/image_model`, captions to fit on and to test with, and what the judge finds."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lineas.evaluation import Judge

MODEL = Path(__file__).resolve().parents[1] / "examples" / "image_model"
CALL = {"num_inference_steps": 1, "guidance_scale": 0.0}
CONCEPTS = ("heart", "star", "snow", "night", "flowers", "hat", "greyscale", "blurred")
TASKS = ("induce", "remove")
MAY_LOSE = 0.05  # of the subjects
UNSURE = ("glasses", "rain")  # extras that the judge does not know well


class Captions(NamedTuple):
    """What a draw of a task fits on and is tested with; `asked` are the test captions that say the change in words."""

    source: list[str]
    target: list[str]
    test: list[str]
    asked: list[str]
    subjects: list[str]
    grounds: list[str | None]  # None where the style leaves none


def captions(concept: str, task: str, draw: int, count: int, samples: int, paired: bool = False) -> Captions:
    """Of a draw: `paired` has the same captions with and without the concept, else others."""
    prompts = json.loads((MODEL / "prompts.json").read_text())
    sides = [prompts["without"], prompts["with"][concept]]
    source, target = sides if task == "induce" else sides[::-1]
    lots = random.Random(draw)
    first = lots.sample(range(len(source["fit"])), samples)
    second = first if paired else lots.sample(range(len(target["fit"])), samples)
    rows = lots.sample(range(len(source["test"])), count)
    test, asked = ([side["test"][k]["prompt"] for k in rows] for side in (source, target))
    known = [source["test"][k] for k in rows]
    return Captions(
        [source["fit"][k] for k in first], [target["fit"][k] for k in second], test, asked,
        [row["subject"] for row in known], [row["ground"] for row in known],
    )  # fmt: skip


def load() -> Any:
    """The pipeline, in float32."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(MODEL / "pipeline", torch_dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Found(NamedTuple):
    """What the judge finds in pictures: shares of them, and the mean change of a pixel's value from 0 to 1."""

    concept: float
    subject: float
    ground: float  # NaN where the style leaves none
    others: float
    change: float
    extras: dict[str, float]  # other than the concept, by name


class Studio:
    """Makes pictures of test captions, and has them judged."""

    def __init__(self, batch_size: int = 48):
        self.pipe, self.judge = load(), Judge.from_file(MODEL / "judge.safetensors")
        self.batch_size = batch_size

    def pictures(self, prompts: Sequence[str], noise: Sequence[torch.Generator]) -> np.ndarray:
        """(n, 64, 64, 3), values 0 to 1; the k-th begins with the k-th noise, whatever it asks for."""
        parts = []
        for start in range(0, len(prompts), self.batch_size):
            rows = slice(start, start + self.batch_size)
            options = {"generator": list(noise[rows]), "output_type": "np", **CALL}
            parts.append(self.pipe(list(prompts[rows]), **options).images)
        return np.concatenate(parts).astype(np.float32)

    @torch.no_grad()
    def found(self, pictures: np.ndarray, plain: np.ndarray, concept: str, told: Captions) -> Found:
        judge = self.judge
        said = judge.network(torch.from_numpy(pictures).movedim(-1, 1))
        shares = dict(zip(judge.extras, (said["extra"] > 0).float().mean(0).tolist(), strict=True))
        styles = said["style"].argmax(1)
        there = shares[concept] if concept in shares else _share(styles == judge.styles.index(concept))
        others = {name: round(share, 4) for name, share in shares.items() if name not in (concept, *UNSURE)}
        subjects = torch.tensor([judge.subjects.index(name) for name in told.subjects])
        ground = float("nan")
        if None not in told.grounds:
            grounds = torch.tensor([judge.colours.index(name) for name in told.grounds])
            ground = _share(said["ground"].argmax(1) == grounds)
        right = _share(said["subject"].argmax(1) == subjects)
        return Found(there, right, ground, sum(others.values()), float(np.abs(pictures - plain).mean()), others)


def _share(hits: torch.Tensor) -> float:
    return float(hits.float().mean())
