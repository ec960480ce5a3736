"""The default recipe's model of the loss, its minimum, the ridge and what the loss leaves out: against the twin."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import THREADS, assert_same_bits, bounded

from lineas.core import _core, ops, reference
from lineas.optim.quadratic import MEMORY, Quadratic
from lineas.penalties import L1, ProximalStep, SparseGroupLasso

# One unit, odd, one past a vector, several sites, one past a piece of 512, an empty site.
SIZES = {"1": (1,), "odd": (3, 4), "17": (17,), "sites": (5, 64, 31), "513": (513, 7), "empty": (0, 40, 0, 1500)}


def penalties(units: int) -> dict[str, SparseGroupLasso]:
    small = 0.1 / units
    return {
        "none": SparseGroupLasso(0.0, 0.0),
        "ridge": SparseGroupLasso(0.0, 0.0, ridge=small),
        "l1": L1(small, small / 2),
        "group": SparseGroupLasso(0.0, small),
        "all": SparseGroupLasso(small / 3, small, small / 2, small / 4, ridge=small),
        "unit": SparseGroupLasso(small / 2, small / 2, groups="unit"),
        "labels": SparseGroupLasso(small / 2, small, groups=np.arange(units) % 3),
    }


def facts(sizes, rows: int, far: bool = False, seed: int = 0) -> dict:
    """A point near the identity of a loss whose curvature is blocks and six directions; far: where the box matters."""
    rng, units = np.random.default_rng(seed), sum(sizes)
    curvature = rng.uniform(0.1, 3, (3, units)) / units
    curvature[1] = 0.5 * np.sqrt(curvature[0] * curvature[2]) * rng.uniform(-1, 1, units)
    steep = rng.normal(size=(6, 2 * units)) * 0.1

    def bend(p):
        return 1.5 * reference.block_product(curvature, p) + steep.T @ (steep @ p) / units

    drift = rng.normal(size=2 * units)  # moves have much in common, as those of a descent
    moves = [0.02 * (0.3 * rng.normal(size=2 * units) + 0.7 * 0.8**k * drift) for k in range(rows)]
    moves = np.array(moves, np.float32).reshape(rows, 2 * units)
    changes = np.array([bend(move.astype(float)) for move in moves], np.float32).reshape(rows, 2 * units)
    x = np.repeat([1.0, 0.0], units) + 0.05 * rng.normal(size=2 * units)
    gradient = bend((1.0 if far else 0.02) * rng.normal(size=2 * units))
    return {
        "x": x.astype(np.float32), "loss": 1.0, "gradient": gradient.astype(np.float32), "curvature": curvature,
        "moves": moves, "changes": changes, "damping": 0.2,
    }  # fmt: skip


def made(sizes, known: dict, oldest: int = 0) -> Quadratic:
    """With its memory in a ring that begins at row `oldest`."""
    model, rows = Quadratic(sizes), len(known["moves"])
    model.moves[:rows], model.changes[:rows] = (np.roll(known[key], oldest, 0) for key in ("moves", "changes"))
    rest = {key: known[key] for key in ("x", "loss", "gradient", "curvature", "damping")}
    model.make(rows=rows, oldest=oldest, **rest)
    return model


def prox_of(penalty, sizes):
    """v, steps -> the prox, which is held to a twin of its own in `test_penalties`."""
    return lambda v, steps: np.concatenate(penalty.prox(*np.split(v, 2), sizes, steps))


@pytest.mark.parametrize("rows", [0, 1, 5, MEMORY])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_the_model_is_the_twins(sizes, rows):
    known = facts(sizes, rows)
    right, model = reference.Quadratic(**known, sizes=sizes), made(sizes, known, oldest=3 % max(rows, 1))
    np.testing.assert_allclose(model.blocks, right.blocks, rtol=1e-12)
    np.testing.assert_array_equal(model.low, right.low)
    np.testing.assert_array_equal(model.high, right.high)
    for seed in range(3):
        move = 0.1 * np.random.default_rng(seed).normal(size=2 * sum(sizes))
        point = (known["x"] + move).astype(np.float32)
        assert model.value(point) == pytest.approx(right.value(point), rel=1e-9)
    _core.quadratic_steps(model.steps, model.scratch, model.direction, *model._model)
    np.testing.assert_allclose(model.steps, right.step_sizes(), rtol=1e-6)


@pytest.mark.parametrize("loss", [1e-3, 0.0, 1e9])
def test_before_the_first_move_it_promises_no_more_than_the_loss(loss):
    known = facts((5, 64), 0, far=True) | {"loss": loss}
    right, model = reference.Quadratic(**known, sizes=(5, 64)), made((5, 64), known)
    np.testing.assert_allclose(model.blocks, right.blocks, rtol=1e-12)
    gain = -model.value(model.newton())
    assert gain == pytest.approx(loss, rel=1e-3) if loss == 1e-3 else gain > 2e-3


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
@pytest.mark.parametrize("rows", [0, 1, MEMORY])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_conjugate_gradients_on_coefficients_are_those_on_vectors(sizes, rows, ridge):
    known = facts(sizes, rows)
    right, x = reference.Quadratic(**known, sizes=sizes), known["x"]
    pull = 2 * ridge * (x.astype(float) - np.repeat([1.0, 0.0], sum(sizes)))
    there = made(sizes, known, oldest=rows // 2).newton(ridge)
    move = right.newton(right.slope + pull, ridge)
    np.testing.assert_allclose(there, x + move, rtol=2e-7, atol=1e-6 * np.abs(move).max())


def solved(right: reference.Quadratic, penalty: SparseGroupLasso):
    """The twin's minimum for groups that are sites, or units."""
    l1, group, l1_bias, group_bias, ridge = penalty._strengths
    return right.solve((l1, l1_bias), (group, group_bias), ridge)


