"""Which weighting of units to take, `equal` or `standardised`: what each is worth, and what tells it from the samples.

    python benchmarks/weightings.py [--tasks toxicity,sentiment] [--draws 0,1,2,3] [--known] [--write docs/results.md]

SmolLM2-135M-Instruct, fits on 32 + 32 texts, cut at 24 tokens, of at most 8 evaluations; both weightings at a measured
KL of 0.05 nats a token of newspaper text. Two effects of each, without sampling, on texts that no fit has seen: how
much likelier a token of targets becomes than one of sources (96 texts a side); and how much likelier targets' second
halves become than sources' own, after sources' first halves (48). Errors are of the difference, paired by text. Beside
them what might tell the better one beforehand, from the 32 + 32 texts alone; where it takes fits, they are of one half
of these, at a predicted price of 0.05 nats, and judged on the other. The JSON file gains a line for a task and draw;
what it holds is not made again. Five minutes for one on a core.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _records
import numpy as np
import torch
from conflicts import sides

import lineas
from lineas import evaluation, ot
from lineas.directions import separation
from lineas.evaluation.divergence import read
from lineas.fitting import losses
from lineas.fitting.conflict import fisher_rows
from lineas.fitting.contrast import likelihood
from lineas.network.data import as_batches
from lineas.network.state import eager, frozen

ROOT = Path(__file__).resolve().parents[1]
JSON = Path(__file__).parent / "data" / "weightings.jsonl"
TASKS = {"toxicity": "civil", "sentiment": "positive", "tone": "casual", "questions": "questions", "past": "past"}
WEIGHTINGS = losses.WEIGHTINGS
FITTED, HELD, TURNS, TOKENS, EVALUATIONS, NATS = 32, 96, 48, 24, 8, 0.05
Row = dict[str, Any]
Array = np.ndarray
Texts = tuple[list[str], list[str]]


class Bench:
    """A model, and what is known of it on newspaper text."""

    def __init__(self, model: Any, tokenizer: Any, neutral: list[str]):
        self.model, self.neutral, self.how = model, neutral, {"tokenizer": tokenizer, "max_length": TOKENS}
        sites = [site.name for site in lineas.find_sites(model)]
        self.form, self.layout = fisher_rows(model, neutral, sites, None, None, 0, self.how | {"batch_size": 16})

    def ids(self, text: str) -> list[int]:
        return list(self.how["tokenizer"](text)["input_ids"][:TOKENS])

    def fit(self, texts: Texts, weighting: str) -> lineas.Steering:
        """At the strength that is predicted to cost `NATS` on the targets."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "at strength 1|src and tgt")
            found = lineas.fit(
                self.model, *texts, loss_weights=weighting, max_evaluations=EVALUATIONS, progress=False, **self.how
            )
        return float(np.sqrt(NATS / found.info["predicted_kl"])) * found

    def priced(self, steering: lineas.Steering) -> tuple[lineas.Steering, float, float]:
        """At a measured price of `NATS` within two hundredths; by how much it was scaled, and the price."""
        strength, price = 1.0, float(np.square(self.form @ self.moves(steering)).mean())
        for _ in range(5):
            strength *= float(np.sqrt(NATS / price))
            price = evaluation.kl_divergence(self.model, self.neutral, steering, strength, **self.how)
            if abs(price / NATS - 1) < 0.02:
                break
        return strength * steering, strength, price

    def responses(self, texts: list[str]) -> Array:
        """(texts, units), of whatever is on the model."""
        found = evaluation.responses(self.model, texts, list(self.layout.sites), **self.how)
        return np.concatenate([found[site.name] for site in self.layout.sites], 1)

    def moves(self, steering: lineas.Steering) -> Array:
        """Weights less 1, and biases, (2 units,)."""
        return np.concatenate([steering.weights - 1, steering.biases]).astype(np.float64)

    def slope(self, texts: Texts) -> Array:
        """The gradient of how much likelier targets are than sources, for all weights and biases."""
        runner, found = SimpleNamespace(model=self.model, mapped=self.layout), []
        for side in texts:
            with frozen(self.model), eager(), torch.enable_grad():
                batches = as_batches(side, "texts", self.model, self.how["tokenizer"], 16, TOKENS)
                found.append(likelihood(runner, batches))  # type: ignore[arg-type]
        return found[1] - found[0]

    def gains(self, ids: Sequence[list[int]], steerings: Sequence[lineas.Steering]) -> tuple[Array, Array]:
        """By how much each text becomes likelier under each steering, (steerings, texts), and its tokens but one."""
        longest = max(map(len, ids))
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        rows = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        conditions = [nullcontext, *(partial(one.apply, self.model) for one in steerings)]
        texts = {"input_ids": rows, "attention_mask": mask}
        base, *others = read(self.model, texts, conditions, tokenizer=None, batch_size=16, divergence=False)
        return np.stack([base.sums.losses - one.sums.losses for one in others]), base.sums.predicted


