"""Where to put maps: what `lineas.suggest_sites` recommends, beside what one takes without it.

    python benchmarks/sites.py [--only digits,texts,pictures] [--draws 2,3,4] [--json FILE] [--write docs/strength.md]

Digits: three small classifiers of scikit-learn's digits, trained here. A row is the share of unseen images of one digit
that are read as another, at the strength that is best where the other digits keep 95% of their accuracy.
Texts: SmolLM2-135M, 32 + 32 texts; how much likelier held-out targets become than held-out sources, in nats a token, at
0.05 nats a token of newspaper text.
Pictures: the image model, 32 + 32 captions; how many more pictures have the concept, or fewer, less the subjects that
are lost, at the best strength.

`usual` are the default sites; where there are none, all layers with weights but the last. `all` are all candidates but
the output. The rule was made with draws 0 and 1, of pictures with draw 0, which the table leaves out. The JSON
file gains a line for every fit, and what it holds is not fitted again.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import _records
import numpy as np
import torch
from torch import Tensor, nn

import lineas
from lineas import evaluation, samples

ROOT = Path(__file__).resolve().parents[1]
JSON = Path(__file__).parent / "data" / "sites.jsonl"
SEEN = {"digits": (0, 1), "texts": (0, 1), "pictures": (0,)}  # draws that the rule was made with
COLUMNS = ("usual", "usual, output", "recommended", "all")
ASKED = list(COLUMNS)
Row = dict[str, Any]
Setting = dict[str, Any]  # options of a fit: sites, and loss_sites
FITTED, NATS = 32, 0.05
PAIRS = ((0, 3), (2, 5), (5, 8), (4, 9), (1, 7), (6, 2), (3, 0), (9, 1))
KEPT = 0.95  # of the other digits' accuracy
STRENGTHS = np.linspace(0, 3, 25)[1:]


def settings(model: Any, source: Any, target: Any, usual: Any, **how: Any) -> dict[str, Setting]:
    """What is compared; `usual` are the sites that one would take, the default ones if None."""
    names = [site.name for site in lineas.find_sites(model, usual)]
    taken = {"usual": {"sites": names, "loss_sites": None}, "usual, output": {"sites": names, "loss_sites": "output"}}
    if not {"recommended", "all"} & set(ASKED):
        return taken
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "src and tgt")
        found = lineas.suggest_sites(model, source, target, **how)
    return taken | {
        "recommended": {"sites": found.sites, "loss_sites": found.loss_sites},
        "all": {"sites": [one.site for one in found.candidates if one.kind != "output"], "loss_sites": None},
    }


def rows(
    what: Row, options: Mapping[str, Setting], known: dict[str, Row], measure: Callable[[Setting], Row]
) -> Iterator[Row]:
    """A row for each setting that is not known; what is the same as the usual sites is not measured again."""
    usual = options["usual"]
    for name, setting in options.items():
        row = what | {"setting": name, "sites": len(setting["sites"]), "loss_sites": setting["loss_sites"]}
        if name not in ASKED or key(row) in known:
            continue
        row["is_usual"] = all(set(setting[part] or ()) == set(usual[part] or ()) for part in usual)
        known[key(row)] = row | ({} if row["is_usual"] and name != "usual" else measure(setting))
        yield known[key(row)]


# -- digits --


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Residual(nn.Module):
    """Blocks as transformers have them, so that there are default sites."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.lead, self.last, self.head = nn.Linear(64, width), nn.LayerNorm(width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.lead(x.flatten(1))
        for block in self.blocks:
            h = block(h)
        return self.head(self.last(h))


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )  # fmt: skip


def convolutional() -> nn.Module:
    convolutions = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()
    return nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10))


NETS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "dense": (dense, ["1", "3"]), "convolutional": (convolutional, ["0", "2"]), "residual": (Residual, None),
}  # fmt: skip


