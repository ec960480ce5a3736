"""Every method on the image model: does a concept come, or go, and is the rest of the picture still there?

    python benchmarks/image_methods.py [--concepts heart,snow] [--tasks induce,remove] [--cases unpaired,paired]
                                       [--methods "lineas;linear_act"] [--draws 0,1,2,3] [--count 96]
                                       [--json FILE] [--table] [--write docs/results.md]

A fit sees 32 + 32 captions: other ones from other noise ("unpaired"), or the same ones with and without the concept,
each pair from the same noise ("paired"). All methods have the same sites, the norms of the UNet, and the same pooling,
the maximum over pixels, which is the default. Test captions and their noise are fresh. "words" asks for the concept in
the caption. A row has, at every strength, the share of pictures with the concept, with the right subject, and with the
right background, other extras a picture, and the mean change of a pixel. The table takes each method at the strength
that is best where at most 5 subjects in 100 are lost, between measured strengths too. The JSON file gains a line for
every fit, and what it holds is not fitted again.
"""

import argparse
import itertools
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _image_model import CALL, CONCEPTS, MAY_LOSE, TASKS, Captions, Studio, captions

import lineas
from lineas.network.pipelines.rows import noise_of_rows

JSON = Path(__file__).parent / "data" / "image_methods.jsonl"
CASES = ("unpaired", "paired")
SAMPLES, LOST = 32, 0.5  # captions of each side; of the subjects, where no stronger strength is looked at
POOLING = "max"
FIGURES = ("concept", "subject", "ground", "others", "change")  # of a row, at each strength
Row = dict[str, Any]


class Method(NamedTuple):
    """What `lineas.fit` is told, and at which strengths the result is looked at."""

    options: Mapping[str, Any]
    strengths: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


SMALL = (0.25, 0.5, 0.75, 1.0, 1.5)
METHODS = {
    "words": Method({}, (1.0,)),
    "lineas": Method({}),
    "linear_act": Method({"method": "linear_act", "pooling": POOLING}, SMALL),
    "gaussian_act": Method({"method": "gaussian_act", "pooling": POOLING}, SMALL),
    "mean_act": Method({"method": "mean_act", "pooling": POOLING}, SMALL),
    "caa": Method({"method": "caa", "pooling": POOLING}, SMALL),
    "actadd": Method({"method": "actadd", "pooling": POOLING}, SMALL),
    "repe": Method({"method": "repe", "pooling": POOLING}, SMALL),
    "iti_c": Method({"method": "iti_c", "pooling": POOLING}, SMALL),
    "aura": Method({"method": "aura", "pooling": POOLING}, SMALL),
}


def fit(studio: Studio, told: Captions, draw: int, paired: bool, options: Mapping[str, Any]) -> lineas.Steering:
    sides: list[Any] = [told.source, told.target]
    if not paired:  # other noise as well; fit by itself starts row k of both sides from the same
        sides = [
            {"prompt": side, "generator": [10_000 * draw + 1000 * k + row for row in range(len(side))]}
            for k, side in enumerate(sides, 1)
        ]
    if options.get("method") == "actadd":  # of one pair
        sides = [{k: v[:1] for k, v in s.items()} if isinstance(s, dict) else s[:1] for s in sides]
    sites = [site.name for site in lineas.find_sites(studio.pipe)]
    return lineas.fit(studio.pipe, *sides, call=CALL, sites=sites, seed=draw, progress=False, **options)


class Unsteered:
    """The pictures of test captions without a steering, kept until others are asked for."""

    def __init__(self, studio: Studio):
        self.studio, self.kept = studio, ((), np.empty(0))

    def __call__(self, prompts: Sequence[str], draw: int) -> np.ndarray:
        key = (*prompts, draw)
        if self.kept[0] != key:
            self.kept = key, self.studio.pictures(prompts, noise_of_rows(500 + draw, range(len(prompts))))
        return self.kept[1]


def row(unsteered: Unsteered, concept: str, task: str, case: str, method: str, draw: int, count: int) -> Row:
    told, studio = captions(concept, task, draw, count, SAMPLES, case == "paired"), unsteered.studio

    def pictures(prompts: Sequence[str]) -> np.ndarray:
        return studio.pictures(prompts, noise_of_rows(500 + draw, range(count)))

    plain = unsteered(told.test, draw)

    def found(drawn: np.ndarray) -> Row:
        judged = studio.found(drawn, plain, concept, told)
        return {key: round(getattr(judged, key), 4) for key in FIGURES}

    head = {"concept": concept, "task": task, "case": case, "method": method, "draw": draw, "count": count}
    points = [{"strength": 0.0} | found(plain)]
    if method == "words":
        return head | {"points": [*points, {"strength": 1.0} | found(pictures(told.asked))]}
    options, strengths = METHODS[method]
    steering = fit(studio, told, draw, case == "paired", options)
    for strength in strengths:
        with steering.apply(studio.pipe, strength):
            points.append({"strength": strength} | found(pictures(told.test)))
        if points[-1]["subject"] < points[0]["subject"] - LOST:
            break
    return head | {key: steering.info[key] for key in ("evaluations", "seconds")} | {"points": points}


def goals(rows: Sequence[Row]) -> dict[tuple, float]:
    """By task and draw, how many subjects there are where the caption asks for the change, if that is known."""
    return {_set_of(found): found["points"][-1]["subject"] for found in rows if found["method"] == "words"}


def _set_of(found: Row) -> tuple:
    return tuple(found[key] for key in ("concept", "task", "case", "draw"))


