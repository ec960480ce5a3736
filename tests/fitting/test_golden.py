"""Training runs of the released implementation, step by step (design: tests/data/README.md)."""

import json

import numpy as np
import pytest
import torch
from conftest import DATA

import lineas

GOLDEN = DATA / "golden"
RUNS = ("sgd", "sgd_sparse_group", "adam")


@pytest.fixture(scope="module")
def tiny_llama():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(GOLDEN / "tiny_llama")


def load(run):
    arrays = dict(np.load(GOLDEN / f"trajectory_{run}.npz"))
    settings = json.loads((GOLDEN / f"trajectory_{run}.json").read_text())
    inputs = [
        {
            "input_ids": torch.tensor(arrays[f"input_ids_{which}"]),
            "attention_mask": torch.tensor(arrays[f"mask_{which}"]),
        }
        for which in ("source", "target")
    ]
    return arrays, settings, inputs


def refit(model, run, **options):
    _, settings, (source, target) = load(run)
    penalty = lineas.penalties.SparseGroupLasso(0.002, 0.002) if run == "sgd_sparse_group" else None
    defaults = {"recipe": "published", "optimizer": settings["optimizer"].lower(), "steps": settings["steps"]}
    return lineas.fit(
        model, source, target, sites=settings["sites"], penalty=penalty, progress=False, **{**defaults, **options}
    )


@pytest.mark.parametrize("run", RUNS)
def test_published_recipe_follows_the_released_implementation_step_by_step(tiny_llama, run):
    arrays, settings, _ = load(run)
    steering = refit(tiny_llama, run)
    assert settings["lr"] == {"sgd": 0.1, "adam": 0.01}[settings["optimizer"].lower()]  # our defaults
    np.testing.assert_allclose(steering.history["loss"], arrays["loss"], rtol=1e-5)
    # The released implementation notes the penalty after its step, we before ours.
    np.testing.assert_allclose(steering.history["penalty"][1:], arrays["reg"][:-1], rtol=1e-4, atol=1e-7)
    for name in steering.sites:
        np.testing.assert_allclose(steering.weight(name), arrays[f"weight/{name}"], atol=1e-5)
        np.testing.assert_allclose(steering.bias(name), arrays[f"bias/{name}"], atol=1e-5)


def test_pooled_responses_are_those_of_the_released_implementation(tiny_llama):
    from lineas.network.data import as_batches
    from lineas.responses.probe import probe
    from lineas.responses.runner import Runner

    arrays, settings, inputs = load("sgd")
    for which, data in zip(("source", "target"), inputs, strict=True):
        (batch,) = as_batches(data, which, tiny_llama)
        layout = probe(tiny_llama, lineas.find_sites(tiny_llama, settings["sites"]), batch)
        with torch.no_grad():
            responses = Runner(tiny_llama, layout, layout, "mean").run(batch)
        for k, site in enumerate(layout.sites):
            response = responses[:, layout.slice(k)]
            np.testing.assert_allclose(response.numpy(), arrays[f"pooled_{which}/{site.name}"], atol=2e-6)


@pytest.mark.parametrize(("run", "published"), [("sgd", 0.3005), ("sgd_sparse_group", 0.4122)])
def test_fast_recipe_reaches_the_published_objective_in_five_evaluations(tiny_llama, run, published):
    """What the published recipe has after 1000 steps, in its normalisation: the loss times the 16 samples."""
    penalty = lineas.penalties.SparseGroupLasso(0.002 / 16, 0.002 / 16) if run == "sgd_sparse_group" else None
    _, settings, (source, target) = load(run)
    steering = lineas.fit(
        tiny_llama, source, target, sites=settings["sites"], loss="wasserstein", ridge=0,
        penalty=penalty, progress=False,
    )  # fmt: skip
    assert 16 * min(steering.history["objective"][:5]) <= published
    assert len(steering.history["loss"]) <= 8  # and then it stops by itself
