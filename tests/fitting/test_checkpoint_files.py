"""Checkpoints: which one a fit goes on from, what another fit is told, and what is in the file."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Mlp
from kill import SOURCE, TARGET, bits, fit
from test_checkpoint import Stop, stop_after

import lineas
from lineas.fitting import checkpoint
from lineas.fitting.checkpoint import FILE, Checkpoint, Keeper, read, write
from lineas.penalties import L1, SparseGroupLasso


def test_where_a_fit_starts_and_what_it_does_not_overwrite(tmp_path, mlp):
    calls = []
    mlp.first.register_forward_pre_hook(lambda *args: calls.append(1))
    with pytest.raises(FileNotFoundError, match="resume_from: no checkpoint .*nowhere"):
        fit("fast", model=mlp, resume_from=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="resume_from: no checkpoint"):
        fit("fast", model=mlp, resume_from=tmp_path / "nowhere", checkpoint_dir=tmp_path / "elsewhere")
    with pytest.raises(TypeError, match="resume_from: expected a Steering or the path of a checkpoint, got int"):
        fit("fast", model=mlp, resume_from=3)
    assert list(tmp_path.iterdir()) == []
    whole = fit("fast", checkpoint_dir=str(tmp_path), resume_from=str(tmp_path))
    content = (tmp_path / FILE).read_bytes()
    for other in (None, whole):
        with pytest.raises(FileExistsError, match="is there already; go on from it with resume_from=.* or remove it"):
            fit("fast", model=mlp, checkpoint_dir=tmp_path, resume_from=other)
    assert (tmp_path / FILE).read_bytes() == content
    assert calls == []


def test_a_checkpoint_can_be_gone_on_from_in_another_folder(tmp_path):
    with pytest.raises(Stop):
        fit("fast", checkpoint_dir=tmp_path / "a", callbacks=[stop_after(5)])
    content = (tmp_path / "a" / FILE).read_bytes()
    assert bits(fit("fast", resume_from=tmp_path / "a", checkpoint_dir=tmp_path / "b")) == bits(fit("fast"))
    assert (tmp_path / "a" / FILE).read_bytes() == content
    assert read(tmp_path / "b").stopped


class Wider(Mlp):
    def __init__(self):
        super().__init__()
        self.second = torch.nn.Linear(9, 7)
        self.third = torch.nn.Linear(7, 3)


def heavier():
    model = Mlp()
    with torch.no_grad():
        model.first.weight.mul_(1.001)
    return model


OTHERS = [
    ({"seed": 1}, "seed: 0 there, 1 here"),
    ({"penalty": L1(0.5)}, r"penalty: 'None' there, 'L1\(l1=0.5"),
    ({"max_evaluations": 9}, "max_evaluations: 50 there, 9 here"),
    ({"steps": np.int64(9)}, "steps: None there, 9 here"),
    ({"batch_size": 5}, "batch_size: None there, 5 here"),
    ({"recipe": "published"}, "recipe: 'fast' there, 'published' here"),
    ({"recipe": "published", "learning_rate": 0.2}, "learning_rate: None there, 0.2 here"),
    ({"pooling": "last"}, "pooling: 'mean' there, 'last' here"),
    ({"sites": "first"}, r"sites: {'first': 9, 'second': 8} there, {'first': 9} here"),
    ({"model": Wider}, r"sites: {'first': 9, 'second': 8} there, {'first': 9, 'second': 7} here"),
    ({"model": heavier}, "weights: '[0-9a-f]{32}' there, '[0-9a-f]{32}' here"),
    ({"src": SOURCE[:-1]}, r"samples: \[14, 11\] there, \[13, 11\] here"),
    ({"src": SOURCE.flip(0)}, "src: '[0-9a-f]{32}' there, '[0-9a-f]{32}' here"),
    ({"tgt": TARGET + 1e-6}, "tgt: '[0-9a-f]{32}' there, '[0-9a-f]{32}' here"),
]


@pytest.mark.parametrize(("other", "message"), OTHERS)
def test_another_fit_is_refused_with_both_values(other, message, tmp_path):
    def run(model=Mlp, src=SOURCE, tgt=TARGET, **options):
        options = {"sites": "first|second", "progress": False, **options}
        return lineas.fit(model(), src, tgt, checkpoint_dir=tmp_path, resume_from=tmp_path, **options)

    run()
    content = (tmp_path / FILE).read_bytes()
    with pytest.raises(ValueError, match=f"resume_from: expected the fit that .*\n(.*\n)*  {message}"):
        run(**other)
    assert (tmp_path / FILE).read_bytes() == content
    run()


def test_a_checkpoint_of_before_there_was_an_option_goes_on_with_its_default(tmp_path):
    def run(**options):
        given = {"sites": "first", "progress": False, "checkpoint_dir": tmp_path, "resume_from": tmp_path, **options}
        return lineas.fit(Mlp(), SOURCE, TARGET, **given)

    done = run()
    known = checkpoint.read(tmp_path)
    older = {key: value for key, value in known.problem.items() if key != "loss_weights"}
    assert len(older) < len(known.problem)
    checkpoint.write(tmp_path / FILE, replace(known, problem=older))
    np.testing.assert_array_equal(run().weight("first"), done.weight("first"))
    with pytest.raises(ValueError, match="loss_weights: 'equal' there, 'standardised' here"):
        run(loss_weights="standardised")


def test_groups_too_long_to_print_tell_fits_apart(tmp_path):
    class Wide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.only = torch.nn.Identity()

        def forward(self, x):
            return self.only(x)

    data = torch.arange(12000.0).reshape(4, 3000)
    groups = np.zeros(3000, int)
    for k in (0, 1500):
        groups[k] = 1
        penalty = SparseGroupLasso(0.0, 0.1, groups=groups)
        options = {"sites": "only", "progress": False, "penalty": penalty, "max_evaluations": 1}
        if k:
            with pytest.raises(ValueError, match="penalty_groups: "):
                lineas.fit(Wide(), data, data + 1, resume_from=tmp_path, **options)
        else:
            lineas.fit(Wide(), data, data + 1, checkpoint_dir=tmp_path, **options)


# -- the file --


def same(a, b) -> bool:
    """Equal in type and bits."""
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (np.ndarray, np.generic)):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return repr(a) == repr(b)


def test_what_is_written_is_what_is_read(tmp_path):
    state = {
        "x": np.arange(6, dtype=np.float32), "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros((0, 4)), "flags": np.array([True, False]), "count": np.arange(3), "scalar": np.float32(0.1),
        "float": 0.1, "inf": float("inf"), "negative zero": -0.0, "int": 2**60, "flag": True, "none": None,
        "name": "é.",
    }  # fmt: skip
    history = {
        "loss": [0.1, float("inf"), float("nan"), -0.0], "accepted": [True, False], "count": [1, 2], "empty": [],
        "rows": [[0.1, 0.2], [0.3, 0.4]], "ragged": [[0.1], [0.2, 0.3]], "words": ["a", "b"],
    }  # fmt: skip
    maps = np.linspace(0, 1, 7, dtype=np.float32)[::-1]
    put = Checkpoint({"seed": 1}, maps, history, state, {"0 A": {"best": float("inf")}}, "", 1.5)
    write(tmp_path / FILE, put)
    got = read(tmp_path)
    assert same(got.history, history)
    assert same({k: np.ascontiguousarray(v) if k == "fortran" else v for k, v in state.items()}, got.state)
    assert same(got.maps, np.ascontiguousarray(maps))
    assert replace(got, maps=None, history=None, state=None) == replace(put, maps=None, history=None, state=None)
    assert read(tmp_path / FILE).state["x"].flags.writeable, "the optimiser works in it"


def test_no_damage_goes_unnoticed(tmp_path):
    with pytest.raises(Stop):
        fit("published adam", checkpoint_dir=tmp_path, callbacks=[stop_after(6)])
    path = tmp_path / FILE
    content = path.read_bytes()
    for size in (0, 1, 7, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="resume_from: .* is (truncated or )?corrupted"):
            fit("published adam", resume_from=tmp_path)
    for at in [*range(0, len(content), 61), len(content) - 1]:
        damaged = bytearray(content)
        damaged[at] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="corrupted|expected a lineas-checkpoint file"):
            read(path)
    path.write_bytes(content)
    assert bits(fit("published adam", resume_from=tmp_path)) == bits(fit("published adam"))


@pytest.mark.parametrize("case", ["fast", "published adam"])
def test_maps_of_the_wrong_size_or_type_are_refused_whatever_the_checksum_says(case, tmp_path):
    with pytest.raises(Stop):
        fit(case, checkpoint_dir=tmp_path, callbacks=[stop_after(5)])
    good = read(tmp_path)
    x = good.state["x"]
    for bad, message in (
        (replace(good, maps=good.maps[:-1], state=None), r"expected maps of float32 \(34,\), .* got float32 \(33,\)"),
        (replace(good, maps=good.maps[:1]), r"expected maps of float32 \(34,\), .* got float32 \(1,\)"),
        (
            replace(good, maps=good.maps.reshape(2, 17), state=None),
            r"maps of float32 \(34,\), .* got float32 \(2, 17\)",
        ),
        (replace(good, maps=good.maps.astype(float)), r"expected maps of float32 \(34,\), .* got float64 \(34,\)"),
        (
            replace(good, state={**good.state, "x": np.append(x, x[:2])}),
            r"expected x of the state of .* got float32 \(36",
        ),
        (
            replace(good, problem={**good.problem, "sites": {"first": 9}}),
            r"maps of float32 \(18,\), .* got float32 \(34,",
        ),
    ):
        write(tmp_path / FILE, bad)
        for use in (read, lambda folder: fit(case, resume_from=folder)):
            with pytest.raises(ValueError, match=message):
                use(tmp_path)
    write(tmp_path / FILE, good)
    assert bits(fit(case, resume_from=tmp_path)) == bits(fit(case))


def test_other_files_are_refused(tmp_path, monkeypatch):
    steering = fit("fast", checkpoint_dir=tmp_path, steps=1)
    steering.save_pretrained(tmp_path / "steering")
    with pytest.raises(FileNotFoundError, match="resume_from: no checkpoint"):
        fit("fast", resume_from=tmp_path / "steering")
    with pytest.raises(ValueError, match="expected a lineas-checkpoint file, got one with .*first.bias"):
        fit("fast", resume_from=tmp_path / "steering" / "steering.safetensors")
    monkeypatch.setitem(checkpoint.FORMAT, "version", 2)
    with pytest.raises(ValueError, match="expected .*'version': 2}, got .*'version': 1}; written by another lineas"):
        fit("fast", resume_from=tmp_path)


class Clock:
    """Time, of which a write takes a second."""

    def __init__(self, monkeypatch):
        self.now, self.written = 0.0, []
        monkeypatch.setattr(checkpoint.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(checkpoint, "write", self.write)

    def write(self, path, what):
        self.now += 1
        self.written.append(what)


def test_writing_takes_no_more_than_its_share_of_the_time(monkeypatch, tmp_path):
    clock, keeper = Clock(monkeypatch), Keeper(tmp_path)
    keeper.begin("first")
    for k in range(1000):
        clock.now += 1
        keeper.offer(k)
    assert len(clock.written) == pytest.approx(1000 * checkpoint.SHARE, abs=2)
    keeper.flush()
    assert clock.written[-1] == 999
    keeper.flush()
    assert clock.written.count(999) == 1
    keeper.offer("last", now=True)
    assert clock.written[-1] == "last"


def test_no_checkpoint_is_made_where_none_is_asked_for(monkeypatch):
    monkeypatch.setattr(Keeper, "offer", lambda *args, **options: pytest.fail("it was"))
    monkeypatch.setattr(
        sys.modules["lineas.fitting.fit"],
        "fingerprint",
        lambda *args: pytest.fail("a checkpoint looked at what it is of"),
    )
    fit("fast")
