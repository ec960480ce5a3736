"""On a GPU: the same maps as on the CPU, and no more waiting than the loss needs. Skipped where there is none."""

import warnings

import numpy as np
import pytest
import torch
from conftest import NEGATIVE, POSITIVE, WordTokenizer, assert_untouched, random_maps, snapshot, tiny

import lineas
from lineas import evaluation
from lineas.fitting.model_loss import ModelLoss
from lineas.fitting.source_passes import SourcePasses
from lineas.network.data import as_batches
from lineas.responses.probe import probe
from lineas.responses.runner import Runner

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
KINDS = ("llama", "gemma2", "gpt2")


def fit(model, **options):
    return lineas.fit(model, NEGATIVE, POSITIVE, tokenizer=WordTokenizer(), progress=False, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"ridge": 0.0, "max_evaluations": 4}, {"recipe": "published", "steps": 20}])
def test_the_maps_are_those_of_the_cpu(kind, options):
    model = tiny(kind)
    expected = fit(model, **options)
    model.cuda()
    before = snapshot(model)
    found = fit(model, **options)
    assert_untouched(model, before)
    for name in expected.sites:
        np.testing.assert_allclose(found.weight(name), expected.weight(name), atol=2e-3)
        np.testing.assert_allclose(found.bias(name), expected.bias(name), atol=2e-3)


@pytest.mark.parametrize("method", ["linear_act", "iti_c", "aura"])
@pytest.mark.parametrize("schedule", ["at_once", "sequential"])
def test_methods_in_closed_form_give_the_maps_of_the_cpu(method, schedule):
    model = tiny("llama")
    expected = fit(model, method=method, schedule=schedule)
    found = fit(model.cuda(), method=method, schedule=schedule)
    for name in expected.sites:
        np.testing.assert_allclose(found.bias(name), expected.bias(name), atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_steering_does_there_what_it_does_on_the_cpu(dtype):
    model = tiny("llama").to(dtype)
    steering, ids = random_maps(model), torch.randint(2, 60, (3, 6))
    with steering.apply(model), torch.no_grad():
        expected = model(ids).logits.float()
    model.cuda()
    with steering.apply(model), torch.no_grad():
        found = model(ids.cuda()).logits.float().cpu()
    torch.testing.assert_close(found, expected, atol=1e-4 if dtype == torch.float32 else 0.3, rtol=0.02)


def test_responses_and_merging_work_there():
    model = tiny("llama")
    expected = evaluation.responses(model, NEGATIVE, tokenizer=WordTokenizer())
    model.cuda()
    found = evaluation.responses(model, NEGATIVE, tokenizer=WordTokenizer())
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)
    merged = random_maps(model).merge(model)
    assert next(merged.parameters()).device.type == "cuda"


def test_a_step_waits_for_the_gpu_when_it_fetches_responses_and_gradient_and_never_else():
    model = tiny("llama").cuda().requires_grad_(False)
    sources, targets = (
        [batch.to(torch.device("cuda")) for batch in as_batches(texts, "x", model, WordTokenizer())]
        for texts in (NEGATIVE, POSITIVE)
    )
    layout = probe(model, lineas.find_sites(model), sources[0])
    runner = Runner(model, layout, layout, "mean")
    problem = ModelLoss(SourcePasses(runner, sources), [runner.collect(targets)])
    x = problem.identity()
    problem.evaluate(x).gradient()  # whatever is made once
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            problem.evaluate(x).gradient()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]
    assert 1 <= len(waits) <= 4, (
        waits
    )  # responses and gradient to the host; maps and slopes, from pageable memory, there
