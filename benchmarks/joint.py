"""Two concepts at once: steerings fitted jointly beside steerings fitted apart and added, and one fitted on both sets.

    python benchmarks/joint.py [--draws 1,2,3] [--pairs civil+questions] [--no-summed] [--json FILE] [--known]
        [--write docs/strength.md]

SmolLM2-135M, 32 + 32 texts a concept, cut at 24 tokens, at most 10 evaluations a fit; every steering at a predicted
price of 0.05 nats a token of neutral text. An effect is how much likelier held-out targets become than held-out
sources, a token, as in `conflicts.py`, whose concepts these are. A row is a pair and a draw: the effects of each fitted
apart and alone, of both added, of one fit on both sets (at the price of both added), and of the joint ones, together
and alone. Rows that the file has are not made again. A quarter of an hour on one core for a draw.
"""

import argparse
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

JSON = Path(__file__).parent / "data" / "joint.jsonl"
FITTED, HELD, TOKENS, NATS = 32, 32, 24, 0.05
PAIRS = (("positive", "past"), ("civil", "questions"), ("casual", "questions"))
WAYS = ("added", "summed", "joint", "joint_alone")


def rows(
    model: Any, tokenizer: Any, draw: int, pairs: Sequence[tuple[str, str]], summed: bool
) -> Iterator[dict[str, Any]]:  # fmt: skip
    names = dict.fromkeys(name for pair in pairs for name in pair)
    told = {name: conflicts.sides(name, draw) for name in names}
    fitted = {name: tuple(side[:FITTED] for side in pair) for name, pair in told.items()}
    held = {name: tuple(side[FITTED : FITTED + HELD] for side in pair) for name, pair in told.items()}
    options = {"tokenizer": tokenizer, "max_length": TOKENS, "max_evaluations": 10, "progress": False}
    apart: dict[str, lineas.Steering] = {}
    base: dict[str, float] = {}
    form: list[np.ndarray] = []

    def price(steering: lineas.Steering) -> float:
        if not form:
            how = {"tokenizer": tokenizer, "batch_size": None, "max_length": TOKENS}
            neutral = lineas.samples.neutral_sentences(32)
            form.append(fisher_rows(model, neutral, steering.sites, None, None, 0, how)[0])
        moves = np.concatenate([steering.weights - 1, steering.biases]).astype(np.float64)
        return float(np.square(form[0] @ moves).mean())

    def at(nats: float, steering: lineas.Steering) -> lineas.Steering:
        return float(np.sqrt(nats / price(steering))) * steering

    def contrast(name: str) -> float:
        read = (evaluation.perplexity(model, s, tokenizer=tokenizer, max_length=TOKENS) for s in held[name])
        return float(np.subtract(*map(np.log, read)))

    def effects(steering: lineas.Steering, *names: str) -> list[float]:
        for name in names:
            if name not in base:
                base[name] = contrast(name)
        with steering.apply(model):
            return [contrast(name) - base[name] for name in names]

    for a, b in pairs:
        for name in (a, b):
            if name not in apart:
                apart[name] = at(NATS, lineas.fit(model, *fitted[name], **options))
        jointly = lineas.fit_jointly(model, {name: fitted[name] for name in (a, b)}, **options)
        jointly = {name: at(NATS, one) for name, one in jointly.items()}
        both = {"added": apart[a] + apart[b], "joint": jointly[a] + jointly[b]}
        prices = {how: price(one) for how, one in both.items()}
        if summed:
            all_of = [of_a + of_b for of_a, of_b in zip(fitted[a], fitted[b], strict=True)]
            both["summed"] = at(prices["added"], lineas.fit(model, *all_of, **options))
        row = {"a": a, "b": b, "draw": draw, "prices": prices, "alone": [effects(apart[n], n)[0] for n in (a, b)]}
        row["joint_alone"] = [effects(jointly[n], n)[0] for n in (a, b)]
        yield row | {how: effects(one, a, b) for how, one in both.items()}


def table(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Means over draws, with their standard errors, of what is left of the effects that fits apart have alone. Draw 0,
    on which the method was chosen, stands by itself."""
    yield "| concepts | draws | of | apart, added | one fit on both sets | joint | joint, alone | nats: added, joint |"
    yield "|---|---|---|---|---|---|---|---|"

    def place(row: dict[str, Any]) -> tuple[str, str, bool]:
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
            known = {(row["a"], row["b"]) for row in found if row["draw"] == draw}
            for row in rows(model, tokenizer, draw, [p for p in pairs if p not in known], not asked.no_summed):
                found.append(row)
                _records.keep(asked.json, row)
                print(row, flush=True)
    lines = list(table(found))
    print("\n".join(lines))
    if asked.write:
        _records.write(asked.write, "joint", lines)


if __name__ == "__main__":
    main()
