"""Files, cards and names know pipelines: which one, which network of it, and how it was called."""

import ast
import re

import pytest
import torch
from conftest import IMAGE_CALL, IMAGE_MODEL, random_maps, tiny

import lineas
from lineas import Steering
from lineas.maps.card import CARD, GRID
from lineas.network.identity import folder_in_pipeline, name_of, weights_digest

INFO = {
    "model": "org/pictures", "model_class": "UNet2DConditionModel",
    "pipeline": {
        "class": "StableDiffusionPipeline", "component": "unet", "call": IMAGE_CALL, "at": [0], "steps": 1,
    },
}  # fmt: skip
MAPS = {"conv_out": ([1.5, 1], [0, 2])}


def card_of(folder):
    return (folder / CARD).read_text(encoding="utf-8")


def example_of(text):
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return code


def picture(colour="red"):
    image = pytest.importorskip("PIL.Image")
    return image.new("RGB", (8, 4), colour)


# -- the card --


def test_a_fits_card_names_the_pipeline_its_network_and_how_it_was_called(fitted_image_pipe, tmp_path):
    fitted_image_pipe.save_pretrained(tmp_path)
    text = card_of(tmp_path)
    for row in (
        "| model | `pipeline` |", "| its class | `UNet2DConditionModel` |",
        "| pipeline | `StableDiffusionPipeline` |", "| its network that is steered | `unet` |",
        '| called with | `{"num_inference_steps": 1, "guidance_scale": 0.0}` |', "| steps that counted | `[0]` |",
        "| steps of a call | `1` |",
    ):  # fmt: skip
        assert row in text, row
    assert Steering.from_pretrained(tmp_path).info["pipeline"] == fitted_image_pipe.info["pipeline"]


@pytest.mark.slow
def test_the_cards_example_for_a_pipeline_runs(fitted_image_pipe, tmp_path, monkeypatch):
    fitted_image_pipe.save_pretrained(tmp_path)
    code = example_of(card_of(tmp_path))
    assert "num_inference_steps=1, guidance_scale=0.0" in code
    code = code.replace("the folder of pipeline", str(IMAGE_MODEL / "pipeline"))
    names = {}
    exec(code.replace("this folder or repository", str(tmp_path)), names)
    assert names["picture"].size == (64, 64)


def test_a_language_models_card_has_no_word_of_pipelines(steering, tmp_path):
    steering.save_pretrained(tmp_path)
    text = card_of(tmp_path)
    assert "transformers" in text
    assert not any(word in text for word in ("diffusers", "pipeline", GRID))


# -- the grid --


@pytest.mark.parametrize("kind", ["image", "path", "str"])
def test_a_grid_lies_beside_the_card_which_shows_it(kind, tmp_path):
    image = picture()
    image.save(tmp_path / "mine.png")
    given = {"image": image, "path": tmp_path / "mine.png", "str": str(tmp_path / "mine.png")}[kind]
    Steering(MAPS, info=INFO).save_pretrained(tmp_path / "maps", grid=given)
    from PIL import Image

    with Image.open(tmp_path / "maps" / GRID) as got:
        assert (got.format, got.getpixel((0, 0))) == ("PNG", (255, 0, 0))
    assert f"]({GRID})\n" in card_of(tmp_path / "maps")
    assert Steering.from_pretrained(tmp_path / "maps").info == INFO
    Steering(MAPS, info=INFO).save_pretrained(tmp_path / "maps", grid=picture("blue"))
    with Image.open(tmp_path / "maps" / GRID) as got:
        assert got.getpixel((0, 0)) == (0, 0, 255)
    Steering(MAPS, info=INFO).save_pretrained(tmp_path / "maps")
    assert GRID not in card_of(tmp_path / "maps"), "it would show pictures of other maps"
    assert not (tmp_path / "maps" / GRID).exists()
    picture().save(tmp_path / "maps" / GRID)
    Steering(MAPS, info=INFO).save_pretrained(tmp_path / "maps")
    assert (tmp_path / "maps" / GRID).exists(), "somebody else's, which no card of ours shows"


