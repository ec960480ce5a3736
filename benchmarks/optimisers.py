"""How many evaluations each optimiser needs to reach what the published recipe has after its 1000 steps.

    python benchmarks/optimisers.py [--only golden,gemma2] [--seeds 3] [--targets FILE]

The problems are random language models of `tests`: golden/tiny_llama, the ones of conftest.py (whose weights and scales
are stronger than usual), and some as Hugging Face initialises them. An evaluation is one forward pass over the source
set; every trial counts, and nobody is given a learning rate. Printed is the number of evaluations (of which so many
were rejected), or the ratio of the objective to the target where a limit of 100 came first. The published runs take
seconds each; --targets keeps their results in a file.
"""

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import transformers as hf

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from conftest import DATA, NEGATIVE, POSITIVE, WordTokenizer, tiny  # noqa: E402

import lineas  # noqa: E402
from lineas import optim  # noqa: E402
from lineas.core.errors import NonFiniteError  # noqa: E402
from lineas.fitting.model_loss import ModelLoss  # noqa: E402
from lineas.fitting.source_passes import SourcePasses  # noqa: E402
from lineas.network.data import as_batches  # noqa: E402
from lineas.penalties import SparseGroupLasso  # noqa: E402
from lineas.responses.probe import probe  # noqa: E402
from lineas.responses.runner import Runner  # noqa: E402

KINDS = ("llama", "gpt2", "gemma2", "qwen2")
STRENGTHS = (0.0, 0.002)  # of all four penalties, in the published normalisation
LIMIT = 100


# -- problems --


def problem(model, src, tgt, tokenizer=None, sites=None) -> ModelLoss:
    model.eval().requires_grad_(False)
    (src,), (tgt,) = (as_batches(side, "src", model, tokenizer) for side in (src, tgt))
    layout = probe(model, lineas.find_sites(model, sites), src)
    runner = Runner(model, layout, layout, "mean")
    return ModelLoss(SourcePasses(runner, [src]), [runner.collect([tgt])])


def golden() -> ModelLoss:
    model = hf.AutoModelForCausalLM.from_pretrained(DATA / "golden" / "tiny_llama")
    run = np.load(DATA / "golden" / "trajectory_sgd.npz")
    sides = (
        {"input_ids": torch.tensor(run[f"input_ids_{side}"]), "attention_mask": torch.tensor(run[f"mask_{side}"])}
        for side in ("source", "target")
    )
    return problem(model, *sides, sites=r".*post_attention_layernorm")


def strong(kind: str) -> ModelLoss:
    return problem(tiny(kind), NEGATIVE, [t + " indeed" * (k % 3) for k, t in enumerate(POSITIVE)], WordTokenizer())


