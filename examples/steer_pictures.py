"""`make demo-images`: take snow out of pictures, put a heart in, give grey ones colours; and look at what it cost.

The model is the small text-to-image pipeline in image_model, loaded with plain diffusers; its judge says what is in a
picture. Nothing is downloaded.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import lineas
from lineas import evaluation

FOLDER = Path(__file__).parent / "image_model"
CALL = {"num_inference_steps": 1, "guidance_scale": 0.0}
STRENGTHS = (0.5, 0.75, 1.0, 1.25, 1.5)


class Task(NamedTuple):
    """A concept to put into pictures, or to take out of them."""

    concept: str
    takes_out: bool
    pooling: str

    @property
    def name(self) -> str:
        return f"{self.concept} out" if self.takes_out else f"{self.concept} in"


# A small thing moves the maximum over pixels, and not their mean. Of subjects in grey pictures the judge knows four in
# ten, with steering or without.
TASKS = (Task("snow", True, "mean"), Task("heart", False, "max"), Task("greyscale", True, "max"))


def load():
    import diffusers
    import transformers

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(FOLDER / "pipeline", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measure(pipe, judge: evaluation.Judge, task: Task, steering: lineas.Steering, items: Sequence[dict]):
    """On captions and noise that the fit has not seen."""
    return lineas.evaluate(
        pipe, {task.name: steering}, prompts=[item["prompt"] for item in items], strengths=STRENGTHS,
        scorers=[judge.presence(task.concept), judge.subject([item["subject"] for item in items])], call=CALL,
        batch_size=16, pictures=4,
    )  # fmt: skip


def print_table(report: evaluation.Report, concept: str) -> None:
    print(f"\nstrength   {concept:>16}   {'subject kept':>16}   {'change of pixels':>16}")
    for row in report.rows():
        cells = (
            f"{row[name]:.2f} ({row[f'{name}_low']:.2f}-{row[f'{name}_high']:.2f})" for name in (concept, "subject")
        )
        print(f"{row['strength']:8.2f}   {'   '.join(f'{cell:>16}' for cell in cells)}   {row['pixel_change']:16.3f}")


def draw(reports: Sequence[evaluation.Report], path: Path) -> None:
    """All grids below one another, as one file."""
    from PIL import Image

    grids = [report.grid() for report in reports]
    sheet = Image.new("RGB", (max(grid.width for grid in grids), sum(grid.height + 20 for grid in grids)), "white")
    top = 0
    for grid in grids:
        sheet.paste(grid, (0, top))
        top += grid.height + 20
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def run(
    *, samples: int = 32, prompts: int = 40, tasks: Sequence[Task] = TASKS, max_evaluations: int | None = None,
    out: str = "out/images.png",
) -> list[evaluation.Report]:  # fmt: skip
    """The whole demo; the tests call it with less of everything."""
    started = time.perf_counter()
    pipe, judge = load(), evaluation.Judge.from_file(FOLDER / "judge.safetensors")
    captions = json.loads((FOLDER / "prompts.json").read_text(encoding="utf-8"))
    reports = []
    for task in tasks:
        plain, concept = captions["without"], captions["with"][task.concept]
        source, target = (concept, plain) if task.takes_out else (plain, concept)
        print(f"\n{task.name}: from {samples} captions such as {source['fit'][0]!r}, to {target['fit'][0]!r} ...")
        steering = lineas.fit(
            pipe, source["fit"][:samples], target["fit"][:samples], call=CALL, pooling=task.pooling,
            max_evaluations=max_evaluations,
        )  # fmt: skip
        print(f"{steering}: {steering.info['evaluations']} evaluations in {steering.info['seconds']:.0f} s")
        reports.append(measure(pipe, judge, task, steering, source["test"][:prompts]))
        print_table(reports[-1], task.concept)
        steering.save_pretrained(Path(out).with_suffix("") / task.name.replace(" ", "_"))
    draw(reports, Path(out))
    print(f"\nPictures: {out}   All: {time.perf_counter() - started:.0f} s")
    return reports


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32, help="captions of a side to fit on")
    parser.add_argument("--prompts", type=int, default=40, help="captions to measure on")
    run(**vars(parser.parse_args()))
