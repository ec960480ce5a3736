"""Experts of a pipeline's denoiser: ranked on prompts, shown as the pictures on which a unit is most active."""

import numpy as np
import pytest
import torch
from conftest import IMAGE_CALL, image_captions

import lineas
from lineas import experts
from lineas.experts import pictures
from lineas.network.pipelines.pictures import pictures_of_rows
from lineas.network.pipelines.rows import noise_of_rows

SITE = "mid_block.resnets.1.norm2"
NEGATIVE, POSITIVE = image_captions(8)


@pytest.fixture(scope="module")
def ranking(image_pipe):
    return experts.rank(image_pipe, POSITIVE, NEGATIVE, SITE, call=IMAGE_CALL, seed=3)


def pixels(image):
    return np.asarray(image.convert("RGB"))


def panels(image, count, first_of_least=None):
    """The pictures in a strip, by where they are to lie."""
    found, place = [], 0
    for k in range(count):
        place += 0 if k == 0 else pictures.GAP * (3 if k == first_of_least else 1)
        found.append(pixels(image)[:, place : place + 64])
        place += 64
    assert image.size == (place, 64)
    return found


def test_units_are_ranked_by_the_responses_that_the_library_measures(image_pipe, ranking):
    sides = (
        lineas.evaluation.responses(image_pipe, prompts, SITE, call=IMAGE_CALL, seed=3)
        for prompts in (POSITIVE, NEGATIVE)
    )
    assert np.array_equal(ranking.score(SITE), experts.Ranking.from_responses(*sides).score(SITE))
    assert ranking.score(SITE).max() > 0.9
    assert ranking.info["model"] == "pipeline"
    assert ranking.info["pipeline"] == {
        "class": "StableDiffusionPipeline", "component": "unet", "call": IMAGE_CALL, "at": [0], "steps": 1, "seed": 3,
        "parts": None, "part": None,
    }  # fmt: skip
    (best,) = ranking.experts(1, examples=2)
    assert best.examples[0].input in (POSITIVE if best.examples[0].positive else NEGATIVE)
    assert best.examples[0].input in ranking.summary(1)


def test_a_strip_has_the_pictures_of_the_most_and_least_active_from_the_noise_of_the_responses(image_pipe, ranking):
    unit = int(ranking.score(SITE).argmax())
    state = torch.get_rng_state()
    strip = experts.strip(image_pipe, ranking, SITE, unit, POSITIVE, NEGATIVE, most=2, least=1, call=IMAGE_CALL)
    assert torch.equal(torch.get_rng_state(), state)
    order = ranking.examples(SITE, unit, 16)
    for one, panel in zip([*order[:2], order[-1]], panels(strip, 3, first_of_least=2), strict=True):
        prompts = POSITIVE if one.positive else NEGATIVE
        noise = noise_of_rows(3, range(8))
        (drawn,) = image_pipe(prompts[one.number], generator=noise[one.number], **IMAGE_CALL).images
        assert np.abs(pixels(drawn).astype(int) - panel).max() <= 2, "as rounding in a batch has it"
        (other,) = image_pipe(prompts[one.number], generator=noise[one.number - 1], **IMAGE_CALL).images
        assert np.abs(pixels(other).astype(int) - panel).max() > 20


def test_a_strip_of_a_ranking_that_was_read_back_is_the_same(image_pipe, ranking, tmp_path):
    ranking.save_pretrained(tmp_path)
    given = {"most": 1, "least": 0, "call": IMAGE_CALL}
    strips = [
        experts.strip(image_pipe, one, SITE, 5, POSITIVE, NEGATIVE, **given)
        for one in (ranking, experts.Ranking.from_pretrained(tmp_path))
    ]
    assert np.array_equal(*map(pixels, strips))
    ranking.save_pretrained(tmp_path / "small", responses=False)
    with pytest.raises(ValueError, match="saved without: rank again"):
        experts.strip(image_pipe, experts.Ranking.from_pretrained(tmp_path / "small"), SITE, 5, POSITIVE, NEGATIVE,
                      **given)  # fmt: skip


def test_a_strip_of_more_pictures_than_there_are_has_each_once(image_pipe):
    few = experts.rank(image_pipe, POSITIVE[:2], NEGATIVE[:2], SITE, call=IMAGE_CALL)
    strip = experts.strip(image_pipe, few, SITE, 0, POSITIVE[:2], NEGATIVE[:2], most=3, least=9, call=IMAGE_CALL)
    found = panels(strip, 4, first_of_least=3)
    assert len({panel.tobytes() for panel in found}) == 4