def test_what_is_no_picture_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "text.png").write_text("<script>")
    for grid, error, message in (
        (5, TypeError, "grid: expected a PIL image, or the path of a PNG file, got int"),
        (tmp_path / "text.png", ValueError, "grid: expected a PNG file, got .*text.png, which is none"),
        (tmp_path / "none.png", FileNotFoundError, "no .*none.png"),
    ):
        with pytest.raises(error, match=message):
            Steering(MAPS).save_pretrained(tmp_path / "maps", grid=grid)
    assert not (tmp_path / "maps").exists()


def test_a_card_that_somebody_made_their_own_stays_and_a_warning_says_so(tmp_path):
    (tmp_path / CARD).write_text("mine")
    with pytest.warns(UserWarning, match=f"expected a card of lineas to show the picture, .* {GRID} lies beside it"):
        Steering(MAPS).save_pretrained(tmp_path, grid=picture())
    assert card_of(tmp_path) == "mine"
    assert (tmp_path / GRID).exists()


# -- files from strangers --

STRANGE = [
    5, "unet", ["unet"], None, {}, {"component": 5}, {"component": ["unet"]}, {"component": "u" * 10**6},
    {"component": {"unet": {}}, "call": 5}, {"component": "unet", "call": "guidance_scale"},
    {"component": "unet", "call": {"height": 10**9, "num_images_per_prompt": 10**9, "num_inference_steps": 1e300}},
    {"component": "unet", "call": {"height": 4096, "width": 4096, "num_frames": 4096}},
    {"component": "unet", "call": {"no such argument": 1, "x); import os; os.system('true') #": 1, "lambda": 1}},
    {"component": "unet", "call": {"negative_prompt": "```\n</code><script>", "prompt": '"); evil("'}},
    {"component": "\x1b[2J|<script>`", "class": "\x1b[2J|<script>`", "at": {"a": []}, "steps": "x" * 10**6},
]  # fmt: skip


@pytest.mark.parametrize("facts", STRANGE, ids=[f"{facts!r:.40}" for facts in STRANGE])
def test_whatever_a_file_says_of_its_pipeline_does_no_harm(facts, image_pipe, tmp_path):
    maps = {"conv_norm_out": (torch.full((80,), 1.5), torch.zeros(80))}
    Steering(maps, info={"pipeline": facts}).save_pretrained(tmp_path)
    text = card_of(tmp_path)
    ast.parse(example_of(text))
    assert len(text) < 10**4
    assert "\x1b" not in text
    again = Steering.from_pretrained(tmp_path)
    assert "\x1b" not in again.summary()
    assert len(again.summary()) < 2000
    assert "<script" not in again._repr_html_()
    known = facts.get("component") if isinstance(facts, dict) else None
    if isinstance(known, str) and known != "unet":
        with pytest.raises(LookupError, match="component: StableDiffusionPipeline has no network") as caught:
            again.attach(image_pipe)
        assert len(str(caught.value)) < 500
        with pytest.raises(ValueError, match="component: expected the network that was fitted") as caught:
            again.attach(image_pipe, component="unet")
        assert len(str(caught.value)) < 500
        return
    again.attach(image_pipe).remove()
    assert again.merge_plan(image_pipe).refused == []


def test_what_the_example_calls_the_pipeline_with_is_what_the_fit_did_as_far_as_it_is_plain(tmp_path):
    told = {"height": 64, "guidance_scale": 2.5, "clean": True, "negative_prompt": 'a "b"', "nothing": None,
            "num_images_per_prompt": 2, "x y": 1, "prompt": "p"}  # fmt: skip
    Steering(MAPS, info={"pipeline": {**INFO["pipeline"], "call": told}}).save_pretrained(tmp_path)
    line = next(line for line in example_of(card_of(tmp_path)).splitlines() if "pipe(" in line)
    assert line.strip() == (
        'picture = pipe("a prompt", height=64, guidance_scale=2.5, clean=True, negative_prompt="a \\"b\\"", '
        "nothing=None).images[0]"
    )


# -- one network's maps, and another network --


def test_a_steering_of_one_network_of_a_pipeline_refuses_another(image_pipe, fitted_image_pipe):
    with pytest.raises(ValueError, match="component: expected the network that was fitted, 'unet', got 'vae'"):
        fitted_image_pipe.attach(image_pipe, component="vae")
    with pytest.raises(ValueError, match="maps of one network of the pipeline, got 'unet' and 'vae'; attach them"):
        lineas.attach(image_pipe, [fitted_image_pipe, Steering(MAPS, info={"pipeline": {"component": "vae"}})])
    said = "fitted on, 'unet' of a pipeline, a UNet2DConditionModel; got a CLIPTextModel, 'text_encoder' of one"
    with pytest.raises(ValueError, match=said):
        fitted_image_pipe.attach(image_pipe.text_encoder)
    fitted_image_pipe.attach(image_pipe.unet).remove()


