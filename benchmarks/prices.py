"""What strengths cost: by which text it is measured, and how well a fit predicts it.

    python benchmarks/prices.py [--tasks sentiment,tone,toxicity] [--draws 0,1] [--json FILE] [--table] [--write PAGE]

SmolLM2-135M-Instruct, default fits on 32 + 32 texts. The strength for +5% perplexity and for 0.05 nats a token, by text
that the model writes itself (three seeds of 32 texts) and by 80 newspaper sentences; beside them the strength at which
the fit predicts 0.05 nats, which costs no pass at all. The JSON file gains a line for every fit, and what it holds is
not fitted again.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import _records
import numpy as np

import lineas
from lineas import samples

ROOT = Path(__file__).resolve().parents[1]
JSON = Path(__file__).parent / "data" / "prices.jsonl"
SEEDS, COUNT, NATS = (0, 1, 2), 32, 0.05


def toxicity(draw: int) -> tuple[list[str], list[str]]:
    import csv
    import random

    rows = list(csv.DictReader((Path(__file__).parent / "data" / "toxicity_en.csv").read_text().splitlines()))
    lots = random.Random(draw)
    sides = ([row["text"] for row in rows if row["is_toxic"] == word] for word in "10")
    toxic, polite = (lots.sample(side, COUNT) for side in sides)
    return toxic, polite


TASKS = {
    "sentiment": lambda draw: samples.movie_reviews(COUNT, draw),
    "tone": lambda draw: samples.formal_and_casual(COUNT, draw),
    "toxicity": toxicity,
}


def row(model: Any, tokenizer: Any, task: str, draw: int) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "at strength 1 the maps")
        steering = lineas.fit(model, *TASKS[task](draw), tokenizer=tokenizer, seed=draw, progress=False)
    predicted = steering.info["predicted_kl"]
    found: dict[str, Any] = {
        "task": task,
        "draw": draw,
        "predicted_kl": predicted,
        "evaluations": steering.info["evaluations"],
    }

    def strengths(texts: list[str] | None, seed: int) -> dict[str, float]:
        options: dict[str, Any] = {"tokenizer": tokenizer, "seed": seed, "progress": False}
        dial = lineas.calibrate(steering, model, texts, budget="+5%", **options)
        try:
            nats = dial.strength_for(f"{NATS} nats")
        except ValueError:  # beyond what was measured
            nats = lineas.calibrate(steering, model, texts, budget=f"{NATS} nats", **options).strength_for(
                f"{NATS} nats"
            )
        return {"+5%": dial.strength_for("+5%"), "nats": nats}

    return found | {
        "own": [strengths(None, seed) for seed in SEEDS],
        "news": strengths(samples.neutral_sentences(), 0),
    }


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| task | draw | +5%: own text | +5%: newspapers | 0.05 nats: own text | 0.05 nats: newspapers | predicted |"
    yield "|---|---|---|---|---|---|---|"
    for found in rows:
        own = {key: [one[key] for one in found["own"]] for key in ("+5%", "nats")}
        cells = [f"{np.mean(own['+5%']):.2f} ({min(own['+5%']):.2f} to {max(own['+5%']):.2f})"]
        cells += [f"{found['news']['+5%']:.2f}", f"{np.mean(own['nats']):.2f}", f"{found['news']['nats']:.2f}"]
        cells += [f"{(NATS / found['predicted_kl']) ** 0.5:.2f}"]
        yield f"| {found['task']} | {found['draw']} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--draws", default="0,1")
    parser.add_argument("--json", metavar="FILE", type=Path, default=JSON, help="one line for each fit")
    parser.add_argument("--table", action="store_true", help="fit nothing; show what the file holds")
    parser.add_argument("--write", metavar="PAGE", type=Path, help="put the table into a page, between its marks")
    asked = parser.parse_args()
    rows = _records.read(asked.json)
    if not (asked.table or asked.write):
        sys.path.insert(0, str(ROOT / "examples"))
        import embedded_model

        model, tokenizer = embedded_model.load()
        known = {(found["task"], found["draw"]) for found in rows}
        for draw in map(int, asked.draws.split(",")):
            for task in asked.tasks.split(","):
                if (task, draw) not in known:
                    rows.append(row(model, tokenizer, task, draw))
                    print(rows[-1], flush=True)
                    _records.keep(asked.json, rows[-1])
    shown = list(table(rows))
    print("\n".join(shown))
    if asked.write:
        _records.write(asked.write, "prices", shown)


if __name__ == "__main__":
    main()
