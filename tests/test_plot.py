"""What pictures show, and that they show it without colour; responses, which some of them need; tables of notebooks."""

import builtins

import matplotlib as mpl
import numpy as np
import pytest
from conftest import normal
from matplotlib import pyplot
from matplotlib.colors import to_rgb

from lineas import Steering, plot

mpl.use("Agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def fitted_history():
    history = {"objective": [4.0, 2.0, float("inf"), 2.5, 1.0], "accepted": [True, True, False, False, True]}
    return Steering({"a": ([1.0], [0.5])}, history=history)


ROWS = [{"strength": s, "perplexity": 50 + s, "mood": s / 2, "se": 0.1} for s in (1.0, 0.0, 2.0)]
VALUES = [normal(30, 4, seed=k, shift=k).numpy() for k in range(3)]
MAPS = Steering({"a": ([1, 2, 1, 1.5], [0] * 4), "b": ([1.0, 1], [0, 3])})
SITES = [
    {"site": name, "kind": kind, "apart": k / 2, "gives": k / 3, "chosen": k == 1}
    for k, (name, kind) in enumerate((("a.norm", "norm"), ("a.mlp", "mlp"), ("a", "block"), ("b", "output")))
]
PLOTS = {
    "history": lambda ax=None: plot.plot_history(fitted_history(), ax),
    "support": lambda ax=None: plot.plot_support(MAPS, ax),
    "support by unit": lambda ax=None: plot.plot_support(MAPS, ax, units=True),
    "units": lambda ax=None: plot.plot_units(*VALUES, ax=ax),
    "sites": lambda ax=None: plot.plot_sites(SITES, ax),
    "strength": lambda ax=None: plot.plot_strength(ROWS, ax, effect="mood", error="se"),
}


@pytest.mark.parametrize("draw", PLOTS.values(), ids=PLOTS)
def test_a_plot_draws_on_the_axes_it_is_given_or_makes_some_and_returns_them(draw):
    _, (left, right) = pyplot.subplots(1, 2)
    assert draw(right) is right
    assert right.has_data()
    assert not left.has_data()
    figures = len(pyplot.get_fignums())
    own = draw()
    assert own not in (left, right)
    assert len(pyplot.get_fignums()) == figures + 1
    assert own.get_title()
    assert own.get_xlabel()
    assert own.get_ylabel()


@pytest.mark.parametrize("draw", PLOTS.values(), ids=PLOTS)
def test_a_plot_has_no_colour(draw):
    axes = draw()
    axes.figure.canvas.draw()
    pixels = np.asarray(axes.figure.canvas.buffer_rgba())[..., :3].astype(int)
    assert (np.ptp(pixels, axis=-1) <= 1).all()
    assert np.ptp(pixels) > 200


@pytest.mark.parametrize("draw", PLOTS.values(), ids=PLOTS)
def test_without_matplotlib_the_message_says_what_to_install(draw, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **options):
        if name.startswith("matplotlib"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"plots need matplotlib.*pip install 'lineas\[plot\]'"):
        draw()


def marks(axes, label):
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return line.get_marker(), line.get_xdata().tolist(), line.get_ydata().tolist()


def test_history_tells_accepted_rejected_and_overflowed_trials_apart():
    axes = PLOTS["history"]()
    assert marks(axes, "accepted") == ("o", [1, 2, 5], [4, 2, 1])
    assert marks(axes, "rejected trial") == ("x", [4], [2.5])
    assert marks(axes, "overflow")[:2] == ("^", [3])
    assert axes.get_yscale() == "log"
    with pytest.raises(ValueError, match="got one without a history"):
        plot.plot_history(MAPS)


def test_a_history_that_reaches_zero_is_drawn_too():
    steering = Steering({"a": ([1.0], [0.5])}, history={"objective": [1.0, 0.0], "accepted": [True, True]})
    assert plot.plot_history(steering).get_yscale() == "linear"


def test_support_is_a_bar_a_site_or_a_square_a_unit():
    axes = PLOTS["support"]()
    assert [bar.get_height() for bar in axes.patches] == [2, 1]
    assert "3 of 6 units" in axes.get_title()
    (image,) = PLOTS["support by unit"]().images
    shades = image.get_array()
    assert shades.shape == (2, 4)
    assert shades.mask[1].tolist() == [False, False, True, True], "b has two units: the hatched ground is seen"
    black = np.percentile([0.5, 1, 3], 99)
    assert shades[0].tolist() == pytest.approx([0, 0.25 + 0.75 / black, 0, 0.25 + 0.75 * 0.5 / black])
    assert shades[1, 1] == 1


def test_units_are_boxes_in_deviations_of_the_target():
    source, steered, target = VALUES
    axes = plot.plot_units(source, steered, target, units=[2, 0])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "0"]
    boxes = [patch for patch in axes.patches if patch.get_hatch() is not None or patch.get_facecolor()]
    assert len(boxes) == 6
    assert len({(to_rgb(box.get_facecolor()), box.get_hatch()) for box in boxes}) == 3, "no two look the same"
    points = {line.get_marker(): line.get_ydata() for line in axes.lines if line.get_marker() in "o^s"}
    for marker, array in zip("o^s", VALUES, strict=True):
        expected = (array - target.mean(0)) / target.std(0)
        np.testing.assert_allclose(points[marker].reshape(30, 2), expected[:, [2, 0]], rtol=1e-4, atol=1e-5)


