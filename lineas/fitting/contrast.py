"""What maps do to that which tells a concept's targets from its sources, to first order."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import Floats
from ..core.errors import NonFiniteError
from ..evaluation.calibration import writes_texts
from ..evaluation.divergence import losses_of
from ..network.batch import Batch
from ..responses.runner import Runner
from .model_loss import ModelLoss
from .ridge import bound, most_at_once, outputs_of, side_by_side


def contrast(problem: ModelLoss, sources: Sequence[Batch], targets: Sequence[Batch]) -> Floats:
    """The gradient at the identity of a concept's contrast, for all weights and then all biases, (2 N,).

    Of a causal language model it is how much likelier a token of the targets is than one of the sources: what a reader
    of its text notices. Of any other network, how far the sources' responses are on their way: minus the loss.

    Notes
    -----
    One forward and one backward pass through all of the model, over both sets; of other networks, one evaluation.
    NonFiniteError where it overflows.
    """
    runner, found = problem.runner, np.zeros(0)
    if writes_texts(runner.model) and all("input_ids" in batch.kwargs for batch in chain(sources, targets)):
        found = likelihood(runner, targets) - likelihood(runner, sources)
    if not found.any():  # no such model, or layers behind the last loss site through which no gradient passes
        found = -problem.evaluate(problem.identity()).gradient().astype(np.float64)
    if not np.isfinite(found).all():
        raise NonFiniteError("expected a finite gradient of what tells targets from sources, got another")
    return found


def likelihood(runner: Runner, batches: Sequence[Batch]) -> Floats:
    """The gradient at the identity of the mean log-likelihood of a token of the model's own input, (2 N,)."""
    half, count = len(runner.mapped.sites), 0.0
    total = np.zeros(2 * runner.mapped.units)
    most = most_at_once(batches[0])
    rows = max(1, most // bound(runner.model, batches[0]))
    for batch in batches:
        start = 0
        while start < batch.size:
            part = batch.rows(start, min(start + rows, batch.size)).trimmed()
            logits, _, leaves = outputs_of(runner.model, runner.mapped, part)
            rows, start = max(1, most * part.size // logits.numel()), start + part.size
            if not logits.requires_grad:
                continue
            losses, tokens = losses_of(logits, _foretold(part))
            gradients = torch.autograd.grad(losses.sum(), leaves, materialize_grads=True, allow_unused=True)
            parts = (side_by_side(found).sum(0).cpu().numpy() for found in (gradients[:half], gradients[half:]))
            total -= np.concatenate([*parts])
            count += float(tokens.sum())
    return total / max(count, 1.0)


def _foretold(batch: Batch) -> Batch:
    """With a mask of the tokens that follow another one: padding on the left foretells nothing."""
    ids: Tensor = batch.kwargs["input_ids"]
    real = torch.ones_like(ids) if batch.mask is None else (batch.mask != 0).to(ids.dtype)
    mask = torch.cat([real[:, :1], real[:, 1:] * real[:, :-1]], 1)
    return replace(batch, kwargs={**batch.kwargs, "attention_mask": mask})
