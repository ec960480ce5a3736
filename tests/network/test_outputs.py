"""loss_sites="output": the module that makes what a network puts out, and what comparing there does."""

import pytest
import torch
from conftest import TEXTS, Mlp, WordTokenizer, assert_untouched, normal, snapshot, tiny
from torch import nn

import lineas
from lineas.network.data import as_batches
from lineas.network.outputs import output_name


def name_of(model, inputs, tokenizer=None):
    return output_name(model, as_batches(inputs, "inputs", model, tokenizer)[0])


class Nested(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 3), nn.ReLU(inplace=True)))
        self.last = last

    def forward(self, x):
        return self.last(self.body(x))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.both = Both()

    def forward(self, x):
        return self.both(x)[1]


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.lead = nn.Linear(4, 3)

    def forward(self, x):
        h = self.lead(x)
        return h, h.exp()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_of_a_language_model_it_is_what_the_output_layer_reads(kind):
    expected = "transformer.ln_f" if kind == "gpt2" else "model.norm"
    assert name_of(tiny(kind), TEXTS[0], WordTokenizer()) == expected


def test_of_other_networks_it_is_the_innermost_that_returns_the_output():
    x = normal(3, 4)
    assert name_of(Mlp().eval(), x) == "third"
    assert name_of(Nested(nn.Identity()).eval(), x) == "last"
    assert name_of(Nested(nn.Linear(3, 2)).eval(), x) == "last"
    assert name_of(nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 3), nn.ReLU(inplace=True))), x) == "1.1"
    assert name_of(Pair(), x) == "both:1"


def test_what_is_done_behind_all_modules_is_refused():
    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.lead = nn.Linear(4, 3)

        def forward(self, x):
            return self.lead(x).softmax(-1)

    with pytest.raises(
        LookupError, match="loss_sites: expected a module that returns what the Behind puts out, found none"
    ):
        lineas.fit(Behind(), normal(8, 4), normal(8, 4, shift=1), sites="lead", loss_sites="output", progress=False)


def test_an_output_that_is_nothing_to_compare_is_refused_by_its_shape():
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 1), nn.Flatten(0))
    words = r"loss_sites: expected an output .*, but the Sequential puts out \(1,\) torch.float32: name a site"
    with pytest.raises(TypeError, match=words):
        lineas.fit(net, normal(8, 4), normal(8, 4, shift=1), sites="0", loss_sites="output", progress=False)


def test_a_fit_at_the_output_is_one_at_the_module_that_makes_it():
    net = Mlp()
    before = snapshot(net)
    sides = normal(20, 4), normal(20, 4, seed=1, shift=0.7)
    one = lineas.fit(net, *sides, sites="first", loss_sites="output", progress=False)
    other = lineas.fit(net, *sides, sites="first", loss_sites="third", progress=False)
    assert one.info["loss_sites"] == ["third"]
    assert (one.weights == other.weights).all()
    assert_untouched(net, before)
    texts = lineas.fit(
        tiny("llama"), *TEXTS, tokenizer=WordTokenizer(), loss_sites="output", progress=False, max_evaluations=3
    )
    assert texts.info["loss_sites"] == ["model.norm"]


def test_a_module_of_that_name_is_what_it_says():
    net = nn.Sequential()
    net.add_module("lead", nn.Linear(4, 6))
    net.add_module("output", nn.ReLU())
    net.add_module("last", nn.Linear(6, 2))
    fitted = lineas.fit(net, normal(20, 4), normal(20, 4, shift=0.7), sites="lead", loss_sites="output", progress=False)
    assert fitted.info["loss_sites"] == ["output"]


def test_a_convolutional_classifiers_answers_turn_where_they_are_compared():
    """Digits that shall be read as others: a mean over pixels hardly knows a digit, the logits do."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    x, y = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convolutions = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()
        net = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1024, 10))
        descent = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(100):
            descent.zero_grad()
            nn.functional.cross_entropy(net(x[:1200]), y[:1200]).backward()
            descent.step()
    net.requires_grad_(False)

    def turned(digit, into, loss_sites):
        sides = (x[:1200][y[:1200] == one][:32] for one in (digit, into))
        unseen = x[1200:][y[1200:] == digit]
        steering = lineas.fit(net, *sides, sites="0|2", loss_sites=loss_sites, progress=False)
        with steering.apply(net):
            return float((net(unseen).argmax(1) == into).float().mean())

    for digit, into in ((0, 3), (2, 5), (5, 8)):
        assert turned(digit, into, None) < 0.2
        assert turned(digit, into, "output") > 0.6