@pytest.mark.parametrize("far", [False, True], ids=["near", "box"])
@pytest.mark.parametrize("rows", [0, 5, MEMORY])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_the_minimum_is_the_twins_for_every_penalty(sizes, rows, far):
    known = facts(sizes, rows, far)
    right, model = reference.Quadratic(**known, sizes=sizes), made(sizes, known)
    clipped = 0
    for name, penalty in penalties(sum(sizes)).items():
        there, value = model.minimise(penalty)
        expected = right.minimise(prox_of(penalty, sizes)) if name == "labels" else solved(right, penalty)
        clipped += bool(((there <= model.low) | (there >= model.high)).any())
        span = np.abs(expected - known["x"]).max()
        tolerance = {"none": 0.01, "ridge": 0.01, "labels": 1e-4}.get(name, 1e-3)  # both end a little before it
        np.testing.assert_allclose(there, expected, atol=tolerance * span, rtol=0, err_msg=name)
        assert value == pytest.approx(right.value(there), rel=1e-7)
        assert ((there >= model.low) & (there <= model.high)).all()
    assert (clipped > 0) >= (far and len(known["x"]) > 30), "else the box was not tried"


class Copy:
    """The proximal step of a penalty of ours, from somebody who knows no more than the protocol."""

    def __init__(self, penalty):
        self.penalty, self.calls = penalty, 0

    def value(self, weight, bias, sizes):
        return self.penalty.value(weight, bias, sizes)

    def proximal_step(self, x, gradient, sizes, step):
        self.calls += 1
        return self.penalty.proximal_step(x, gradient, sizes, step)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", [name for name, penalty in penalties(1).items() if not penalty.is_ridge])
def test_somebody_elses_penalty_takes_the_same_steps_one_by_one(name, threads, monkeypatch):
    monkeypatch.setattr("lineas.optim.quadratic.thread_count", lambda *_: threads)
    sizes = (5, 700, 31)
    penalty, model = penalties(sum(sizes))[name], made(sizes, facts(sizes, 6))
    there, value = model.minimise_by_steps(penalty)
    other = Copy(penalty)
    assert_same_bits(model.minimise(other), (there, value))
    assert 1 < other.calls <= _core.INNER_STEPS


@pytest.mark.parametrize("sizes", [(5, 700, 31), (5, 6000, 0, 3000)], ids=["all units", "first a share of them"])
@pytest.mark.parametrize("name", ["l1", "group", "all", "unit"])
def test_newtons_method_promises_no_less_than_proximal_steps(name, sizes):
    """Under penalties from next to nothing to one that leaves nothing, whole groups and single units."""
    gains = []
    for strength in (0.01, 1.0, 100.0):
        penalty = penalties(round(sum(sizes) / strength))[name]
        for far in (False, True):
            model = made(sizes, facts(sizes, 9, far))
            held = penalty.value(*np.split(model.x, 2), sizes)
            promises = []
            for there, value in (model.minimise(penalty), model.minimise_by_steps(penalty)):
                promises.append(held - value - penalty.value(*np.split(there, 2), sizes))
            assert promises[0] >= (1 - 1e-4) * promises[1]
            gains.append(promises[0] - promises[1])
    assert max(gains) > 0


