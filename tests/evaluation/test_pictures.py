"""lineas.evaluate of text-to-image pipelines: the same noise, scores, intervals, refusals; what it leaves alone."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import assert_untouched, snapshot
from image_model import CALL, StandIn, captions, maps_of, trained_pipeline
from PIL import Image
from scipy import stats

import lineas
from lineas import Steering, evaluation
from lineas.evaluation import Report

PROMPTS = ["one", "three", "a longer caption", "x", "two words"]


def brightness(pictures):
    return pictures.mean((1, 2, 3))


@pytest.fixture
def pipe():
    return StandIn()


@pytest.fixture
def steering(pipe):
    return maps_of(pipe.unet, "0")


def evaluate(pipe, steering=None, **options):
    return lineas.evaluate(pipe, steering, **{"prompts": PROMPTS, "scorers": brightness, "progress": False, **options})


def drawn_by_hand(pipe, prompts, seed, **call):
    output = pipe(prompt=prompts, generator=evaluation.generators(seed, len(prompts)), output_type="np", **call)
    return output.images


@pytest.fixture(scope="module")
def trained():
    pipe = trained_pipeline()
    return pipe, maps_of(pipe.unet, "mid_block.*norm.*")


def test_pictures_do_not_begin_with_the_noise_that_a_fit_with_this_seed_has_seen(pipe):
    from lineas.network.pipelines.rows import noise_of_rows

    def begin(noise):
        return {float(torch.randn((), generator=one)) for one in noise}

    for seed in (0, 1, 2**40):
        drawn, seen = begin(evaluation.generators(seed, 64)), begin(noise_of_rows(seed, range(64)))
        assert len(drawn) == len(seen) == 64
        assert not drawn & seen


def test_figures_and_pictures_are_those_of_the_pipeline_called_by_hand(trained):
    pipe, steering = trained
    prompts = [one["prompt"] for one in captions()[:5]]
    report = evaluate(pipe, steering, prompts=prompts, strengths=(1.0, 2.0), call=CALL, pictures=2, batch_size=5)
    base = drawn_by_hand(pipe, prompts, 0, **CALL)
    for strength in (1.0, 2.0):
        with steering.apply(pipe.unet, strength):
            pictures = drawn_by_hand(pipe, prompts, 0, **CALL)
        apart = np.abs(pictures - base).mean((1, 2, 3))
        assert apart.min() > 0.005, "the steering does something"
        assert report.estimate("pixel_change", strength).value == pytest.approx(apart.mean(), rel=1e-4)
        assert report.estimate("brightness", strength).value == pytest.approx(pictures.mean(), rel=1e-5)
        for image, picture in zip(report.pictures(strength), pictures[:2], strict=True):
            assert np.abs(np.asarray(image) / 255 - picture).max() < 0.005
    assert report.estimate("pixel_change").value == 0
    assert report.settings[0]["model"] == "pipeline"


def test_a_picture_does_not_depend_on_those_beside_it(trained):
    pipe, steering = trained
    prompts = [one["prompt"] for one in captions()[:5]]
    together, apart = (
        evaluate(pipe, steering, prompts=prompts, strengths=1.0, call=CALL, batch_size=size) for size in (5, 2)
    )
    for one, other in zip(together.outcomes, apart.outcomes, strict=True):
        assert one.totals == pytest.approx(other.totals, abs=1e-5)


def test_a_row_begins_with_the_same_noise_at_every_strength_of_every_steering_in_every_batch(pipe, steering):
    rivals = {"a": steering, "b": steering.scaled(2.0)}
    noise = []
    for size in (5, 2):
        pipe.calls.clear()
        evaluate(pipe, rivals, strengths=(0.5, 1.0), seeds=(3, 4), batch_size=size)
        by_row = {}
        for call in pipe.calls:
            for prompt, one in zip(call["prompt"], call["noise"], strict=True):
                by_row.setdefault(prompt, []).append(one)
        assert {len(each) for each in by_row.values()} == {2 * 5}, "two seeds, five conditions"
        noise.append({prompt: torch.stack(each) for prompt, each in by_row.items()})
    for prompt, each in noise[0].items():
        assert torch.equal(each, noise[1][prompt])
        assert all(torch.equal(each[k], each[0]) for k in range(5)), "of the first seed"
        assert not torch.equal(each[5], each[0])
    assert not torch.equal(noise[0]["one"][0], noise[0]["three"][0])


def test_what_a_pipeline_draws_by_the_way_is_the_same_too_but_not_in_every_batch(pipe):
    drawn = []

    def spoil(images):
        drawn.append(torch.rand(images.shape).numpy())
        return (images + drawn[-1]) / 2, None

    pipe.output = spoil
    nothing = Steering({"0": (np.ones(3), np.zeros(3))})
    assert evaluate(pipe, nothing, strengths=1.0, batch_size=2).estimate("pixel_change", 1.0).value == 0
    assert np.array_equal(drawn[0], drawn[1]), "the base, and steered"
    assert not np.array_equal(drawn[0], drawn[2]), "the next batch"


def test_seeds_are_reproducible_and_pictures_are_of_the_first(pipe, steering):
    report = evaluate(pipe, steering, seeds=(3, 4), strengths=1.0)
    assert report == evaluate(pipe, steering, seeds=(3, 4), strengths=1.0)
    assert report.estimate("brightness", 1.0).over == "seeds"
    assert {one.seed for one in report.drawn} == {3}
    alone = [evaluate(pipe, steering, seeds=seed, strengths=1.0).estimate("brightness", 1.0).value for seed in (3, 4)]
    assert alone[0] != alone[1]
    assert report.estimate("brightness", 1.0).value == pytest.approx(np.mean(alone))


def test_the_base_is_always_there_and_once(pipe, steering):
    report = evaluate(pipe, {"a": steering, "b": steering.scaled(2.0)}, strengths=(0, 1, 0.5))
    cells = [(row["steering"], row["strength"]) for row in report.rows()]
    assert cells == [(None, 0.0), ("a", 0.5), ("a", 1.0), ("b", 0.5), ("b", 1.0)]
    assert report.estimate("pixel_change", 1.0, "a") == report.estimate("pixel_change", 0.5, "b")
    alone = evaluate(pipe)
    assert list(alone.measures) == ["brightness", "pixel_change"]
    assert alone.estimate("brightness") == report.estimate("brightness")


def test_the_pipeline_and_the_random_state_are_left_alone_also_after_an_error(trained):
    pipe, steering = trained
    pipe.unet.train()
    pipe.set_progress_bar_config(disable=True, desc="mine")
    options = {"prompts": ["a dog"], "call": CALL}
    numpy_before = np.random.get_state()[1].tolist()  # noqa: NPY002 -- what somebody else may draw from
    before, config = snapshot(pipe.unet), dict(pipe._progress_bar_config)
    try:
        evaluate(pipe, steering, **options)
        assert_untouched(pipe.unet, before)
        with pytest.raises(RuntimeError, match="no score"):
            evaluate(pipe, steering, scorers=fail, **options)
        assert_untouched(pipe.unet, before)
        assert pipe._progress_bar_config == config
        assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002
    finally:
        pipe.unet.eval()


def fail(pictures):
    raise RuntimeError("no score")


def test_networks_in_training_mode_draw_as_in_evaluation_mode(pipe, steering):
    expected = evaluate(pipe, steering)
    pipe.unet.train()  # it has dropout
    assert evaluate(pipe, steering) == expected
    assert pipe.unet.training


def test_arguments_of_the_call_arrive_and_pictures_come_in_floats(pipe):
    report = evaluate(pipe, call={"num_inference_steps": 3, "negative_prompt": "grey", "eta": None})
    assert pipe.calls[0]["num_inference_steps"] == 3
    assert pipe.calls[0]["output_type"] == "np"
    assert report.settings[0]["call"] == {"num_inference_steps": 3, "negative_prompt": "grey", "eta": "None"}
    assert Report.from_json(report.to_json()) == report


# -- intervals --


def test_intervals_over_pictures_are_students_and_changes_are_paired(pipe, steering):
    report = evaluate(pipe, steering, strengths=1.0, confidence=0.9)
    base, steered = (np.array(o.totals) for o in report.outcomes if o.measure == "brightness")
    found = report.estimate("brightness", 1.0)
    low, high = stats.t.interval(0.9, len(PROMPTS) - 1, steered.mean(), stats.sem(steered))
    assert (found.value, found.low, found.high, found.over) == pytest.approx((steered.mean(), low, high, "samples"))
    apart = report.change("brightness", 1.0)
    assert apart[:2] == pytest.approx((np.mean(steered - base), stats.sem(steered - base)))
    assert "brightness, pixel_change over 5 pictures" in str(report)


@pytest.mark.parametrize("hits", [0, 3, 5])
def test_the_interval_of_a_share_is_wilsons_also_where_all_pictures_are_alike(hits, pipe, steering):
    def among_the_first(pictures, rows):
        return [row < hits for row in rows]

    report = evaluate(pipe, steering, scorers=among_the_first, strengths=1.0)
    found = report.estimate("among_the_first", 1.0)
    expected = stats.binomtest(hits, 5).proportion_ci(0.95, method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((hits / 5, expected.low, expected.high))
    assert report.measures["among_the_first"].is_share
    assert not report.measures["pixel_change"].is_share
    apart = report.change("among_the_first", 1.0)  # no pair differs, as if one of 7 did so in either way
    half = stats.norm.ppf(0.975) * math.sqrt(2 / 7 / 7)
    assert (apart.value, apart.low, apart.high) == pytest.approx((0, -half, half))


def test_the_interval_of_a_change_of_shares_by_hand():
    found = evaluation.intervals.share_change([1, 1, 1, 0, -1, 0, 1, 0], 0.9)  # 4 up, 1 down, of 8
    half = stats.norm.ppf(0.95) * math.sqrt((5 / 10 + 2 / 10 - (3 / 10) ** 2) / 10)
    assert (found.value, found.low, found.high) == pytest.approx((3 / 8, 3 / 10 - half, 3 / 10 + half))


def test_runs_add_up(pipe, steering):
    runs = [evaluate(pipe, {"mine": maps_of(pipe.unet, "0", seed)}, strengths=1.0) for seed in (1, 2, 3)]
    both = runs[0] + runs[1] + runs[2]
    values = [run.estimate("brightness", 1.0).value for run in runs]
    assert both.estimate("brightness", 1.0)[:2] == pytest.approx((np.mean(values), stats.sem(values)))
    assert both.pictures(1.0)[0] == runs[0].pictures(1.0)[0]
    assert both.grid().size == runs[0].grid().size, "pictures of one run are shown"


def test_what_is_a_share_in_one_run_alone_is_none_in_both(pipe):
    one, other = (evaluate(pipe, scorers={"count": lambda pictures, rows, n=n: [n] * len(rows)}) for n in (1, 2))
    assert [one.measures["count"].is_share, other.measures["count"].is_share] == [True, False]
    for both in (one + other, other + one):
        assert both.estimate("count").value == 1.5
        assert not both.measures["count"].is_share


# -- what is refused --


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompts": None}, ValueError, "prompts: expected captions for a pipeline to draw, got none"),
        ({"prompts": "a dog"}, TypeError, "prompts: expected a list of strings, got one string"),
        ({"prompts": [[{"role": "user", "content": "a"}]]}, TypeError, "prompts: expected captions, strings, got list"),
        ({"steering": [1]}, TypeError, "steering: expected a Steering or a dict of them by name, got list"),
        ({"steering": Steering({"gone": ([1.0], [1.0])})}, LookupError, "gone"),
        ({"strengths": (1.0, math.nan)}, ValueError, "strengths: expected a finite number"),
        ({"seeds": -1}, ValueError, "seeds: expected a whole number of at least 0, got -1"),
        ({"seeds": ()}, ValueError, "seeds: expected at least one"),
        ({"confidence": 95}, ValueError, "confidence: expected a number between 0 and 1, got 95"),
        ({"batch_size": 0}, ValueError, "batch_size: expected a whole number of at least 1, got 0"),
        ({"pictures": -1}, ValueError, "pictures: expected a whole number of at least 0, got -1"),
        ({"scorers": {"pixel_change": brightness}}, ValueError, "scorers: expected other names than pixel_change"),
        ({"scorers": "sentiment"}, ValueError, "scorer: expected 'judge:FILE#CONCEPT', .*; got 'sentiment'"),
        ({"scorers": 3}, TypeError, "scorers: expected a scorer, a list or a dict of them, got int"),
        ({"scorers": lambda: 1}, TypeError, "scorer 'effect': expected a function of pictures, .* one of nothing"),
        ({"scorers": lambda pictures, a, b: 1}, TypeError, "prompts, base or rows .* one of pictures, a, b"),
        ({"call": [1]}, TypeError, "call: expected a dict of the pipeline's arguments, got list"),
        ({"call": {"generator": 1}}, ValueError, "call: expected none of prompt, generator, .*; got generator"),
        ({"call": {"output_type": "latent"}}, ValueError, "call: expected an output_type of .*, got 'latent'"),
        ({"call": {"negative_prompt": ["a"] * 5}}, TypeError, "call: negative_prompt: expected one string for all"),
        ({"texts": ["a", "b"]}, TypeError, "texts: expected nothing for a pipeline; only language models take it"),
        ({"count": 2, "src": 1, "tgt": 2}, TypeError, "src, tgt, count: expected nothing for a pipeline"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_measured_is_refused_before_anything_is_drawn(options, error, message, pipe, steering):
    with pytest.raises(error, match=message):
        evaluate(pipe, **{"steering": steering, **options})
    assert pipe.calls == []


def test_an_argument_that_the_pipeline_would_swallow_is_refused(trained):
    """Stable Diffusion takes any keyword, and says nothing of one that it does not know."""
    with pytest.raises(
        TypeError, match="call: StableDiffusionPipeline takes no guidance; nearest names: guidance_scale"
    ):
        evaluate(trained[0], None, prompts=["a dog"], call={**CALL, "guidance": 1.0})


def test_scorers_for_other_prompts_are_refused_before_anything_is_drawn(pipe):
    one = evaluation.PictureScorer("subject", lambda pictures, rows: np.zeros(len(rows)), prompts=3)
    with pytest.raises(ValueError, match="scorer 'subject': it was made for 3 prompts, got 5"):
        evaluate(pipe, scorers=one)
    assert pipe.calls == []


def test_a_pipeline_without_prompts_is_refused(pipe):
    class Unconditional(StandIn):
        def __call__(self, batch_size=1, generator=None):
            raise AssertionError

    with pytest.raises(TypeError, match="is called with a prompt, got Unconditional: batch_size, generator"):
        evaluate(Unconditional())


def test_a_language_model_takes_nothing_that_is_for_pipelines(model):
    with pytest.raises(TypeError, match="call, pictures: expected nothing for a LlamaForCausalLM; only pipelines take"):
        lineas.evaluate(model, call=CALL, pictures=3)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (lambda x: SimpleNamespace(images=torch.zeros(5, 4, 6, 8)), ValueError, r'got \(5, 4, 6, 8\); .*"latent"'),
        (lambda x: SimpleNamespace(images=torch.zeros(5, 3, 6, 8) + 2), ValueError, "from 0 to 1, got 2 to 2"),
        (lambda x: SimpleNamespace(images=np.where(x > x.mean(), np.nan, x)), ValueError, "finite .* in 5 of 5"),
        (lambda x: SimpleNamespace(images=x[:4]), ValueError, "expected a picture a prompt, 5; .* returned 4"),
        (lambda x: SimpleNamespace(images="none"), TypeError, "expected PIL images, an array or a tensor, got str"),
        (
            lambda x: SimpleNamespace(images=[*x[:4], x[4, :3]]),
            ValueError,
            r"got \(6, 8, 3\) and \(3, 8, 3\)",
        ),
    ],
    ids=["latents", "beyond", "nan", "four", "text", "sizes"],
)
def test_what_is_no_picture_is_refused(output, error, message, pipe):
    pipe.output = output
    with pytest.raises(error, match=message):
        evaluate(pipe)


@pytest.mark.parametrize(
    ("output", "precision"),
    [
        (lambda x: SimpleNamespace(images=list(x)), 1e-6),
        (lambda x: SimpleNamespace(images=torch.from_numpy(x).movedim(-1, 1)), 1e-6),
        (lambda x: (x, None), 1e-6),
        (lambda x: SimpleNamespace(images=(x * 255).round().astype(np.uint8)), 2e-3),
        (lambda x: SimpleNamespace(images=[Image.fromarray((one * 255).round().astype(np.uint8)) for one in x]), 2e-3),
        (lambda x: ([Image.fromarray((one * 255).round().astype(np.uint8)).convert("RGBA") for one in x], []), 2e-3),
    ],
    ids=["list", "tensor", "tuple", "uint8", "pil", "rgba"],
)
def test_pictures_are_the_same_however_they_are_returned(output, precision, pipe):
    expected = evaluate(pipe)
    pipe.output = output
    (found,) = (o.totals for o in evaluate(pipe).outcomes if o.measure == "brightness")
    assert found == pytest.approx(expected.outcomes[0].totals, abs=precision)


def test_what_is_on_already_is_told_and_kept(pipe, steering):
    with steering.apply(pipe.unet), pytest.warns(UserWarning, match="1 steerings are on this pipeline: its pictures"):
        report = evaluate(pipe, maps_of(pipe.unet, "0", 5))
    (settings,) = report.settings
    assert [entry["strength"] for entry in settings["attached"]] == [1.0]
    assert report.estimate("brightness").value != evaluate(pipe).estimate("brightness").value


def test_pictures_that_a_safety_checker_blackened_are_told(pipe):
    pipe.output = lambda x: SimpleNamespace(images=0 * x, nsfw_content_detected=[True, False, True, False, False])
    with pytest.warns(UserWarning, match="the pipeline's safety checker blackened 2 pictures"):
        evaluate(pipe)
