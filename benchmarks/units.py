"""Which units to steer: what each choice of as many of them does to held-out distance and perplexity.

    python benchmarks/units.py [--task sentiment] [--seeds 0,1] [--sizes 500,170]
                               [--choices all,significant,auroc,l1,random] [--held-out 50] [--count 0] [--json FILE]

`significant` are the units of the lowest p-values (lineas.experts.significance), `auroc` those that tell source from
target best (lineas.experts.rank, either way), `l1` those that a fit with a sparse penalty moves most, `random` any;
`all` is no choice. `lineas.fit(units=...)` then learns maps of these units only, without a penalty. Every seed draws
other sentences to choose and fit on (32 + 32), and other held-out ones. `held-out` is the loss of held-out sentences at
all units, relative to no steering; `perplexity` that of newspaper sentences. With `--count`, `effect` is the mean score
of so many continuations of each of 16 prompts, as in examples/compare_methods.py. First, a table says how far the
choices agree. The JSON file gains a line for every measurement, and what it holds is not measured again.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import compare_methods  # noqa: E402
import embedded_model  # noqa: E402

import lineas  # noqa: E402
from lineas import evaluation, experts, samples  # noqa: E402
from lineas.experts.sets import chosen  # noqa: E402

CHOICES = ("all", "significant", "auroc", "l1", "random")
Units = dict[str, np.ndarray]


class Chooser:
    """The choices for one source and one target set; each is computed when it is first asked for."""

    def __init__(self, model, source: Sequence[str], target: Sequence[str], seed: int, **options: Any):
        self.model, self.texts, self.seed, self.options = model, (source, target), seed, options
        self.responses = [evaluation.responses(model, texts, **options) for texts in self.texts]
        self.sizes = {site: values.shape[1] for site, values in self.responses[0].items()}
        self.significance = experts.Significance.from_responses(*self.responses, seed=seed)
        self.ranking = experts.Ranking.from_responses(*self.responses, metric="auroc", either_way=True)
        self._sparse: lineas.Steering | None = None

    @property
    def sparse(self) -> lineas.Steering:
        if self._sparse is None:
            penalty = lineas.penalties.L1(2e-6)
            self._sparse = lineas.fit(self.model, *self.texts, penalty=penalty, progress=False, **self.options)
        return self._sparse

    def units(self, choice: str, k: int) -> Units:
        if choice == "significant":
            return self.significance.top(k)
        if choice == "auroc":
            return self.ranking.top(k)
        if choice == "l1":
            return self.sparse.restricted(top=k, responses=self.responses[0]).support()
        drawn = random.Random(self.seed).sample(range(sum(self.sizes.values())), k)
        mask = np.zeros(sum(self.sizes.values()), bool)
        mask[drawn] = True
        return chosen(mask, self.sizes)


def agreement(chooser: Chooser, choices: Sequence[str], sizes: Sequence[int]) -> Iterator[str]:
    """How many units pass, and the Jaccard index of each two choices, by chance in brackets."""
    for level in (0.05, 0.1):
        counts = {how: sum(map(len, chooser.significance.units(level, how).values())) for how in ("bh", "by")}
        yield f"significant at q = {level}: {counts['bh']} (Benjamini-Hochberg), {counts['by']} (Benjamini-Yekutieli)"
    if "l1" in choices:
        support = chooser.sparse.support()
        for level in (0.05, 0.1):
            shared = experts.overlap(chooser.significance.units(level), support, chooser.sizes)
            yield f"  with the whole support of L1, {sum(map(len, support.values()))} units, at q = {level}: " + _of(
                shared
            )
    for k in sizes:
        sets = {choice: chooser.units(choice, k) for choice in choices if choice != "all"}
        for one, other in combinations(sets, 2):
            yield f"  {k} units, {one} and {other}: " + _of(experts.overlap(sets[one], sets[other], chooser.sizes))


def _of(shared: lineas.algebra.Overlap) -> str:
    return f"{shared.jaccard:.3f} (by chance {shared.by_chance:.3f})"


def measure(
    model, steering: lineas.Steering, held: Sequence[list[str]], neutral: Sequence[str], *, tokenizer, task: str,
    count: int, seed: int,
) -> dict[str, float]:  # fmt: skip
    source, target = held
    goal = compare_methods.responses(model, tokenizer, target)  # of the unsteered model
    with steering.apply(model):
        row = {"held_out": evaluation.distance(compare_methods.responses(model, tokenizer, source), goal)}
        row["perplexity"] = evaluation.perplexity(model, sorted(neutral, key=len), tokenizer=tokenizer)
        if count:
            options = {"tokenizer": tokenizer, "count": count, "seed": seed, "batch_size": 256}
            row["effect"] = float(
                compare_methods.score(task, evaluation.continuations(model, samples.PROMPTS, **options)).mean()
            )
    return row


def run(
    model, tokenizer, texts: Sequence[list[str]], seed: int, choices: Sequence[str], sizes: Sequence[int],
    known: set = frozenset(), *, neutral: Sequence[str], task: str = "sentiment", count: int = 0, **options: Any,
) -> Iterator[dict]:  # fmt: skip
    """One row a choice and size, after that of no steering; `texts` are compare_methods.sentences'."""
    source, target, *held = texts
    every = {"tokenizer": tokenizer, "max_length": 64}
    chooser = Chooser(model, source, target, seed, **every)
    print(f"\nseed {seed}", *agreement(chooser, choices, sizes), sep="\n", flush=True)
    none = lineas.Steering({site: (np.ones(size), np.zeros(size)) for site, size in chooser.sizes.items()})
    cases: list[tuple[str, int]] = [("none", 0)]
    for choice in choices:
        cases += [(choice, sum(chooser.sizes.values()))] if choice == "all" else [(choice, k) for k in sizes]
    for choice, k in cases:
        if (task, seed, choice, k) in known:
            continue
        if choice == "none":
            steering = none
        else:
            units = None if choice == "all" else chooser.units(choice, k)
            steering = lineas.fit(model, source, target, units=units, seed=seed, progress=False, **every, **options)
        row = measure(model, steering, held, neutral, tokenizer=tokenizer, task=task, count=count, seed=seed)
        row["support"] = sum(map(len, steering.support().values()))
        yield {"task": task, "seed": seed, "choice": choice, "units": k, **row}


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Means over the seeds, relative to no steering; the spread over the seeds beside them."""
    base = {(row["task"], row["seed"]): row for row in rows if row["choice"] == "none"}
    yield f"{'task':10} {'choice':12} units seeds      held-out          perplexity"
    for task, choice, k in dict.fromkeys((row["task"], row["choice"], row["units"]) for row in rows):
        mine = [
            r for r in rows if (r["task"], r["choice"], r["units"]) == (task, choice, k) and (task, r["seed"]) in base
        ]
        if choice == "none" or not mine:
            continue
        held, cost = ([row[key] / base[task, row["seed"]][key] for row in mine] for key in ("held_out", "perplexity"))
        effect = [row["effect"] - base[task, row["seed"]]["effect"] for row in mine if "effect" in row]
        told = f"  effect {np.mean(effect):+.3f}" if effect else ""
        yield (
            f"{task:10} {choice:12} {k:5} {len(mine):5} {np.mean(held):6.3f} ({min(held):.3f} to {max(held):.3f})"
            f" {np.mean(cost) - 1:+7.1%} ({min(cost) - 1:+.1%} to {max(cost) - 1:+.1%}){told}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sentiment", choices=("sentiment", "toxicity"))
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--sizes", default="500,170", help="how many units to choose")
    parser.add_argument("--choices", default=",".join(CHOICES))
    parser.add_argument("--held-out", type=int, default=50, help="held-out sentences of each set, at most 50")
    parser.add_argument("--neutral", type=int, default=80, help="newspaper sentences for the perplexity")
    parser.add_argument("--max-evaluations", type=int, help="of a fit, where it shall not stop by itself")
    parser.add_argument("--count", type=int, default=0, help="continuations of each of the 16 prompts")
    parser.add_argument("--json", metavar="FILE", type=Path, help="one line for each measurement")
    asked = parser.parse_args()
    choices, sizes = asked.choices.split(","), [int(k) for k in asked.sizes.split(",")]
    if unknown := set(choices) - set(CHOICES):
        sys.exit(f"--choices: expected some of {', '.join(CHOICES)}, got {', '.join(sorted(unknown))}")
    lines = asked.json.read_text().splitlines() if asked.json and asked.json.exists() else []
    rows = [json.loads(line) for line in lines]
    model, tokenizer = embedded_model.load()
    for seed in map(int, asked.seeds.split(",")):
        texts = [part[: asked.held_out] for part in compare_methods.sentences(asked.task, seed)[0]]
        known = {(row["task"], row["seed"], row["choice"], row["units"]) for row in rows}
        for row in run(
            model, tokenizer, texts, seed, choices, sizes, known, neutral=samples.neutral_sentences(asked.neutral),
            task=asked.task, count=asked.count, max_evaluations=asked.max_evaluations,
        ):  # fmt: skip
            rows.append(row)
            print(json.dumps(row), flush=True)
            if asked.json:
                with asked.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print("\n" + "\n".join(table(rows)))


if __name__ == "__main__":
    main()