def test_units_that_are_not_named_are_those_that_differ_most():
    source, target = normal(40, 8).numpy(), normal(50, 8, seed=1).numpy()
    target[:, 5] += 4
    target[:, 2] -= 2
    target[:, 6] *= 1e-6  # its size does not hide that it differs in every deviation
    axes = plot.plot_units(source, source, target)
    assert [label.get_text() for label in axes.get_xticklabels()][:3] == ["6", "5", "2"]
    assert len(axes.get_xticklabels()) == 5
    plot.plot_units(np.zeros((300, 1)), np.zeros((300, 1)), np.zeros((300, 1)))


@pytest.mark.parametrize(
    ("arrays", "units", "error", "message"),
    [
        (
            [np.ones((3, 2)), np.ones((3, 2)), np.ones((3, 4))],
            None,
            ValueError,
            r"expected finite responses .*\(3, 4\)",
        ),
        ([np.ones(3)] * 3, None, ValueError, r"\(samples, d\)"),
        ([np.full((3, 2), np.nan)] * 3, None, ValueError, "finite"),
        ([np.ones((3, 2))] * 3, [2], LookupError, r"units: expected some of 0 to 1, got \[2\]"),
        ([np.ones((3, 2))] * 3, [], LookupError, r"got \[\]"),
    ],
)
def test_responses_that_make_no_sense_are_refused(arrays, units, error, message):
    with pytest.raises(error, match=message):
        plot.plot_units(*arrays, units=units)
    assert not pyplot.get_fignums()


def test_strengths_are_joined_in_their_order_and_the_base_model_stands_out():
    axes = PLOTS["strength"]()
    assert marks(axes, "steered") == ("o", [50, 51, 52], [0, 0.5, 1])
    assert marks(axes, "base model") == ("s", [50], [0])
    assert [text.get_text() for text in axes.texts] == ["0", "1", "2"]
    assert axes.get_ylabel() == "mood"
    assert len(axes.containers) == 1
    assert not plot.plot_strength(ROWS, effect="mood").containers
    with pytest.raises(LookupError, match=r"one lacks \['effect'\] and has \['strength', 'perplexity', 'mood', 'se'\]"):
        plot.plot_strength(ROWS)
    with pytest.raises(ValueError, match="at least one"):
        plot.plot_strength([])


# -- tables --


def test_a_notebook_shows_the_table_of_summary_with_everything_escaped():
    steering = Steering({"<b>&": ([2.0, 1], [0, 1]), **{f"s{k}": ([1.0], [0]) for k in range(250)}})
    html = steering._repr_html_()
    assert "&lt;b&gt;&amp;" in html
    assert "<b>&<" not in html
    assert html.count("<tr>") == 1 + 200
    assert "and 51 sites more; summary() has all" in html
    small = Steering({"a": ([2.0, 1], [0, 1])})
    for cell in ("a", "2", "0.5", "|w - 1|"):
        assert f">{cell}<" in small._repr_html_()
        assert cell in small.summary()
