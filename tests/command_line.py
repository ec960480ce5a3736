"""What the tests of the command line share: a command run here, and a folder with what its examples name."""

import json
import shlex
from pathlib import Path

import pytest
from conftest import IMAGE_MODEL, image_captions, minding_model, small_tokenizer
from typer.testing import CliRunner

import lineas
from lineas import samples
from lineas_cli.app import app

INSTALLED = str(Path(lineas.__file__).parents[1])
FIT = "fit model --src from.txt --tgt to.txt --out polite --force"


def run(line, code=0, **how):
    """What a command puts out, after a look at its exit code."""
    result = CliRunner().invoke(app, shlex.split(line), prog_name="lineas", **how)
    assert result.exit_code == code, result.output
    return result


def objects(line, **how):
    return [json.loads(row) for row in run(f"{line} --json", **how).stdout.splitlines()]


def fill(folder: Path) -> None:
    """A model, two files of texts, and the steering that fit makes of them."""
    tokenizer = small_tokenizer()
    model = minding_model(len(tokenizer))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, texts in zip(("from.txt", "to.txt"), samples.movie_reviews(12), strict=True):
        (folder / name).write_text("\n".join(texts), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(FIT)


def fill_with_pipeline(folder: Path) -> None:
    """A pipeline, a judge of its pictures, and two files of prompts."""
    pytest.importorskip("diffusers")
    (folder / "painter").symlink_to(IMAGE_MODEL / "pipeline")
    (folder / "judge.safetensors").symlink_to(IMAGE_MODEL / "judge.safetensors")
    for name, prompts in zip(("plain.txt", "snowy.txt"), image_captions(4), strict=True):
        (folder / name).write_text("\n".join(prompts), encoding="utf-8")
