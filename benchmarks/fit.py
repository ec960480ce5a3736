"""What `lineas.fit` costs and gains: the recipes side by side, and a step beside the model itself, in time and memory.

    python benchmarks/fit.py [--only recipes,once,step,padding,precision,prefix,memory,samples,tokens,sites,gpu]
                             [--json FILE] [--picture FILE]

A step is loss, gradient, prox and update. The bare step is the same forward pass to the last site and a backward pass
from the sum of the same sites' outputs to one bias at the first site, without lineas. Rivals take turns; minima and
medians are kept, and a ratio is that of minima to the first row. With one thread, seconds are those of the processor,
which other work on the machine does not move. Memory is the peak of a process of its own, from when the model is
loaded.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))  # not ROOT: an unbuilt source tree must not hide what is installed
os.environ["HF_HUB_OFFLINE"] = "1"

import _tables  # noqa: E402
import torch  # noqa: E402
from _fit_setting import Setting, race, random_inputs, seconds, small_llama  # noqa: E402
from _tables import Row  # noqa: E402

import lineas  # noqa: E402
from lineas import evaluation, optim  # noqa: E402
from lineas.core import ops  # noqa: E402
from lineas.fitting import losses  # noqa: E402
from lineas.fitting.ridge import sensitivity  # noqa: E402
from lineas.samples import neutral_sentences  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = _tables.parser(__doc__, rounds=5)
    parser.add_argument("--layers", type=int, help="sites in the first so many layers only; all if not given")
    parser.add_argument("--picture", metavar="FILE", help="draw the recipes and what a step costs")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


class Plan:
    """What the tables are made with: SmolLM2-135M, or a small random model with --quick."""

    def __init__(self, asked: argparse.Namespace):
        self.rounds, self.threads = (1 if asked.quick else asked.rounds), asked.threads
        self.quick, self.layers = asked.quick, asked.layers
        self._model = None

    @property
    def model(self):
        if self._model is None:
            if self.quick:
                self._model = small_llama()
            else:
                import embedded_model

                self._model, self.tokenizer = embedded_model.load()
            self._model.requires_grad_(False)
        return self._model

    def sites(self) -> list:
        return lineas.find_sites(self.model)[: self.layers]

    def inputs(self, samples: int = 32, tokens: int = 32) -> tuple[dict, dict]:
        if self.quick:
            samples, tokens = min(samples, 4), min(tokens, 8)
        vocabulary = self.model.config.vocab_size
        return tuple(random_inputs(samples, tokens, vocabulary, seed) for seed in (0, 1))

    def texts(self) -> tuple[Any, Any, Any]:
        """Two sets to fit on, two held out, and the tokenizer."""
        if self.quick:
            four = [random_inputs(6, 8, 64, seed) for seed in range(4)]
            return four[:2], four[2:], None
        import compare_methods

        four, _ = compare_methods.sentences("sentiment", 0)
        _ = self.model
        return four[:2], four[2:], self.tokenizer

    def perplexity(self) -> float:
        if self.quick:
            return 1.0  # random weights have no perplexity to lose
        return evaluation.perplexity(self.model, neutral_sentences(80), tokenizer=self.tokenizer)

    def race(self, **rivals: Callable[[], Any]) -> list[Row]:
        return race({name.replace("_", " "): call for name, call in rivals.items()}, self.rounds, self.threads)


# The published recipe goes a distance of 50 in 1000 steps: here in 25, which ends in about the same place.
RECIPES: dict[str, dict[str, Any]] = {
    "published, in 25 long steps": {"recipe": "published", "learning_rate": 4.0, "steps": 25},
    "plain loss, no ridge": {"loss": "wasserstein", "ridge": 0.0},
    "default": {},
}


def recipes(plan: Plan) -> list[Row]:
    """Plain loss of the 32 + 32 sentences fitted and of 100 + 100 others, neutral perplexity; 1 is unsteered."""
    fitted, held, tokenizer = plan.texts()

    def responses(texts):
        return evaluation.responses(plan.model, texts, plan.sites(), tokenizer=tokenizer, batch_size=25)

    goals = [responses(target) for _, target in (fitted, held)]

    def figures() -> list[float]:
        sources = [responses(source) for source, _ in (fitted, held)]
        return [*map(evaluation.distance, sources, goals), plan.perplexity()]

    before, rows = figures(), []
    for name, options in RECIPES.items():
        kept: list[Any] = []

        def fit(options=options, kept=kept):
            kept.append(
                lineas.fit(plan.model, *fitted, tokenizer=tokenizer, sites=plan.sites(), progress=False, **options)
            )

        took = seconds(fit, plan.threads)
        steering = kept[0]
        with steering.apply(plan.model):
            after = np.divide(figures(), before).tolist()
        losses = dict(zip(("fitted", "held out", "perplexity"), after, strict=True))
        rows.append({"": name, "evaluations": steering.info["evaluations"], "seconds": took, **losses})
    return rows


def once(plan: Plan) -> list[Row]:
    """What a fit does beside its steps, in units of a step: before the first one, and the quadratic model's minimum."""
    setting = Setting(plan.model, *plan.inputs(), sites=plan.sites(), economize=False)
    problem, runner = setting.problem, setting.problem.runner
    source, target = runner.collect(problem.passes.batches), np.concatenate(problem.targets)
    rows = plan.race(
        step=setting.step,
        targets=lambda: runner.collect(setting.targets),
        sensitivity=lambda: sensitivity(plan.model, runner.mapped, setting.targets, 0),
        noise=lambda: losses.sampling_noise(source, target),
        prepared_target=lambda: ops.prepare_target(target, len(source)),
    )
    evaluate, spent = problem.evaluate, 0.0

    def timed(*args):
        nonlocal spent
        started = time.process_time()
        at = evaluate(*args)
        gradient = at.gradient()
        spent += time.process_time() - started
        return at._replace(gradient=lambda: gradient)

    problem.evaluate = timed
    for name, penalty in (("solver", None), ("solver with penalty", setting.penalty)):
        spent, notes = 0.0, []
        whole = seconds(
            lambda penalty=penalty, notes=notes: optim.fast(
                problem, setting.x, penalty, lambda *entry: notes.append(entry) or "enough" * (len(notes) == 8),
                tolerance=0.0,
            ),
            1,
        )  # fmt: skip
        took = (whole - spent) / len(notes)
        rows.append({"": name, "seconds": took, "median": took, "ratio": took / rows[0]["seconds"]})
    return rows


