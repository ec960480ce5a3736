"""Where two sets part in a network, and where maps are recommended."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from conftest import (
    IMAGE_CALL,
    NEGATIVE,
    POSITIVE,
    Mlp,
    WordTokenizer,
    assert_untouched,
    image_captions,
    normal,
    snapshot,
    tiny,
)
from torch import nn

import lineas
from lineas import evaluation, ot
from lineas.core.errors import NonFiniteError
from lineas.fitting.suggest import RELABELLINGS
from lineas.fitting.suggestion import SiteFigures, Suggestion, recommended
from lineas.network.candidates import candidate_sites

mpl.use("Agg")
WORDS = {"tokenizer": WordTokenizer()}


def by_name(found):
    return {one.site: one for one in found.candidates}


def figures(site, apart, reach=1.0, kind="norm", p_value=0.01):
    return SiteFigures(site, kind, 4, apart, p_value, 0.1, reach, 64)


# -- candidates --


@pytest.mark.parametrize(
    ("kind", "block"),
    [
        (
            "llama",
            {"input_layernorm": "norm", "self_attn": "attention", "post_attention_layernorm": "norm", "mlp": "mlp"},
        ),
        ("gpt2", {"ln_1": "norm", "attn": "attention", "ln_2": "norm", "mlp": "mlp"}),
    ],
)  # fmt: skip
def test_candidates_of_a_language_model_are_the_parts_of_its_blocks_in_order(kind, block):
    model = tiny(kind)
    before = snapshot(model)
    found = lineas.suggest_sites(model, NEGATIVE, POSITIVE, **WORDS)
    assert_untouched(model, before)
    layers, last = ("model.layers", "model.norm") if kind == "llama" else ("transformer.h", "transformer.ln_f")
    expected = [(f"{layers}.{k}{end}", what) for k in range(3) for end, what in
                [*((f".{name}", what) for name, what in block.items()), ("", "block")]]  # fmt: skip
    assert [(one.site, one.kind) for one in found.candidates][-1] == (last, "output")
    # A block's last part and the block end one after the other, so the order is that of the pass.
    assert [(one.site, one.kind) for one in found.candidates if one.kind != "output"] == expected
    assert all(one.units == 16 for one in found.candidates)
    tokens = max(len(text.split()) for text in NEGATIVE)
    assert {one.memory for one in found.candidates} == {len(NEGATIVE) * tokens * 16 * 4}


def test_default_sites_are_candidates_and_what_returns_the_same_tensor_is_one_only():
    found = by_name(lineas.suggest_sites(tiny("bert"), NEGATIVE, POSITIVE, **WORDS))
    assert found.keys() >= {site.name for site in lineas.find_sites(tiny("bert"))}
    assert "encoder.layer.0" not in found, "its last normalisation returns that tensor"
    assert found["encoder.layer.2.output.LayerNorm"].kind == "output"
    assert not any(name.startswith("pooler") for name in found), "it runs behind the output"


def test_layers_are_candidates_where_there_are_no_blocks_and_nothing_that_is_not_a_site():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.drop, self.last = nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 3)
            self.pairs, self.never = nn.GRU(4, 4, batch_first=True), nn.ModuleList([nn.Linear(4, 4)])

        def forward(self, x):
            h = self.twice(self.twice(x))
            return self.last(self.drop(self.pairs(h)[0]))

    found = lineas.suggest_sites(Odd(), normal(20, 5, 4), normal(20, 5, 4, seed=1, shift=3))
    assert [(one.site, one.kind) for one in found.candidates] == [("pairs", "layer"), ("last", "output")]


def test_a_network_whose_output_no_module_makes_has_no_output_among_them():
    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.lead = nn.Linear(4, 3)

        def forward(self, x):
            return self.lead(x).softmax(-1)

    found = lineas.suggest_sites(Behind(), normal(20, 4), normal(20, 4, seed=1, shift=2))
    assert [(one.site, one.kind, one.reach) for one in found.candidates] == [("lead", "layer", 1.0)]
    assert (found.sites, found.loss_sites) == (["lead"], None)


def test_a_score_for_each_sample_is_no_output_to_compare_but_is_minded():
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 1), nn.Flatten(0))
    found = lineas.suggest_sites(net, normal(20, 4), normal(20, 4, seed=1, shift=2))
    assert [(one.site, one.kind) for one in found.candidates] == [("0", "layer"), ("1", "layer")]
    assert found.candidates[0].price == pytest.approx(found.candidates[1].price, rel=1e-3)
    assert found.candidates[0].price > 0


def test_one_looks_where_one_is_told_and_at_the_output():
    net, sides = Mlp(), (normal(20, 4), normal(24, 4, seed=1, shift=1))
    found = lineas.suggest_sites(net, *sides, "first")
    assert [(one.site, one.kind) for one in found.candidates] == [("first", "layer"), ("third", "output")]
    assert by_name(found)["first"] == by_name(lineas.suggest_sites(net, *sides))["first"]


# -- figures --


def test_apart_is_each_units_distance_beyond_relabelling_by_its_variance_within():
    net, sides = Mlp(), (normal(20, 4), normal(24, 4, seed=1, shift=2))
    for name, one in by_name(lineas.suggest_sites(net, *sides)).items():
        source, target = (evaluation.responses(net, side, [name])[name] for side in sides)
        within = (source.var(0) + target.var(0)) / 2
        noise = ot.permutation_null(source, target, n_permutations=4000).mean / within
        expected = float((ot.wasserstein_1d(source, target) / within - noise).mean())
        assert one.apart == pytest.approx(expected, abs=0.15 * noise.mean())
        assert one.p_value * (1 + RELABELLINGS) == pytest.approx(round(one.p_value * (1 + RELABELLINGS)))


def test_one_huge_unit_does_not_outweigh_all_others():
    """As residual streams have them: what it does by chance would hide what the others do."""
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.diag(torch.tensor([1e4, 1, 1, 1, 1, 1])))
    target = normal(30, 6, seed=1) + torch.tensor([0, 1.5, 1.5, 1.5, 1.5, 1.5])
    found = by_name(lineas.suggest_sites(net, normal(30, 6), target))
    assert found["0"].p_value == 0.01
    assert found["0"].apart > 1


def test_units_that_are_constant_in_each_set_are_as_far_apart_as_can_be():
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    found = lineas.suggest_sites(net, torch.zeros(20, 4), torch.ones(20, 4))
    assert all(1e3 < one.apart <= 1e6 for one in found.candidates)
    assert found.sites == ["0"]


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_relabelling_tells_sets_that_differ_from_sets_that_do_not(shift, recwarn):
    found = lineas.suggest_sites(Mlp(), normal(30, 4), normal(30, 4, seed=1, shift=shift))
    warned = [str(w.message) for w in recwarn if "no more than chance explains" in str(w.message)]
    assert bool(warned) == (shift == 0)
    assert (max(one.p_value for one in found.candidates) <= 0.02) == (shift > 0)
    if not shift:
        assert "30 + 30 samples" in warned[0]
        assert (found.sites, found.loss_sites) == (["first", "second"], None)


def test_the_price_is_what_the_means_move_the_output_by_and_the_reach_how_far_of_its_way():
    """Of a network that is linear behind the site, without noise in what is drawn: by many samples of one kind."""
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    source, target = normal(40, 4), normal(1, 4, seed=1, shift=1).repeat(3000, 1)
    found = by_name(lineas.suggest_sites(net, source, target))
    with torch.no_grad():
        moved = net(target[:1]) - net(source).mean(0, keepdim=True)
        expected = float((moved.norm() / net(target[:1]).norm()) ** 2)
    assert found["0"].price == pytest.approx(expected, rel=0.1)
    assert found["1"].price == pytest.approx(expected, rel=0.1)
    assert found["0"].reach == pytest.approx(1, rel=0.01)
    assert found["1"].reach == 1


def test_prices_of_a_language_model_are_nats_a_token(llama):
    found = lineas.suggest_sites(llama, NEGATIVE, POSITIVE, **WORDS)
    assert found.in_nats
    one = by_name(found)["model.layers.1.mlp"]
    sides = [evaluation.responses(llama, side, [one.site], **WORDS)[one.site].mean(0) for side in (NEGATIVE, POSITIVE)]
    step = lineas.Steering({one.site: (np.ones(16), sides[1] - sides[0])})
    told = lineas.conflict(step, step, llama, POSITIVE, **WORDS).prices[0]
    assert one.price == pytest.approx(told, rel=1e-3)


# -- the rule --


def test_default_sites_are_taken_unless_another_gives_more_than_twice_as_much():
    usual = [figures("a", 1.0), figures("b", 3.0)]
    for apart, expected in ((6.0, ["a", "b"]), (6.1, ["c"])):
        sites, loss_sites, why = recommended([*usual, figures("c", apart, kind="block")], ["a", "b"], True, 1.0)
        assert (sites, loss_sites) == (expected, None)
        assert why
    # What is far apart and moves nothing is no reason; nor are default sites that only together reach the output.
    assert recommended([*usual, figures("c", 60.0, 0.05)], ["a", "b"], True, 1.0)[0] == ["a", "b"]
    assert recommended([*usual, figures("c", 6.0)], ["a", "b"], True, 0.4)[0] == ["c"]
    assert recommended([*usual, figures("c", 60.0, 12.0)], ["a", "b"], True, 3.0)[0] == ["a", "b"], "it goes too far"
    assert recommended([*usual, figures("c", 60.0, p_value=0.06)], ["a", "b"], True, 1.0)[0] == ["a", "b"], "chance"


def test_without_defaults_the_sites_near_the_best_are_taken_but_never_the_output():
    rows = [figures("a", 2.9), figures("b", 4.0, 0.76), figures("c", 4.0), figures("d", 9.0, kind="output")]
    assert recommended(rows, [], True, None)[:2] == (["b", "c"], None)
    assert recommended(rows[-1:], [], True, None)[0] == ["d"], "where there is nothing else"


def test_the_output_is_compared_where_the_sites_know_less_than_a_tenth_of_it():
    for of_output, expected in ((9.0, None), (11.0, "output")):
        rows = [figures("a", 1.0), figures("d", of_output, kind="output")]
        assert recommended(rows, [], True, None)[1] == expected


def test_what_chance_explains_gives_the_defaults():
    rows = [figures("a", 1.0), figures("b", 30.0)]
    assert recommended(rows, ["a"], False, 1.0)[:2] == (["a"], None)
    assert recommended([figures("a", 0.0), figures("b", 0.0)], [], True, 1.0)[0] == ["a", "b"]


# -- what comes of it --


def test_the_late_sites_of_a_classifier_are_found_and_turn_what_the_default_does_not():
    """Two groups that only the last layers tell apart well; the recommended sites are as far or farther apart."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    x, y = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convolutions = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()
        net = nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10))
        descent = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(60):
            descent.zero_grad()
            nn.functional.cross_entropy(net(x[:1200]), y[:1200]).backward()
            descent.step()
    net.requires_grad_(False)
    sides = [x[:1200][y[:1200] == digit][:32] for digit in (2, 5)]
    found = lineas.suggest_sites(net, *sides)
    assert (found.sites, found.loss_sites) == (["5"], None)
    early = lineas.suggest_sites(net, *sides, "0|2")
    assert early.loss_sites == "output", "means over pixels know next to nothing"

    def turned(sites, loss_sites):
        steering = lineas.fit(net, *sides, sites=sites, loss_sites=loss_sites, progress=False)
        with steering.apply(net):
            return float((net(x[1200:][y[1200:] == 2]).argmax(1) == 5).float().mean())

    assert turned(["0", "2"], None) < 0.2
    assert turned(found.sites, found.loss_sites) > 0.7
    assert turned(early.sites, early.loss_sites) > 0.7


