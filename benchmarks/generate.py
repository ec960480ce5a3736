"""What a steering costs while a model generates: tokens per second bare, merged, and attached in several ways.

    python benchmarks/generate.py [--only one,many,attach] [--rounds 20] [--tokens 8] [--json FILE]

Every row generates as many tokens, greedily, after the same prompts. Rivals take turns in one process, in another order
every time; minima and medians are kept. A ratio is that of tokens per second to the bare model's: 0.95 is 5% slower. It
is taken of minima, and "by turn" is the median over turns of the same, which tells how far to trust it. So does a copy
of the bare model: a merged one, too, is a model of its own, elsewhere in memory. With one thread, seconds are those of
the processor, which other work on the machine moves less. The last table attaches to a model of the shape of Llama-2-7B
without weights (on PyTorch's meta device).
"""

import argparse
import copy
import os
import statistics
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))  # not ROOT: an unbuilt source tree must not hide what is installed
os.environ["HF_HUB_OFFLINE"] = "1"

import _tables  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from _fit_setting import seconds, small_llama  # noqa: E402
from _tables import Row  # noqa: E402
from torch import nn  # noqa: E402

import lineas  # noqa: E402

Rivals = dict[str, Callable[[], AbstractContextManager]]


def arguments() -> argparse.Namespace:
    parser = _tables.parser(__doc__, rounds=20)
    parser.add_argument("--tokens", type=int, default=8, help="to generate, for each row of the batch")
    return parser.parse_args()


def maps(model: nn.Module, part: float = 1.0, seed: int = 0, pattern: str | None = None) -> lineas.Steering:
    """Random maps at the default sites, or others, near the identity in so large a part of the units of each."""
    draw, made = np.random.default_rng(seed), {}
    for site in lineas.find_sites(model, pattern):
        moved = np.zeros(site.units, bool)
        moved[draw.permutation(site.units)[: max(1, round(part * site.units))]] = True
        noise = 0.02 * draw.normal(size=(2, site.units)) * moved
        made[site.name] = (1 + noise[0], noise[1])
    return lineas.Steering(made)


class Plan:
    """The models, steerings and prompts of the tables: SmolLM2-135M, or a small random model with --quick."""

    def __init__(self, asked: argparse.Namespace):
        self.threads, self.quick = asked.threads, asked.quick
        self.rounds, self.tokens = (2, 4) if asked.quick else (asked.rounds, asked.tokens)
        self._models: tuple[nn.Module, nn.Module, nn.Module] | None = None

    def models(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Bare, a copy of it, and the dense steering merged into another."""
        if self._models is None:
            if self.quick:
                model = small_llama()
            else:
                import embedded_model

                model, _ = embedded_model.load()
            self._models = model, copy.deepcopy(model), maps(model).merge(model)
        return self._models


def one(plan: Plan) -> list[Row]:
    """Tokens per second, one text; goals: 0.95 attached, 1.00 merged."""
    return generating(plan, 1)


def many(plan: Plan) -> list[Row]:
    """Tokens per second, a batch of 16 texts; goals: 0.95 attached, 1.00 merged."""
    return generating(plan, 16)


def generating(plan: Plan, batch: int) -> list[Row]:
    model, twin, merged = plan.models()
    dense, few, other = maps(model), maps(model, 0.01), maps(model, seed=1)
    strengths = np.linspace(0.5, 1.5, batch).tolist()
    ids = [("dense", "other", None)[k % 3] for k in range(batch)]
    rivals: Rivals = {
        "bare": lambda: nullcontext(model),
        "bare, a copy": lambda: nullcontext(twin),
        "merged": lambda: nullcontext(merged),
        "dense": lambda: dense.attach(model),
        "1% support": lambda: few.attach(model),
        "dense, position generated": lambda: dense.attach(model, position="generated"),
        "1% support, position last": lambda: few.attach(model, position="last"),
        "dense, a strength for each row": lambda: dense.attach(model, strengths),
        "a steering for each row": lambda: lineas.attach(model, {"dense": dense, "other": other}, ids),
    }
    prompts = torch.randint(3, model.config.vocab_size, (batch, 16), generator=torch.Generator().manual_seed(0))
    options = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": plan.tokens, "pad_token_id": 0}

    def generate(rival: str) -> float:
        with rivals[rival]():
            network = {"merged": merged, "bare, a copy": twin}.get(rival, model)
            return seconds(
                lambda: network.generate(prompts, do_sample=False, min_new_tokens=plan.tokens, **options), plan.threads
            )

    times: dict[str, list[float]] = {name: [] for name in rivals}
    order = np.random.default_rng(0)  # anew every turn, so that nobody always follows the same rival
    for turn in range(plan.rounds + 1):
        for name in order.permutation(list(rivals)).tolist():
            took = generate(name)
            if turn:
                times[name].append(took)
    return [row(name, each, times["bare"], batch * plan.tokens) for name, each in times.items()]


def row(name: str, each: list[float], bare: list[float], tokens: int) -> Row:
    return {
        "": name, "tokens/s": tokens / min(each), "median": tokens / statistics.median(each),
        "ratio": min(bare) / min(each), "by turn": statistics.median(a / b for a, b in zip(bare, each, strict=True)),
    }  # fmt: skip


def attach(plan: Plan) -> list[Row]:
    """Milliseconds to attach to a model of 7 billion parameters, and to remove; goal: 50."""
    size = {"hidden_size": 64, "num_hidden_layers": 2} if plan.quick else {}  # the defaults are those of Llama-2-7B
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_attention_heads=32, **size))
    dense, few, other = maps(model), maps(model, 0.01), maps(model, seed=1)
    linear = maps(model, pattern=r".*_proj")
    rivals: dict[str, tuple[int, Callable[[], lineas.Handle]]] = {
        "dense": (len(dense.sites), lambda: dense.attach(model)),
        "1% support": (len(few.sites), lambda: few.attach(model)),
        "dense, position last": (len(dense.sites), lambda: dense.attach(model, position="last")),
        "two steerings for 16 rows": (len(dense.sites), lambda: lineas.attach(model, [dense, other], [0, 1] * 8)),
        "dense, every linear layer": (len(linear.sites), lambda: linear.attach(model)),
    }
    rows = []
    for name, (sites, call) in rivals.items():
        on, off = [], []
        for _ in range(plan.rounds):
            handles: list[lineas.Handle] = []
            on.append(1000 * seconds(lambda call=call, handles=handles: handles.append(call()), plan.threads))
            off.append(1000 * seconds(handles[0].remove, plan.threads))
        figures = {"attach": min(on), "median": statistics.median(on), "remove": min(off)}
        rows.append({"": name, "sites": sites, **figures})
    return rows


TABLES: dict[str, Callable[[Plan], list[Row]]] = {"one": one, "many": many, "attach": attach}


if __name__ == "__main__":
    asked = arguments()
    _tables.make(asked, TABLES, Plan(asked))
