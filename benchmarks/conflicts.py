"""Two concepts at once: what is left of each, and whether `lineas.conflict` told so before.

    python benchmarks/conflicts.py [--draws 0,1] [--json FILE] [--known] [--write docs/strength.md]

SmolLM2-135M, five concepts, 32 + 32 texts each, every steering at a predicted price of 0.05 nats a token of neutral
text. An effect is how much likelier held-out targets become than held-out sources, a token: no sampling, and so little
noise. A row is a pair: what is left of both effects where the moves are added, where one is composed with the other,
and what was told before. Rows that the file has are not made again; half an hour on two cores for a draw.
"""

import argparse
import csv
import itertools
import os
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))
os.environ["HF_HUB_OFFLINE"] = "1"

import _records  # noqa: E402
import numpy as np  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402

import lineas  # noqa: E402
from lineas import evaluation  # noqa: E402

JSON = Path(__file__).parent / "data" / "conflicts.jsonl"
TOXIC = Path(__file__).parent / "data" / "toxicity_en.csv"
FITTED, NATS = 32, 0.05
WHO = ("The teacher", "My neighbour", "Our team", "The old man", "His sister", "The driver", "A student", "The mayor",
       "Her uncle", "The doctor")  # fmt: skip
DOES = ("walk", "look", "talk", "work", "play", "call", "ask", "help", "move", "live", "wait", "cook", "clean", "open",
        "start", "stay")  # fmt: skip
WHERE = ("in the garden", "at the station", "before lunch", "with the children", "near the river", "after school",
         "at the office", "in the kitchen")  # fmt: skip
CONCEPTS = ("positive", "casual", "civil", "questions", "past")
Sides = tuple[list[str], list[str]]


def sides(concept: str, draw: int, count: int = 96) -> Sides:
    """Sources and targets, those that are fitted on first; of casual tone no more than there are."""
    lots = random.Random(draw)
    if concept == "positive":
        return lineas.samples.movie_reviews(count, draw)
    if concept == "casual":
        return lineas.samples.formal_and_casual(64, draw)
    if concept == "civil":
        with TOXIC.open(newline="") as file:
            rows = list(csv.DictReader(file))
        kinds = [[row["text"][:200] for row in rows if (row["is_toxic"] == "1") == toxic] for toxic in (True, False)]
        for kind in kinds:
            lots.shuffle(kind)
        return kinds[0][:count], kinds[1][:count]
    plain = list(itertools.product(WHO, DOES, WHERE))
    lots.shuffle(plain)
    statements = [f"{who} {does}s {where}." for who, does, where in plain[:count]]
    others = plain[count : 2 * count]
    if concept == "past":
        return statements, [f"{who} {does.rstrip('e')}ed {where}." for who, does, where in others]
    return statements, [f"Does {who[0].lower()}{who[1:]} {does} {where}?" for who, does, where in others]


def rows(model: Any, tokenizer: Any, draw: int, pairs: Sequence[tuple[str, str]]) -> Iterator[_records.Row]:
    told = {concept: sides(concept, draw) for concept in dict.fromkeys(itertools.chain(*pairs))}
    held = {concept: tuple(side[FITTED:] for side in pair) for concept, pair in told.items()}
    neutral = lineas.samples.neutral_sentences(32)
    steerings = {}
    for concept, pair in told.items():
        fitted = lineas.fit(model, *(side[:FITTED] for side in pair), tokenizer=tokenizer, progress=False)
        price = lineas.conflict(fitted, fitted, model, neutral, tokenizer=tokenizer).prices[0]
        steerings[concept] = float(np.sqrt(NATS / price)) * fitted

    def effects(*concepts: str) -> list[float]:
        return [
            float(
                np.subtract(*(np.log(evaluation.perplexity(model, side, tokenizer=tokenizer)) for side in held[name]))
            )
            for name in concepts
        ]

    for a, b in pairs:
        found = lineas.conflict(
            steerings[a], steerings[b], model, neutral, sets=(held[a], held[b]), tokenizer=tokenizer
        )
        base, alone = effects(a, b), []
        for k, name in enumerate((a, b)):
            with steerings[name].apply(model):
                alone.append(effects(a, b)[k] - base[k])
        row = {"a": a, "b": b, "draw": draw, "told": found.kept, "on_output": found.on_output, "alike": found.alike}
        for how, both in (("added", steerings[a] + steerings[b]), ("composed", steerings[b] @ steerings[a])):
            with both.apply(model):
                row[how] = [(after - at) / own for after, at, own in zip(effects(a, b), base, alone, strict=True)]
        yield row


def table(found: Sequence[_records.Row]) -> Iterator[str]:
    """A line a pair, with the figures of its draws one after the other."""
    yield "| a, b | kept of a | kept of b | told of a | told of b | alike on the output | alike in maps |"
    yield "|---|---|---|---|---|---|---|"

    def pair(row: _records.Row) -> tuple[int, int]:
        return CONCEPTS.index(row["a"]), CONCEPTS.index(row["b"])

    for (a, b), draws in itertools.groupby(sorted(found, key=pair), pair):
        figures = zip(*((*row["added"], *row["told"], row["on_output"], row["alike"]) for row in draws), strict=True)
        cells = ("; ".join(f"{value:.2f}" for value in values) for values in figures)
        yield f"| {CONCEPTS[a]}, {CONCEPTS[b]} | " + " | ".join(cells) + " |"


def summary(found: Sequence[_records.Row]) -> Iterator[str]:
    """Of each draw: what is kept, and whether it was told."""
    for draw in sorted({row["draw"] for row in found}):
        alike = [row for row in found if row["draw"] == draw]
        kept, told = (np.ravel([row[name] for row in alike]) for name in ("added", "told"))
        miss = np.sort(np.abs(kept - told))
        yield (
            f"draw {draw}: kept, median {np.median(kept):.2f}, at least 0.8 by {np.sum(kept >= 0.8)} of {len(kept)}; "
            f"told misses by {miss[:-1].mean():.2f} but for the largest, {miss[-1]:.2f}"
        )
        for name in ("told", "on_output", "alike"):
            values = np.ravel([np.broadcast_to(row[name], 2) for row in alike])
            yield f"draw {draw}: rank correlation of what is kept with {name}: {spearmanr(kept, values)[0]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", default="0,1", help="numbers, separated by commas")
    parser.add_argument("--json", type=Path, default=JSON, help="a line for each pair and draw")
    parser.add_argument("--known", action="store_true", help="only what the file has")
    parser.add_argument("--write", metavar="PAGE", type=Path, help="put the table into this page, between its marks")
    asked = parser.parse_args()
    found = _records.read(asked.json)
    known = {(row["draw"], row["a"], row["b"]) for row in found}
    missing = {
        draw: [pair for pair in itertools.combinations(CONCEPTS, 2) if (draw, *pair) not in known]
        for draw in map(int, asked.draws.split(","))
    }
    if any(missing.values()) and not asked.known:
        import embedded_model

        model, tokenizer = embedded_model.load()
        for draw, pairs in missing.items():
            for row in rows(model, tokenizer, draw, pairs):
                found.append(row)
                _records.keep(asked.json, row)
                print(row, flush=True)
    print("\n".join([*table(found), *summary(found)]))
    if asked.write:
        _records.write(asked.write, "conflicts", table(found))


if __name__ == "__main__":
    main()
