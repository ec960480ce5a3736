"""lineas on a GPU, beside what the GPU can do: one table a part, from one command, in a few minutes.

    python benchmarks/gpu.py [--only limits,kernels,step,fit,generate,cores,images] [--json FILE]
                             [--write docs/performance.md] [--known FILE]

Models have the shapes of published ones and random weights in bfloat16; 32 + 32 samples of 32 tokens. `bare` is the
model itself: forward to the last default site and backward to one bias. `hooks` is the least that any steering would
do: `(h * w + b).to(h.dtype)` and a mean at each site. Rivals take turns; minima and medians are kept, on the wall's
clock. `copies` counts how often a tensor could have been copied in the same time.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))
os.environ["HF_HUB_OFFLINE"] = "1"

import _tables  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from _fit_setting import Setting, race, random_inputs, seconds  # noqa: E402
from _tables import Row  # noqa: E402
from generate import maps  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import lineas  # noqa: E402
from lineas.core import ops, reference  # noqa: E402
from lineas.fitting import losses  # noqa: E402

SHAPES: dict[str, tuple[Any, Any, dict[str, int]]] = {
    "Llama-3.2-1B": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    }),
    "Gemma-2-2B": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM, {
        "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    }),
    "Qwen2.5-3B": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 2,
    }),
}  # fmt: skip


class Plan:
    def __init__(self, asked: Any):
        self.rounds, self.quick = (1 if asked.quick else asked.rounds), asked.quick
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._models: dict[str, nn.Module] = {}

    def models(self) -> dict[str, nn.Module]:
        for name, (config, kind, size) in SHAPES.items():
            if name not in self._models:
                small = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
                torch.manual_seed(0)
                with torch.device(self.device):
                    torch.set_default_dtype(torch.bfloat16)
                    try:
                        model = kind(config(**(small if self.quick else size)))
                    finally:
                        torch.set_default_dtype(torch.float32)
                self._models[name] = model.eval().requires_grad_(False)
        return self._models

    def inputs(self, model: nn.Module) -> tuple[dict, dict]:
        rows, tokens = (4, 8) if self.quick else (32, 32)
        return tuple(random_inputs(rows, tokens, model.config.vocab_size, seed) for seed in (0, 1))


def timed(call: Callable[[], Any], rounds: int) -> float:
    """Seconds a call on the GPU, the best of some rounds of enough calls."""
    call()
    torch.cuda.synchronize()
    best = float("inf")
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(20):
            call()
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) / 20e3)
    return best


def limits(plan: Plan) -> list[Row]:
    """What the card can do: GB/s of a copy, read and write, and TFLOP/s of a matrix product in bfloat16"""
    if plan.device == "cpu":
        return [{"": "there is no GPU here"}]
    large, square = torch.empty(1 << 30, dtype=torch.bfloat16, device="cuda"), 8192
    to = torch.empty_like(large)
    a, b = (torch.randn(square, square, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    copy, product = timed(lambda: to.copy_(large), 3), timed(lambda: a @ b, 3)
    return [
        {"": torch.cuda.get_device_name(), "GB/s": 4e-9 * large.numel() / copy, "TFLOP/s": 2e-12 * square**3 / product}
    ]


def kernels(plan: Plan) -> list[Row]:
    """One map of a tensor, and map with pooled responses there and back, in copies of that tensor"""
    if plan.device == "cpu":
        return [{"": "there is no GPU here"}]
    rows: list[Row] = []
    shapes = {"(64, 1024, 4096)": (64, 1024, 4096), "(32, 32, 2304)": (32, 32, 2304)}
    for dtype in (torch.bfloat16, torch.float32):
        for name, (n, tokens, units) in shapes.items():
            for first in (False, True):
                h = torch.randn((n, units, tokens) if first else (n, tokens, units), device="cuda").to(dtype)
                w, b = (torch.randn(units, device="cuda") for _ in range(2))
                pool = torch.full((n, tokens), 1 / tokens, device="cuda")
                shape = (1, units, 1) if first else (1, 1, units)
                to, wide = torch.empty_like(h), (w.view(shape), b.view(shape))
                copy = timed(lambda to=to, h=h: to.copy_(h), plan.rounds)

                def plain(h=h, wide=wide):
                    return (h * wide[0] + wide[1]).to(h.dtype)

                def both(op, h=h, w=w, b=b, pool=pool, first=first):
                    leaves = [x.detach().requires_grad_() for x in (h, w, b)]
                    out, pooled = op(*leaves, pool, channels_first=first)
                    torch.autograd.grad((out, pooled), leaves, (h, pooled.detach()))

                with torch.no_grad():
                    one = timed(lambda h=h, wide=wide: ops.affine(h, *wide), plan.rounds)
                    naive = timed(plain, plan.rounds)
                ours = timed(lambda both=both: both(ops.affine_pool), plan.rounds)
                reference_ = timed(lambda both=both: both(reference.affine_pool), plan.rounds)
                rows.append({
                    "": f"{name} {str(dtype)[6:]}{', channels first' * first}", "copy us": 1e6 * copy,
                    "affine": one / copy, "h * w + b": naive / copy, "affine_pool": ours / copy,
                    "reference": reference_ / copy,
                })  # fmt: skip
    return rows


def hooks_only(setting: Setting) -> Callable[[], None]:
    """The least that steering with responses costs in PyTorch: a map and a mean at each site, there and back."""
    runner, model = setting.problem.runner, setting.model
    device = next(model.parameters()).device
    leaves = [
        torch.full((size,), value, device=device, requires_grad=True)
        for size in setting.problem.sizes for value in (1.0, 0.0)
    ]  # fmt: skip

    class Finished(Exception):
        pass

    def step() -> None:
        means: list[Tensor] = []

        def hook(module, args, output):
            k = len(means)
            out = (output * leaves[2 * k] + leaves[2 * k + 1]).to(output.dtype)
            means.append(out.mean(1, dtype=torch.float32))
            if len(means) == len(runner.mapped.sites):
                raise Finished
            return out

        with ExitStack() as stack:
            for site in runner.mapped.sites:
                stack.callback(model.get_submodule(site.path).register_forward_hook(hook).remove)
            try:
                model(**setting.sources[0].kwargs, use_cache=False)
            except Finished:
                torch.autograd.grad(torch.cat(means, 1).square().sum(), leaves)

    return step


def step(plan: Plan) -> list[Row]:
    """A step: loss and gradient of all maps; goal: 0.5 of bare"""
    rows = []
    for name, model in plan.models().items():
        pair = plan.inputs(model)
        ours, graphs = Setting(model, *pair, economize=False), Setting(model, *pair, economize=False, graphs=True)
        graphs.step()  # which captures
        rivals = {"bare": ours.bare, "hooks": hooks_only(ours), "lineas": ours.step, "lineas, graphs": graphs.step}
        for row in race(rivals, plan.rounds, threads=2):
            rows.append(
                {
                    "": f"{name}: {row['']}",
                    "ms": 1e3 * row["seconds"],
                    "median": 1e3 * row["median"],
                    "ratio": row["ratio"],
                }
            )
        print(name, graphs.problem.runner.graphs.facts())
    return rows


def fit(plan: Plan) -> list[Row]:
    """A whole default fit, seconds; peak memory beside the weights in MB"""
    rows = []
    for name, model in plan.models().items():
        pair = plan.inputs(model)
        for label, options in (("", {}), ("graphs off", {"graphs": False}), ("ridge=0", {"ridge": 0.0})):
            found = []
            for _ in range(1 if plan.quick else 3):
                if plan.device == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                    weights = torch.cuda.memory_allocated()
                started = time.perf_counter()
                steering = lineas.fit(model, *pair, progress=False, **options)
                found.append(time.perf_counter() - started)
            peak = (torch.cuda.max_memory_allocated() - weights) / 1e6 if plan.device == "cuda" else 0.0
            rows.append({
                "": f"{name} {label}", "first": found[0], "s": min(found), "evaluations": steering.info["evaluations"],
                "peak MB": peak,
            })  # fmt: skip
            print(name, label, steering.info.get("graphs"))
    return rows


def generate(plan: Plan) -> list[Row]:
    """Tokens a second of greedy generation, 1 and 16 rows; ratio: of times to bare"""
    rows = []
    model = next(iter(plan.models().values()))
    steering = maps(model)

    def adding(module, args, output):
        return output + 0.0

    @contextmanager
    def hooked():
        handles = [model.get_submodule(site.path).register_forward_hook(adding) for site in lineas.find_sites(model)]
        yield
        for handle in handles:
            handle.remove()

    for batch in (1, 16):
        ids = torch.randint(3, 100, (batch, 16), device=plan.device)
        for cache in (None, "static"):
            new = 4 if plan.quick else 64
            options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
            options |= {"cache_implementation": cache} if cache and plan.device == "cuda" else {}
            rivals: dict[str, Callable[[], Any]] = {"bare": nullcontext, "attached": lambda: steering.attach(model)}
            rivals |= {} if cache else {"a hook that adds": hooked}
            times: dict[str, list[float]] = {rival: [] for rival in rivals}
            write = partial(model.generate, ids, attention_mask=torch.ones_like(ids), **options)
            for _ in range(1 if plan.quick else plan.rounds):
                for rival, on in rivals.items():
                    with on():  # which is not a part of what is measured, nor is the first pass
                        write()
                        times[rival].append(seconds(write, threads=2))
            rows += [
                {"": f"{batch} rows, {cache or 'dynamic'} cache, {rival}", "tokens/s": batch * new / min(each),
                 "ratio": min(each) / min(times["bare"])}
                for rival, each in times.items()
            ]  # fmt: skip
    return rows


def cores(plan: Plan) -> list[Row]:
    """Loss and gradient, and the null, in C on so many threads: milliseconds"""
    rows = []
    sizes = {"32 x 17,280": (32, 17280), "32 x 143,360": (32, 143360), "256 x 17,280": (256, 17280),
             "1024 x 4,096": (1024, 4096)}  # fmt: skip
    counts = [k for k in (1, 2, 4, 8, 16) if k <= (os.cpu_count() or 1)]
    draw = np.random.default_rng(0)
    for name, (n, units) in sizes.items():
        n, units = (8, 64) if plan.quick else (n, units)
        x, y = (draw.normal(size=(n, units)).astype(np.float32) for _ in range(2))
        coefficient, room = np.ones(units), ops.Room()
        goal = ops.prepare_target(y, n)
        row: Row = {"": f"loss {name}"}
        for threads in counts:
            calls = []
            for _ in range(2 if plan.quick else 9):
                started = time.perf_counter()
                ops.loss(x, goal, coefficient, threads=threads, room=room)
                calls.append(time.perf_counter() - started)
            row[f"{threads}"] = 1e3 * statistics.median(calls[1:])
        rows.append(row)
    for name, (n, units) in {"32 x 59,904": (32, 59904), "256 x 17,280": (256, 17280)}.items():
        n, units = (8, 64) if plan.quick else (n, units)
        x, y = (draw.normal(size=(n, units)).astype(np.float32) for _ in range(2))
        row = {"": f"null {name}"}
        for threads in counts:
            torch.set_num_threads(threads)
            started = time.perf_counter()
            losses.sampling_noise(x, y)
            row[f"{threads}"] = 1e3 * (time.perf_counter() - started)
        if plan.device == "cuda":
            device = torch.device("cuda")
            losses.sampling_noise(x, y, device)
            started = time.perf_counter()
            losses.sampling_noise(x, y, device)
            row["GPU"] = 1e3 * (time.perf_counter() - started)
        rows.append(row)
    return rows


def images(plan: Plan) -> list[Row]:
    """A fit of 32 + 32 prompts on the image model of the examples, seconds: as it is, in other forms, without graphs"""
    from _image_model import CALL, captions, load

    told, rows = captions("heart", "induce", 0, 8, 4 if plan.quick else 32), []
    few = {"max_evaluations": 2} if plan.quick else {}
    forms: dict[str, Callable[[nn.Module], nn.Module]] = {
        "float32": lambda unet: unet, "channels last": lambda unet: unet.to(memory_format=torch.channels_last),
        "bfloat16": lambda unet: unet.to(torch.bfloat16), "float16": lambda unet: unet.to(torch.float16),
        "float16, channels last": lambda unet: unet.to(torch.float16, memory_format=torch.channels_last),
    }  # fmt: skip
    for name, form in list(forms.items())[: 1 if plan.quick else None]:
        pipe = load().to(plan.device)
        dtype = form(pipe.unet).dtype
        pipe.text_encoder.to(dtype)
        pipe.vae.to(dtype)
        for graphs in (True, False):
            took = []
            for _ in range(1 if plan.quick else 2):
                started = time.perf_counter()
                steering = lineas.fit(pipe, told.source, told.target, call=CALL, graphs=graphs, progress=False, **few)
                took.append(time.perf_counter() - started)
            evaluations = steering.info["evaluations"]
            loss = steering.history["loss"]
            rows.append({
                "": f"{name}{'' if graphs else ', graphs off'}", "s": min(took), "evaluations": evaluations,
                "loss": loss[-1] / loss[0],
            })  # fmt: skip
            print(name, graphs, steering.info.get("graphs"))
    return rows


TABLES: dict[str, Callable[[Plan], list[Row]]] = {
    "limits": limits, "kernels": kernels, "step": step, "fit": fit, "generate": generate, "cores": cores,
    "images": images,
}  # fmt: skip


START, END = "<!-- made by benchmarks/gpu.py -->", "<!-- end -->"


def versions(plan: Plan) -> dict[str, str]:
    if plan.device == "cpu":
        return {}
    import triton

    return {
        "GPU": torch.cuda.get_device_name(), "CUDA": str(torch.version.cuda), "triton": triton.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip


def markdown(figures: dict[str, Any]) -> Iterator[str]:
    """Every table, under the words of its function."""
    known = ("GPU", "CUDA", "torch", "triton", "transformers", "cpu", "cores")
    yield ", ".join(f"{key} {figures['machine'][key]}" for key in known if key in figures["machine"]) + "."
    for name, rows in figures["tables"].items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        yield f"\n**{name}.** {(TABLES[name].__doc__ or '').strip()}.\n"
        yield f"| {' | '.join(columns)} |"
        yield "|" + "---|" * len(columns)
        for row in rows:
            cells = [_cell(row.get(column, "")) for column in columns]
            yield f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    return str(value) if not isinstance(value, float) else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def main() -> None:
    parser = _tables.parser(__doc__, rounds=7)
    parser.set_defaults(threads=min(16, os.cpu_count() or 1))
    parser.add_argument("--write", metavar="PAGE", type=Path, help="put the tables into this page, between its marks")
    parser.add_argument("--known", metavar="FILE", type=Path, help="figures of an earlier --json, instead of new ones")
    asked = parser.parse_args()
    if asked.known:
        figures = json.loads(asked.known.read_text())
    else:
        plan = Plan(asked)
        figures = _tables.make(asked, TABLES, plan)
        figures["machine"] |= versions(plan)
    if asked.json:
        Path(asked.json).write_text(json.dumps(figures, indent=1) + "\n")
    if asked.write:
        before, _, rest = asked.write.read_text().partition(START)
        _, _, after = rest.partition(END)
        asked.write.write_text(before + START + "\n" + "\n".join(markdown(figures)) + "\n" + END + after)


if __name__ == "__main__":
    main()
