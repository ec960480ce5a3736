"""Pictures that a report keeps: the grid, notebooks, JSON and back."""

import base64
import io
import json
import re

import numpy as np
import pytest
from image_model import StandIn, maps_of
from PIL import Image

import lineas
from lineas.evaluation import Report, grid

PROMPTS = ["one", "three", "a <b>longer</b> caption \x1b[2J that does not fit into a line or two or three of them"]


@pytest.fixture(scope="module")
def report():
    pipe = StandIn()
    steerings = {"a": maps_of(pipe.unet, "0"), "<b>": maps_of(pipe.unet, "0", 1)}
    return lineas.evaluate(
        pipe, steerings, prompts=PROMPTS, scorers=lambda pictures: pictures.mean((1, 2, 3)), strengths=(0.5, 1.0),
        pictures=2, progress=False,
    )  # fmt: skip


def found_in(sheet, image, size):
    """Where in a sheet an image stands, pixel for pixel: (left, top)."""
    pixels, wanted = np.asarray(sheet), np.asarray(image.resize(size))
    rows, columns = wanted.shape[:2]
    same = np.argwhere((pixels[: len(pixels) - rows + 1, : pixels.shape[1] - columns + 1] == wanted[0, 0]).all(-1))
    return [(x, y) for y, x in same if np.array_equal(pixels[y : y + rows, x : x + columns], wanted)]


def test_a_grid_has_a_row_a_prompt_and_a_column_for_the_base_and_each_strength_of_each_steering(report):
    sheet, size = report.grid(), (96, 72)  # of 8 x 6
    places = []
    for name, strength in report.cells():
        images = report.pictures(strength, name)
        assert len(images) == 2
        (first,), (second,) = (found_in(sheet, image, size) for image in images)
        assert first[0] == second[0]
        assert second[1] - first[1] >= size[1]
        places.append(first)
    assert len({y for _, y in places}) == 1, "one row"
    lefts = [x for x, _ in places]
    steps = np.diff(lefts)
    assert lefts == sorted(lefts)
    assert min(steps) >= size[0], "no picture covers another"
    assert steps[0] == steps[2] > steps[1] == steps[3], "another steering stands apart"


def test_a_grid_shows_the_steerings_and_figures_that_it_is_asked_for(report):
    whole = report.grid()
    fewer = report.grid(["<b>"], measures=["pixel_change"])
    assert fewer.width < whole.width
    assert whole.height - fewer.height == grid.LINE, "one figure less"
    assert report.grid(size=200).width > whole.width
    assert found_in(fewer, report.pictures(1.0, "<b>")[0], (96, 72))
    assert not found_in(fewer, report.pictures(1.0, "a")[0], (96, 72))
    with pytest.raises(LookupError, match="steerings: expected some of a, <b>; got c"):
        report.grid(["c"])
    with pytest.raises(LookupError, match="measures: expected some of effect, pixel_change; got mood"):
        report.grid(measures=["mood"])


def test_a_long_name_ends_where_its_columns_do():
    pipe = StandIn()
    long, short = ({name: maps_of(pipe.unet, "0"), "b": maps_of(pipe.unet, "0", 1)} for name in ("m" * 99, "m" * 3))
    sheets = [
        lineas.evaluate(pipe, each, prompts=["one"], strengths=1.0, progress=False).grid() for each in (long, short)
    ]
    beside = [np.asarray(sheet)[: grid.LINE, grid.BESIDE + 2 * 96 + grid.WIDE_GAP :] for sheet in sheets]
    assert np.array_equal(*beside)
    assert not np.array_equal(*(np.asarray(sheet)[: grid.LINE] for sheet in sheets))


def test_labels_and_figures_are_drawn(report):
    """Where no picture is, there is ink: heads above, prompts to the left, figures below."""
    pixels = np.asarray(report.grid().convert("L"))
    top = found_in(report.grid(), report.pictures()[0], (96, 72))[0][1]
    for part in (pixels[:top, grid.BESIDE :], pixels[top : top + 72, : grid.BESIDE], pixels[-2 * grid.LINE :]):
        assert part.min() < 100
        assert part.mean() > 200, "ink on white"


def test_a_grid_is_saved_as_its_name_says_and_shown_in_notebooks(report, tmp_path):
    report.save_grid(tmp_path / "new" / "grid.png", measures=[])
    assert Image.open(tmp_path / "new" / "grid.png").size == report.grid(measures=[]).size
    html = report._repr_html_()
    shown = base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)"', html).group(1))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown))), np.asarray(report.grid()))
    assert "<table>" in html
    assert "<b>" not in html
    assert "&lt;b&gt;" in html


def test_large_pictures_are_kept_small():
    pipe = StandIn()
    pipe.output = lambda images: (images.repeat(100, axis=1).repeat(100, axis=2), None)
    report = lineas.evaluate(pipe, prompts=["one"], progress=False)
    assert report.pictures()[0].size == (256, 192)


def test_pictures_go_to_json_and_back(report, tmp_path):
    text = report.to_json(tmp_path / "report.json")
    again = Report.from_json(tmp_path / "report.json")
    assert again == Report.from_json(text) == report
    assert again.grid() == report.grid()


@pytest.mark.parametrize(
    ("key", "value"), [("pictures", ["AAAA", "AAAA"]), ("pictures", ["?"]), ("prompts", []), ("pictures", None)]
)
def test_json_with_pictures_that_are_none_is_refused_at_once(key, value, report):
    content = json.loads(report.to_json())
    content["drawn"][0][key] = value
    with pytest.raises(ValueError, match=r"expected what Report\.to_json writes"):
        Report.from_json(json.dumps(content))


def test_without_pictures_there_is_no_grid_and_a_table_all_the_same():
    report = lineas.evaluate(StandIn(), prompts=["one"], pictures=0, progress=False)
    with pytest.raises(LookupError, match="the report has no pictures"):
        report.grid()
    with pytest.raises(LookupError, match="no pictures at strength 0"):
        report.pictures()
    assert "drawn" not in json.loads(report.to_json())
    assert "<img" not in report._repr_html_()


def test_a_report_is_drawn_with_the_change_of_the_pictures_as_its_cost(report):
    mpl = pytest.importorskip("matplotlib")
    mpl.use("Agg")
    ax = report.plot()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("pixel_change", "effect")
    lines = {line.get_label(): line for line in ax.lines}
    drawn = [report.estimate("pixel_change", s, "a").value for s in (0.0, 0.5, 1.0)]
    assert lines["a"].get_xdata().tolist() == drawn
