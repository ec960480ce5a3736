"""Pipelines that draw pictures: the small trained one of examples/image_model, and a stand-in of a few numbers."""

import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

from lineas import Steering, find_sites

FOLDER = ROOT / "examples" / "image_model"
JUDGE = FOLDER / "judge.safetensors"
CALL = {"num_inference_steps": 1, "guidance_scale": 0.0}


def trained_pipeline():
    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(FOLDER / "pipeline", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def captions(concept: str | None = None) -> list[dict[str, str]]:
    """Each with its prompt, its subject and its background; with a concept, or plain ones."""
    known = json.loads((FOLDER / "prompts.json").read_text(encoding="utf-8"))
    return (known["with"][concept] if concept else known["without"])["test"]


def maps_of(network, pattern, seed=0, size=0.3):
    draw = np.random.default_rng(seed)
    sites = find_sites(network, pattern)
    return Steering({s.name: (1 + size * draw.normal(size=s.units), size * draw.normal(size=s.units)) for s in sites})


class StandIn:
    """Draws noise through a convolution, in the colour of the prompt's length: all that an evaluation calls."""

    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.unet = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.Dropout(0.5)).eval()
        self.calls = []
        self.output = None  # instead of what it draws, a function of that

    def __call__(self, prompt, generator, output_type="pil", **options):
        noise = torch.stack([torch.rand(3, 6, 8, generator=one) for one in generator])
        self.calls.append({"prompt": prompt, "noise": noise, "output_type": output_type, **options})
        tint = torch.tensor([len(one) / 100 for one in prompt])[:, None, None, None]
        images = (self.unet(noise) + tint).sigmoid().movedim(1, -1).numpy()
        if self.output is not None:
            return self.output(images)
        return SimpleNamespace(images=images, nsfw_content_detected=None)
