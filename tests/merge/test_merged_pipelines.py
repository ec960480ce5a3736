"""Maps in the weights of a pipeline's network."""

import pytest
import torch
from conftest import assert_untouched, snapshot
from pipelines import CASES, fit, fitted, shared, strong_maps

import lineas

# Sites whose maps fold into plain layers: norms with weights, and linear layers where norms have none.
FOLDING = {
    "StableDiffusion": None,
    "StableDiffusionXL": None,
    "Flux": ".*(ff.net.0.proj|attn.to_out.0)",
    "StableDiffusion3": ".*(ff.net.0.proj|attn.to_out.0)",
    "PixArt": ".*(ff.net.0.proj|to_out.0)",
    "Plain": None,
}


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())


@pytest.mark.parametrize("name", FOLDING)
def test_a_merged_pipeline_is_of_its_class_and_makes_the_pictures_of_the_steered_one(name, tmp_path):
    case, pipe, maps = CASES[name], shared(name), strong_maps(name, sites=FOLDING[name])
    network = lineas.network.pipelines.network_of(pipe)
    before, base = snapshot(network), case.pictures(pipe)
    with maps.apply(pipe, 0.7):
        steered = case.pictures(pipe)
    assert (steered - base).norm() > 1e-2 * base.norm()
    merged = maps.merge(pipe, 0.7, call=case.call)
    assert type(merged) is type(pipe)
    close(case.pictures(merged), steered)
    assert torch.equal(case.pictures(pipe), base)
    assert_untouched(network, before)
    if hasattr(merged, "save_pretrained"):
        merged.save_pretrained(tmp_path)
        absent = {part: None for part, held in merged.components.items() if held is None}
        again = type(pipe).from_pretrained(tmp_path, **absent)
        assert torch.equal(case.pictures(again), case.pictures(merged))
    plain = maps.unmerge(merged, 0.7, call=case.call)
    close(case.pictures(plain), base)


def test_a_merged_pipeline_shares_all_but_its_network():
    pipe = shared("StableDiffusion")
    merged = fitted("StableDiffusion").merge(pipe)
    assert merged.unet is not pipe.unet
    assert all(getattr(merged, name) is part for name, part in pipe.components.items() if name != "unet")
    assert merged.components.keys() == pipe.components.keys()
    assert merged.unet.lineas_merge["error"] < 1e-4


def test_what_is_merged_in_place_is_the_pipeline_itself():
    pipe = CASES["StableDiffusion"].make()
    maps = strong_maps("StableDiffusion")
    with maps.apply(pipe):
        steered = CASES["StableDiffusion"].pictures(pipe)
    unet = pipe.unet
    assert maps.merge(pipe, inplace=True) is pipe
    assert pipe.unet is unet
    close(CASES["StableDiffusion"].pictures(pipe), steered)


def test_maps_of_a_text_encoder_are_merged_into_it(tmp_path):
    case, pipe = CASES["StableDiffusion"], shared("StableDiffusion")
    maps = fit("StableDiffusion", component="text_encoder")
    with maps.apply(pipe, 3.0):
        steered = case.pictures(pipe)
    merged = maps.merge(pipe, 3.0)
    assert merged.unet is pipe.unet
    close(case.pictures(merged), steered)
    merged.save_pretrained(tmp_path)
    close(case.pictures(type(pipe).from_pretrained(tmp_path)), steered)


def test_a_pipeline_without_prompts_is_probed_by_its_seeds():
    case, pipe, maps = CASES["DDPM"], shared("DDPM"), strong_maps("DDPM")
    with maps.apply(pipe):
        steered = case.pictures(pipe)
    close(case.pictures(maps.merge(pipe)), steered)
    close(case.pictures(maps.merge(pipe, probe={"generator": [1, 2]})), steered)


@pytest.mark.parametrize("name", ["Img2Img", "Inpaint", "ControlNet"])
def test_a_pipeline_that_wants_images_is_merged_with_a_probe_that_has_some(name):
    case, pipe, maps = CASES[name], shared(name), strong_maps(name)
    with pytest.raises(ValueError, match="probe: expected one, since .* wants more than two plain prompts .*; pass wh"):
        maps.merge(pipe, call=case.call)
    with maps.apply(pipe):
        steered = case.pictures(pipe)
    close(case.pictures(maps.merge(pipe, probe=case.src, call=case.call)), steered)


def test_the_plan_of_a_pipeline_says_what_becomes_of_each_site():
    plan = fitted("StableDiffusion").merge_plan(shared("StableDiffusion"))
    assert plan.exact
    assert plan.model_class == "UNet2DConditionModel"
    assert {entry.site for entry in plan.sites} == set(fitted("StableDiffusion").sites)


def test_a_pipeline_that_is_steered_is_not_merged():
    pipe, maps = shared("StableDiffusion"), fitted("StableDiffusion")
    with maps.apply(pipe), pytest.raises(RuntimeError, match="a steering is on this model"):
        maps.merge(pipe)
    with pytest.raises(ValueError, match="component: expected the network that was fitted, 'unet', got 'vae'"):
        maps.merge(pipe, component="vae")
    with pytest.raises(TypeError, match="probe: expected prompts"):
        maps.merge(pipe, probe=torch.ones(3))
