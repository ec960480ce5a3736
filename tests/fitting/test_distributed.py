"""Processes that share the samples: the maps of one process that has them all, and nobody waits for the dead."""

import os
import re
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import NEGATIVE, POSITIVE, Mlp, WordTokenizer, assert_untouched, flat, normal, snapshot, tiny
from processes import PATIENCE, play, played, told

import lineas
from lineas.penalties import L1

pytestmark = pytest.mark.process
SOURCE, TARGET = normal(13, 4), normal(11, 4, seed=1, shift=0.7)
SOURCE_CUT, TARGET_CUT = 4, 8  # the first process gets the samples before the cut


def part(data, cut, rank):
    return data if rank is None else data[:cut] if rank == 0 else data[cut:]


def fit(rank=None, *, model=None, **options):
    """With a rank, on its part of the samples; without, on all of them in one process."""
    shared = {} if rank is None else {"distributed": True}
    model = model or Mlp()
    sides = part(SOURCE, SOURCE_CUT, rank), part(TARGET, TARGET_CUT, rank)
    return lineas.fit(model, *sides, **{"sites": "first|second", "progress": False, **shared, **options})


# -- what is run in two processes: each returns what JSON can hold --


def texts(rank=None):
    sides = part(NEGATIVE, 3, rank), part(POSITIVE, 7, rank)
    model = tiny("llama")
    shared = {} if rank is None else {"distributed": dist.group.WORLD}
    return lineas.fit(model, *sides, tokenizer=WordTokenizer(), progress=False, steps=4, **shared)


def wrapped(rank=None):
    model = Mlp()
    return fit(rank, model=model if rank is None else torch.nn.parallel.DistributedDataParallel(model))


EQUAL = {
    "fast": fit,
    "several poolings": lambda rank=None: fit(rank, pooling=("mean", "max")),
    "penalty": lambda rank=None: fit(rank, penalty=L1(0.01)),
    "published": lambda rank=None: fit(rank, recipe="published", steps=20),
    "small batches": lambda rank=None: fit(rank, batch_size=3),
    "texts": texts,
    "DistributedDataParallel": wrapped,
}


def overflow(rank):
    """A trial overflows in the second process only: both reject it."""
    calls = []

    def hook(module, args, output):
        calls.append(1)
        trial = len(calls) == 6  # after a look, the target, the ridge (two) and the identity
        return output * float("inf") if rank == 1 and trial else output

    model = Mlp()
    model.first.register_forward_hook(hook)
    return fit(rank, model=model)


def stopped_by_one(rank):
    """A callback of the second process asks after the first step."""
    return fit(rank, callbacks=[lambda entry: rank == 1 and entry["accepted"] and entry["step_size"] > 0])


def refused(run):
    """What the error said, and how long it took to come; the model is as it was."""
    started, model = time.monotonic(), Mlp()
    before = snapshot(model)
    try:
        run(model)
    except Exception as error:
        assert_untouched(model, before)
        return f"{type(error).__name__}: {error}", time.monotonic() - started
    raise AssertionError("expected an error")


def call(function):
    """A callback."""

    def callback(entry):
        function()

    return callback


def no_memory():
    raise MemoryError("no memory left")


def failing(rank):
    return refused(lambda model: fit(rank, model=model, callbacks=[call(no_memory)] if rank == 1 else []))


def one_sample(rank):
    options = {"sites": "first", "distributed": True, "progress": False}
    return refused(lambda model: lineas.fit(model, SOURCE if rank else SOURCE[:1], TARGET, **options))


def other_options(rank):
    return refused(lambda model: fit(rank, model=model, recipe="published", learning_rate=0.1 * (1 + rank)))


def other_sites(rank):
    return refused(lambda model: fit(rank, model=model, sites="first" if rank else "second"))


def other_limits(rank):
    return refused(lambda model: fit(rank, model=model, max_evaluations=2 if rank else 9))


def uneven_batches(rank):
    return refused(lambda model: fit(rank, model=model, recipe="published", steps=5, batch_size=3))


def kept(folder, rank, **options):
    """Two fits that have a folder in common."""
    return fit(rank, **{"steps": 4, "checkpoint_dir": folder / "kept", **options})


def kept_again(folder, rank):
    return refused(lambda model: kept(folder, rank, model=model))


def kept_of_other_parts(folder, rank):
    """The first process has another sample that the second one had."""

    def run(model):
        sides = (part(SOURCE, SOURCE_CUT + 1, rank), part(TARGET, TARGET_CUT, rank))
        where = {"checkpoint_dir": folder / "kept", "resume_from": folder / "kept"}
        lineas.fit(model, *sides, sites="first|second", progress=False, distributed=True, steps=4, **where)

    return refused(run)


def kept_by_one(folder, rank):
    return refused(lambda model: fit(rank, model=model, checkpoint_dir=folder / "one" if rank else None))


def kept_where_nobody_can(folder, rank):
    (folder / "file").write_text("")
    return refused(lambda model: fit(rank, model=model, checkpoint_dir=folder / "file" / "run"))


KEPT = (kept, kept_again, kept_of_other_parts, kept_by_one, kept_where_nobody_can)


def sleeping(rank):
    """The second process does not come for longer than the group of this fit waits."""
    impatient = dist.new_group(timeout=timedelta(seconds=2))
    options = {"callbacks": [call(lambda: time.sleep(5))] if rank == 1 else [], "distributed": impatient}
    return refused(lambda model: fit(rank, model=model, **options))