def test_of_two_networks_of_one_class_the_folder_tells_and_strict_lets_pass():
    model = tiny("llama")
    model.name_or_path = "/somewhere/pictures/text_encoder_2"
    maps = random_maps(model)
    info = {"model": "pictures", "model_class": "LlamaForCausalLM", "pipeline": {"component": "text_encoder"}}
    steering = Steering({name: (maps.weight(name), maps.bias(name)) for name in maps.sites}, info=info)
    with pytest.raises(ValueError, match="'text_encoder' of a pipeline.*'text_encoder_2' of one.*strict=False"):
        steering.attach(model)
    steering.attach(model, strict=False).remove()
    model.name_or_path = "/somewhere/pictures/text_encoder"
    steering.attach(model).remove()


# -- names --


def test_a_pipelines_networks_have_its_name(image_pipe):
    assert name_of(image_pipe.unet) == name_of(image_pipe.text_encoder) == name_of(image_pipe.vae) == "pipeline"
    assert folder_in_pipeline(image_pipe.unet) == "unet"


@pytest.mark.parametrize(
    ("path", "name", "folder"),
    [
        ("/c/hub/models--org--sd/snapshots/0123456789abcdef/unet", "org/sd", "unet"),
        ("/gone/pictures/unet", "pictures", "unet"), ("./gone/pictures/text_encoder_2/", "pictures", "text_encoder_2"),
        ("org/unet", "org/unet", ""), ("/gone/models/tiny", "tiny", ""), ("unet", "unet", ""), ("", "", ""),
    ],
)  # fmt: skip
def test_a_network_in_a_folder_of_a_pipeline_has_the_pipelines_name(path, name, folder):
    model = tiny("llama")
    model.name_or_path = path
    assert (name_of(model), folder_in_pipeline(model)) == (name, folder)


def test_a_folder_called_unet_that_is_in_no_pipeline_keeps_its_own_name(tmp_path):
    (tmp_path / "unet").mkdir()
    model = tiny("llama")
    model.name_or_path = str(tmp_path / "unet")
    assert (name_of(model), folder_in_pipeline(model)) == ("unet", "")
    (tmp_path / "model_index.json").write_text("{}")
    assert (name_of(model), folder_in_pipeline(model)) == (tmp_path.name, "unet")
    model.name_or_path = str(tmp_path / "unet" / "..")
    assert folder_in_pipeline(model) == ""


def other_weights(path):
    model = tiny("llama")
    model.name_or_path = path
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    return model


@pytest.mark.parametrize("base", ["pictures", "org/pictures"])
def test_networks_of_two_pipelines_are_told_apart_and_one_elsewhere_is_recognised(base):
    model = tiny("llama")
    maps = random_maps(model)
    info = {"model": base, "model_class": "LlamaForCausalLM", "weights": weights_digest(model)}
    info |= {"dtype": "float32", "pipeline": {"component": "unet"}}
    steering = Steering({name: (maps.weight(name), maps.bias(name)) for name in maps.sites}, info=info)
    with pytest.raises(ValueError, match=f"fitted on, '{base}', .* got 'drawings', with other weights"):
        steering.attach(other_weights("/models/drawings/unet"))
    with pytest.warns(UserWarning, match="expected the weights that the steering was fitted on"):
        steering.attach(other_weights("/elsewhere/pictures/unet")).remove()
    model.name_or_path = "/renamed/drawings/unet"
    steering.attach(model).remove()


def test_a_file_that_has_only_the_folders_name_stays_usable():
    """So the first fits of a pipeline's network wrote it."""
    maps = random_maps(tiny("llama"))
    info = {"model": "unet", "model_class": "LlamaForCausalLM", "weights": "another", "dtype": "float32"}
    steering = Steering({name: (maps.weight(name), maps.bias(name)) for name in maps.sites}, info=info)
    with pytest.warns(UserWarning, match="expected the weights that the steering was fitted on"):
        steering.attach(other_weights("/models/pictures/unet")).remove()
