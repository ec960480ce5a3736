"""Files of rankings, and their pictures."""

import json

import numpy as np
import pytest
from matplotlib import pyplot
from test_experts import SIZES, lists, planted

from lineas import experts
from lineas.experts import Ranking, plot


def test_a_ranking_reads_back_as_it_was(llama, texts, tokenizer, tmp_path):
    ranking = experts.rank(llama, *texts, tokenizer=tokenizer, either_way=True)
    ranking.save_pretrained(tmp_path / "r")
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"ranking_config.json", "ranking.safetensors"}
    again = Ranking.from_pretrained(tmp_path / "r")
    assert (again.sizes, again.metric, again.either_way, again.info) == (
        ranking.sizes, "average_precision", True, ranking.info,
    )  # fmt: skip
    for site in ranking.sites:
        assert np.array_equal(again.score(site), ranking.score(site))
        assert np.array_equal(again.sign(site), ranking.sign(site))
    assert again.experts(5) == ranking.experts(5)
    assert again.summary() == ranking.summary()
    assert again.stability(9, draws=2) == ranking.stability(9, draws=2)


def test_a_ranking_without_its_responses_is_small_and_says_what_it_lacks(tmp_path):
    ranking = Ranking.from_responses(*planted())
    ranking.save_pretrained(tmp_path / "r", responses=False)
    again = Ranking.from_pretrained(tmp_path / "r")
    assert lists(again.top(2)) == lists(ranking.top(2))
    assert "unit 1" in again.summary(1)
    assert again.experts(2, examples=0) == ranking.experts(2, examples=0)
    for call in (lambda: again.examples("a", 0), lambda: again.stability(2)):
        with pytest.raises(ValueError, match="saved without"):
            call()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "lineas-steering"}, "expected a lineas-ranking file"),
        ({"version": 2}, "expected version 1, got 2; a newer lineas"),
        ({"metric": "f1"}, "expected a metric of average_precision, auroc, got 'f1'"),
        ({"metric": ["auroc"]}, "expected a metric of average_precision, auroc, got list of 1"),
        ({"either_way": 1}, "expected a metric of"),
        ({"sites": {"a": 3}}, "disagrees with ranking_config.json"),
        ({"sites": {"a\x1b": 5}}, "expected printable site names"),
        ({"samples": [20, 10**9]}, "disagrees with ranking_config.json"),
        ({"samples": [20]}, "expected two numbers of samples"),
        ({"samples": {"n": 20}}, "expected two numbers of samples"),
        ({"inputs": [["only one"], None]}, "expected 20 inputs, got list of 1"),
        ({"inputs": None}, "expected the inputs of two sets"),
        ({"info": [1]}, "expected info with names and values"),
        ({"sha256": "0" * 64}, "its checksum is not that in ranking_config.json"),
    ],
)
def test_a_config_that_was_tampered_with_is_refused(changes, message, tmp_path):
    Ranking.from_responses(*planted()).save_pretrained(tmp_path)
    path = tmp_path / "ranking_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        Ranking.from_pretrained(tmp_path)


def test_a_file_that_is_cut_or_not_finite_is_refused(tmp_path):
    ranking = Ranking.from_responses(*planted())
    ranking.save_pretrained(tmp_path)
    path = tmp_path / "ranking.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="truncated or corrupted"):
        Ranking.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        Ranking.from_pretrained(tmp_path)
    ranking.score("a")[0] = np.nan
    ranking.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected finite scores and responses"):
        Ranking.from_pretrained(tmp_path)


# -- pictures --


@pytest.fixture
def closed():
    yield
    pyplot.close("all")


def pictures():
    chosen = {"one": {"a": [1], "b": [0]}, "other": {"a": [0, 1, 2], "b": []}}
    return {
        "similarity": lambda ax=None: plot.plot_similarity(experts.similarity(chosen, SIZES), ax),
        "layers": lambda ax=None: plot.plot_layers(chosen, SIZES, ax),
    }


@pytest.mark.parametrize("name", pictures())
def test_pictures_are_drawn_where_they_should_be_and_without_colour(name, closed):
    draw = pictures()[name]
    _, (left, right) = pyplot.subplots(1, 2)
    assert draw(right) is right
    assert not left.has_data()
    own = draw()
    assert own.get_title()
    assert own.get_xlabel()
    own.figure.canvas.draw()
    pixels = np.asarray(own.figure.canvas.buffer_rgba())[..., :3].astype(int)
    assert (np.ptp(pixels, axis=-1) <= 1).all()
    assert np.ptp(pixels) > 200


def test_the_pictures_show_the_numbers(closed):
    axes = pictures()["similarity"]()
    assert [text.get_text() for text in axes.texts] == ["25", "25"]
    assert axes.images[0].get_array()[0, 1] == 0.25
    lines = {line.get_label(): line.get_ydata().tolist() for line in pictures()["layers"]().lines}
    assert lines == {"one": [pytest.approx(100 / 3), 50], "other": [100, 0]}
    nothing = experts.similarity({"a": {}, "b": {}}, SIZES)
    assert not plot.plot_similarity(nothing).texts
    with pytest.raises(ValueError, match="sets: expected 1 to 6, got 0"):
        plot.plot_layers({}, SIZES)