# -- what each weighting is worth --


def worth(bench: Bench, held: Texts, steerings: Sequence[lineas.Steering]) -> dict[str, Row]:
    """Effects of both, and the difference of the second to the first with its error, in nats a token."""
    source, target = ([bench.ids(text) for text in side] for side in held)
    source, target = ([row for row in side if len(row) >= 8] for side in (source, target))
    begins = [row[: len(row) // 2] for row in source[:TURNS]]
    crossed = [begin + row[len(row) // 2 :] for begin, row in zip(begins, target, strict=False)]
    own, own_tokens = bench.gains(source, steerings)
    all_targets = bench.gains(target, steerings)
    begun, begun_tokens = bench.gains(begins, steerings)
    other, other_tokens = bench.gains(crossed, steerings)
    n, k = len(begins), len(crossed)
    after = other - begun[:, :k], other_tokens - begun_tokens[:k]
    return {
        "contrast": compared(all_targets, (own, own_tokens)),
        "turn": compared(after, (own[:, :n] - begun, own_tokens[:n] - begun_tokens)),
    }


def compared(towards: tuple[Array, Array], away: tuple[Array, Array]) -> Row:
    """Gains a token of targets less those of sources."""
    effects, difference, variance = np.zeros(2), 0.0, 0.0
    for sign, (gains, tokens) in ((1, towards), (-1, away)):
        effects += sign * gains.sum(1) / tokens.sum()
        apart = gains[1] - gains[0]
        mean = apart.sum() / tokens.sum()
        difference += sign * mean
        variance += np.square(apart - mean * tokens).sum() / tokens.sum() ** 2
    return {"effects": effects.tolist(), "difference": float(difference), "error": float(np.sqrt(variance))}


# -- what might tell beforehand --


def of_halves(bench: Bench, texts: Texts, slopes: Sequence[Array]) -> dict[str, list[float]]:
    """What fits of each half do to the other, a figure for each weighting; `slopes` are those of the halves."""
    parts = halved(texts)
    moves: dict[str, list[Array]] = {name: [] for name in WEIGHTINGS}
    found: dict[str, list[list[float]]] = {}
    for k, other in enumerate(reversed(parts)):
        steerings = [bench.fit(parts[k], name) for name in WEIGHTINGS]
        source, target = map(bench.responses, other)
        counts = [losses.unit_weights(name, source, target, bench.layout) for name in WEIGHTINGS]
        for j, (name, steering) in enumerate(zip(WEIGHTINGS, steerings, strict=True)):
            moves[name].append(bench.moves(steering))
            with steering.apply(bench.model):
                steered = bench.responses(other[0])
            figures = distances(source, target, steered, counts) | landings(bench, source, target, steered)
            figures["likelier"] = float(slopes[1 - k] @ moves[name][-1])
            for key, value in figures.items():
                found.setdefault(key, [[], []])[j].append(value)
    means = {key: [float(np.mean(values)) for values in both] for key, both in found.items()}
    pairs = [moves[name] for name in WEIGHTINGS]
    means["alike"] = [cosine(*pair) for pair in pairs]
    means["alike on the output"] = [cosine(*(bench.form @ move for move in pair)) for pair in pairs]
    return means


def distances(source: Array, target: Array, steered: Array, counts: Sequence[Array]) -> dict[str, float]:
    """Of other samples, relative to no steering, with units counting as in each weighting, and the root of both."""
    before, after = (ot.wasserstein_1d(side, target) for side in (source, steered))
    shares = [float(after @ count / (before @ count)) for count in counts]
    return {
        "distance, equal": shares[0],
        "distance, standardised": shares[1],
        "distance, both": float(np.sqrt(np.prod(shares))),
    }


def landings(bench: Bench, source: Array, target: Array, steered: Array) -> dict[str, float]:
    """How far the steered sources are on their way to the targets, as probes of the last site see it."""
    last = bench.layout.slice(len(bench.layout.sites) - 1)
    source, target, steered = (side[:, last].astype(np.float64) for side in (source, target, steered))
    gap, move = target.mean(0) - source.mean(0), steered.mean(0) - source.mean(0)
    mean_difference = gap / np.maximum((source.var(0) + target.var(0)) / 2, 1e-12)
    ridge = separation(target, source).normal
    return {
        f"probe, {name}": float(move @ normal / (gap @ normal))
        for name, normal in (("means", mean_difference), ("ridge", ridge))
    }


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def of_all(bench: Bench, texts: Texts, fitted: Sequence[lineas.Steering], slope: Array) -> dict[str, Any]:
    """What all texts of the fits tell, with no fit but theirs; `slope` is theirs."""
    source, target = map(bench.responses, texts)
    counts = [losses.unit_weights(name, source, target, bench.layout) for name in WEIGHTINGS]
    noise, distance = losses.sampling_noise(source, target), ot.wasserstein_1d(source, target)
    variance = (source.var(0) + target.var(0)) / 2
    widest = np.argsort(-variance)[: len(variance) // 100]
    left = np.maximum(distance - noise.mean, 0) * counts[0]
    return {
        "noise": [losses.share_of_noise(source, target, noise, count) for count in counts],
        "likelier": [float(slope @ bench.moves(one)) for one in fitted],
        "share of 1%": float((distance * counts[0])[widest].sum() / (distance @ counts[0])),
        "share of 1%, excess": float(left[widest].sum() / left.sum()),
        "variance of 1%": float((variance * counts[0])[widest].sum() / (variance @ counts[0])),
    }


def row(bench: Bench, task: str, draw: int, texts: Texts, held: Texts) -> Row:
    fitted = [bench.fit(texts, name) for name in WEIGHTINGS]
    priced, strengths, prices = zip(*map(bench.priced, fitted), strict=True)
    found: Row = {"task": task, "draw": draw, "held": len(held[0]), "tokens": TOKENS, "scaled": strengths, "kl": prices}
    found |= worth(bench, held, priced)
    slopes = [bench.slope(half) for half in halved(texts)]
    all_texts = of_all(bench, texts, fitted, np.mean(slopes, 0))
    return found | {"all": all_texts, "halves": of_halves(bench, texts, slopes)}


def halved(texts: Texts) -> list[Texts]:
    half = len(texts[0]) // 2
    return [(texts[0][:half], texts[1][:half]), (texts[0][half:], texts[1][half:])]


# -- the table --

# what it is read from, and whether more of it is better
RULES = {
    "that brings the other half nearer, units alike": ("halves", "distance, equal", False),
    "the same, units by 1 / variance": ("halves", "distance, standardised", False),
    "the same, both ways": ("halves", "distance, both", False),
    "that brings it further at the last site, along the means": ("halves", "probe, means", True),
    "the same, along a ridge regression": ("halves", "probe, ridge", True),
    "of which both halves' fits are more alike": ("halves", "alike", True),
    "the same, on the output": ("halves", "alike on the output", True),
    "that makes the other half's targets likelier, to first order": ("halves", "likelier", True),
    "that makes its own targets likelier, to first order": ("all", "likelier", True),
    "of whose loss less is noise": ("all", "noise", False),
}
EFFECTS = "contrast", "turn"


def picks(row: Row, rule: str) -> int:
    """Which weighting the rule takes."""
    where, key, more = RULES[rule]
    equal, other = row[where][key]
    return int(other > equal) if more else int(other < equal)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """What both weightings are worth on each draw, and the difference, each with its error over texts."""
    yield "| task | draw | equal | standardised | difference | after sources: equal | standardised | difference |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in sorted(rows, key=lambda row: (list(TASKS).index(row["task"]), row["draw"])):
        cells = []
        for effect in EFFECTS:
            found = row[effect]
            cells += [f"{value:.3f}" for value in found["effects"]]
            cells.append(f"{found['difference']:+.3f} ± {found['error']:.3f}")
        yield f"| {row['task']} | {row['draw']} | {' | '.join(cells)} |"


def rules(rows: Sequence[Row]) -> Iterator[str]:
    """By each effect, on how many draws a rule takes the weighting that has more of it, however little more; how often
    where that is sure, of both effects; and what it wins beside always taking `equal`, by the mean effect of that."""
    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    sure = [(row, effect) for row in rows for effect in EFFECTS if is_sure(row[effect])]
    yield f"| take the one | all | where sure | {' | '.join(tasks)} |"
    yield "|---|---|---|" + "---|" * len(tasks)
    fixed: dict[str, Callable[[Row], int]] = {"called `standardised`": lambda row: 1}
    for name, take in (fixed | {rule: partial(picks, rule=rule) for rule in RULES}).items():
        every, cells = np.zeros(2, int), []
        for task in tasks:
            mine = [row for row in rows if row["task"] == task]
            right = np.array([sum(take(row) == better(row, effect) for row in mine) for effect in EFFECTS])
            won = ", ".join(f"{_won(mine, take, effect):+.0%}" for effect in EFFECTS)
            every += right
            cells.append(f"{right[0]}, {right[1]} of {len(mine)}; {won}")
        certain = sum(take(row) == better(row, effect) for row, effect in sure)
        yield f"| {name} | {every[0]}, {every[1]} of {len(rows)} | {certain} of {len(sure)} | {' | '.join(cells)} |"


def is_sure(found: Row) -> bool:
    """Whether a difference is more than two of its errors."""
    return abs(found["difference"]) > 2 * found["error"]


def better(row: Row, effect: str) -> int:
    return int(row[effect]["difference"] > 0)


def _won(rows: Sequence[Row], take: Callable[[Row], int], effect: str) -> float:
    effects = [(row[effect]["effects"][0], row[effect]["effects"][take(row)]) for row in rows]
    equal, taken = np.sum(effects, 0)
    return float(taken / equal - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="toxicity,sentiment", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--draws", default="0,1,2,3", help="numbers, separated by commas")
    parser.add_argument("--json", metavar="FILE", type=Path, default=JSON, help="one line for each task and draw")
    parser.add_argument("--known", action="store_true", help="fit nothing; show what the file holds")
    parser.add_argument("--write", metavar="PAGE", type=Path, help="put both tables into a page, between their marks")
    asked = parser.parse_args()
    rows = _records.read(asked.json)
    if not (asked.known or asked.write):
        sys.path.insert(0, str(ROOT / "examples"))
        import embedded_model

        bench = Bench(*embedded_model.load(), lineas.samples.neutral_sentences(32))
        known = {(found["task"], found["draw"]) for found in rows}
        for draw in map(int, asked.draws.split(",")):
            for task in asked.tasks.split(","):
                if (task, draw) not in known:
                    every = sides(TASKS[task], draw, FITTED + HELD)
                    texts, held = (tuple(side[part] for side in every) for part in (slice(FITTED), slice(FITTED, None)))
                    rows.append(row(bench, task, draw, texts, held))
                    print(rows[-1], flush=True)
                    _records.keep(asked.json, rows[-1])
    for name, lines in (("weightings", list(table(rows))), ("weightings-rules", list(rules(rows)))):
        print("\n".join(lines))
        if asked.write:
            _records.write(asked.write, name, lines)


if __name__ == "__main__":
    main()
