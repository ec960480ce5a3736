"""Responses that are extremes over tokens, and the slope through them."""

import numpy as np
import pytest
import torch
from conftest import TEXTS, Mlp, normal, tiny

import lineas
from lineas import evaluation
from lineas.fitting.source_passes import SourcePasses


def output_of(model, name, encoded):
    """What a module makes of one text, (tokens, units)."""
    seen = []
    with model.get_submodule(name).register_forward_hook(lambda module, args, output: seen.append(output)):
        model(torch.tensor([encoded["input_ids"]]))
    return seen[0][0].detach()


@pytest.mark.parametrize(("pooling", "reduce"), [("max", torch.amax), ("min", torch.amin)])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_extremes_are_over_the_real_tokens_of_each_text(pooling, reduce, kind, tokenizer):
    model = tiny(kind)
    found = evaluation.responses(model, TEXTS[1], tokenizer=tokenizer, pooling=pooling)
    for k, text in enumerate(TEXTS[1]):
        for name, rows in found.items():
            np.testing.assert_allclose(rows[k], reduce(output_of(model, name, tokenizer(text)), 0), atol=1e-5)


@pytest.mark.parametrize("pooling", ["max", "min"])
def test_extremes_of_images_are_over_pixels_in_either_memory_format(pooling):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3)).eval()
    x = normal(4, 3, 8, 8)
    expected = getattr(torch, f"a{pooling}")(net(x).detach(), (2, 3)).numpy()
    for memory in (torch.contiguous_format, torch.channels_last):
        got = evaluation.responses(net, x.to(memory_format=memory), "0", pooling=pooling)["0"]
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("pooling", ["max", "min", "last"])
def test_the_fit_lowers_the_loss_for_every_pooling(pooling, llama, tokenizer):
    steering = lineas.fit(llama, *TEXTS, tokenizer=tokenizer, pooling=pooling, progress=False)
    assert steering.history["loss"][-1] < 0.1 * steering.history["loss"][0]
    assert steering.info["pooling"] == pooling


@pytest.mark.parametrize("pooling", ["max", "min"])
def test_the_gradient_of_an_extreme_is_that_of_finite_differences(pooling):
    from lineas.fitting.model_loss import ModelLoss
    from lineas.network.data import as_batches
    from lineas.responses.probe import probe
    from lineas.responses.runner import Runner

    net = Mlp().double()
    tokens = torch.nn.Sequential(net.first, torch.nn.Tanh(), net.second)  # on (samples, tokens, channels)
    inputs = [as_batches(normal(5, 6, 4, seed=s, shift=s).double(), "x", tokens) for s in (0, 1)]
    layout = probe(tokens, lineas.find_sites(tokens, "[02]"), inputs[0][0])
    runner = Runner(tokens, layout, layout, pooling)
    problem = ModelLoss(SourcePasses(runner, inputs[0]), [runner.collect(inputs[1])])
    x, step = problem.identity(), 1e-2
    gradient = problem.evaluate(x).gradient()
    for k in (0, 3, 12, 20, 30):
        ahead, behind = x.copy(), x.copy()
        ahead[k] += step
        behind[k] -= step
        slope = (problem.evaluate(ahead).loss - problem.evaluate(behind).loss) / (2 * step)
        assert gradient[k] == pytest.approx(slope, rel=0.02, abs=1e-4)
