"""Two concepts at once: steerings fitted jointly beside steerings fitted apart and added, and one fitted on both sets.

    python benchmarks/joint.py [--draws 1,2,3] [--pairs civil+questions] [--no-summed] [--json FILE] [--known]
        [--write docs/strength.md]

SmolLM2-135M, 32 + 32 texts a concept, cut at 24 tokens, at most 10 evaluations a fit; every steering at a predicted
price of 0.05 nats a token of neutral text. An effect is how much likelier held-out targets become than held-out
sources, a token, as in `conflicts.py`, whose concepts these are. A row is a pair and a draw: the effects of each fitted
apart and alone, of both added, of one fit on both sets (at the price of both added), and of the joint ones, together
and alone. Rows that the file has are not made again, only given what they lack. A quarter of an hour on one core for
a draw.
"""

import argparse
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "benchmarks")]
os.environ["HF_HUB_OFFLINE"] = "1"

import _records  # noqa: E402
import conflicts  # noqa: E402
import numpy as np  # noqa: E402

import lineas  # noqa: E402
from lineas import evaluation  # noqa: E402
from lineas.fitting.conflict import fisher_rows  # noqa: E402

Row = _records.Row
JSON = Path(__file__).parent / "data" / "joint.jsonl"
FITTED, HELD, TOKENS, NATS = 32, 32, 24, 0.05
PAIRS = (("positive", "past"), ("civil", "questions"), ("casual", "questions"))
WAYS = ("added", "summed", "joint", "joint_alone")


class Draw:
    """The texts of one draw, what steerings of this model cost and do there, and what was fitted to one concept."""

    def __init__(self, model: Any, tokenizer: Any, draw: int):
        self.model, self.draw = model, draw
        self.sides = functools.cache(lambda name: conflicts.sides(name, draw))
        self.read: dict[str, Any] = {"tokenizer": tokenizer, "max_length": TOKENS}
        self.options = {**self.read, "max_evaluations": 10, "progress": False}
        self.form: np.ndarray | None = None
        self.apart: dict[str, lineas.Steering] = {}
        self.base: dict[str, float] = {}

    def texts(self, name: str) -> tuple[list[str], ...]:
        return tuple(side[:FITTED] for side in self.sides(name))

    def price(self, steering: lineas.Steering) -> float:
        if self.form is None:
            neutral, how = lineas.samples.neutral_sentences(32), {**self.read, "batch_size": None}
            self.form = fisher_rows(self.model, neutral, steering.sites, None, None, 0, how)[0]
        moves = np.concatenate([steering.weights - 1, steering.biases]).astype(np.float64)
        return float(np.square(self.form @ moves).mean())

    def at(self, nats: float, steering: lineas.Steering) -> lineas.Steering:
        return float(np.sqrt(nats / self.price(steering))) * steering

    def contrast(self, name: str) -> float:
        held = (side[FITTED : FITTED + HELD] for side in self.sides(name))
        return float(np.subtract(*(np.log(evaluation.perplexity(self.model, side, **self.read)) for side in held)))

    def effects(self, steering: lineas.Steering, *names: str) -> list[float]:
        for name in names:
            if name not in self.base:
                self.base[name] = self.contrast(name)
        with steering.apply(self.model):
            return [self.contrast(name) - self.base[name] for name in names]

    def row(self, a: str, b: str) -> Row:
        """All but the fit on both sets."""
        for name in (a, b):
            if name not in self.apart:
                self.apart[name] = self.at(NATS, lineas.fit(self.model, *self.texts(name), **self.options))
        jointly = lineas.fit_jointly(self.model, {name: self.texts(name) for name in (a, b)}, **self.options)
        jointly = {name: self.at(NATS, one) for name, one in jointly.items()}
        both = {"added": self.apart[a] + self.apart[b], "joint": jointly[a] + jointly[b]}
        return {
            "a": a, "b": b, "draw": self.draw, "prices": {how: self.price(one) for how, one in both.items()},
            "alone": [self.effects(self.apart[name], name)[0] for name in (a, b)],
            "joint_alone": [self.effects(jointly[name], name)[0] for name in (a, b)],
            **{how: self.effects(one, a, b) for how, one in both.items()},
        }  # fmt: skip

    def summed(self, row: Row) -> list[float]:
        """Effects of one fit on both sets, at the price of both fits apart."""
        names = row["a"], row["b"]
        both = [of_a + of_b for of_a, of_b in zip(*map(self.texts, names), strict=True)]
        fitted = lineas.fit(self.model, *both, **self.options)
        return self.effects(self.at(row["prices"]["added"], fitted), *names)


def table(found: Sequence[Row]) -> Iterator[str]:
    """Means over draws, with their standard errors, of what is left of the effects that fits apart have alone. Draw 0,
    on which the method was chosen, stands by itself."""
    yield "| concepts | draws | of | apart, added | one fit on both sets | joint | joint, alone | nats: added, joint |"
    yield "|---|---|---|---|---|---|---|---|"

    def place(row: Row) -> tuple[str, str, bool]:
        return row["a"], row["b"], row["draw"] > 0

    for (a, b, _), group in groupby(sorted(found, key=place), place):
        alike = list(group)
        draws = ", ".join(str(row["draw"]) for row in alike)
        nats = ", ".join(f"{np.mean([row['prices'][how] for row in alike]):.3f}" for how in ("added", "joint"))
        for k, name in enumerate((a, b)):
            cells = [_mean([row[how][k] / row["alone"][k] for row in alike if how in row]) for how in WAYS]
            yield f"| {a}, {b} | {draws} | {name} | {' | '.join(cells)} | {nats} |"


def _mean(values: Sequence[float]) -> str:
    error = f" ± {np.std(values, ddof=1) / np.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{error}" if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", default="1,2,3", help="numbers, separated by commas")
    parser.add_argument("--pairs", default=",".join(map("+".join, PAIRS)), help="joined by +, separated by commas")
    parser.add_argument("--no-summed", action="store_true", help="without the fit on both sets, a quarter of the time")
    parser.add_argument("--json", type=Path, default=JSON, help="a line for each pair and draw")
    parser.add_argument("--known", action="store_true", help="only what the file has")
    parser.add_argument("--write", metavar="PAGE", type=Path, help="put the table into this page, between its marks")
    asked = parser.parse_args()
    found = _records.read(asked.json)
    if not asked.known:
        import embedded_model

        model, tokenizer = embedded_model.load()
        pairs = [tuple(pair.split("+")) for pair in asked.pairs.split(",")]
        for draw in map(int, asked.draws.split(",")):
            known = {(row["a"], row["b"]): row for row in found if row["draw"] == draw}
            trial = Draw(model, tokenizer, draw)
            for pair in pairs:
                if (row := known.get(pair)) is None:
                    found.append(row := trial.row(*pair))
                    _records.keep(asked.json, row)
                if "summed" not in row and not asked.no_summed:
                    row["summed"] = trial.summed(row)
                    _records.rewrite(asked.json, found)
                print(row, flush=True)
    lines = list(table(found))
    print("\n".join(lines))
    if asked.write:
        _records.write(asked.write, "joint", lines)


if __name__ == "__main__":
    main()
