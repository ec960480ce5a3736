"""A result that may mislead is warned of, once: maps that change nothing, and samples too few to tell anything."""

import warnings

import pytest
from conftest import SOURCE, TARGET, Mlp, normal

import lineas
from lineas.fitting.methods import METHODS

NOTHING = "^the maps change nothing: "
SAME = "src and tgt are the same inputs$"
FEW = r"2 \+ 2 samples can be labelled in 3 ways, so that what differs may be chance; give 4 of each or more$"
CASES = {
    "few": ({"sides": (SOURCE[:2], TARGET[:2]), "sites": "first"}, NOTHING + FEW),
    "few, with the plain loss": ({"sides": (SOURCE[:2], TARGET[:2]), "loss": "wasserstein", "ridge": 0}, "^" + FEW),
    "few, by a method": ({"sides": (SOURCE[:2], TARGET[:2]), "method": "linear_act"}, "^" + FEW),
    "the same": ({"sides": (SOURCE, SOURCE.clone())}, NOTHING + SAME),
    "the same, by a method": ({"sides": (SOURCE, SOURCE), "method": "linear_act"}, NOTHING + SAME),
    "the same, by a difference": ({"sides": (SOURCE, SOURCE), "method": "caa"}, NOTHING + SAME),
    "the same, in another order": ({"sides": (SOURCE, SOURCE.flip(0))}, NOTHING + "src and tgt differ by no more than"),
    "the same in another order, by a method": (
        {"sides": (SOURCE, SOURCE.flip(0)), "method": "mean_act"},
        NOTHING + "src and tgt do the same at these sites$",
    ),
    "a penalty": (
        {"penalty": lineas.penalties.L1(100.0)},
        NOTHING + r"the penalty leaves nothing; take a weaker one than L1\(l1=100.0, l1_bias=100.0\)$",
    ),
    "a penalty, published": (
        {"penalty": lineas.penalties.L1(100.0), "recipe": "published", "steps": 3},
        NOTHING + "the penalty leaves nothing",
    ),
    "a penalty on sets that are the same": (
        {"penalty": lineas.penalties.L1(1e-3), "sides": (SOURCE, SOURCE.flip(0))},
        NOTHING + "src and tgt differ by no more than chance",
    ),
    "an end before the first step": (
        {"max_evaluations": 1},
        NOTHING + r"the fit ended before its first step \(max_evaluations used up\)$",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_may_mislead_is_told_once_where_the_user_called(name):
    options, said = CASES[name]
    options = dict(options)
    sides = options.pop("sides", (SOURCE, TARGET))
    with pytest.warns(UserWarning, match=said) as warned:
        lineas.fit(Mlp(), *sides, **{"sites": "first|second", "progress": False, **options})
    assert len(warned) == 1
    assert warned[0].filename == __file__


GOOD = [
    {},
    {"loss": "wasserstein", "ridge": 0},
    {"recipe": "published", "steps": 3},
    {"penalty": lineas.penalties.L1(1e-4)},
    {"sides": (SOURCE[:4], TARGET[:4] + 2), "loss": "wasserstein"},
    *({"method": method} for method in METHODS if not METHODS[method].needs_units),
    {"method": "actadd", "sides": (SOURCE[:1], TARGET[:1])},  # a pair is what it is made for
    {"method": lambda source, target: (source.std(0), target.mean(0))},
]


@pytest.mark.parametrize("options", GOOD, ids=lambda options: ", ".join(options))
def test_of_a_result_that_can_be_trusted_nothing_is_said(options):
    options = dict(options)
    sides = options.pop("sides", (SOURCE, TARGET))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steering = lineas.fit(Mlp(), *sides, sites="first|second", progress=False, **options)
    assert any(map(len, steering.support().values()))


def test_a_fit_that_goes_on_from_its_end_says_it_again(tmp_path):
    options = {"penalty": lineas.penalties.L1(100.0), "checkpoint_dir": tmp_path, "resume_from": tmp_path}
    for _ in range(2):
        with pytest.warns(UserWarning, match="the penalty leaves nothing") as warned:
            lineas.fit(Mlp(), SOURCE, normal(9, 4, shift=1.0), sites="first", progress=False, **options)
        assert len(warned) == 1


def test_thousands_of_samples_can_be_labelled_in_more_ways_than_a_float_holds():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = lineas.fit(
            Mlp(), normal(900, 4), normal(800, 4, seed=1, shift=1.0), sites="first", progress=False, max_evaluations=3
        )
    assert found.history["loss"][-1] < found.history["loss"][0]