def front(found: Row, asked: float = 1.0) -> dict[str, float]:
    """The best that a method does at a strength, between those measured too, that leaves the subjects as they are: as
    many as without it, or as where the caption asks for the change, if those are fewer. Of what is grey the judge knows
    few.
    """
    points = found["points"]
    at = [point["strength"] for point in points]
    is_words = found["method"] == "words"
    grid = np.array(at) if is_words else np.linspace(0, at[-1], 1 + round(20 * at[-1]))
    lines = {key: np.interp(grid, at, [point[key] for point in points]) for key in FIGURES}
    effect = (lines["concept"] - lines["concept"][0]) * (1 if found["task"] == "induce" else -1)
    goal = min(lines["subject"][0], asked)
    kept = lines["subject"] >= goal - MAY_LOSE
    best = len(grid) - 1 if is_words else int(np.where(kept, effect, -np.inf).argmax())
    net = float((effect - np.maximum(goal - lines["subject"], 0)).max())
    return {"strength": float(grid[best]), "net": net} | {key: float(line[best]) for key, line in lines.items()}


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A line a task, case and method: means over concepts and draws, with standard errors of the concept's share."""
    known = goals(rows)
    best = [(found, front(found, known.get(_set_of(found), 1.0))) for found in rows]
    yield "| task | sets | method | fits | concept | subject | background | others | change | strength | seconds |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for task, case, method in itertools.product(TASKS, CASES, METHODS):
        mine = [(f, b) for f, b in best if (f["task"], f["case"], f["method"]) == (task, case, method)]
        if mine:
            shares = [b["concept"] for _, b in mine]
            error = np.std(shares, ddof=1) / len(shares) ** 0.5 if len(shares) > 1 else np.nan
            others = [
                np.nanmean([b[k] for _, b in mine]) for k in ("subject", "ground", "others", "change", "strength")
            ]
            seconds = np.mean([f.get("seconds", 0.0) for f, _ in mine])
            cells = [task, case, method, str(len(mine)), f"{np.mean(shares):.2f} ± {error:.2f}"]
            cells += [*(f"{value:.2f}" for value in others), f"{seconds:.0f}"]
            yield f"| {' | '.join(cells)} |"


def by_concept(rows: Sequence[Row], case: str = "unpaired") -> Iterator[str]:
    """A line a concept and task: what `lineas` does at its best strength, the best of all others there, and words; and
    how far they are apart, draw by draw, with standard errors."""
    known = goals(rows)
    yield "| concept | task | lineas | the best other | its share | apart | words | apart |"
    yield "|---|---|---|---|---|---|---|---|"
    for concept, task in itertools.product(CONCEPTS, TASKS):
        nets: dict[str, dict[int, float]] = {}
        for found in rows:
            if (found["concept"], found["task"], found["case"]) == (concept, task, case):
                net = front(found, known.get(_set_of(found), 1.0))["net"]
                nets.setdefault(found["method"], {})[found["draw"]] = net
        shares = {method: float(np.mean(list(draws.values()))) for method, draws in nets.items()}
        rivals = sorted((share, name) for name, share in shares.items() if name not in ("words", "lineas"))
        if {"words", "lineas"} <= nets.keys() and rivals:
            best, name = rivals[-1]
            cells = [concept, task, f"{shares['lineas']:.2f}", name, f"{best:.2f}", _apart(nets["lineas"], nets[name])]
            cells += [f"{shares['words']:.2f}", _apart(nets["lineas"], nets["words"])]
            yield f"| {' | '.join(cells)} |"


def _apart(one: Mapping[int, float], other: Mapping[int, float]) -> str:
    """By draws that both have."""
    apart = [one[draw] - other[draw] for draw in one if draw in other]
    error = np.std(apart, ddof=1) / len(apart) ** 0.5 if len(apart) > 1 else np.nan
    return f"{np.mean(apart):+.2f} ± {error:.2f}"


def write(rows: Sequence[Row], page: Path) -> None:
    """Both tables into a page, between their marks."""
    text = page.read_text(encoding="utf-8")
    for mark, lines in (("images", table(rows)), ("images by concept", by_concept(rows))):
        begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
        if begin not in text or end not in text:
            sys.exit(f"--write: expected a page with the lines {begin} and {end}, got {page}")
        block = "\n".join([begin, *lines, end])
        text = re.sub(f"{begin}.*?{end}", lambda _, block=block: block, text, flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", default=",".join(CONCEPTS))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--methods", default=";".join(METHODS))
    parser.add_argument("--draws", default="0")
    parser.add_argument("--count", type=int, default=96, help="pictures at each strength")
    parser.add_argument("--json", metavar="FILE", type=Path, default=JSON, help="one line for each fit")
    parser.add_argument("--table", action="store_true", help="fit nothing; show what the file holds")
    parser.add_argument("--write", metavar="PAGE", type=Path, help="put the tables of all rows into a page")
    asked = parser.parse_args()
    names = asked.methods.split(";")
    if unknown := set(names) - set(METHODS):
        sys.exit(f"--methods: expected some of {', '.join(METHODS)}, got {', '.join(sorted(unknown))}")
    rows = [json.loads(line) for line in asked.json.read_text().splitlines()] if asked.json.exists() else []
    if not (asked.table or asked.write):
        torch.set_num_threads(1)
        unsteered = Unsteered(Studio())
        known = {tuple(r[k] for k in ("concept", "task", "case", "method", "draw")) for r in rows}
        draws = map(int, asked.draws.split(","))
        for draw, case, concept, task, method in itertools.product(
            draws, asked.cases.split(","), asked.concepts.split(","), asked.tasks.split(","), names
        ):
            if (concept, task, case, method, draw) not in known:
                rows.append(row(unsteered, concept, task, case, method, draw, asked.count))
                print(concept, task, case, method, draw, front(rows[-1]), flush=True)
                with asked.json.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print("\n".join(table(rows)))
    if asked.write:
        write(rows, asked.write)


if __name__ == "__main__":
    main()
