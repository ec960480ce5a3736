"""Responses: pooled means of what sites give out, with a steering and without."""

import numpy as np
import pytest
import torch
from conftest import NEGATIVE, POSITIVE, WordTokenizer, assert_untouched, snapshot, tiny

import lineas
from lineas import evaluation


def test_responses_are_pooled_means_of_unpadded_tokens(llama):
    words = WordTokenizer()
    before = snapshot(llama)
    found = evaluation.responses(llama, NEGATIVE, tokenizer=words)
    assert_untouched(llama, before)
    by_fives = evaluation.responses(llama, NEGATIVE, tokenizer=words, batch_size=5)
    last = evaluation.responses(llama, NEGATIVE, tokenizer=words, pooling="last")
    for name, values in found.items():
        seen = []
        with llama.get_submodule(name).register_forward_hook(lambda m, a, out, seen=seen: seen.append(out[0].detach())):
            for text in NEGATIVE:
                llama(torch.tensor([words(text)["input_ids"]]))
        np.testing.assert_allclose(values, [out.mean(0) for out in seen], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(by_fives[name], values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(last[name], [out[-1] for out in seen], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="pooling: expected one of 'mean', 'max', 'min', 'last'; got 'median'"):
        evaluation.responses(llama, NEGATIVE, tokenizer=words, pooling="median")


def test_responses_of_a_steered_model_are_what_comes_out_of_the_maps():
    model, words = tiny("llama"), WordTokenizer()
    steering = lineas.fit(model, NEGATIVE, POSITIVE, tokenizer=words, progress=False, ridge=0)
    source, target = (evaluation.responses(model, texts, tokenizer=words) for texts in (NEGATIVE, POSITIVE))
    with steering.apply(model):
        steered = evaluation.responses(model, NEGATIVE, tokenizer=words)
    first = steering.sites[0]
    mapped = steering.weight(first) * source[first] + steering.bias(first)
    np.testing.assert_allclose(steered[first], mapped, rtol=1e-4, atol=1e-5)
    for name in steering.sites:
        before, after = (lineas.ot.wasserstein_1d(values[name], target[name]).mean() for values in (source, steered))
        assert after < 0.7 * before
    assert len(steering.restricted(top=4, responses=source).support()) == 3