def test_the_result_is_the_same_again_and_in_batches():
    net, sides = Mlp(), (normal(20, 4), normal(24, 4, seed=1, shift=1))
    one, again, in_parts = (lineas.suggest_sites(net, *sides, batch_size=size) for size in (None, None, 7))
    assert one == again
    assert in_parts.sites == one.sites
    for a, b in zip(one.candidates, in_parts.candidates, strict=True):
        assert a.apart == pytest.approx(b.apart, rel=1e-4)
        assert a.price == pytest.approx(b.price, rel=1e-4)


def test_it_prints_a_table_and_draws_a_picture():
    rows = tuple(figures(name, apart, 0.5, kind) for name, apart, kind in
                 (("a", 1.0, "norm"), ("b", 2.0, "mlp"), ("c", 3.0, "output")))  # fmt: skip
    found = Suggestion(rows, ["b"], None, False, "so", True, 1.0)
    lines = str(found).splitlines()
    assert "nats" in lines[0]
    assert [line[:3].strip() for line in lines[1:4]] == ["a", "* b", "c"]
    assert lines[4:] == ["sites: b", "loss_sites: None, the sites themselves", "why: so"]
    axes = found.plot()
    drawn = {line.get_label(): line for line in axes.lines}
    assert set(drawn) == {"norm", "mlp, chosen", "output"}
    assert list(drawn["output"].get_ydata()) == [1.5]
    assert [segment[:, 1].tolist() for segment in axes.collections[0].get_segments()] == [[0.5, 1], [1, 2], [1.5, 3]]
    assert drawn["mlp, chosen"].get_markerfacecolor() == "black"
    assert [row["chosen"] for row in found.rows()] == [False, True, False]


