"""What a gate saves, and what it costs: ungated and gated at equal strength and at equal effect.

    python benchmarks/gates.py [--tasks toxicity,tone,sentiment] [--draws 0,1,2] [--known] [--write docs/strength.md]

SmolLM2-135M-Instruct, default fits on 32 + 32 texts, a gate from the same and 64 newspaper sentences; maps at all
default sites, whose gate reads at the first of them, and at those behind block 9, where it reads. All that is measured
is on other texts. A price is the rise of perplexity of 48 newspaper sentences. An effect needs no sampling: after the
first half of a held-out source text, how much likelier the second half of a held-out target becomes than its own second
half, a token. The JSON file gains a line for every fit; what it holds is not made again. Four minutes for a task and
draw on one quiet core.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import _records
import numpy as np
import torch
from conflicts import sides

import lineas
from lineas import evaluation

ROOT = Path(__file__).resolve().parents[1]
JSON = Path(__file__).parent / "data" / "gates.jsonl"
TASKS = {"toxicity": "civil", "tone": "casual", "sentiment": "positive"}
BEHIND = "model.layers.9"
FITTED, HELD, STRENGTHS = 32, 32, (0.5, 1.0)


def halves(texts: Sequence[str], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    ids = [tokenizer(text)["input_ids"][:48] for text in texts]
    return [(row[: len(row) // 2], row[len(row) // 2 :]) for row in ids if len(row) >= 8]


def effect(model: Any, sources: Sequence[Any], targets: Sequence[Any]) -> float:
    """Mean log-likelihood of a token of targets' second halves less that of sources' own, after sources' first."""
    means = []
    for answers in ([rest for _, rest in targets], [rest for _, rest in sources]):
        total, tokens = 0.0, 0
        pairs = [(begin, answer) for (begin, _), answer in zip(sources, answers, strict=False)]
        for start in range(0, len(pairs), 16):
            rows = [begin + answer for begin, answer in pairs[start : start + 16]]
            longest = max(map(len, rows))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
            with torch.no_grad():
                likely = model(ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
            likely = likely.gather(2, ids[:, 1:, None])[..., 0]
            for k, (begin, answer) in enumerate(pairs[start : start + 16]):
                total += float(likely[k, len(begin) - 1 : len(begin) + len(answer) - 1].sum())
                tokens += len(answer)
        means.append(total / tokens)
    return means[0] - means[1]


def row(model: Any, tokenizer: Any, task: str, draw: int, where: str) -> dict[str, Any]:
    source, target = sides(TASKS[task], draw)
    news = lineas.samples.neutral_sentences(112)
    options: dict[str, Any] = {"tokenizer": tokenizer, "seed": draw}
    site = BEHIND if where == "late" else "auto"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gated = lineas.fit(
            model, source[:FITTED], target[:FITTED], gate=site, neutral=news[48:], progress=False, **options
        )
    gate = gated.gate
    others = [halves(side[FITTED : FITTED + HELD], tokenizer) for side in (source, target)]
    shown: dict[str, Any] = {
        "source": source[FITTED : FITTED + HELD],
        "target": target[FITTED : FITTED + HELD],
        "news": news[:48],
    }
    opened = {key: evaluation.openness(gated, model, texts, tokenizer=tokenizer) for key, texts in shown.items()}
    base = effect(model, *others), evaluation.perplexity(model, news[:48], tokenizer=tokenizer)
    found: dict[str, Any] = {
        "task": task, "draw": draw, "where": where, "site": gate.site, "told": gate.acts_on,
        "acts_on": {key: float((values > 0.5).mean()) for key, values in opened.items()},
        "predicted_kl": gated.info["predicted_kl"], "strengths": STRENGTHS,
    }  # fmt: skip
    for name, steering in (("ungated", gated.gated(None)), ("gated", gated)):
        effects, prices = [], []
        for strength in STRENGTHS:
            with steering.apply(model, strength) if strength else nullcontext():
                effects.append(effect(model, *others) - base[0])
                prices.append(evaluation.perplexity(model, news[:48], tokenizer=tokenizer) / base[1] - 1)
        found[name] = {"effect": effects, "price": prices}
    return found


def at_effect(row: dict[str, Any], wanted: float) -> tuple[float, float]:
    """Prices without the gate and with it, at the same effect, between the strengths that were measured."""
    return tuple(
        float(np.interp(wanted, [0.0, *row[how]["effect"]], [0.0, *row[how]["price"]])) for how in ("ungated", "gated")
    )  # type: ignore[return-value]


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    heads = "task", "maps", "acts on source, target, news", "strength", "effect, price", "gated", "its effect, ungated"
    yield f"| {' | '.join(heads)} |"
    yield "|---|---|---|---|---|---|---|"
    for task in dict.fromkeys(row["task"] for row in rows):
        for where in dict.fromkeys(row["where"] for row in rows):
            some = [row for row in rows if (row["task"], row["where"]) == (task, where)]
            for k, strength in enumerate(STRENGTHS if some else ()):
                acts = ", ".join(f"{np.mean([row['acts_on'][key] for row in some]):.0%}" for key in some[0]["acts_on"])
                cells = [
                    ", ".join(_mean([row[how][what][k] for row in some], what) for what in ("effect", "price"))
                    for how in ("ungated", "gated")
                ]
                equal = [at_effect(row, row["gated"]["effect"][k])[0] for row in some]
                yield f"| {task} | {where} | {acts} | {strength:g} | {' | '.join(cells)} | {_mean(equal, 'price')} |"


def _mean(values: Sequence[float], what: str) -> str:
    form = "{:+.1%}" if what == "price" else "{:.3f}"
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
    return form.format(np.mean(values)) + ("" if error is None else " ± " + form.format(error).lstrip("+"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--draws", default="0,1,2")
    parser.add_argument("--json", metavar="FILE", type=Path, default=JSON, help="one line for each fit")
    parser.add_argument("--known", action="store_true", help="fit nothing; show what the file holds")
    parser.add_argument("--write", metavar="PAGE", type=Path, help="put the table into a page, between its marks")
    asked = parser.parse_args()
    rows = _records.read(asked.json)
    if not (asked.known or asked.write):
        sys.path.insert(0, str(ROOT / "examples"))
        import embedded_model

        model, tokenizer = embedded_model.load()
        known = {(found["task"], found["draw"], found["where"]) for found in rows}
        for draw in map(int, asked.draws.split(",")):
            for task in asked.tasks.split(","):
                for where in ("all", "late"):
                    if (task, draw, where) not in known:
                        rows.append(row(model, tokenizer, task, draw, where))
                        print(rows[-1], flush=True)
                        _records.keep(asked.json, rows[-1])
    shown = list(table(rows))
    print("\n".join(shown))
    if asked.write:
        _records.write(asked.write, "gates", shown)


if __name__ == "__main__":
    main()
