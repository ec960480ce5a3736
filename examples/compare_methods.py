"""Every method on the same sites, sentences and measures: what each achieves, and what it costs.

    python examples/compare_methods.py [--task sentiment] [--seeds 0,1,2,3] [--methods "lineas;linear_act"]
                                       [--strengths 0.5,1] [--count 64] [--json FILE] [--write docs/results.md]

Every seed draws other sentences to fit on (32 + 32), other held-out ones (50 + 50), and other random numbers for the
continuations. `held-out` is the distance of held-out sentences relative to no steering, at strength 1; `perplexity`
that of 40 newspaper sentences; `effect` the mean score of `count` continuations: VADER's compound for sentiment (-1 to
1), one less the profanity classifier's probability for toxicity. They continue 16 neutral prompts; for toxicity the
beginnings of 64 toxic comments that are in no other set, since after neutral ones there is next to nothing to remove.

A first run takes hours on a laptop. The JSON file gains a line for every measurement, what it holds is not measured
again, and `--write` puts table and picture of all it holds into a page.
"""

import argparse
import csv
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import embedded_model
import numpy as np

import lineas
from lineas import evaluation, samples
from lineas.evaluation.intervals import mean

ROOT = Path(__file__).parent.parent
JSON = ROOT / "benchmarks" / "data" / "methods.jsonl"
FITTED, HELD_OUT, NEUTRAL = 32, 50, 40  # sentences
TASKS = ("sentiment", "toxicity")
PROVOKING, BEGINNING = 64, 6  # prompts, and words of a comment that make one
PRICES, RUIN = (0.05, 0.1), 0.5  # of perplexity: at which effects are compared, and beyond which nobody would go

Row = dict[str, Any]