def test_inputs_of_several_pictures_and_steps_are_told_apart(image_pipe):
    call = {"num_inference_steps": 2, "guidance_scale": 0.0, "num_images_per_prompt": 2}
    given = {"call": call, "at": "all"}
    several = experts.rank(image_pipe, POSITIVE[:2], NEGATIVE[:3], SITE, **given)
    assert several.counts == (8, 12)
    examples = several.examples(SITE, 0, 20)
    for one in examples:
        prompts = POSITIVE[:2] if one.positive else NEGATIVE[:3]
        assert one.input == prompts[one.number % (2 * len(prompts)) // 2]
    strip = experts.strip(image_pipe, several, SITE, 0, POSITIVE[:2], NEGATIVE[:3], most=1, least=0, call=call)
    top = examples[0]
    prompts = POSITIVE[:2] if top.positive else NEGATIVE[:3]
    row, k = divmod(top.number % (2 * len(prompts)), 2)
    ((*both,),) = pictures_of_rows(image_pipe, {"prompt": prompts}, [row], call=call)
    assert len(both) == 2
    assert np.array_equal(pixels(both[k]), pixels(strip))


def test_what_does_not_go_with_a_strip_is_refused(image_pipe, ranking, llama, texts, tokenizer):
    def strip(pipe=image_pipe, ranking=ranking, site=SITE, unit=0, positive=POSITIVE, negative=NEGATIVE, **how):
        return experts.strip(pipe, ranking, site, unit, positive, negative, **{"call": IMAGE_CALL, **how})

    with pytest.raises(TypeError, match="pipe: expected a pipeline, which makes pictures, got a UNet2DConditionModel"):
        strip(image_pipe.unet)
    with pytest.raises(
        ValueError, match="expected one of a pipeline's units, made by lineas.experts.rank, got another"
    ):
        strip(ranking=experts.rank(llama, *texts, tokenizer=tokenizer))
    with pytest.raises(
        ValueError, match=r"call: expected that of the ranking, \{'num_inference_steps': 1, .* got \{\}"
    ):
        strip(call=None)
    with pytest.raises(ValueError, match="negative: expected the inputs of the ranking, with 8 responses, got 3"):
        strip(negative=NEGATIVE[:3])
    with pytest.raises(ValueError, match="expected the inputs of the ranking, such as '.*', got others"):
        strip(positive=POSITIVE[::-1])
    with pytest.raises(LookupError, match="expected one of its 112 units, got 112"):
        strip(unit=112)
    with pytest.raises(LookupError, match="no scores for site 'conv_in'"):
        strip(site="conv_in")
    with pytest.raises(ValueError, match="most, least: expected at least one picture, got none"):
        strip(most=0, least=0)


def test_another_steering_than_at_the_ranking_is_warned_of(image_pipe, fitted_image_pipe, ranking):
    with fitted_image_pipe.apply(image_pipe), pytest.warns(UserWarning, match="expected what was on the pipeline when"):
        experts.strip(image_pipe, ranking, SITE, 0, POSITIVE, NEGATIVE, most=1, least=0, call=IMAGE_CALL)


def test_options_that_do_not_go_with_what_is_ranked_are_refused(image_pipe, llama, texts, tokenizer):
    with pytest.raises(ValueError, match="call, at: for a pipeline only, got a LlamaForCausalLM"):
        experts.rank(llama, *texts, tokenizer=tokenizer, call=IMAGE_CALL, at="all")
    with pytest.raises(ValueError, match="component: goes with a pipeline"):
        experts.rank(llama, *texts, tokenizer=tokenizer, component="unet")
    with pytest.raises(ValueError, match="max_length: not for a pipeline"):
        experts.rank(image_pipe, POSITIVE, NEGATIVE, SITE, call=IMAGE_CALL, max_length=9)
    with pytest.raises(ValueError, match="tokenizer: not for a pipeline"):
        experts.significance(image_pipe, POSITIVE, NEGATIVE, SITE, call=IMAGE_CALL, tokenizer=tokenizer)


def test_concepts_and_shifts_of_a_pipeline_are_looked_at_likewise(image_pipe, ranking):
    two = {"snow": POSITIVE[:4], "none": NEGATIVE[:4]}
    found = experts.rank_concepts(image_pipe, two, sites=SITE, call=IMAGE_CALL)
    alone = experts.rank(image_pipe, POSITIVE[:4], NEGATIVE[:4], SITE, call=IMAGE_CALL)
    assert np.array_equal(found["snow"].score(SITE), alone.score(SITE))
    assert found["snow"].examples(SITE, 7) == alone.examples(SITE, 7)
    tested = experts.significance(image_pipe, POSITIVE, NEGATIVE, SITE, call=IMAGE_CALL, n_permutations=99)
    assert tested.info["pipeline"]["component"] == "unet"
    assert tested.p_value(SITE).min() < 0.05


def test_units_of_another_network_of_the_pipeline_are_ranked(image_pipe):
    names = [one.name for one in lineas.find_sites(image_pipe, component="text_encoder")]
    site = next(name for name in names if name.endswith("1.layer_norm2"))
    found = experts.rank(image_pipe, POSITIVE, NEGATIVE, site, component="text_encoder", call=IMAGE_CALL)
    assert found.info["pipeline"]["component"] == "text_encoder"
    strip = experts.strip(image_pipe, found, site, 0, POSITIVE, NEGATIVE, most=1, least=1, call=IMAGE_CALL)
    assert len(panels(strip, 2, first_of_least=1)) == 2