@pytest.mark.parametrize(("sizes", "far"), [((513, 7), 30), ((3000, 3000, 3000), 1000)], ids=["few", "many"])
def test_newtons_method_settles_where_the_memory_is_stiff(sizes, far):
    """After a trial that went much too far, some curvatures are 100,000 times what units tell of themselves, and all
    units want to leave the box: whole Newton steps go round in circles there."""
    for seed in range(3):
        known, rng = facts(sizes, 2, far=True, seed=seed), np.random.default_rng(seed)
        stiff = 1e5 / sum(sizes) * np.abs(rng.normal(size=2 * sum(sizes))) ** 3
        known["changes"] = (known["changes"] + stiff * known["moves"]).astype(np.float32)
        known["gradient"] *= np.float32(far)
        penalty, model = penalties(sum(sizes))["all"], made(sizes, known)
        held = penalty.value(*np.split(model.x, 2), sizes)
        there, value = model._solve(penalty, held)
        by_steps, its_value = model.minimise_by_steps(penalty)
        assert value + penalty.value(*np.split(there, 2), sizes) <= its_value + penalty.value(
            *np.split(by_steps, 2), sizes
        )


@pytest.mark.parametrize("sizes", [(5, 64, 31), (3000, 6000)], ids=["few", "many"])
def test_groups_are_settled_where_moves_tell_nothing_new(sizes):
    """The first matrix is right then, and nothing is left to do but for the norms, which had been settled roughly."""
    known = facts(sizes, 2)
    known["curvature"][1] = 0
    alike = np.array([13 * reference.block_product(known["curvature"], m.astype(float)) for m in known["moves"]])
    known["changes"] = alike.astype(np.float32)  # what blocks say, which are scaled by 10 at most, and raised by 1.3
    right, penalty = reference.Quadratic(**known, sizes=sizes), penalties(sum(sizes))["group"]
    there, _ = made(sizes, known).minimise(penalty)
    expected = solved(right, penalty)
    np.testing.assert_allclose(there, expected, atol=1e-5 * np.abs(expected - known["x"]).max(), rtol=0)


def test_where_newtons_method_does_not_settle_proximal_steps_take_over(monkeypatch):
    sizes = (5, 64, 31)
    penalty, model = penalties(sum(sizes))["group"], made(sizes, facts(sizes, 6))
    monkeypatch.setattr(_core, "quadratic_solve", lambda *_: False)
    assert_same_bits(model.minimise(penalty), model.minimise_by_steps(penalty))


def test_newtons_method_is_for_groups_that_are_sites_or_units():
    sizes = (5, 64, 31)
    model = made(sizes, facts(sizes, 6))
    settled = {
        name: _core.quadratic_solve(
            np.empty_like(model.x), np.zeros(26), model.scratch, model.low, model.high,
            *penalty.in_c(model.x, sizes), *model._model,
        )
        for name, penalty in penalties(sum(sizes)).items()
    }  # fmt: skip
    assert not settled.pop("labels")
    assert all(settled.values())


def test_a_subclass_with_its_own_proximal_step_is_asked_for_it():
    class Frozen(SparseGroupLasso):
        def proximal_step(self, x, gradient, sizes, step, **_):
            return ProximalStep(known["x"].copy(), 0.0, 0.0, 0.0)

    known = facts((9,), 2)
    there, value = made((9,), known).minimise(Frozen(0.1, 0.1))
    assert_same_bits(there, known["x"])
    assert value == 0


@pytest.mark.parametrize("name", penalties(1))
def test_the_bits_do_not_depend_on_threads(name, monkeypatch):
    sizes, results = (600, 20, 7000, 1300), []
    penalty, known = penalties(sum(sizes))[name], facts(sizes, 9, far=name == "all")
    for threads in THREADS:
        monkeypatch.setattr("lineas.optim.quadratic.thread_count", lambda *_, n=threads: n)
        model = made(sizes, known)
        results.append((*model.minimise(penalty), model.newton(), model.blocks, model.value(known["x"] + 1)))
    for result in results[1:]:
        assert_same_bits(result, results[0])


def test_moves_that_tell_nothing_new_do_no_harm():
    """The same move twice: what rounding makes of the second must not become a direction without curvature."""
    known = facts((40,), 3)
    known["moves"][1], known["changes"][1] = known["moves"][0], known["changes"][0]
    there, value = made((40,), known).minimise(SparseGroupLasso(0.0, 0.0))
    assert np.isfinite(there).all()
    assert value < 0


