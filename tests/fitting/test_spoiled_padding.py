"""Padding may hold anything, also what is not finite, in activations or in their gradients: a fit is the same."""

import math

import numpy as np
import pytest
import torch
from conftest import NEGATIVE, TEXTS, WordTokenizer, flat, random_maps, small_model, small_tokenizer

import lineas
from lineas import evaluation, experts
from lineas.network.texts import padded, token_rows

SITES = ["first", "one", "second", "other"]
SIDES = [text + " more" * (k % 4) for k, text in enumerate(NEGATIVE)], TEXTS[1]


class PerToken(torch.nn.Module):
    """No token sees another. At one of its places, padding becomes a value, or gets a gradient that is not finite."""

    def __init__(self, place, padding, is_language_model=True):
        super().__init__()
        self.place, self.padding, self.is_language_model = place, padding, is_language_model
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding = torch.nn.Embedding(64, 8)
            self.first, self.second, self.head = (torch.nn.Linear(8, size) for size in (8, 8, 64))
            self.one, self.other = torch.nn.LayerNorm(8), torch.nn.LayerNorm(8)

    def spoiled(self, place, h, mask):
        real = mask.unsqueeze(-1) != 0
        if place != self.place:
            return h
        if self.padding == "root":
            return (h.abs() * real).sqrt()
        if self.padding == "safe root":
            return torch.where(real, h.abs() + ~real, 1).sqrt() * real
        return torch.where(real, h, self.padding)

    def forward(self, input_ids, attention_mask, segments=None):
        h = self.embedding(input_ids)
        h = self.one(h + torch.tanh(self.spoiled("early", self.first(h), attention_mask)))
        h = self.spoiled("between", h, attention_mask)
        h = self.other(h + torch.tanh(self.second(h)))
        h = self.head(self.spoiled("late", h, attention_mask))
        return Output(logits=h) if self.is_language_model else h


class Output(dict):
    logits = property(lambda self: self["logits"])


def given(columns_can_be_cut):
    rows = (padded(token_rows(side, "src", WordTokenizer(), None), WordTokenizer()) for side in SIDES)
    return [row if columns_can_be_cut else {**row, "segments": row["attention_mask"]} for row in rows]


def fit(place, padding, sides, is_language_model=True, **options):
    options = {"progress": False, "sites": SITES, "steps": None if "method" in options else 4, **options}
    return lineas.fit(PerToken(place, padding, is_language_model), *sides, **options)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"ridge": 0}, {"is_language_model": False}, {"recipe": "published"}, {"pooling": "max"},
        {"pooling": "last"}, {"batch_size": 5}, {"loss_sites": "other"}, {"method": "linear_act"},
        {"method": "mean_act", "batch_size": 5},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("place", ["early", "between", "late"])
def test_what_is_not_finite_in_padding_alone_changes_no_bit(place, options):
    for columns_can_be_cut in (True, False):
        sides = given(columns_can_be_cut)
        plain = flat(fit(place, 0.0, sides, **options))
        assert np.abs(plain - flat(lineas.Steering({s: (np.ones(8), np.zeros(8)) for s in SITES}))).max() > 0.05
        for odd in (math.nan, math.inf, -math.inf):
            assert np.array_equal(flat(fit(place, odd, sides, **options)), plain)
        assert np.array_equal(
            flat(fit(place, "root", sides, **options)), flat(fit(place, "safe root", sides, **options))
        )


def test_a_gradient_that_is_not_finite_is_refused_where_tokens_count():
    """Or the fit would end where it began, as if there were nothing to gain."""
    sides = [{**side, "attention_mask": torch.ones_like(side["attention_mask"])} for side in given(True)]

    class Root(PerToken):
        def spoiled(self, place, h, mask):
            return h + (torch.relu(h) * 0).sqrt() if place == "between" else h

    for options in ({"ridge": 0}, {"recipe": "published"}, {"ridge": 0, "batch_size": 5}):
        with pytest.raises(
            ValueError, match="^src: site 'first': expected a finite gradient of the loss.*got nan from"
        ):
            lineas.fit(Root("", 0.0), *sides, sites=SITES, progress=False, **options)
    units = {"other": np.arange(4)}  # after the root, all is well
    lineas.fit(Root("", 0.0), *sides, sites=SITES, units=units, ridge=0, progress=False, steps=2)


def test_scores_and_responses_do_not_look_at_padding():
    sides = given(True)
    for name in ("late", "early"):
        plain, odd = (experts.rank(PerToken(name, p, False), *sides, sites=SITES) for p in (0.0, math.nan))
        assert all(np.array_equal(plain.score(site), odd.score(site)) for site in SITES)
        plain, odd = (evaluation.responses(PerToken(name, p, False), sides[0], SITES) for p in (0.0, math.nan))
        assert all(np.array_equal(plain[site], odd[site]) for site in SITES)


def test_a_language_models_logits_at_padding_reach_no_measure():
    model, tokenizer = small_model(500), small_tokenizer()
    steering, texts = random_maps(model), [NEGATIVE[0], NEGATIVE[1] + " and long"]

    def measured():
        report = evaluation.evaluate(
            model, steering, tokenizer=tokenizer, strengths=1.0, scorers=(), prompts=(), texts=texts, progress=False
        )
        return [report.estimate(name, 1.0).value for name in ("perplexity", "kl")]

    plain = [*measured(), evaluation.perplexity(model, texts, tokenizer=tokenizer)]

    def spoil(module, args, kwargs, output):
        output.logits = output.logits.masked_fill(kwargs["attention_mask"].unsqueeze(-1) == 0, math.nan)
        return output

    model.register_forward_hook(spoil, with_kwargs=True)
    assert [*measured(), evaluation.perplexity(model, texts, tokenizer=tokenizer)] == plain