@cache
def trained(net: str, draw: int) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """A network, and images and digits that it was trained on, and others."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(draw))
    seen, unseen = order[:1200], order[1200:]
    torch.manual_seed(draw)
    model = NETS[net][0]()
    descent = torch.optim.Adam(model.parameters(), 3e-3 if net == "residual" else 1e-2)
    for _ in range(150):
        descent.zero_grad()
        nn.functional.cross_entropy(model(x[seen]), y[seen]).backward()
        descent.step()
    return model.eval().requires_grad_(False), x[seen], y[seen], x[unseen], y[unseen]


def digits(draw: int, known: dict[str, Row]) -> Iterator[Row]:
    for net, (_, usual) in NETS.items():
        model, x, y, _, _ = trained(net, draw)
        for a, b in PAIRS:
            source, target = x[y == a][:FITTED], x[y == b][:FITTED]

            def measure(setting: Setting, a: int = a, b: int = b, sides: Any = (source, target), of: Any = net) -> Row:
                model, _, _, unseen, read = trained(of, draw)
                steering = lineas.fit(model, *sides, progress=False, **setting)
                return {"figure": turned(model, unseen, read, steering, a, b)}

            what = {"what": "digits", "task": net, "case": f"{a} to {b}", "draw": draw}
            yield from rows(what, settings(model, source, target, usual), known, measure)


def turned(model: nn.Module, x: Tensor, y: Tensor, steering: lineas.Steering, a: int, b: int) -> float:
    kept = KEPT * float((model(x).argmax(1) == y)[y != a].float().mean())
    shares = [0.0]
    for strength in STRENGTHS:
        with steering.apply(model, float(strength)):
            said = model(x).argmax(1)
        if float((said == y)[y != a].float().mean()) >= kept:
            shares.append(float((said == b)[y == a].float().mean()))
    return max(shares)


# -- texts --

TEXTS = {"sentiment": (samples.movie_reviews, 96), "tone": (samples.formal_and_casual, 64)}


def texts(draw: int, known: dict[str, Row]) -> Iterator[Row]:
    sys.path.insert(0, str(ROOT / "examples"))
    import embedded_model

    model, tokenizer = embedded_model.load()
    how: dict[str, Any] = {"tokenizer": tokenizer}
    neutral = samples.neutral_sentences(FITTED)
    for task, (read, count) in TEXTS.items():
        sides = read(count, draw)
        source, target = (side[:FITTED] for side in sides)

        def contrast(sides: Any = sides) -> float:
            """How much likelier a token of the held-out targets is than one of the sources."""
            away, towards = (np.log(evaluation.perplexity(model, side[FITTED:], **how)) for side in sides)
            return float(away - towards)

        def measure(setting: Setting, source: Any = source, target: Any = target, contrast: Any = contrast) -> Row:
            steering = lineas.fit(model, source, target, progress=False, **how, **setting)
            strength = priced(model, steering, neutral, how)
            before = contrast()
            with steering.apply(model, strength):
                figure = contrast() - before
            return {"figure": figure, "strength": strength, "evaluations": steering.info["evaluations"]}

        found = settings(model, source, target, None, **how)
        found.pop("all", None)  # five times the sites, and five times the time
        yield from rows({"what": "texts", "task": task, "case": "", "draw": draw}, found, known, measure)


def priced(model: Any, steering: lineas.Steering, texts: list[str], how: Mapping[str, Any]) -> float:
    """The strength that costs `NATS`: divergences go with its square."""
    strength = float(np.sqrt(NATS / steering.info["predicted_kl"]))
    return strength * float(np.sqrt(NATS / evaluation.kl_divergence(model, texts, steering, strength, **how)))


# -- pictures --

CONCEPTS = ("heart", "snow")


def pictures(draw: int, known: dict[str, Row]) -> Iterator[Row]:
    import _image_model as images
    import image_poolings

    bench = image_poolings.Bench(96, FITTED, {})
    for concept in CONCEPTS:
        for task in images.TASKS:
            told = images.captions(concept, task, draw, bench.count, FITTED)
            sides = [
                {"prompt": side, "generator": image_poolings.seeds(500 + 2 * draw + k, side)}
                for k, side in enumerate(told[:2])
            ]

            def measure(setting: Setting, concept: str = concept, task: str = task) -> Row:
                image_poolings.SETTINGS["ours"] = setting
                found = bench.row(concept, task, "ours", draw)
                return {"figure": image_poolings.front(found)["net"], "evaluations": found["evaluations"]}

            options = settings(bench.studio.pipe, *sides, None, call=images.CALL)
            options.pop("all", None)
            what = {"what": "pictures", "task": task, "case": concept, "draw": draw}
            yield from rows(what, options, known, measure)


# -- all of them --

BENCHES = {"digits": digits, "texts": texts, "pictures": pictures}


def key(row: Mapping[str, Any]) -> str:
    return "|".join(str(row[name]) for name in ("what", "task", "case", "draw", "setting"))


def table(found: Sequence[Row]) -> Iterator[str]:
    """Means with standard errors; and by how much the recommended sites are above the usual ones, case by case.

    Of draws that the rule was not made with.
    """
    yield f"| | {' | '.join(COLUMNS)} | recommended less usual | recommended is usual |"
    yield "|---|" + "---|" * (len(COLUMNS) + 2)
    for what, task in dict.fromkeys((row["what"], row["task"]) for row in found):
        mine = [row for row in found if (row["what"], row["task"]) == (what, task) and row["draw"] not in SEEN[what]]
        usual = {cell(row): row["figure"] for row in mine if row["setting"] == "usual"}
        by_setting = {
            name: {cell(row): row.get("figure", usual.get(cell(row), np.nan)) for row in mine if row["setting"] == name}
            for name in COLUMNS
        }
        ours = by_setting["recommended"]
        cells = [said(list(figures.values())) for figures in by_setting.values()]
        cells.append(said([ours[at] - usual[at] for at in usual if at in ours]))
        if not mine:
            continue
        same = [row["is_usual"] for row in mine if row["setting"] == "recommended"]
        yield f"| {what}: {task} | {' | '.join(cells)} | {sum(same)} of {len(same)} |"


def cell(row: Row) -> tuple[str, int]:
    return row["case"], row["draw"]


def said(values: Sequence[float]) -> str:
    values = [value for value in values if np.isfinite(value)]
    if not values:
        return ""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return f"{np.mean(values):.3f} ± {error:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(BENCHES))
    parser.add_argument("--draws", default="2,3,4")
    parser.add_argument("--settings", default=";".join(COLUMNS), help="which of them to measure")
    parser.add_argument("--json", metavar="FILE", type=Path, default=JSON, help="one line for each fit")
    parser.add_argument("--table", action="store_true", help="fit nothing; show what the file holds")
    parser.add_argument("--write", metavar="PAGE", type=Path, help="put the table into a page, between its marks")
    asked = parser.parse_args()
    ASKED[:] = asked.settings.split(";")
    draws = [int(draw) for draw in asked.draws.split(",")]
    known = {key(row): row for row in _records.read(asked.json)}
    if not (asked.table or asked.write):
        torch.set_num_threads(1)
        for name in asked.only.split(","):
            for draw in draws:
                for row in BENCHES[name](draw, known):
                    print(key(row), round(row["figure"], 3) if "figure" in row else "as usual", flush=True)
                    _records.keep(asked.json, row)
    shown = list(table(list(known.values())))
    print("\n".join(shown))
    if asked.write:
        _records.write(asked.write, "sites", shown)


if __name__ == "__main__":
    main()