def test_a_pipeline_is_looked_at_with_what_it_gives_its_network(image_pipe):
    source, target = image_captions(6)
    found = lineas.suggest_sites(image_pipe, source, target, r"mid_block.*norm\d", call=IMAGE_CALL)
    assert [one.kind for one in found.candidates] == ["norm"] * (len(found.candidates) - 1) + ["output"]
    assert found.candidates[-1].site == "conv_out"
    assert not found.in_nats
    lineas.fit(image_pipe, source, target, sites=found.sites[:1], call=IMAGE_CALL, max_evaluations=2, progress=False)


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"pooling": ("mean", "max")}, ValueError, "pooling: expected one"),
        ({"candidates": "forth"}, LookupError, "no site matches 'forth'"),
        ({"component": "unet"}, ValueError, "component: goes with a pipeline"),
        ({"src": normal(1, 4)}, ValueError, "src"),
        ({"tgt": normal(9, 4) * torch.nan}, NonFiniteError, "tgt: site 'first'"),
    ],
)  # fmt: skip
def test_what_cannot_be_looked_at_is_refused(how, error, words):
    given = {"src": normal(9, 4), "tgt": normal(9, 4), **how}
    with pytest.raises(error, match=words):
        lineas.suggest_sites(Mlp(), **given)


def test_a_candidate_that_is_none_is_refused_by_name(llama):
    with pytest.raises(LookupError, match=r"return something of their own, .*; got lm_head"):
        lineas.suggest_sites(llama, NEGATIVE, POSITIVE, ["model.layers.0.mlp", "lm_head"], **WORDS)


def test_names_and_classes_alone_tell_the_candidates(llama):
    kinds = {one.site.name: one.kind for one in candidate_sites(llama)}
    assert kinds["model.norm"] == "norm"
    assert not {"lm_head", "model.embed_tokens"} & set(kinds)