@bounded
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, MEMORY), st.integers(0, 10**6))
def test_any_sizes_and_memory(sizes, rows, seed):
    sizes, known = tuple(sizes), facts(tuple(sizes), rows, seed=seed)
    right, model = reference.Quadratic(**known, sizes=sizes), made(sizes, known, oldest=seed % max(rows, 1))
    point = known["x"] + np.float32(0.01)
    scale = abs(right.slope @ (point - known["x"])) + abs(right.value(point))
    assert model.value(point) == pytest.approx(right.value(point), abs=1e-6 * scale)


# -- the ridge, what is left out, and sums --


@pytest.mark.parametrize("units", [1, 7, 17, 4097])
def test_ridge_and_sums_are_the_twins(units):
    rng = np.random.default_rng(units)
    x = torch.from_numpy(rng.normal(size=2 * units).astype(np.float32)).double().requires_grad_()
    form = rng.uniform(size=(3, units))
    expected = 0.3 * reference.ridge(x, *map(torch.from_numpy, form))
    expected.backward()
    flat = x.detach().float().numpy()
    mean, coefficient = rng.uniform(size=(2, units))
    a, b, c, d = rng.normal(size=(4, units)).astype(np.float32)
    results = []
    for threads in THREADS:
        gradient = np.empty_like(flat)
        value = _core.ridge(gradient, flat, *form, 0.3, threads)
        assert value == pytest.approx(expected.item(), rel=1e-12)
        np.testing.assert_allclose(gradient, x.grad, rtol=1e-6)
        found = [value, gradient, _core.dot(mean, coefficient, threads), _core.largest(a[None], threads)]
        found += _core.move_sums(a, b, c, d, threads)
        slopes = np.tile(a, (3, 1))
        _core.scale_columns(slopes, mean, threads)
        np.testing.assert_array_equal(slopes, np.tile(a * mean.astype(np.float32), (3, 1)))
        results.append(tuple(found))
    move, change = (a - b).astype(float), (c - d).astype(float)
    np.testing.assert_allclose(results[0][4:], [move @ move, move @ change, change @ change], rtol=1e-9, atol=1e-9)
    assert results[0][2] == pytest.approx(float(np.dot(mean, coefficient)), rel=1e-12)
    assert results[0][3] == np.abs(a).max()
    for result in results[1:]:
        assert_same_bits(result, results[0])


# -- arrays that are kept --


def test_a_loss_with_room_has_the_same_bits_and_the_same_arrays_at_every_step():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 9, 40)).astype(np.float32)
    target, coefficient, room = ops.prepare_target(y), rng.uniform(size=40), ops.Room()
    first = ops.loss(x, target, coefficient, room=room)
    expected = ops.loss(x, target, coefficient)
    assert_same_bits(first, expected)
    second = ops.loss(2 * x, target, coefficient, room=room)
    assert all(a is b for a, b in zip(first, second, strict=True))
    assert not np.array_equal(second[0], expected[0])
    x[3, 5] = np.nan
    with pytest.raises(ValueError, match="x: expected finite values, got a NaN or infinity at flat position 125"):
        ops.loss(x, target, coefficient, room=room)


# -- never worse than to stay --


@pytest.mark.parametrize("too_long", [30.0, 300.0, 1e9])
@pytest.mark.parametrize("name", [name for name in penalties(1) if name != "labels"])
def test_steps_that_are_too_long_lead_nowhere_worse(name, too_long, monkeypatch):
    """What the power iteration misses, where it happens to begin across what bends most."""
    sizes = (5, 64, 31)
    penalty, known = penalties(sum(sizes))[name], facts(sizes, 6)
    steps = _core.quadratic_steps

    def longer(found, *rest):
        steps(found, *rest)
        found *= np.float32(too_long)

    monkeypatch.setattr(_core, "quadratic_steps", longer)
    model = made(sizes, known)
    there, value = model.minimise(penalty)
    held, holds = (penalty.value(*np.split(x, 2), sizes) for x in (known["x"], there))
    assert value + holds <= held * (1 + 1e-9)
    if too_long < 1e9:  # else staying is all that is left
        assert value + holds < held


def test_curvatures_that_are_not_finite_are_refused():
    known = facts((9,), 0) | {"curvature": np.full((3, 9), np.nan)}
    with pytest.raises(FloatingPointError, match="expected finite curvatures of the loss"):
        made((9,), known)
