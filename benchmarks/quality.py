"""What a fit is worth: held-out sentences, perplexity of neutral text, and what the model writes.

    python benchmarks/quality.py [--task sentiment] [--seeds 0,1,2,3] [--methods published,wasserstein,excess]
                                 [--strengths 1,2] [--count 256] [--json FILE]

Every seed draws other sentences to fit on (32 + 32), other held-out ones (100 + 100), and other random numbers for the
continuations. `held-out` is the loss of held-out sentences relative to no steering, `perplexity` that of 80 newspaper
sentences, `effect` the mean score of `count` continuations: VADER's compound for sentiment (-1 to 1), one less the
profanity classifier's probability for toxicity. They continue 16 neutral prompts; those of the task `provoked`, else as
toxicity, are the beginnings of 64 toxic comments that are in no other set. A first run takes hours on a laptop;
the JSON file gains a line for every measurement, and what it holds is not measured again.
"""

import argparse
import csv
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

import embedded_model  # noqa: E402

import lineas  # noqa: E402
from lineas import evaluation, samples  # noqa: E402

FITTED, HELD_OUT = 32, 100
TASKS = ("sentiment", "toxicity", "provoked")
PROVOKING, BEGINNING = 64, 6  # prompts, and words of a comment that make one
# The published recipe goes a distance of 50 in 1000 steps: here in 25, which ends in about the same place.
METHODS: dict[str, dict[str, Any]] = {
    "published": {"recipe": "published", "learning_rate": 4.0, "steps": 25},
    "wasserstein": {"loss": "wasserstein"},
    "excess": {"loss": "excess"},
    "significant": {"loss": "significant"},
}


def sentences(task: str, seed: int) -> tuple[list[list[str]], Sequence[str]]:
    """Source and target to fit on, source and target held out; and the prompts."""
    if task == "sentiment":
        both = list(samples.movie_reviews(160, 0))
    else:
        with open(HERE / "data" / "toxicity_en.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        both = [[row["text"] for row in rows if row["is_toxic"] == label] for label in "10"]
    drawn = [random.Random(seed).sample(texts, FITTED + HELD_OUT) for texts in both]
    sets = [texts[:FITTED] for texts in drawn] + [texts[FITTED:] for texts in drawn]
    if task != "provoked":
        return sets, samples.PROMPTS
    rest = [text.split() for text in both[0] if text not in drawn[0]]
    longer = [words for words in rest if len(words) >= 2 * BEGINNING]
    return sets, [" ".join(words[:BEGINNING]) for words in random.Random(seed).sample(longer, PROVOKING)]


def scorer(task: str) -> Callable[[list[str]], np.ndarray]:
    """Scores of which more is better."""
    found = evaluation.scorer("sentiment" if task == "sentiment" else "toxicity")
    return found if found.better == "higher" else lambda texts: 1 - found(texts)


def held_out_loss(model, tokenizer, source: list[str], target: list[str], steering, strength: float) -> float:
    """The loss at the steering's sites, of sentences that it never saw."""

    def responses(texts):
        return evaluation.responses(model, sorted(texts, key=len), steering.sites, tokenizer=tokenizer, batch_size=25)

    goal = responses(target)
    with steering.apply(model, strength):
        return evaluation.distance(responses(source), goal)


def measure(
    model, tokenizer, steering, strength: float, held: list[list[str]], prompts: Sequence[str], score, count: int,
    seed: int,
) -> dict:  # fmt: skip
    row: dict[str, Any] = {"held_out": held_out_loss(model, tokenizer, *held, steering, strength)}
    neutral = sorted(samples.neutral_sentences(80), key=len)
    with steering.apply(model, strength):
        row["perplexity"] = evaluation.perplexity(model, neutral, tokenizer=tokenizer)
        texts = evaluation.continuations(
            model, prompts, tokenizer=tokenizer, count=count // len(prompts), seed=seed, batch_size=256
        )
    scores = score(texts)
    return row | {"effect": float(scores.mean()), "error": float(scores.std(ddof=1) / len(scores) ** 0.5)}


def run(task: str, seed: int, methods: list[str], strengths: list[float], count: int, known: set) -> Iterator[dict]:
    model, tokenizer = embedded_model.load()
    (*fitted, held_source, held_target), prompts = sentences(task, seed)
    score = scorer(task)
    for name in methods:
        missing = [s for s in strengths if (task, seed, name, s) not in known]
        if not missing:
            continue
        steering = lineas.fit(model, *fitted, tokenizer=tokenizer, max_length=64, progress=False, **METHODS[name])
        evaluations = steering.info["evaluations"]
        for strength in missing:
            row = measure(model, tokenizer, steering, strength, [held_source, held_target], prompts, score, count, seed)
            yield {"task": task, "seed": seed, "method": name, "strength": strength, "evaluations": evaluations, **row}


def table(rows: list[dict]) -> Iterator[str]:
    """Means over the seeds; errors are those of the mean over seeds."""
    yield f"{'':34} seeds  held-out  perplexity           effect"
    zero = {(r["task"], r["seed"]): r for r in rows if r["strength"] == 0}
    for task, name, strength in sorted({(r["task"], r["method"], r["strength"]) for r in rows}):
        mine = [r for r in rows if (r["task"], r["method"], r["strength"]) == (task, name, strength)]
        mine = [(r, zero[task, r["seed"]]) for r in mine if (task, r["seed"]) in zero]
        if not mine:
            continue
        held = np.mean([r["held_out"] / base["held_out"] for r, base in mine])
        perplexity = np.mean([r["perplexity"] / base["perplexity"] - 1 for r, base in mine])
        gains = np.array([r["effect"] - base["effect"] for r, base in mine])
        error = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        evaluations = np.mean([r["evaluations"] for r, _ in mine])
        yield (
            f"{task:10} {name:12} {strength:4g} {evaluations:5.1f} {len(mine):6} {held:9.3f} {perplexity:+11.1%}"
            f" {gains.mean():+9.3f} +- {error:.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sentiment", choices=TASKS)
    parser.add_argument("--seeds", default="0,1,2,3")
    parser.add_argument("--methods", default="published,wasserstein,excess", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--strengths", default="1,2", help="0 is measured once for each seed, too")
    parser.add_argument("--count", type=int, default=256, help="continuations, as many of each prompt")
    parser.add_argument("--json", metavar="FILE", type=Path, help="one line for each measurement")
    asked = parser.parse_args()
    rows = (
        [json.loads(line) for line in asked.json.read_text().splitlines()] if asked.json and asked.json.exists() else []
    )
    known = {(r["task"], r["seed"], r["method"], r["strength"]) for r in rows}
    for seed in map(int, asked.seeds.split(",")):
        strengths = [float(s) for s in asked.strengths.split(",")]
        for names, at in ((["none"], [0.0]), (asked.methods.split(","), strengths)):
            for row in run(asked.task, seed, names, at, asked.count, known):
                rows.append(row)
                print(json.dumps(row), flush=True)
                if asked.json:
                    with asked.json.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    print("\n".join(table(rows)))


METHODS["none"] = {"max_evaluations": 1}

if __name__ == "__main__":
    main()
