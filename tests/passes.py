"""What the tests of passes share: a loss through a model at random maps, and counts of what runs."""

import numpy as np
import torch

import lineas
from lineas.fitting.model_loss import ModelLoss
from lineas.fitting.source_passes import SourcePasses
from lineas.network.data import as_batches
from lineas.responses.probe import probe
from lineas.responses.runner import Runner


def problem_of(model, src, tgt, *, tokenizer=None, sites=None, loss_sites=None, economize=True, batch_size=None):
    sources, targets = (as_batches(side, "src", model, tokenizer, batch_size) for side in (src, tgt))
    mapped = lineas.find_sites(model, sites)
    compared = mapped if loss_sites is None else lineas.find_sites(model, loss_sites)
    layout = probe(model, [*dict.fromkeys([*mapped, *compared])], sources[0])
    where = model, layout.part(mapped), layout.part(compared), "mean"
    runner = Runner(*where)
    if economize:
        runner = Runner(*where, savings=runner.possible_savings([*sources, *targets]))
    return ModelLoss(SourcePasses(runner, sources), [runner.collect([batch]) for batch in targets])


def evaluate(problem, seed=0, times=1):
    """Loss and gradient at random maps; `times` 2 lets what the first evaluation recorded serve."""
    for _ in range(times):
        x = problem.identity() + 0.1 * np.random.default_rng(seed).normal(size=2 * problem.runner.mapped.units)
        at = problem.evaluate(x.astype(np.float32))
        gradient = at.gradient()
    return at.loss, gradient


def assert_same(got, expected, rtol=2e-5):
    np.testing.assert_allclose(got[0], expected[0], rtol=rtol)
    assert np.linalg.norm(got[1] - expected[1]) <= rtol * np.linalg.norm(expected[1])


class Count:
    """How often a module runs, and on how many numbers."""

    def __init__(self, module):
        self.calls, self.numbers = 0, 0
        module.register_forward_hook(self)

    def __call__(self, module, args, output):
        self.calls += 1
        self.numbers += args[0].numel() if args else 0


def padded_ids(left=False, rows=7, columns=12):
    """Rows of 3 to `columns` tokens."""
    ids = torch.randint(2, 60, (rows, columns), generator=torch.Generator().manual_seed(rows))
    lengths = torch.linspace(3, columns, rows).long()[torch.randperm(rows, generator=torch.Generator().manual_seed(0))]
    mask = (torch.arange(columns) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask.flip(1) if left else mask}