def step(plan: Plan) -> list[Row]:
    """A step against the bare forward and backward pass: 32 x 32 tokens, no padding; goal 1.03."""
    setting = Setting(plan.model, *plan.inputs(), sites=plan.sites(), economize=False)
    return plan.race(bare=setting.bare, lineas=setting.step)


def padding(plan: Plan) -> list[Row]:
    """A step on 32 samples of which a third of the tokens is padding, with it and without; goal 0.80."""
    pair = plan.inputs(32, 48)
    for inputs in pair:
        rows, columns = inputs["input_ids"].shape
        lengths = torch.linspace(columns / 3, columns, rows).long()  # two thirds of the longest on average
        inputs["attention_mask"] = (torch.arange(columns) < lengths[:, None]).long()
    padded, cut = (Setting(plan.model, *pair, sites=plan.sites(), economize=on) for on in (False, True))
    return plan.race(padded=padded.step, cut=cut.step)


def precision(plan: Plan) -> list[Row]:
    """A step in float32 and with compute_dtype; goal 0.70. Difference: of the gradient, relative, in norm."""
    pair, sites = plan.inputs(), plan.sites()
    full, half = (
        Setting(plan.model, *pair, sites=sites, economize=False, compute_dtype=d) for d in (None, torch.bfloat16)
    )
    gradients = [s.problem.evaluate(s.x).gradient() for s in (full, half)]
    rows = plan.race(float32=full.step, bfloat16=half.step)
    rows[1]["difference"] = float(np.linalg.norm(gradients[1] - gradients[0]) / np.linalg.norm(gradients[0]))
    return rows


