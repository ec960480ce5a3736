"""A model, two sets of inputs, a step of a fit on them, and the same without lineas; each timed in its turn."""

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import transformers
from _tables import Row

import lineas
from lineas.fitting.model_loss import ModelLoss
from lineas.fitting.source_passes import SourcePasses
from lineas.network.data import as_batches
from lineas.network.state import device_of, dtype_of
from lineas.responses.probe import probe
from lineas.responses.runner import Runner, Savings


def race(rivals: dict[str, Callable[[], Any]], rounds: int, threads: int) -> list[Row]:
    """Each in its turn, `rounds` times after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(rounds + 1):
        for name, call in rivals.items():
            took = seconds(call, threads)
            if turn or rounds == 1:
                times[name].append(took)
    first = min(next(iter(times.values())))
    return [
        {"": name, "seconds": min(t), "median": statistics.median(t), "ratio": min(t) / first}
        for name, t in times.items()
    ]


def seconds(call: Callable[[], Any], threads: int) -> float:
    clock = time.process_time if threads == 1 else time.perf_counter
    finish()
    started = clock()
    call()
    finish()
    return clock() - started


def finish() -> None:
    """Wait for what a GPU still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def small_llama(hidden: int = 64, layers: int = 4):
    """Random weights, for what needs many shapes and no meaning."""
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


def random_inputs(samples: int, tokens: int, vocabulary: int, seed: int = 0) -> dict:
    ids = torch.randint(0, vocabulary, (samples, tokens), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class Setting:
    """A model and two sets of inputs, ready to step."""

    def __init__(self, model, src, tgt, *, sites=None, economize=True, compute_dtype=None, graphs=False):
        self.model, self.penalty = model, lineas.penalties.SparseGroupLasso(1e-6, 1e-6)
        device = device_of(model)
        self.sources = [batch.to(device) for batch in as_batches(src, "src", model)]
        self.targets = [batch.to(device) for batch in as_batches(tgt, "tgt", model)]
        layout = probe(model, lineas.find_sites(model, sites), self.sources[0])
        runner = Runner(model, layout, layout, "mean")
        savings = runner.possible_savings([*self.sources, *self.targets]) if economize else Savings()
        runner = Runner(model, layout, layout, "mean", savings=savings, compute_dtype=compute_dtype, graphs=graphs)
        responses = [runner.collect([batch]) for batch in self.targets]
        self.problem = ModelLoss(SourcePasses(runner, self.sources), responses)
        self.x = self.problem.identity()

    def step(self) -> None:
        gradient = self.problem.evaluate(self.x).gradient()
        self.penalty.proximal_step(self.x, gradient, self.problem.sizes, 1e-3)

    def bare(self) -> None:
        """No lineas: a bias at the first site, backward from the sum of all sites' outputs to it."""

        class Finished(Exception):
            pass

        sites = self.problem.runner.mapped.sites
        model = self.problem.runner.model
        bias = torch.zeros(
            self.problem.sizes[0], dtype=dtype_of(model), device=device_of(model), requires_grad=True
        )  # fmt: skip
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