def plain(kind: str, seed: int) -> ModelLoss:
    common = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    llama = {**common, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8}
    torch.manual_seed(seed)
    model = {
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**llama)),
        "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**llama)),
        "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**llama, query_pre_attn_scalar=8)),
        "gpt2": lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=128, n_embd=32, n_layer=3, n_head=4, n_positions=64)
        ),
    }[kind]()
    random = torch.Generator().manual_seed(seed + 100)
    sides = (torch.randint(low, high, (16, 12), generator=random) for low, high in ((0, 80), (40, 128)))
    return problem(model, *({"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in sides))


def problems(seeds: int) -> Iterator[tuple[str, Callable[[], ModelLoss]]]:
    yield "golden llama", golden
    for kind in KINDS:
        yield f"strong {kind}", lambda kind=kind: strong(kind)
    for kind in KINDS:
        for seed in range(seeds):
            yield f"plain {kind} {seed}", lambda kind=kind, seed=seed: plain(kind, seed)


# -- rivals: each asks for evaluations until it is told to stop --


class Enough(Exception):
    """The target is reached, or the limit."""


class Counter:
    """Evaluations of loss + penalty, and the points' gradients; raises Enough."""

    def __init__(self, loss: ModelLoss, penalty: SparseGroupLasso, target: float):
        self.loss, self.penalty, self.target = loss, penalty, target
        self.sizes, self.samples, self.objectives, self.rejected = loss.sizes, loss.samples, [], 0

    def note(self, at, held, step_size=0.0, accepted=True) -> str:
        self.objectives.append(at.loss + held)
        self.rejected += not accepted
        if self.objectives[-1] <= self.target or len(self.objectives) == LIMIT:
            raise Enough
        return ""

    def value(self, x):
        return self.penalty.proximal_step(x, None, self.sizes, 0.0).penalty

    def evaluate(self, x):
        try:
            at = self.loss.evaluate(x)
        except NonFiniteError:
            at = optim.Evaluation(np.inf, np.zeros(1), lambda: np.zeros_like(x), x)
        self.note(at, self.value(x))
        return at

    def step(self, x, gradient, size):
        return self.penalty.proximal_step(x, gradient, self.sizes, size)


def lineas_fast(count: Counter, x) -> None:
    optim.fast(count.loss, x, count.penalty, count.note, tolerance=0.0)


def lineas_blind(count: Counter, x) -> None:
    """The same, not told the units' own curvature."""

    class Blind:
        sizes, samples = count.sizes, count.samples

        def evaluate(self, x, scale=1.0):
            return count.loss.evaluate(x)._replace(curvature=None)

    optim.fast(Blind(), x, count.penalty, count.note, tolerance=0.0)


def polyak(at, gradient) -> float:
    return at.loss / float(np.dot(gradient.astype(float), gradient))


def growing(count: Counter, x) -> None:
    """Proximal gradient descent, monotone, whose steps grow by half and are cut by the curvature a failure shows."""
    here, held = count.evaluate(x), count.value(x)
    gradient = here.gradient()
    size = polyak(here, gradient)
    while True:
        there = count.step(x, gradient, size)
        trial = count.evaluate(there.x)
        gain = here.loss + held - trial.loss - there.penalty
        if gain >= 0.1 * there.square / (2 * size):
            x, here, held, gradient, size = there.x, trial, there.penalty, trial.gradient(), 1.5 * size
        else:
            count.rejected += 1
            curvature = max(2 * (trial.loss - here.loss - there.slope) / there.square, 1 / size)
            size *= min(max(1 / (curvature * size), 0.1), 0.5)


def accelerated(count: Counter, x) -> None:
    """FISTA with backtracking and restarts (Beck & Teboulle 2009, O'Donoghue & Candes 2015); both ends count."""
    ahead, here, speed = x, count.evaluate(x), 1.0
    gradient = here.gradient()
    size = polyak(here, gradient)
    while True:
        there = count.step(ahead, gradient, size)
        trial = count.evaluate(there.x)
        if trial.loss > here.loss + there.slope + there.square / (2 * size):
            count.rejected += 1
            size /= 2
            continue
        change = there.x - x
        if np.dot(ahead - there.x, change) > 0:
            speed = 1.0
        faster = (1 + np.sqrt(1 + 4 * speed**2)) / 2
        x, momentum, speed, size = there.x, (speed - 1) / faster, faster, 1.2 * size
        ahead = (x + momentum * change).astype(np.float32)
        here = count.evaluate(ahead) if momentum else trial
        gradient = here.gradient()


def barzilai_borwein(count: Counter, x) -> None:
    """SpaRSA: Barzilai-Borwein steps, accepted below the worst of the last five (Wright et al. 2009)."""
    here, held = count.evaluate(x), count.value(x)
    gradient, recent = here.gradient(), [here.loss + held]
    size = polyak(here, gradient)
    while True:
        there = count.step(x, gradient, size)
        trial = count.evaluate(there.x)
        objective = trial.loss + there.penalty
        if objective > max(recent[-5:]) - 0.01 * there.square / (2 * size):
            count.rejected += 1
            size /= 2 if np.isfinite(objective) else 10
            continue
        new = trial.gradient()
        move, change = (there.x - x).astype(float), (new - gradient).astype(float)
        x, gradient = there.x, new
        recent.append(objective)
        bend = move @ change
        size = move @ move / bend if bend > 0 else 2 * size


METHODS = {
    "lineas": lineas_fast, "without curvature": lineas_blind, "growing steps": growing, "FISTA": accelerated,
    "Barzilai-Borwein": barzilai_borwein,
}  # fmt: skip


def published(loss: ModelLoss, strength: float) -> float:
    objectives: list[float] = []
    optim.published(
        loss, loss.identity(), SparseGroupLasso(strength, strength),
        lambda at, held, rate: objectives.append(at.loss + held) or "",
        optimizer="sgd", learning_rate=None, steps=optim.PUBLISHED_STEPS,
    )  # fmt: skip
    return objectives[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORDS", help="problems whose name has one of these words")
    parser.add_argument("--seeds", type=int, default=3, help="of the models as Hugging Face initialises them")
    parser.add_argument("--targets", metavar="FILE", help="read the published objectives from here, and add to them")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    file = Path(asked.targets) if asked.targets else None
    targets = json.loads(file.read_text()) if file and file.exists() else {}
    print("evaluations (rejected trials) to the published objective; x ratio where 100 did not suffice")
    print(f"{'problem':<18}{'penalty':>8}" + "".join(f"{name:>19}" for name in METHODS))
    counts: dict[str, list[int]] = {name: [] for name in METHODS}
    for name, make in problems(asked.seeds):
        if not any(word in name for word in asked.only.split(",")):
            continue
        loss = make()
        for strength in STRENGTHS:
            key = f"{name} {strength:g}"
            if key not in targets:
                targets[key] = published(loss, strength)
                if file:
                    file.write_text(json.dumps(targets, indent=1))
            line = f"{name:<18}{strength:>8g}"
            for method, run in METHODS.items():
                light = SparseGroupLasso(strength / loss.samples, strength / loss.samples)
                count = Counter(loss, light, targets[key] / loss.samples)
                with contextlib.suppress(Enough):
                    run(count, loss.identity())
                best, evaluations = min(count.objectives), len(count.objectives)
                reached = best <= count.target
                counts[method].append(evaluations if reached else LIMIT + 1)
                text = f"{evaluations} ({count.rejected})" if reached else f"x {best / count.target:.3f}"
                line += f"{text:>19}"
            print(line, flush=True)
    print(f"{'median':<26}" + "".join(f"{statistics.median(each):>19g}" for each in counts.values()))
    print(f"{'most':<26}" + "".join(f"{max(each) if max(each) <= LIMIT else '>100':>19}" for each in counts.values()))


if __name__ == "__main__":
    main()