def prefix(plan: Plan) -> list[Row]:
    """Sites in the last half of the layers only: a step with the first half run every time, and once."""
    sites = plan.sites()[len(plan.sites()) // 2 :]
    again, once = (Setting(plan.model, *plan.inputs(), sites=sites, economize=on) for on in (False, True))
    return plan.race(every_time=again.step, once=once.step)


def samples(plan: Plan) -> list[Row]:
    """Samples in one batch, 32 tokens, a small random model."""
    sizes = (4, 8) if plan.quick else (32, 64, 128, 256, 512)
    return scaling(plan, "samples", {n: (random_inputs(n, 32, 64, 0), random_inputs(n, 32, 64, 1)) for n in sizes})


def tokens(plan: Plan) -> list[Row]:
    """Tokens a sample, 32 samples, a small random model."""
    sizes = (8, 16) if plan.quick else (16, 32, 64, 128, 256, 512)
    return scaling(plan, "tokens", {n: (random_inputs(32, n, 64, 0), random_inputs(32, n, 64, 1)) for n in sizes})


def sites(plan: Plan) -> list[Row]:
    """Sites, one in each of the first layers, 32 x 32 tokens, a small random model with 16 layers."""
    model, rows = small_llama(layers=16), []
    found = lineas.find_sites(model.requires_grad_(False))
    for count in (1, 2) if plan.quick else (1, 2, 4, 8, 16):
        setting = Setting(model, random_inputs(32, 32, 64, 0), random_inputs(32, 32, 64, 1), sites=found[:count])
        rows.append({"sites": count, **beside_bare(plan, setting)})
    return rows


def gpu(plan: Plan) -> list[Row]:
    """A Llama of 1.4 billion random weights in bfloat16 on a GPU, 32 + 32 samples of 32 tokens: a step, a whole fit"""
    if not (torch.cuda.is_available() or plan.quick):
        return [{"": "there is no GPU here"}]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = {"hidden": 64, "layers": 2} if plan.quick else {"hidden": 2560, "layers": 24}
    with torch.device(device):
        model = small_llama(**size).to(torch.bfloat16).requires_grad_(False)
    src, tgt = (random_inputs(4 if plan.quick else 32, 8 if plan.quick else 32, 64, seed) for seed in (0, 1))
    setting = Setting(model, src, tgt, economize=False)
    rows = race({"bare": setting.bare, "step": setting.step}, plan.rounds, threads=2)  # the clock on the wall
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    fits: list[lineas.Steering] = []
    took = seconds(lambda: fits.append(lineas.fit(model, src, tgt, progress=False)), threads=2)
    peak = torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else 0.0
    return [*rows, {"": "fit", "seconds": took, "evaluations": fits[0].info["evaluations"], "peak MB": peak}]


def scaling(plan: Plan, what: str, pairs: dict[int, tuple[dict, dict]]) -> list[Row]:
    model = small_llama().requires_grad_(False)
    return [{what: n, **beside_bare(plan, Setting(model, *pair))} for n, pair in pairs.items()]


def beside_bare(plan: Plan, setting: Setting) -> Row:
    bare, ours = plan.race(bare=setting.bare, lineas=setting.step)
    return {"bare": bare["seconds"], "lineas": ours["seconds"], "ratio": ours["ratio"]}


# ---- memory: each figure is the peak of a process of its own ----


def memory(plan: Plan) -> list[Row]:
    """Peak, beyond the loaded model, of a bare step and of fit; then of fit in micro-batches of 16, any number."""
    rows = []
    for what in ("bare", "fit", "fit in bfloat16"):
        rows.append({"": what, **peak(plan, what=what)})
        rows[-1]["ratio"] = rows[-1]["peak"] / rows[0]["peak"]
    for n in (16, 32) if plan.quick else (32, 256, 1024, 4096):
        rows.append({"": f"micro-batches, n = {n}", **peak(plan, what="micro-batches", n=n)})
    return rows


def peak(plan: Plan, **task: Any) -> Row:
    words = ["--threads", str(plan.threads), *(["--quick"] if plan.quick else [])]
    words += ["--layers", str(plan.layers)] if plan.layers else []
    done = subprocess.run(
        [sys.executable, __file__, *words, "--child", json.dumps(task)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def child(plan: Plan, task: dict) -> None:
    if task["what"] == "micro-batches":
        model = small_llama().requires_grad_(False)
        n, count = task["n"], (16 if plan.quick else 256)
        pair = tuple(random_inputs(rows, count, 64, seed) for seed, rows in enumerate((n, 32)))
        options: dict[str, Any] = {"batch_size": 16, "max_evaluations": 2}
    else:
        model, pair = plan.model, plan.inputs()
        options = {"sites": plan.sites(), "max_evaluations": 3}
    if task["what"] == "bare":
        setting = Setting(model, *pair, sites=plan.sites(), economize=False)
        work = setting.bare
    else:
        dtype = "bfloat16" if "bfloat16" in task["what"] else None
        work = lambda: lineas.fit(model, *pair, progress=False, compute_dtype=dtype, **options)  # noqa: E731
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of loading the model
    before = status("VmRSS")
    for _ in range(3 if task["what"] == "bare" else 1):
        work()
    print(json.dumps({"before": before, "peak": status("VmHWM"), "added": status("VmHWM") - before}))


def status(key: str) -> float:
    """Of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


TABLES: dict[str, Callable[[Plan], list[Row]]] = {
    "recipes": recipes, "once": once, "step": step, "padding": padding, "precision": precision, "prefix": prefix,
    "memory": memory, "samples": samples, "tokens": tokens, "sites": sites, "gpu": gpu,
}  # fmt: skip


def main() -> None:
    asked = arguments()
    plan = Plan(asked)
    if asked.child:
        torch.set_num_threads(asked.threads)
        child(plan, json.loads(asked.child))
        return
    figures = _tables.make(asked, TABLES, plan)
    if asked.picture:
        from _fit_picture import draw

        draw(asked.picture, figures["machine"], figures["tables"])


if __name__ == "__main__":
    main()