def killed(rank):
    """The second process is gone in the middle of a fit, without a word. Must come last."""
    return refused(lambda model: fit(rank, model=model, callbacks=[call(lambda: os._exit(9))] if rank == 1 else []))


SCENES = {
    **EQUAL,
    **{f.__name__: f for f in (overflow, stopped_by_one, failing, one_sample, other_options, other_sites)},
    **{f.__name__: f for f in (other_limits, uneven_batches, sleeping, killed)},
}


def worker(rank: int, folder: Path) -> None:
    in_folder = {f.__name__: lambda rank, f=f: f(folder, rank) for f in KEPT}
    play({**in_folder, **SCENES}, folder, rank)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the two processes left."""
    folder = tmp_path_factory.mktemp("two")
    assert played(worker, folder) == [0, 9], "the second one kills itself at the end"
    return folder


@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_end_with_the_same_bits_and_the_maps_of_one_process(folder, name):
    first, second = (np.load(folder / f"{name}.{rank}.npy") for rank in range(2))
    assert np.array_equal(first, second)
    alone = EQUAL[name]()
    histories = [told(folder, name, rank)["history"] for rank in range(2)]
    assert histories[0] == histories[1]
    assert alone.history["accepted"] == histories[0]["accepted"]
    np.testing.assert_allclose(
        histories[0]["loss"], alone.history["loss"], rtol=1e-5, atol=1e-6 * alone.history["loss"][0]
    )
    np.testing.assert_allclose(first, flat(alone), atol=2e-6 * np.abs(first).max())
    assert told(folder, name, 0)["info"]["samples"] == alone.info["samples"]
    assert np.abs(first - flat(alone)).max() < np.abs(flat(alone) - np.repeat([1, 0], len(first) // 2)).max()


def test_a_checkpoint_of_several_processes_ends_as_the_fit_does(folder):
    steering = np.load(folder / "kept.0.npy")
    checkpoint = lineas.checkpoint.read(folder / "kept")
    assert np.array_equal(checkpoint.maps, steering)
    assert checkpoint.history == told(folder, "kept", 1)["history"]
    assert not (folder / "one").exists()


def test_a_trial_that_overflows_in_one_process_is_rejected_in_all(folder):
    first, second = (told(folder, "overflow", rank)["history"] for rank in range(2))
    assert first == second
    assert first["loss"][1] == float("inf")
    assert first["loss"][-1] < 0.5 * first["loss"][0]


def test_a_callback_of_one_process_ends_the_fit_in_all(folder):
    infos = [told(folder, "stopped_by_one", rank)["info"] for rank in range(2)]
    assert [info["stopped"] for info in infos] == ["a callback asked"] * 2
    assert infos[0]["evaluations"] == infos[1]["evaluations"]


DISAGREE = "RuntimeError: processes disagree: expected the same model, sites and options everywhere, got "
SHAPES = r"gradients of shapes \(\(3, 8\), \(3, 9\)\)"
ALONE = "RuntimeError: process 0 lost another one, or waited longer than the group does"


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("failing", "RuntimeError: .*process 1 failed: MemoryError: no memory left", "MemoryError: no memory left"),
        (
            "one_sample",
            "ValueError: src: expected at least 2",
            "RuntimeError: .*process 0 failed: ValueError: src",
        ),
        ("other_options", f"{DISAGREE}maps that differ", f"{DISAGREE}maps that differ"),
        ("other_sites", DISAGREE + SHAPES, DISAGREE + SHAPES),
        (
            "other_limits",
            r"RuntimeError: process 0 \(gradient\) expected the others at the same point; process 1 sharing",
            r"RuntimeError: process 1 \(sharing\) expected the others at the same point; process 0 gradient",
        ),
        ("uneven_batches", *[r"ValueError: expected as many batches .*got \(src, tgt\) \[\(2, 3\), \(3, 1\)\]"] * 2),
        ("kept_again", *["FileExistsError: checkpoint_dir: .*kept.checkpoint.safetensors is there already"] * 2),
        (
            "kept_of_other_parts",
            *[r"ValueError: resume_from: (?s:.*)sources of each process: \[4, 9\] there, \[5, 8\] here"] * 2,
        ),
        ("kept_by_one", *["ValueError: checkpoint_dir, resume_from: expected paths in every process or in none"] * 2),
        (
            "kept_where_nobody_can",
            "NotADirectoryError: .*checkpoint_dir: cannot write to ",
            "RuntimeError: .*process 0 failed: NotADirectoryError",
        ),
        ("sleeping", ALONE, ALONE.replace("0", "1")),
    ],
)
def test_a_failure_reaches_every_process_at_once(folder, name, first, second):
    for rank, expected in enumerate((first, second)):
        message, seconds = told(folder, name, rank)
        assert re.match(expected, message), message
        assert seconds < PATIENCE / 2


def test_a_process_that_dies_is_not_waited_for(folder):
    message, seconds = told(folder, "killed", 0)
    assert message == ALONE
    assert seconds < PATIENCE / 2


def test_without_a_process_group_or_with_no_group_at_all_it_says_so():
    with pytest.raises(ValueError, match="distributed: expected an initialised process group .*got none"):
        fit(0)
