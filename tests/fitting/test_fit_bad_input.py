"""Bad input to lineas.fit: a clear error before any work, nothing changed."""

import pytest
import torch
from conftest import SOURCE, TARGET, Mlp, assert_untouched, normal, snapshot
from test_fit import fit

import lineas


class Shared(Mlp):
    def forward(self, x):
        return super().forward(x) + self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Skipping(Mlp):
    def forward(self, x):
        return self.first(x)


class Overflowing(Mlp):
    def forward(self, x):
        return super().forward(x * float("inf"))


class SequenceFirst(Mlp):
    def forward(self, x):
        return super().forward(x.repeat(3, 1))


BAD = [
    (Mlp, {"recipe": "quick"}, ValueError, "recipe: expected one of 'fast', 'published'; got 'quick'"),
    (
        Mlp,
        {"optimizer": "lbfgs", "recipe": "published"},
        ValueError,
        "optimizer: expected one of 'sgd', 'momentum', 'adam', 'adamw'; got 'lbfgs'",
    ),
    (Mlp, {"optimizer": "sgd"}, ValueError, 'go with recipe="published"'),
    (Mlp, {"learning_rate": 0.1}, ValueError, 'go with recipe="published"'),
    (Mlp, {"learning_rate": -1, "recipe": "published"}, ValueError, "learning_rate: expected a number above 0"),
    (Mlp, {"pooling": "median"}, ValueError, "pooling: expected one of 'mean', 'max', 'min', 'last'; got 'median'"),
    (Mlp, {"method": "magic"}, ValueError, "method: expected one of 'lineas'"),
    (Mlp, {"loss": "sinkhorn"}, ValueError, "loss: expected one of 'auto', 'wasserstein'"),
    (Mlp, {"ridge": -1}, ValueError, "ridge: expected a number of at least 0, got -1"),
    (Mlp, {"ridge": float("nan")}, ValueError, "ridge: expected a number of at least 0, got nan"),
    (Mlp, {"ridge": 2.0, "recipe": "published"}, ValueError, "ridge goes with the fast recipe"),
    (Mlp, {"loss": "excess", "recipe": "published"}, ValueError, "which is the published recipe's, got 'excess'"),
    (Mlp, {"position": "first"}, ValueError, "position: expected one of 'all'"),
    (Mlp, {"steps": 0}, ValueError, "steps: expected a whole number of at least 1, got 0"),
    (Mlp, {"max_evaluations": 2.5}, ValueError, "max_evaluations: expected a whole number"),
    (Mlp, {"batch_size": True}, ValueError, "batch_size: expected a whole number"),
    (Mlp, {"penalty": 0.1}, TypeError, "penalty: expected one of lineas.penalties, got float"),
    (Mlp, {"sites": "fist"}, LookupError, "nearest names: .*first"),
    (Mlp, {"sites": None}, LookupError, "Candidates here"),
    (Mlp, {"src": normal(1, 4)}, ValueError, "src: expected at least 2 samples, got 1"),
    (Mlp, {"tgt": normal(0, 4)}, ValueError, "tgt: expected at least 2 samples, got 0"),
    (Mlp, {"src": ["a b", "c"]}, ValueError, "src: strings need a tokenizer"),
    (Mlp, {"src": SOURCE.log()}, ValueError, "^src: site 'first': expected finite responses, got nan"),
    (Mlp, {"tgt": TARGET * float("inf")}, ValueError, "^tgt: site 'first': expected finite responses"),
    (Overflowing, {"sites": "second"}, ValueError, "site 'second': expected finite responses"),
    (Shared, {}, ValueError, "runs more than once in a forward pass"),
    (Skipping, {}, LookupError, "not run in the forward pass.*: second"),
    (SequenceFirst, {}, ValueError, r"samples in dimension 0 \(2 here\), got \(6, 9\)"),
]


@pytest.mark.parametrize(("kind", "options", "error", "message"), BAD)
def test_bad_input_is_refused_before_any_step_and_nothing_changes(kind, options, error, message):
    model = kind()
    model.train()
    before = snapshot(model)
    seen = []
    options = dict(options)
    src, tgt = options.pop("src", SOURCE), options.pop("tgt", TARGET)
    with pytest.raises(error, match=message):
        fit(model, src, tgt, callbacks=[seen.append], **options)
    assert seen == [], "no evaluation was made"
    assert_untouched(model, before)


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="expected a torch.nn.Module, got str"):
        lineas.fit("gpt2", SOURCE, TARGET)


def test_a_mask_of_another_length_than_the_site_is_refused(llama):
    from lineas.network.sites import Site
    from lineas.responses.pooling import pool_weights

    with pytest.raises(ValueError, match=r"site 'x' has 2 x 5 .*attention_mask has \(2, 4\)"):
        pool_weights(torch.ones(2, 4), 2, 5, "mean", Site("x", None, "Any"))


def test_progress_goes_to_stderr_and_can_be_silenced(mlp, capsys):
    fit(mlp)
    assert capsys.readouterr() == ("", "")
    lineas.fit(mlp, SOURCE, TARGET, sites="first", steps=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "lineas.fit" in err
