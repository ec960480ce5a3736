"""A steering knows what was on the model while it was fitted, and says so where it is put on without."""

import json
import warnings

import pytest
from conftest import normal
from torch import nn

import lineas
from lineas import Steering

SRC, TGT = normal(8, 4), normal(8, 4, seed=1) + 1
OTHER = Steering({"0": ([2.0] * 4, [1.0] * 4)})


def net():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def fit(model, **options):
    return lineas.fit(model, SRC, TGT, sites=["1"], progress=False, **options)


@pytest.mark.parametrize("options", [{"max_evaluations": 3}, {"method": "linear_act"}])
def test_info_says_what_was_on(options, tmp_path):
    model = net()
    assert "attached" not in fit(model, **options).info
    with OTHER.apply(model, strength=0.5):
        fitted = fit(model, **options)
        ranking = lineas.experts.rank(model, SRC, TGT, sites=["1"])
    (entry,) = fitted.info["attached"]
    assert (entry["strength"], entry["position"], len(entry["maps"])) == (0.5, "all", 1)
    assert ranking.info["attached"] == fitted.info["attached"]
    fitted.save_pretrained(tmp_path)
    assert Steering.from_pretrained(tmp_path).info["attached"] == fitted.info["attached"]
    assert "while others were on" in (tmp_path / "README.md").read_text()


def test_put_on_without_them_it_warns(tmp_path):
    model = net()
    with OTHER.apply(model):
        fitted = fit(model)
    with pytest.warns(UserWarning, match="expected the 1 steerings that were on .* got one without"):
        fitted.attach(model).remove()
    OTHER.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.attach(model, strict=False).remove()
        with Steering.from_pretrained(tmp_path).apply(model), fitted.apply(model):
            pass
        with lineas.attach(model, [OTHER, fitted], [0] * 4 + [1] * 4):
            pass


@pytest.mark.parametrize("odd", [3, {}, [3], [{"maps": 3}], [{"maps": [3]}], [{}]])
def test_odd_info_of_a_file_is_no_reason(odd):
    info = json.loads(json.dumps({"attached": odd}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Steering({"0": ([2.0] * 4, [1.0] * 4)}, info=info).attach(net()).remove()


def test_a_checkpoint_of_a_fit_with_others_on_is_of_another_fit(tmp_path):
    model = net()
    fit(model, checkpoint_dir=tmp_path)
    with OTHER.apply(model), pytest.raises(ValueError, match="attached: None there"):
        fit(model, checkpoint_dir=tmp_path, resume_from=tmp_path)
