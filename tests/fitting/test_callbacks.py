"""Callbacks: what they hear, the maps they can ask for, and the ready-made ones."""

import numpy as np
import pytest
import torch
from conftest import SOURCE, TARGET, Mlp, assert_untouched, flat, snapshot
from kill import fit

import lineas
from lineas import optim
from lineas.callbacks import EarlyStopping, on_step
from lineas.fitting.checkpoint import Checkpoint
from lineas.fitting.log import Log, bar_of
from lineas.penalties import L1


@pytest.mark.parametrize("case", ["fast", "published adam"])
def test_a_callback_can_have_the_maps_of_every_evaluation(case):
    seen = []
    steering = fit(case, callbacks=[lambda entry: seen.append((entry.steering(), dict(entry), entry.steps))])
    assert [entry["loss"] for _, entry, _ in seen] == steering.history["loss"]
    assert not any(map(len, seen[0][0].support().values())), "the start"
    assert len({flat(maps).tobytes() for maps, *_ in seen}) == len(seen), "copies, which the fit does not overwrite"
    for maps, entry, _ in seen[:: len(seen) // 3]:
        plain = {} if case == "fast" else {"loss": "wasserstein", "ridge": 0}
        again = fit("fast", resume_from=maps, max_evaluations=1, **plain)
        assert again.history["site_loss"][0] == pytest.approx(
            np.divide(entry["site_loss"], 1 if case == "fast" else len(SOURCE)), rel=1e-5
        )
    accepted = [maps for maps, entry, _ in seen if entry["accepted"]]
    if case == "fast":
        assert flat(accepted[-1]).tobytes() == flat(steering).tobytes()
    assert [steps for *_, steps in seen] == [s - 1 for s in np.cumsum(steering.history["accepted"])]


def test_a_trial_that_overflowed_has_its_own_maps(monkeypatch):
    from lineas.fitting.model_loss import ModelLoss

    calls, whole, seen = [], ModelLoss.evaluate, []

    def overflow(self, x, scale=1.0):
        calls.append(x.copy())
        return whole(self, x * np.float32(np.inf) if len(calls) == 2 else x, scale)

    monkeypatch.setattr(ModelLoss, "evaluate", overflow)
    fit(
        "fast",
        callbacks=[lambda entry: seen.append(np.concatenate([entry.steering().weights, entry.steering().biases]))],
    )
    np.testing.assert_array_equal(seen, calls)


def test_held_out_data_can_be_looked_at_during_a_fit(mlp):
    """The steered model may run inside a callback; the fit is none the wiser, and draws the same numbers."""
    before, found = snapshot(mlp), []

    def look(entry):
        with entry.steering().apply(mlp), torch.no_grad():
            found.append(float(mlp(torch.randn(5, 4)).sum()))

    steering = fit("fast", model=mlp, callbacks=[look])
    assert steering.history == fit("fast").history
    assert len(set(found)) > 1
    assert_untouched(mlp, before)


def test_kept_entries_hold_no_maps():
    kept = []
    fit("fast", callbacks=[kept.append], max_evaluations=2)
    with pytest.raises(RuntimeError, match=r"steering\(\): expected a call inside the callback"):
        kept[0].steering()


def test_on_step_hears_of_accepted_steps_only():
    heard, entries = [], []
    steering = fit("fast with penalty", callbacks=[entries.append, on_step(heard.append)])
    assert heard == [entry for entry in entries if entry["accepted"]][1:]
    assert [entry.steps for entry in heard] == list(range(1, len(heard) + 1))
    assert [entry.evaluations for entry in entries] == list(range(1, len(steering.history["loss"]) + 1))
    ended = fit("fast", callbacks=[on_step(lambda entry: True)])
    assert ended.info["stopped"] == "a callback asked"
    assert sum(ended.history["accepted"]) == 2


def test_an_answer_may_be_a_boolean_of_numpy():
    assert fit("fast", callbacks=[lambda entry: np.float64(1) > 0]).history["loss"][1:] == []


@pytest.mark.parametrize("answer", [None, 1, "stop", 0.5])
def test_only_true_ends_a_fit(answer):
    assert len(fit("fast", callbacks=[lambda entry: answer], max_evaluations=3).history["loss"]) == 3


def stopped_after(stop, values, rejected=()):
    """Evaluations until it ends a fit whose objective takes these values."""
    for k, value in enumerate(values):
        entry = lineas.callbacks.Entry({"objective": value, "accepted": k not in rejected}, k, k + 1, {}, None)
        if stop(entry):
            return k + 1
    return None


def test_early_stopping_waits_for_patience_steps_without_a_new_best():
    assert stopped_after(EarlyStopping(patience=2), [5, 4, 4, 3, 3, 3.5, 1]) == 6
    assert stopped_after(EarlyStopping(patience=2, min_delta=0.5), [5, 4, 3.6, 3.55, 0]) == 4
    assert stopped_after(EarlyStopping(patience=1), [5, 4, 3, 2, 1]) is None
    assert stopped_after(EarlyStopping(patience=1), [5, 6, 7, 4, 4], rejected=(1, 2)) == 5, "trials do not count"
    assert stopped_after(EarlyStopping(patience=2), [5, float("nan"), float("nan"), 1]) == 3
    assert stopped_after(EarlyStopping(patience=2, monitor=lambda entry: -entry["objective"]), [1, 2, 1, 1, 9]) == 4
    twice = EarlyStopping(patience=2)
    assert [stopped_after(twice, [2, 2, 2]), stopped_after(twice, [9, 8, 8, 8])] == [3, 4], "each fit begins anew"


def test_early_stopping_ends_a_fit():
    whole = fit("published sgd")
    ended = fit("published sgd", callbacks=[EarlyStopping(patience=2, min_delta=0.1 * whole.history["loss"][0])])
    assert ended.info["stopped"] == "a callback asked"
    assert len(ended.history["loss"]) < len(whole.history["loss"])


def test_bad_early_stopping_is_refused():
    for options, message in (
        ({"patience": 0}, "patience: expected a whole number of at least 1, got 0"),
        ({"patience": 1.5}, "patience: expected a whole number"),
        ({"min_delta": -1}, "min_delta: expected a finite number of at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            EarlyStopping(**options)
    for key in ("eval_loss", "site_loss"):
        with pytest.raises(ValueError, match=f"monitor: expected a function or one of .*'loss'.*got '{key}'"):
            fit("fast", callbacks=[EarlyStopping(monitor=key)])


def test_a_state_that_cannot_be_kept_is_refused_before_any_evaluation(tmp_path, mlp):
    class Stateful:
        def __call__(self, entry):
            pytest.fail("an evaluation was made")

        def state_dict(self):
            return {"best": np.zeros(3)}

    with pytest.raises(TypeError, match=r"Stateful.state_dict\(\): expected what JSON can hold; .*ndarray"):
        fit("fast", checkpoint_dir=tmp_path, callbacks=[Stateful()])


def test_the_bar_shows_objective_and_support(capsys):
    steering = lineas.fit(Mlp(), SOURCE, TARGET, sites="first|second", penalty=L1(0.03))
    shown = capsys.readouterr().err
    support = sum(map(len, steering.support().values()))
    assert 0 < support < 17
    last = [o for o, kept in zip(*map(steering.history.get, ("objective", "accepted")), strict=True) if kept][-1]
    assert f"objective {last:.4g}, support {support} ({support / 17:.0%})" in shown
    assert " 0/50 " in shown
    assert f" {len(steering.history['loss'])}/{len(steering.history['loss'])} " in shown


@pytest.mark.parametrize(("options", "total"), [({}, 1000), ({"steps": 7}, 7), ({"steps": 7, "max_evaluations": 3}, 3)])
def test_the_bar_counts_towards_the_first_limit(options, total, capsys):
    def stop(entry):
        return True

    lineas.fit(Mlp(), SOURCE, TARGET, sites="first", recipe="published", callbacks=[stop], **options)
    assert f" 0/{total} " in capsys.readouterr().err


def test_a_rejected_trial_does_not_change_what_the_bar_shows():
    x = np.array([1, 0], np.float32)
    with Log(Checkpoint({}, x), {"a": 1}, limit=9, bar=bar_of(9, 0, shown=True), started=0.0) as log:
        log(optim.Evaluation(2.0, np.ones(1), lambda: x, x), 0.5, 0.0)
        log(optim.Evaluation(7.0, np.ones(1), lambda: x, x + 1), 0.5, 0.1, accepted=False)
    assert log.bar.postfix == "objective 2.5, support 0 (0%)"
    assert log.bar.n == 2


def bars(text):
    """What the bar showed, one time after another."""
    return [shown.strip() for shown in text.replace("\n", "\r").split("\r") if shown.strip()]


@pytest.mark.parametrize("recipe", ["fast", "published"])
def test_the_bar_says_that_the_fit_prepares_and_is_full_where_it_ended(recipe, capsys):
    seen = []

    def spy(entry):
        seen.append(bars(capsys.readouterr().err))

    options = {"recipe": recipe, "callbacks": [spy], **({"steps": 3} if recipe == "published" else {})}
    steering = lineas.fit(Mlp(), SOURCE, TARGET, sites="first", **options)
    assert seen[0]
    assert all(shown.startswith("lineas.fit: preparing:   0%") for shown in seen[0]), "until the first evaluation"
    last, count = bars(capsys.readouterr().err)[-1], len(steering.history["loss"])
    assert last.startswith("lineas.fit: 100%")
    assert f" {count}/{count} " in last
    assert recipe == "published" or steering.info["stopped"] == "no longer improving"


def test_the_bar_of_a_fit_that_had_ended_is_full(tmp_path, capsys):
    options = {"sites": "first", "checkpoint_dir": tmp_path, "resume_from": tmp_path}
    count = len(lineas.fit(Mlp(), SOURCE, TARGET, progress=False, **options).history["loss"])
    lineas.fit(Mlp(), SOURCE, TARGET, **options)
    last = bars(capsys.readouterr().err)[-1]
    assert last.startswith("lineas.fit: 100%")
    assert f" {count}/{count} " in last


def test_the_bar_is_closed_where_the_fit_could_not_be_prepared(capsys):
    with pytest.raises(LookupError, match="third"):
        lineas.fit(Mlp(), SOURCE, TARGET, sites="first", units={"third": [0]})
    assert capsys.readouterr().err.endswith("\n"), "so that what is written next begins a line"


def test_a_method_that_evaluates_nothing_shows_no_bar(capsys):
    lineas.fit(Mlp(), SOURCE, TARGET, sites="first", method="caa")
    assert capsys.readouterr().err == ""


def test_the_bar_goes_on_where_the_checkpoint_was(tmp_path, capsys):
    def fail(entry):
        if entry.evaluations == 4:
            raise RuntimeError

    options = {"sites": "first", "recipe": "published", "steps": 5, "checkpoint_dir": tmp_path}
    with pytest.raises(RuntimeError):
        lineas.fit(Mlp(), SOURCE, TARGET, progress=False, callbacks=[fail], **options)
    lineas.fit(Mlp(), SOURCE, TARGET, resume_from=tmp_path, **options)
    shown = capsys.readouterr().err
    assert "3/5" in shown
    assert "5/5" in shown
    assert "2/5" not in shown
