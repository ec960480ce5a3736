"""lineas.fit: the same result each time, and nothing else touched."""

import numpy as np
import pytest
import torch
from conftest import SOURCE, TARGET, Mlp, assert_untouched, snapshot
from test_fit import falls, fit

import lineas


def test_same_seed_same_bits_and_any_thread_count(llama, texts, tokenizer):
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            results.append(lineas.fit(llama, *texts, tokenizer=tokenizer, progress=False, steps=4))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert other.history["loss"] == results[0].history["loss"]
        assert all(np.array_equal(other.weight(n), results[0].weight(n)) for n in other.sites)


class Noisy(Mlp):
    def forward(self, x):
        return super().forward(x + 0.01 * torch.randn_like(x))


def test_a_model_that_draws_numbers_is_seeded_without_touching_the_global_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (fit(Noisy(), seed=seed, max_evaluations=3).history["loss"] for seed in (1, 1, 2))
    assert a == b != c
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_equal_maps_meet_equal_noise(batch_size):
    """Or a line search would compare two noises, and the second pass over small batches would see other responses."""
    steering = fit(Noisy(), batch_size=batch_size, max_evaluations=30)
    assert falls(steering)
    again = fit(Noisy(), batch_size=batch_size, resume_from=steering, max_evaluations=1)
    best = [o for o, kept in zip(*map(steering.history.get, ("loss", "accepted")), strict=True) if kept][-1]
    assert again.history["loss"][0] == pytest.approx(best, rel=1e-5)


def test_a_shuffling_loader_does_not_move_the_global_random_state(mlp):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(SOURCE), batch_size=5, shuffle=True)
    before = snapshot(mlp)
    fit(mlp, loader)
    assert_untouched(mlp, before)


def test_the_model_is_left_as_it_was_in_every_respect(mlp):
    mlp.train()
    mlp.second.eval()
    mlp.first.weight.requires_grad_(False)
    before = snapshot(mlp)
    fit(mlp)
    assert_untouched(mlp, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_an_interrupted_fit_leaves_the_model_as_it_was(mlp, error, at):
    calls = []

    def interrupt(module, args, output):
        calls.append(1)
        if len(calls) == at:  # while looking, while collecting targets, in the middle of a search
            raise error

    mlp.train()
    mlp.second.register_forward_hook(interrupt)
    before = snapshot(mlp)
    with pytest.raises(error):
        fit(mlp)
    assert_untouched(mlp, before)


def test_fit_works_inside_no_grad_and_inference_mode(mlp):
    expected = fit(mlp).history["loss"]
    with torch.no_grad():
        assert fit(mlp).history["loss"] == expected
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert fit(mlp).history["loss"] == expected


def test_the_forward_pass_stops_at_the_last_loss_site(mlp):
    calls = []
    mlp.third.register_forward_pre_hook(lambda m, args: calls.append(len(args[0])))
    fit(mlp)
    assert calls == [2], "only the look at two samples goes through the whole model"


def test_no_cache_of_keys_and_values_is_made(llama, texts, tokenizer):
    seen = []
    llama.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs.get("use_cache")), with_kwargs=True)
    lineas.fit(llama, *texts, tokenizer=tokenizer, progress=False, steps=1)
    assert seen
    assert set(seen) == {False}


def test_no_gradient_of_weights_is_made(mlp):
    made = []
    for parameter in mlp.parameters():
        parameter.register_hook(made.append)
    fit(mlp)
    assert made == []
    assert all(parameter.grad is None for parameter in mlp.parameters())


def test_padding_counts_for_nothing(llama):
    ids = torch.randint(2, 60, (6, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    padded = torch.cat([ids, torch.full((6, 3), 9)], 1), torch.cat([mask, torch.zeros(6, 3).long()], 1)
    other = torch.cat([ids, torch.full((6, 3), 4)], 1), padded[1]
    forms = [{"input_ids": i, "attention_mask": m} for i, m in ((ids, mask), padded, other)]
    losses = [lineas.fit(llama, form, forms[0] | {"input_ids": ids + 1}, progress=False, steps=3) for form in forms]
    for steering in losses[1:]:
        np.testing.assert_allclose(steering.history["loss"], losses[0].history["loss"], rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_of_the_model_work(dtype):
    steering = fit(Mlp().to(dtype), SOURCE.to(dtype), TARGET.to(dtype))
    assert falls(steering)
    assert steering.weight("first").dtype == np.float32
