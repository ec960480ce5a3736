"""The command line on a pipeline of diffusers: sites, a fit, pictures, a merged pipeline."""

import sys

import numpy as np
import pytest
from command_line import fill_with_pipeline, objects, run
from conftest import IMAGE_CALL, IMAGE_MODEL, image_captions

import lineas
from lineas.network.pipelines.rows import noise_of_rows

CALL = "--call num_inference_steps=1 --call guidance_scale=0.0"
SITES = ["mid_block.resnets.1.norm2", "conv_norm_out"]
FILES = "--src plain.txt --tgt snowy.txt --out snow"
FIT = f"fit painter --pipeline {FILES} --sites 'mid_block.resnets.1.norm2|conv_norm_out' {CALL}"
PROMPTS, SNOWY = image_captions(4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    fill_with_pipeline(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def maps(folder, fitted_image_pipe):
    """A steering of its denoiser in the folder `snow`."""
    fitted_image_pipe.save_pretrained(folder / "snow")
    return fitted_image_pipe


def pixels(picture):
    return np.asarray(picture.convert("RGB")).astype(int)


def read(path):
    from PIL import Image

    return pixels(Image.open(path))


def test_sites_of_a_pipeline_are_those_that_the_library_finds_and_no_weight_is_read(folder, image_pipe, monkeypatch):
    import diffusers

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", None)
    for option, component in (("", None), ("--component text_encoder", "text_encoder")):
        wanted = lineas.find_sites(image_pipe, component=component)
        got = objects(f"sites painter --pipeline {option}")
        assert [(row["name"], row["units"], row["kind"]) for row in got] == [(s.name, s.units, s.kind) for s in wanted]
    assert [row["name"] for row in objects("sites painter --pipeline --sites conv_in")] == ["conv_in"]
    refusal = run("sites painter --pipeline --component unett", code=1).stderr
    assert "cannot load painter: no network unett in it; nearest names: unet" in refusal
    assert "expected a network of diffusers or transformers, got CLIPTokenizer" in (
        run("sites painter --pipeline --component tokenizer", code=1).stderr
    )


def test_fit_does_what_the_library_does_and_inspect_shows_the_pipeline(folder, image_pipe):
    (report,) = objects(f"{FIT} --steps 1 --seed 2 --at 0")
    wanted = lineas.fit(
        image_pipe, PROMPTS, SNOWY, sites=SITES, call=IMAGE_CALL, steps=1, seed=2, at=[0], progress=False
    )
    got, ours = report["info"], wanted.info
    assert {key for key in {*got, *ours} if got.get(key) != ours.get(key)} <= {"seconds", "model"}
    assert report["history"]["loss"] == pytest.approx(wanted.history["loss"], rel=1e-4)
    assert (got["model"], ours["model"]) == ("painter", "pipeline")
    shown = run("inspect snow").stdout
    assert "unet of a StableDiffusionPipeline, fitted at steps [0] of 1\n" in shown
    assert 'pipeline.component: "unet"\n' in shown
    assert "pipeline.call.num_inference_steps: 1\n" in shown


def test_generate_writes_pictures_of_the_same_noise_at_every_strength(folder, image_pipe, maps):
    line = "generate painter --pipeline --steering snow --prompts plain.txt --strength 2 --count 2 --seed 4 --out drawn"
    rows = objects(line)
    names = [f"prompt{k:03d}_strength{s}_seed{seed}.png" for s in (0, 2) for seed in (4, 5) for k in range(4)]
    assert [row["file"] for row in rows] == [f"drawn/{name}" for name in names]
    assert sorted(path.name for path in (folder / "drawn").iterdir()) == sorted(names)
    assert rows[0] == {"prompt": PROMPTS[0], "strength": 0.0, "seed": 4, "file": f"drawn/{names[0]}"}
    for seed in (4, 5):
        base = image_pipe(PROMPTS, generator=lineas.evaluation.generators(seed, 4), **IMAGE_CALL).images
        with maps.apply(image_pipe, 2.0):
            steered = image_pipe(PROMPTS, generator=lineas.evaluation.generators(seed, 4), **IMAGE_CALL).images
        for k in range(4):
            assert np.abs(pixels(base[k]) - read(f"drawn/prompt{k:03d}_strength0_seed{seed}.png")).max() <= 1
            assert np.abs(pixels(steered[k]) - read(f"drawn/prompt{k:03d}_strength2_seed{seed}.png")).max() <= 1
            assert np.abs(pixels(base[k]) - pixels(steered[k])).max() > 5
    assert "expected a folder without results, there is prompt" in run(line, code=1).stderr
    (shown,) = run(
        "generate painter --pipeline --steering snow --prompt 'a cat' --strength 0 --out one"
    ).stdout.splitlines()
    assert shown.split(maxsplit=2) == ["0", "one/prompt000_strength0_seed0.png", "a cat"]


def test_generate_calls_the_pipeline_as_the_fit_did_unless_told(folder, maps):
    line = "generate painter --pipeline --steering snow --prompt 'a boat' --strength 0 --out"
    assert "called with {'num_inference_steps': 1, 'guidance_scale': 0.0}" in run(f"{line} a").stderr
    told = run(f"{line} b --call num_inference_steps=2 --call clip_skip=none").stderr
    assert "called with {'num_inference_steps': 2, 'guidance_scale': 0.0, 'clip_skip': None}" in told
    assert (read("a/prompt000_strength0_seed0.png") != read("b/prompt000_strength0_seed0.png")).any()


def test_evaluate_does_what_the_library_does_and_saves_the_pictures_that_generate_draws(folder, image_pipe, maps):
    judge = f"judge:{IMAGE_MODEL / 'judge.safetensors'}#snow"
    line = "evaluate painter --pipeline --steering snow --prompts plain.txt --strength 2 --seed 4"
    printed = run(f"{line} --scorer '{judge}' --pictures 2 --grid grid.png --out report.json")
    report = lineas.evaluation.Report.from_json("report.json")
    wanted = lineas.evaluate(
        image_pipe, {"snow": maps}, strengths=2, seeds=4, scorers=judge, prompts=PROMPTS, pictures=2, progress=False,
        call=IMAGE_CALL,
    )  # fmt: skip
    assert printed.stdout == f"{report}\n"
    assert report.outcomes == wanted.outcomes
    assert report.drawn == wanted.drawn
    assert (read("grid.png") == pixels(report.grid())).all()
    assert "called with {'num_inference_steps': 1, 'guidance_scale': 0.0}" in printed.stderr
    run("generate painter --pipeline --steering snow --prompts plain.txt --strength 2 --seed 4 --out drawn")
    for strength in (0, 2):
        for k, picture in enumerate(report.pictures(strength)):
            assert np.abs(pixels(picture) - read(f"drawn/prompt{k:03d}_strength{strength}_seed4.png")).max() <= 1
    (base, steered) = objects(f"{line} --call num_inference_steps=2")
    assert (base["steering"], steered["steering"]) == (None, "snow")
    assert steered["pixel_change"] != report.estimate("pixel_change", 2).value, "at two steps"
    refusal = run(f"{line} --grid grid.png", code=1).stderr
    assert "--grid grid.png: expected a new file, this one is there; --force writes over it" in refusal


def test_steerings_that_were_fitted_with_other_calls_are_not_evaluated_with_one(folder, image_pipe, maps):
    other = lineas.fit(
        image_pipe, PROMPTS, SNOWY, sites=SITES, call={**IMAGE_CALL, "num_inference_steps": 2}, steps=1, progress=False
    )
    other.save_pretrained("other")
    line = "evaluate painter --pipeline --steering snow --steering other --prompt 'a boat'"
    assert "expected steerings fitted with one call, got snow: {'num_inference_steps': 1" in run(line, code=1).stderr


def test_merge_saves_a_pipeline_that_needs_no_steering(folder, image_pipe, maps):
    from diffusers import DiffusionPipeline

    (plan,) = objects("merge painter --pipeline --steering snow --plan")
    assert (plan["class"], plan["exact"]) == ("UNet2DConditionModel", True)
    line = "merge painter --pipeline --steering snow --out merged --strength 0.5"
    (record,) = objects(line)
    assert record["error"] <= 1e-4 < record["effect"]
    assert list(record["sites"]) == maps.sites
    assert "there is model_index.json; --force writes over it" in run(line, code=1).stderr
    merged = DiffusionPipeline.from_pretrained("merged")
    with maps.apply(image_pipe, 0.5):
        (wanted,) = image_pipe("a boat", generator=noise_of_rows(0, [0]), **IMAGE_CALL).images
    (got,) = merged("a boat", generator=noise_of_rows(0, [0]), **IMAGE_CALL).images
    assert np.abs(pixels(wanted) - pixels(got)).max() <= 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"fit painter {FILES} --call a=1 --at all", "--call, --at: expected --pipeline with it"),
        (f"fit painter --pipeline {FILES} --model-class AutoModel",
         "--model-class: not for a pipeline"),
        ("generate painter --steering snow --prompt a --out x", "--out: expected --pipeline with it"),
        ("generate painter --pipeline --steering snow --prompt a", "expected --out FOLDER for the pictures, got none"),
        ("generate painter --pipeline --steering snow --prompt a --out x --new-tokens 3 --position last",
         "--new-tokens, --position: not for a pipeline"),
        ("generate painter --pipeline --steering snow --prompt a --out x --call guidance_scale",
         "--call: expected KEY=VALUE, such as guidance_scale=0, got 'guidance_scale'"),
        ("generate painter --pipeline --steering snow --prompt a --out x --call a=1 --call a=2",
         "--call: expected each argument once, got a twice"),
        ("evaluate painter --steering snow --call a=1 --grid x.png --pictures 2",
         "--call, --grid, --pictures: expected --pipeline with it"),
        ("evaluate painter --pipeline --steering snow --prompt a --count 2 --position last --no-prompts",
         "--no-prompts goes without --prompt"),
        ("evaluate painter --pipeline --steering snow --prompt a --count 2 --position last",
         "--count, --position: not for a pipeline"),
        ("evaluate painter --pipeline --steering snow --prompt a --best 0.1",
         "--best: expected a --scorer, whose effect"),
        ("evaluate painter --pipeline --steering snow", "expected --prompt TEXT or --prompts FILE for the pictures"),
        ("evaluate painter --pipeline --steering snow --prompt a --grid x.pdf", "expected a name that ends in .png"),
        ("merge painter --steering snow --plan --component unet", "--component: expected --pipeline with it"),
        ("sites painter --component unet", "--component: expected --pipeline with it"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_with_the_model_are_wrong_usage(folder, line, message):
    assert message in " ".join(run(line, code=2).stderr.split())
    assert not [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]


def test_what_the_pipeline_does_not_take_is_told_in_a_line(folder, maps):
    line = "generate painter --pipeline --steering snow --prompt a --out x"
    said = run(f"{line} --call guidance=1", code=1).stderr
    assert "call: StableDiffusionPipeline takes no guidance; nearest names: guidance_scale" in said
    said = " ".join(run(f"{line} --call num_images_per_prompt=2", code=2).stderr.split())
    assert "expected one picture of a prompt in a call; --count makes several" in said
    (folder / "none").mkdir()
    assert "lineas: error: cannot load none: " in run("sites none --pipeline", code=1).stderr
    assert "max_length: not for a pipeline" in run(f"{FIT} --force --max-length 5", code=1).stderr
    assert "--device auto: not for a pipeline" in run(f"{line} --device auto", code=2).stderr


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("0.0", 0.0), ("-2e-1", -0.2), ("true", True), ("False", False), ("None", None), ("nan", "nan"),
     ("blurry, dark", "blurry, dark"), ("a=b", "a=b"), ("", "")],
)  # fmt: skip
def test_an_argument_of_a_call_is_a_number_a_word_or_text(text, value):
    from lineas_cli.options import arguments

    (found,) = arguments([f"key={text}"]).values()
    assert (found, type(found)) == (value, type(value))


def test_without_diffusers_one_sentence_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    said = run("sites painter --pipeline", code=1).stderr
    assert said == "lineas: error: pipelines need diffusers; install it with: pip install 'lineas[cli,diffusers]'\n"
