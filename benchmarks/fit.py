"""What a step of `lineas.fit` costs beside the model itself, in time and in memory.

    python benchmarks/fit.py [--only step,padding,precision,prefix,memory,samples,tokens,sites] [--json FILE]

A step is loss, gradient, prox and update. The bare step is the same forward pass to the last site and a backward pass
from the sum of the same sites' outputs to one bias at the first site, without lineas. Rivals take turns; minima and
medians are kept, and a ratio is that of minima to the first row. With one thread, seconds are those of the processor,
which other work on the machine does not move. Memory is the peak of a process of its own, from when the model is
loaded.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))  # not ROOT: an unbuilt source tree must not hide what is installed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TABLES", help="some of the tables, separated by commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, help="sites in the first so many layers only; all if not given")
    parser.add_argument("--quick", action="store_true", help="a tiny random model, one round: does it run at all?")
    parser.add_argument("--json", metavar="FILE", help="write all figures, and what the machine is")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


Row = dict[str, Any]


def race(rivals: dict[str, Callable[[], Any]], rounds: int, threads: int) -> list[Row]:
    """Each in its turn, `rounds` times after one that does not count."""
    clock = time.process_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(rounds + 1):
        for name, call in rivals.items():
            started = clock()
            call()
            if turn or rounds == 1:
                times[name].append(clock() - started)
    first = min(next(iter(times.values())))
    return [
        {"": name, "seconds": min(t), "median": statistics.median(t), "ratio": min(t) / first}
        for name, t in times.items()
    ]


def small_llama(hidden: int = 64, layers: int = 4):
    """Random weights, for what needs many shapes and no meaning."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


def random_inputs(samples: int, tokens: int, vocabulary: int, seed: int = 0) -> dict:
    import torch

    ids = torch.randint(0, vocabulary, (samples, tokens), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class Setting:
    """A model and two sets of inputs, ready to step."""

    def __init__(self, model, src, tgt, *, tokenizer=None, sites=None, economize=True, compute_dtype=None):
        import lineas
        from lineas.data import as_batches
        from lineas.model_loss import ModelLoss
        from lineas.responses import Runner, probe

        self.model, self.penalty = model, lineas.penalties.SparseGroupLasso(1e-6, 1e-6)
        self.sources = as_batches(src, "src", model, tokenizer)
        targets = as_batches(tgt, "tgt", model, tokenizer)
        layout = probe(model, lineas.find_sites(model, sites), self.sources[0])
        runner = Runner(model, layout, layout, "mean")
        if economize:
            runner.economize([*self.sources, *targets])
        runner.compute_dtype = compute_dtype
        self.problem = ModelLoss(runner, self.sources, [runner.collect([batch]) for batch in targets])
        self.x = self.problem.identity()

    def step(self) -> None:
        gradient = self.problem.evaluate(self.x).gradient()
        self.penalty.proximal_step(self.x, gradient, self.problem.sizes, 1e-3)

    def bare(self) -> None:
        """No lineas: a bias at the first site, backward from the sum of all sites' outputs to it."""
        import torch

        class Finished(Exception):
            pass

        sites = self.problem.runner.mapped.sites
        bias = torch.zeros(self.problem.sizes[0], requires_grad=True)
        sums: list[torch.Tensor] = []

        def hook(module, args, output):
            output = output if sums else output + bias
            sums.append(output.sum())
            if len(sums) == len(sites):
                raise Finished
            return output

        with ExitStack() as stack:
            for site in sites:
                stack.callback(self.model.get_submodule(site.path).register_forward_hook(hook).remove)
            try:
                self.model(**self.sources[0].kwargs, use_cache=False)
            except Finished:
                torch.autograd.grad(torch.stack(sums).sum(), bias)


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
        import lineas

        return lineas.find_sites(self.model)[: self.layers]

    def inputs(self, samples: int = 32, tokens: int = 32) -> tuple[dict, dict]:
        if self.quick:
            samples, tokens = min(samples, 4), min(tokens, 8)
        vocabulary = self.model.config.vocab_size
        return tuple(random_inputs(samples, tokens, vocabulary, seed) for seed in (0, 1))

    def race(self, **rivals: Callable[[], Any]) -> list[Row]:
        return race({name.replace("_", " "): call for name, call in rivals.items()}, self.rounds, self.threads)


def step(plan: Plan) -> list[Row]:
    """A step against the bare forward and backward pass: 32 x 32 tokens, no padding; goal 1.03."""
    setting = Setting(plan.model, *plan.inputs(), sites=plan.sites(), economize=False)
    return plan.race(bare=setting.bare, lineas=setting.step)


def padding(plan: Plan) -> list[Row]:
    """A step on 32 samples of which a third of the tokens is padding, with it and without; goal 0.80."""
    import torch

    pair = plan.inputs(32, 48)
    for inputs in pair:
        rows, columns = inputs["input_ids"].shape
        lengths = torch.linspace(columns / 3, columns, rows).long()  # two thirds of the longest on average
        inputs["attention_mask"] = (torch.arange(columns) < lengths[:, None]).long()
    padded, cut = (Setting(plan.model, *pair, sites=plan.sites(), economize=on) for on in (False, True))
    return plan.race(padded=padded.step, cut=cut.step)


def precision(plan: Plan) -> list[Row]:
    """A step in float32 and with compute_dtype; goal 0.70. Difference: of the gradient, relative, in norm."""
    import numpy as np
    import torch

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
    import lineas

    model, rows = small_llama(layers=16), []
    found = lineas.find_sites(model.requires_grad_(False))
    for count in (1, 2) if plan.quick else (1, 2, 4, 8, 16):
        setting = Setting(model, random_inputs(32, 32, 64, 0), random_inputs(32, 32, 64, 1), sites=found[:count])
        rows.append({"sites": count, **beside_bare(plan, setting)})
    return rows


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
    import lineas

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
    "step": step, "padding": padding, "precision": precision, "prefix": prefix, "memory": memory, "samples": samples,
    "tokens": tokens, "sites": sites,
}  # fmt: skip


def show(name: str, title: str, rows: list[Row]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    width = max(len(str(row.get(columns[0], ""))) for row in rows)
    print(f"\n{name}: {title}")
    print(f"  {columns[0]:<{max(width, 8)}}" + "".join(f"{column:>12}" for column in columns[1:]))
    for row in rows:
        cells = (f"{row[c]:12.4g}" if c in row else " " * 12 for c in columns[1:])
        print(f"  {row[columns[0]]!s:<{max(width, 8)}}" + "".join(cells), flush=True)


def main() -> None:
    asked = arguments()
    names = asked.only.split(",") if asked.only else list(TABLES)
    if unknown := set(names) - set(TABLES):
        raise SystemExit(f"--only: expected some of {', '.join(TABLES)}; got {', '.join(sorted(unknown))}")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import _timing
    import torch

    torch.set_num_threads(asked.threads)
    plan = Plan(asked)
    if asked.child:
        child(plan, json.loads(asked.child))
        return
    facts = _timing.machine(asked.threads)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    tables = {}
    for name in names:
        tables[name] = TABLES[name](plan)
        show(name, (TABLES[name].__doc__ or "").strip(), tables[name])
    if asked.json:
        Path(asked.json).write_text(json.dumps({"machine": facts, "tables": tables}, indent=1) + "\n")


if __name__ == "__main__":
    main()