def sentences(task: str, seed: int) -> tuple[list[list[str]], Sequence[str]]:
    """Source and target to fit on, source and target held out; and the prompts."""
    if task == "sentiment":
        both = list(samples.movie_reviews(160, 0))
    else:
        with open(ROOT / "benchmarks" / "data" / "toxicity_en.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        both = [[row["text"] for row in rows if row["is_toxic"] == label] for label in "10"]
    drawn = [random.Random(seed).sample(texts, FITTED + HELD_OUT) for texts in both]
    sets = [texts[:FITTED] for texts in drawn] + [texts[FITTED:] for texts in drawn]
    if task == "sentiment":
        return sets, samples.PROMPTS
    rest = [text.split() for text in both[0] if text not in drawn[0]]
    longer = [words for words in rest if len(words) >= 2 * BEGINNING]
    return sets, [" ".join(words[:BEGINNING]) for words in random.Random(seed).sample(longer, PROVOKING)]


def score(task: str, texts: list[str]) -> np.ndarray:
    """More is better."""
    scorer = evaluation.scorer(task)
    return scorer(texts) if scorer.better == "higher" else 1 - scorer(texts)


def responses(model: Any, tokenizer: Any, texts: list[str]) -> dict[str, np.ndarray]:
    """Of held-out sentences, at the sites of the default."""
    return evaluation.responses(model, sorted(texts, key=len), tokenizer=tokenizer, batch_size=25)


class Draw:
    """One draw of the sentences of a task: fits on it, and measures."""

    def __init__(self, model: Any, tokenizer: Any, task: str, seed: int, count: int):
        self.model, self.tokenizer, self.task, self.seed, self.count = model, tokenizer, task, seed, count
        (*self.fitted, self.source, self.target), self.prompts = sentences(task, seed)
        self.neutral = sorted(samples.neutral_sentences(NEUTRAL), key=len)

    def fit(self, **given: Any) -> lineas.Steering:
        return lineas.fit(
            self.model, *self.fitted, tokenizer=self.tokenizer, max_length=64, progress=False, **given
        )  # fmt: skip

    @cached_property
    def perplexity_of_none(self) -> float:
        return evaluation.perplexity(self.model, self.neutral, tokenizer=self.tokenizer)

    @cached_property
    def goal(self) -> dict[str, np.ndarray]:
        """What the held-out target sentences do without a steering."""
        return responses(self.model, self.tokenizer, self.target)

    def measure(self, steering: lineas.Steering, strength: float) -> Row:
        row: Row = {"support": sum(map(len, steering.support().values()))}
        dearest, goal = (1 + RUIN) * self.perplexity_of_none, self.goal if strength in (0.0, 1.0) else None
        with steering.apply(self.model, strength):
            row["perplexity"] = evaluation.perplexity(self.model, self.neutral, tokenizer=self.tokenizer)
            if goal is not None:
                row["held_out"] = evaluation.distance(responses(self.model, self.tokenizer, self.source), goal)
            if self.count and row["perplexity"] <= dearest:
                each = max(self.count // len(self.prompts), 1)
                texts = evaluation.continuations(
                    self.model, self.prompts, tokenizer=self.tokenizer, count=each, seed=self.seed, batch_size=256
                )
                scores = score(self.task, texts)
                row |= {"effect": float(scores.mean()), "error": float(scores.std(ddof=1) / len(scores) ** 0.5)}
        return row


class Method(NamedTuple):
    """How maps are made, and at which strengths they are looked at: those whose prices matter."""

    fit: Callable[[Draw], lineas.Steering]
    strengths: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5, 2.0)


def options(**given: Any) -> Callable[[Draw], lineas.Steering]:
    return lambda draw: draw.fit(**given)


def sparse(draw: Draw, times: float = 20.0) -> lineas.Steering:
    """About 1% of the units by a penalty: ten times the slope that a typical unit has at first."""
    start = draw.fit(max_evaluations=1)
    units = sum(len(start.weight(name)) for name in start.sites)
    return draw.fit(penalty=lineas.penalties.L1(times * start.history["loss"][0] ** 0.5 / units))


def ranking(draw: Draw, either_way: bool = True) -> lineas.experts.Ranking:
    """Units by how well they tell source from target, either way or by responding to the source."""
    return lineas.experts.rank(
        draw.model, *draw.fitted, metric="auroc", either_way=either_way, tokenizer=draw.tokenizer, max_length=64
    )  # fmt: skip


def experts(part: float, either_way: bool = True, **given: Any) -> Callable[[Draw], lineas.Steering]:
    """Of the first units of a ranking only."""

    def fit(draw: Draw) -> lineas.Steering:
        ranked = ranking(draw, either_way)
        return draw.fit(units=ranked.top(max(round(part * sum(ranked.sizes.values())), 1)), **given)

    return fit


def refitted(part: float) -> Callable[[Draw], lineas.Steering]:
    """The units that move most under such a penalty, fitted again without it, since it shrinks what it leaves."""

    def fit(draw: Draw) -> lineas.Steering:
        times, few = 20.0, sparse(draw)
        wanted = max(round(part * sum(len(few.weight(name)) for name in few.sites)), 1)
        while sum(map(len, few.support().values())) < wanted:
            times /= 2
            few = sparse(draw, times)
        steering = draw.fit(units=few.restricted(top=wanted).support())
        for cost in ("evaluations", "seconds"):
            steering.info[cost] += few.info[cost]
        return steering

    return fit


NONE = Method(options(method="mean_act", schedule="at_once"), (0.0,))  # any will do
MORE, FEW, SMALL = (1.0, 2.0, 3.0, 4.0, 6.0), (0.25, 0.5, 1.0, 2.0, 3.0), (0.1, 0.2, 0.3, 0.4, 0.5)
SMALLEST = (0.02, 0.05, 0.1, 0.15, 0.2)
METHODS = {
    "lineas": Method(options()),
    "lineas, 3%": Method(experts(0.03), MORE),
    "lineas, 1%": Method(experts(0.01), MORE),
    "lineas, 1% by L1": Method(refitted(0.01), FEW),
    "lineas, L1": Method(sparse),
    # A thousand steps of the published recipe go a distance of 50: here in 25 steps, which end in about the same place.
    "published": Method(options(recipe="published", learning_rate=4.0, steps=25)),
    "mean_act": Method(options(method="mean_act"), SMALL),
    "gaussian_act": Method(options(method="gaussian_act"), SMALL),
    "linear_act": Method(options(method="linear_act"), SMALL),
    "aura": Method(options(method="aura"), FEW),
    "det0": Method(experts(0.03, either_way=False, method="det0"), FEW),
    "caa": Method(options(method="caa"), FEW),
    "actadd": Method(options(method="actadd"), SMALLEST),
    "iti_c": Method(options(method="iti_c"), FEW),
    "repe": Method(options(method="repe"), FEW),
}


def run(
    draw: Draw, names: Iterable[str], strengths: Sequence[float] | None, rows: Iterable[Row]
) -> Iterator[Row]:  # fmt: skip
    """A row for every measurement that `rows` lack; the base model, strength 0, first.

    Where a method's own strengths leave out the dearest of PRICES, others follow: what it takes is not known before.
    """
    known = {(r["method"], r["strength"]): r for r in rows if (r["task"], r["seed"]) == (draw.task, draw.seed)}
    for name in ["none", *names]:
        method, steering = NONE if name == "none" else METHODS[name], None
        wanted = list(method.strengths if name == "none" else strengths or method.strengths)
        most = len(wanted) if name == "none" or strengths else 2 * len(wanted)
        for strength in wanted:  # which may grow
            if (name, strength) not in known:
                steering = steering or method.fit(draw)
                cost = {} if name == "none" else {key: steering.info[key] for key in ("evaluations", "seconds")}
                known[name, strength] = {
                    "task": draw.task, "seed": draw.seed, "method": name, "strength": strength, **cost,
                    **draw.measure(steering, strength),
                }  # fmt: skip
                yield known[name, strength]
            if strength == wanted[-1] and len(wanted) < most:
                prices = {s: known[name, s]["perplexity"] / known["none", 0.0]["perplexity"] - 1 for s in wanted}
                wanted += _missing(prices)


def _missing(prices: dict[float, float]) -> list[float]:
    """A strength that gets closer to the dearest of PRICES; none where one of these reaches it, short of RUIN."""
    least = max((strength for strength, price in prices.items() if price <= RUIN), default=0.0)
    if prices.get(least, 0.0) >= PRICES[-1]:
        return []
    larger = [strength for strength in prices if strength > least]
    return [(least + min(larger)) / 2 if larger else 1.5 * least]


# -- what the rows say --


class Point(NamedTuple):
    """A method at a strength: changes against no steering, means over draws."""

    strength: float
    perplexity: float
    effect: float
    error: float  # standard error of the effect, over draws
    draws: int


def points(rows: Sequence[Row], task: str, method: str) -> list[Point]:
    changes = list(zip(*_changes(rows, task, method), strict=True))
    found = []
    for strength in sorted({change[1] for change in changes}):
        prices, effects = zip(*(change[2:] for change in changes if change[1] == strength), strict=True)
        effect = mean(effects, 0.95, "draws")
        found.append(Point(strength, float(np.mean(prices)), effect.value, effect.error, effect.n))
    return found


def _changes(rows: Sequence[Row], task: str, method: str) -> tuple[list, list, list, list]:
    """Seeds, strengths, relative changes of perplexity and changes of the effect, a measurement each."""
    base = {row["seed"]: row for row in rows if (row["task"], row["method"]) == (task, "none")}
    mine = [r for r in rows if (r["task"], r["method"]) == (task, method) and r["seed"] in base and "effect" in r]
    pairs = [(row, base[row["seed"]]) for row in mine]
    return (
        [row["seed"] for row, _ in pairs],
        [row["strength"] for row, _ in pairs],
        [row["perplexity"] / zero["perplexity"] - 1 for row, zero in pairs],
        [row["effect"] - zero["effect"] for row, zero in pairs],
    )


def effect_at(rows: Sequence[Row], task: str, method: str, price: float) -> dict[int, float]:
    """For every draw, the effect at this price of perplexity, along lines between the strengths on both sides of it.

    A draw that never cost as much has the effect of its dearest strength.
    """
    found: dict[int, float] = {}
    seeds, _, prices, effects = map(np.array, _changes(rows, task, method))
    for seed in sorted(set(seeds.tolist())):
        x, y = np.append(prices[seeds == seed], 0), np.append(effects[seeds == seed], 0)
        order = np.argsort(x)
        found[seed] = float(np.interp(price, x[order], y[order]))
    return found


def table(rows: Sequence[Row], task: str) -> list[str]:
    """Markdown: each method's cost, its held-out distance, and its effect at equal prices, beside the default's."""
    heads = [f"effect at +{price:.0%}" for price in PRICES] + [f"less lineas at +{PRICES[-1]:.0%}"]
    lines = [
        f"| method | evaluations | seconds | units | held out | {' | '.join(heads)} | draws |",
        f"|{'---|' * (6 + len(heads))}",
    ]
    base = {row["seed"]: row["held_out"] for row in rows if (row["task"], row["method"]) == (task, "none")}
    for method in METHODS:
        mine = [row for row in rows if (row["task"], row["method"]) == (task, method) and row["seed"] in base]
        effects = [effect_at(rows, task, method, price) for price in PRICES]
        if not effects[0]:
            continue
        held = [row["held_out"] / base[row["seed"]] for row in mine if "held_out" in row]
        default = effect_at(rows, task, "lineas", PRICES[-1])
        apart = [effect - default[seed] for seed, effect in effects[-1].items() if seed in default]
        cells = [_figure(list(effect.values())) for effect in effects]
        cells.append("" if method == "lineas" or not apart else _figure(apart))
        once = {row["seed"]: row for row in mine}.values()
        lines.append(
            f"| {method} | {np.mean([row['evaluations'] for row in once]):.0f} | "
            f"{np.mean([row['seconds'] for row in once]):.0f} | {np.mean([row['support'] for row in once]):.0f} | "
            f"{f'{np.mean(held):.2f}' if held else ''} | {' | '.join(cells)} | {len(effects[0])} |"
        )
    return lines


def _figure(values: Sequence[float]) -> str:
    """Mean, and half of its 95% interval where there are several draws."""
    found = mean(values, 0.95, "draws")
    return f"{found.value:+.3f}" + f" ± {found.high - found.value:.3f}" * (found.n > 1)


# A column of the picture each, of few methods, which colours tell apart for everybody, in print too (Okabe & Ito).
FAMILIES = {
    "recipes": ("published",),
    "fewer units": ("lineas, 3%", "lineas, 1%", "lineas, 1% by L1", "lineas, L1"),
    "transport": ("mean_act", "gaussian_act", "linear_act"),
    "shifts": ("caa", "actadd", "iti_c", "repe"),
    "damping": ("aura", "det0"),
}
COLOURS, STYLES = ("#D55E00", "#0072B2", "#009E73", "#CC79A7"), ("--", "-.", ":", (0, (5, 1)))
SHOWN = 0.25  # of perplexity: beyond it nobody goes
ROOM = 1.28  # for the names of the lines


def draw_fronts(rows: Sequence[Row], path: Path) -> None:
    """Effect against perplexity: a row a task, a column a family, `lineas` in each; standard errors as bands."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    families = {name: [m for m in some if any(r["method"] == m for r in rows)] for name, some in FAMILIES.items()}
    families = {name: some for name, some in families.items() if some} or {"": []}
    shape = len(tasks), len(families)
    figure, panels = pyplot.subplots(
        *shape, figsize=(2.9 * shape[1] + 0.6, 3.1 * shape[0]), layout="constrained", squeeze=False, sharex=True,
        sharey="row",
    )  # fmt: skip
    names: dict[Any, list[tuple[float, str, str]]] = {}
    for row, task in zip(panels, tasks, strict=True):
        for ax, (family, methods) in zip(row, families.items(), strict=True):
            ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
            ends = [_draw_line(ax, rows, task, "lineas", "black", "-")]
            for method, colour, style in zip(methods, COLOURS, STYLES, strict=False):
                ends.append(_draw_line(ax, rows, task, method, colour, style))
            names[ax] = [end for end in ends if end]
            ax.set(
                title=f"{task}: {family}", xlim=(-0.5, 100 * SHOWN * ROOM), xticks=range(0, round(100 * SHOWN) + 1, 5)
            )
            ax.title.set_fontsize(10)
        row[0].set_ylabel("effect")
    for ax in panels[-1]:
        ax.set_xlabel("perplexity, +%")
    for ax, ends in names.items():
        _name_lines(ax, ends)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_line(
    ax: Any, rows: Sequence[Row], task: str, method: str, colour: str, style: Any
) -> tuple[float, str, str] | None:
    """With its strengths as points: how high it ends, its name and its colour."""
    found = points(rows, task, method)
    if not found:
        return None
    most = max(point.draws for point in found)  # a mean of those draws alone that are not ruined would mislead
    found = [point for point in found if point.draws == most and point.perplexity <= SHOWN]
    x, y = np.array([0.0, *(100 * p.perplexity for p in found)]), np.array([0.0, *(p.effect for p in found)])
    half = np.array([0.0, *(float(np.nan_to_num(p.error)) for p in found)])
    ax.plot(x, y, color=colour, linestyle=style, marker="o", markersize=3, linewidth=2 if method == "lineas" else 1.4)
    ax.fill_between(x, y - half, y + half, color=colour, alpha=0.12, linewidth=0)
    return float(y[-1]), method, colour


def _name_lines(ax: Any, ends: list[tuple[float, str, str]]) -> None:
    """At the right edge, in the order in which the lines end, and apart from each other."""
    low, high = ax.get_ylim()
    gap, below = (high - low) / 14, -np.inf
    for height, name, colour in sorted(ends):
        below = max(height, below + gap, low + gap / 2)
        ax.text(100 * SHOWN * ROOM - 0.4, below, name, fontsize=8, color=colour, ha="right", va="center")


def write(rows: Sequence[Row], page: Path) -> None:
    """Put tables and picture between the page's marks; its words stay."""
    draw_fronts(rows, page.with_suffix(".png"))
    text = page.read_text(encoding="utf-8")
    for task in TASKS:
        begin, end = f"<!-- {task} -->", f"<!-- end of {task} -->"
        if begin in text:
            block = "\n".join([begin, *table(rows, task), end])
            text = re.sub(f"{begin}.*?{end}", lambda _, block=block: block, text, flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sentiment", choices=TASKS)
    parser.add_argument("--seeds", default="0,1,2,3")
    parser.add_argument("--methods", default=";".join(METHODS), help="names between semicolons; all if not given")
    parser.add_argument("--strengths", help="instead of each method's own; 0 is measured once for each seed, too")
    parser.add_argument("--count", type=int, default=64, help="continuations, as many of each prompt; 0 for none")
    parser.add_argument("--json", metavar="FILE", type=Path, default=JSON, help="one line for each measurement")
    parser.add_argument("--write", metavar="PAGE", type=Path, help="only write tables and picture of what there is")
    asked = parser.parse_args()
    rows = [json.loads(line) for line in asked.json.read_text().splitlines()] if asked.json.exists() else []
    if asked.write:
        write(rows, asked.write)
        return
    strengths = [float(s) for s in asked.strengths.split(",")] if asked.strengths else None
    model, tokenizer = embedded_model.load()
    for seed in map(int, asked.seeds.split(",")):
        draw = Draw(model, tokenizer, asked.task, seed, asked.count)
        for row in run(draw, asked.methods.split(";"), strengths, list(rows)):
            rows.append(row)
            print(json.dumps(row), flush=True)
            with asked.json.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print("\n".join(table(rows, asked.task)))


if __name__ == "__main__":
    main()
