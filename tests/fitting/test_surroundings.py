"""What a program has set for all its tensors, its default device or dtype or a mode of autograd, changes no result."""

import copy
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from conftest import IDS, SOURCE, TARGET, TEXTS, Mlp, WordTokenizer, flat, random_maps, small_model, tiny
from conftest import small_tokenizer as word_tokenizer

import lineas
from lineas import evaluation, experts

MASK = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1], [1] * 6])
LENGTHS = torch.tensor([2, 1, 4])


@contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


# On "meta" a tensor has no numbers: one that is made there by mistake cannot go unnoticed.
SURROUNDINGS = {
    "set_default_device": default_device,
    "with device": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
}


def t5():
    import transformers as hf

    config = hf.T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0, pad_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return hf.T5ForConditionalGeneration(config).eval()


MODELS = {"llama": tiny("llama"), "bert": tiny("bert"), "mlp": Mlp(), "t5": t5(), "words": small_model(500)}
UP, DOWN = random_maps(MODELS["llama"], size=0.3), random_maps(MODELS["llama"], seed=1, size=0.3)
OPTIONS = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}


def fitted(name="llama", sides=TEXTS, **options):
    options = {"progress": False, "tokenizer": WordTokenizer(), "steps": 3, **options}
    return flat(lineas.fit(MODELS[name], *sides, **options))


def logits(*arguments, prompt=None, **options):
    with torch.no_grad(), lineas.attach(MODELS["llama"], [UP, DOWN], *arguments, **options) as handle:
        said = nullcontext() if prompt is None else handle.prompt(prompt)
        with said:
            return MODELS["llama"](IDS, attention_mask=MASK).logits.numpy()


def generated(name, steering, **options):
    model = MODELS[name]
    with steering.apply(model, [1.0, 0.0, 0.5], **options):
        return model.generate(IDS, attention_mask=MASK, **OPTIONS).numpy()


def changed_twice():
    with UP.attach(MODELS["llama"]) as handle:
        handle.set_strength([1.0, 0.5, 0.0])
        handle.set_strength(0.5)
        with torch.no_grad():
            return MODELS["llama"](IDS).logits.numpy()


def merged(name):
    model = random_maps(MODELS[name]).merge(MODELS[name])
    return torch.cat([weight.detach().flatten() for weight in model.state_dict().values()]).numpy()


def ranked():
    ranking = experts.rank(MODELS["llama"], *TEXTS, tokenizer=WordTokenizer())
    return np.concatenate([ranking.score(site) for site in UP.sites])


def measured():
    report = evaluation.evaluate(
        MODELS["words"], random_maps(MODELS["words"]), tokenizer=word_tokenizer(), strengths=1.0, scorers=(),
        prompts=["this film", "a film of"], texts=TEXTS[0], count=2, new_tokens=3, progress=False,
    )  # fmt: skip
    return np.array([report.estimate(name, 1.0).value for name in ("perplexity", "kl", "distinct_2")])


METHOD = {"method": "linear_act", "within_range": True, "steps": None}
NUMBERS = {"input_ids": IDS.numpy()}, {"input_ids": IDS.numpy() + 1}
DOES = {
    "rows": lambda: logits([0, None, 1]),
    "strength by row": lambda: logits(0, [1.0, 0.0, 0.5]),
    "last": lambda: logits(0, position="last"),
    "function": lambda: logits([0, 1, None], position=lambda places: places == 2),
    "prompt": lambda: logits(0, position="generated", prompt=[2, 1, 4]),
    "prompt tensor": lambda: logits(0, position="prompt", prompt=LENGTHS),
    "changed": changed_twice,
    "generate": lambda: generated("llama", UP),
    "generate by position": lambda: generated("llama", UP, position="generated"),
    "generate of a pair": lambda: generated("t5", random_maps(MODELS["t5"], size=0.3), position="generated"),
    "fit": fitted,
    "fit in batches": lambda: fitted(batch_size=5),
    "fit a pair": lambda: fitted("t5"),
    "fit without mask": lambda: fitted("mlp", (SOURCE, TARGET), sites=["first", "second"]),
    "fit arrays": lambda: fitted(sides=NUMBERS),
    "fit as published": lambda: fitted(recipe="published", batch_size=5),
    "fit in half": lambda: fitted(compute_dtype="bfloat16"),
    "method": lambda: fitted(**METHOD),
    "method in batches": lambda: fitted(**METHOD, batch_size=5),
    "rank": ranked,
    "merge": lambda: merged("llama"),
    "merge and look": lambda: merged("bert"),
    "evaluate": measured,
}


@pytest.fixture(scope="module")
def plainly():
    """What each of these gives in a plain program."""
    return {name: does() for name, does in DOES.items()}


@pytest.mark.parametrize("does", DOES)
@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_nothing_that_holds_for_all_tensors_changes_a_bit(surroundings, does, plainly):
    with SURROUNDINGS[surroundings]():
        got = DOES[does]()
    assert got.dtype == plainly[does].dtype
    assert np.array_equal(got, plainly[does])


def test_an_unknown_norm_is_recognised_under_another_default_dtype():
    class Norm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4))

        def forward(self, x):
            return self.weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()

    net, x = torch.nn.Sequential(Norm(), torch.nn.Linear(4, 2)), SOURCE
    steering = lineas.Steering({"0": ([2.0, 0.5, 1.0, 3.0], [1.0, 0.0, 0.0, 2.0])})
    with steering.apply(net):
        expected = net(x)
    for around in SURROUNDINGS.values():
        with around():
            new = steering.merge(net, probe=x)
        torch.testing.assert_close(new(x), expected)


# -- weights of inference mode --


def made_for_inference():
    with torch.inference_mode():
        return copy.deepcopy(MODELS["llama"])


@pytest.mark.parametrize("around", [nullcontext, torch.inference_mode])
def test_a_fit_refuses_weights_that_autograd_may_not_record(around):
    model = made_for_inference()
    with around(), pytest.raises(ValueError, match=r"got model.embed_tokens.weight made under torch.inference_mode"):
        lineas.fit(model, *TEXTS, tokenizer=WordTokenizer(), progress=False, steps=1)
    assert all(weight.requires_grad for weight in model.parameters())
    found = lineas.fit(copy.deepcopy(model), *TEXTS, tokenizer=WordTokenizer(), progress=False, steps=3)
    assert np.array_equal(flat(found), fitted()), "as the message advises"


def test_what_needs_no_gradient_takes_them():
    model = made_for_inference()
    found = lineas.fit(model, *TEXTS, tokenizer=WordTokenizer(), progress=False, method="mean_act")
    assert np.array_equal(flat(found), fitted(method="mean_act", steps=None))
    assert all(weight.requires_grad for weight in model.parameters())
