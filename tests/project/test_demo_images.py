"""The demo of pictures: its own code on the trained pipeline, with little of everything."""

import numpy as np
import pytest
from conftest import load_example
from image_model import trained_pipeline
from PIL import Image

import lineas


@pytest.mark.slow
def test_the_demo_steers_pictures_and_draws_them(tmp_path, capsys):
    trained_pipeline()  # or skip
    demo = load_example("steer_pictures")
    out = tmp_path / "pictures" / "images.png"
    tasks = [demo.Task("snow", True, "mean"), demo.Task("heart", False, "max")]
    reports = demo.run(samples=8, prompts=6, tasks=tasks, max_evaluations=6, out=str(out))
    for task, report in zip(tasks, reports, strict=True):
        assert [row["strength"] for row in report.rows()] == [0.0, *demo.STRENGTHS]
        assert list(report.measures) == [task.concept, "subject", "pixel_change"]
        changes = [row["pixel_change"] for row in report.rows()]
        assert changes == sorted(changes), "the stronger, the further"
        assert changes[-1] > 0.02
        assert (report.estimate(task.concept).value > 0.5) == task.takes_out
        assert report.estimate("subject").value > 0.5
        steering = lineas.Steering.from_pretrained(out.with_suffix("") / task.name.replace(" ", "_"))
        assert steering.info["evaluations"] == 6
    picture = np.asarray(Image.open(out))
    assert picture.shape[0] > 2 * 4 * 96, "two tasks of four prompts"
    printed = capsys.readouterr().out
    for text in ("snow out: from 8 captions such as", "6 evaluations", "subject kept", "change of pixels", str(out)):
        assert text in printed
