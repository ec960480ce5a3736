"""Long work is safe: a fit that is killed or interrupted goes on to the same bits; nothing else is accepted."""

import errno
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from conftest import Mlp, assert_untouched, snapshot
from kill import CASES, bits, fit

import lineas
from lineas import optim
from lineas.fitting import checkpoint
from lineas.fitting.checkpoint import FILE, Checkpoint, Keeper, read, write
from lineas.fitting.log import Log, bar_of
from lineas.penalties import SparseGroupLasso


class Stop(Exception):
    pass


def stop_after(count):
    """A callback that raises at so many evaluations of its own."""
    left = iter(range(count, 0, -1))

    def callback(entry):
        if next(left) == 1:
            raise Stop

    return callback


@pytest.fixture
def ctrl_c():
    """A signal that becomes a KeyboardInterrupt; a job in the background is born deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def eager(monkeypatch):
    """Every checkpoint that is offered is written."""
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)


def interrupted(case, folder, every=2, **options):
    """A fit that ends with an exception every few evaluations and goes on from its checkpoint; how often it did."""
    for count in range(50):
        try:
            return fit(case, checkpoint_dir=folder, resume_from=folder, callbacks=[stop_after(every)], **options), count
        except Stop:
            assert [path.name for path in folder.iterdir()] == [FILE]
    raise AssertionError("it never ends")


# -- the same bits --


@pytest.mark.parametrize("case", CASES)
def test_a_fit_interrupted_again_and_again_ends_with_the_same_bits(case, tmp_path):
    whole = fit(case)
    parts, count = interrupted(case, tmp_path / "new" / "folder", every=3)
    assert count >= 2
    assert bits(parts) == bits(whole)
    assert parts.info["evaluations"] == whole.info["evaluations"]


def test_an_interrupt_in_the_middle_of_an_update_does_no_harm(tmp_path, monkeypatch):
    """When the optimiser has overwritten its arrays, and its next state is not yet there."""
    calls, real = [], SparseGroupLasso.proximal_step

    def interrupt(*args, **options):
        calls.append(1)
        if len(calls) == 5:
            raise Stop
        return real(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(SparseGroupLasso, "proximal_step", interrupt)
        fit("published adam", checkpoint_dir=tmp_path)
    assert bits(fit("published adam", resume_from=tmp_path)) == bits(fit("published adam"))


def problem_of(case, monkeypatch):
    """What the optimiser of a case is called with."""
    calls = []
    name = CASES[case].get("recipe", "fast")
    real = getattr(optim, name)
    with monkeypatch.context() as patch:
        patch.setattr(optim, name, lambda *args, **options: calls.append((args, options)) or real(*args, **options))
        fit(case)
    ((problem, x, penalty, _), options), *_ = calls
    options.pop("save")
    options.pop("state")
    return lambda record, **more: real(problem, x.copy(), penalty, record, **options, **more)


@pytest.mark.parametrize("case", CASES)
def test_an_optimiser_goes_on_from_any_of_its_states_and_repeats_nothing_accepted(case, monkeypatch):
    minimise = problem_of(case, monkeypatch)
    entries, states = [], []

    def record(at, penalty, step_size, accepted=True):
        entries.append((at.loss, penalty, step_size, accepted, at.x.tobytes()))
        return ""

    def save(state):
        states.append((len(entries), {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in state.items()}))

    x, why = minimise(record, save=save)
    whole = list(entries)
    accepted = [k for k, entry in enumerate(whole, 1) if entry[3]]
    every = list(range(1, len(whole) + 1)) if case.startswith("fast") else accepted
    assert [done for done, _ in states] in (every, every[:-1]), "the last may be the result"
    for done, state in states:
        entries.clear()
        assert all(isinstance(value, (np.ndarray, int, float, str)) for value in state.values())
        again, why_again = minimise(record, state=state)
        assert entries == whole[done:]
        assert again.tobytes() == x.tobytes()
        assert why_again == why


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("case", "rounds"),
    [
        ("fast with penalty", 2),
        ("published adam in batches", 4),
        *(pytest.param(case, 16, marks=pytest.mark.slow) for case in CASES),
    ],
)
def test_a_fit_killed_at_random_moments_ends_with_the_same_bits(case, rounds, kill):
    report = kill(case, rounds)
    assert report["same"], report
    assert sum(report["kills"].values()) >= 1
    if rounds == 16:
        assert min(report["kills"].values()) >= rounds // 2
        at = {f"{when} {what}" for when in ("before", "after") for what in ("fsync", "replace")}
        assert len({"forward", "within write", *at} & set(report["where"])) >= 5


def test_the_states_of_callbacks_go_on_too(tmp_path):
    def stopping():
        return lineas.callbacks.EarlyStopping(patience=4, min_delta=0.05)

    whole = fit("published sgd", callbacks=[stopping()])
    assert whole.info["stopped"] == "a callback asked"
    for _ in range(100):
        try:
            parts = fit(
                "published sgd", callbacks=[stopping(), stop_after(3)], checkpoint_dir=tmp_path, resume_from=tmp_path
            )
            break
        except Stop:
            pass
    assert bits(parts) == bits(whole)


def test_a_start_from_a_steering_is_not_forgotten(tmp_path):
    first = fit("fast", steps=2)
    whole = fit("fast", resume_from=first)
    assert whole.history["loss"][0] < 0.99 * first.history["loss"][0]
    with pytest.raises(Stop):
        fit("fast", resume_from=first, checkpoint_dir=tmp_path, callbacks=[stop_after(1)])
    assert bits(fit("fast", resume_from=tmp_path)) == bits(whole)


def test_a_fit_that_has_ended_is_not_run_again(tmp_path, mlp):
    whole = fit("fast", checkpoint_dir=tmp_path)
    sizes, seen = [], []
    mlp.first.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    again = fit("fast", model=mlp, resume_from=tmp_path / FILE, callbacks=[seen.append])
    assert (sizes, seen) == ([2], []), "two samples to look"
    assert bits(again) == bits(whole)
    assert again.info == whole.info


def test_a_fit_that_was_told_to_end_is_never_gone_on_with(tmp_path, eager):
    """A kill between the last evaluation and the result must not lead to one evaluation more."""
    past = Checkpoint({}, np.array([1, 0], np.float32))
    log = Log(past, {"a": 1}, limit=2, bar=bar_of(2, 0, shown=False), started=0.0, keeper=Keeper(tmp_path))
    at = optim.Evaluation(1.0, np.ones(1), lambda: past.maps, past.maps)
    with log:
        for count, enough in ((1, ""), (2, "max_evaluations used up")):
            assert log(at, 0.0, 0.0) == enough
            log.save({"x": past.maps, "count": count})
            assert len(read(tmp_path).history["loss"]) == 1
        log.finish(past.maps, enough)
    assert len(read(tmp_path).history["loss"]) == 2
    assert read(tmp_path).stopped == enough


def test_a_checkpoint_gives_the_maps_so_far(tmp_path):
    seen = []
    with pytest.raises(Stop):
        fit("fast", checkpoint_dir=tmp_path, callbacks=[lambda entry: seen.append(entry.steering()), stop_after(5)])
    got = read(tmp_path).steering()
    assert got.sites == ["first", "second"]
    kept = [maps for maps, accepted in zip(seen, got.history["accepted"], strict=False) if accepted][-1]
    for name in got.sites:
        np.testing.assert_array_equal(got.weight(name), kept.weight(name))
        np.testing.assert_array_equal(got.bias(name), kept.bias(name))
    assert any(map(len, got.support().values()))


def test_seconds_are_those_of_all_parts(tmp_path):
    with pytest.raises(Stop):
        fit("fast", checkpoint_dir=tmp_path, callbacks=[stop_after(4)])
    kept = read(tmp_path)
    assert kept.seconds > 0
    write(tmp_path / FILE, replace(kept, seconds=1000.0))
    assert 1000 < fit("fast", checkpoint_dir=tmp_path, resume_from=tmp_path).info["seconds"] < 2000
    assert read(tmp_path).seconds > 1000


# -- interrupts and failing disks --


@pytest.mark.parametrize("at", [2, 6, 11])
def test_ctrl_c_leaves_the_model_as_it_was_and_a_checkpoint_to_go_on_from(at, tmp_path, ctrl_c):
    model, calls = Mlp(), []

    def interrupt(*args):
        calls.append(1)
        if len(calls) == at:
            ctrl_c()

    model.train()
    hook = model.second.register_forward_hook(interrupt)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        fit("published adam", model=model, checkpoint_dir=tmp_path)
    assert_untouched(model, before)
    hook.remove()
    assert len(read(tmp_path).history.get("loss", [])) == max(0, at - 3), "all evaluations before this one are kept"
    assert bits(fit("published adam", model=model, resume_from=tmp_path)) == bits(fit("published adam"))


@pytest.mark.parametrize("which", ["fsync", "replace"])
def test_ctrl_c_while_a_checkpoint_is_written_leaves_the_one_before(which, tmp_path, monkeypatch, eager, mlp, ctrl_c):
    calls, real = [], getattr(os, which)

    def interrupt(*args):
        calls.append(1)
        if len(calls) == 4:
            ctrl_c()
        return real(*args)

    before = snapshot(mlp)
    with monkeypatch.context() as patch:
        patch.setattr(os, which, interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit("fast", model=mlp, checkpoint_dir=tmp_path)
    assert_untouched(mlp, before)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert bits(fit("fast", resume_from=tmp_path)) == bits(fit("fast"))


def test_a_callback_that_raises_leaves_the_model_as_it_was(tmp_path, mlp):
    mlp.train()
    before = snapshot(mlp)
    with pytest.raises(Stop):
        fit("published adam", model=mlp, checkpoint_dir=tmp_path, callbacks=[stop_after(5)])
    assert_untouched(mlp, before)
    assert len(read(tmp_path).history["loss"]) == 4


def full_disk(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_an_error_before_any_evaluation(tmp_path, monkeypatch, mlp):
    seen = []
    mlp.first.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    before = snapshot(mlp)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="checkpoint_dir: cannot write to .*: No space left") as caught:
        fit("fast", model=mlp, checkpoint_dir=tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert seen == [2]
    assert list(tmp_path.iterdir()) == []
    assert_untouched(mlp, before)


def test_a_disk_that_fills_up_costs_the_checkpoints_not_the_fit(tmp_path, monkeypatch, eager):
    def fill_up(entry):
        if entry.evaluations == 5:
            monkeypatch.setattr(os, "fsync", full_disk)

    with pytest.warns(RuntimeWarning, match="no checkpoint written, the last one stays: .*No space left"):
        result = fit("published adam", checkpoint_dir=tmp_path, callbacks=[fill_up])
    assert bits(result) == bits(fit("published adam"))
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert len(read(tmp_path).history["loss"]) == 4


def test_a_folder_that_cannot_be_made_is_an_error_before_any_evaluation(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="checkpoint_dir: cannot write to .*file.folder"):
        fit("fast", checkpoint_dir=tmp_path / "file" / "folder")


def test_leftovers_of_a_killed_write_are_removed(tmp_path):
    (tmp_path / f"{FILE}.123.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    fit("fast", checkpoint_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, "notes.txt"]
