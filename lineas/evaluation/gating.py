"""Where a gate is open."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..network.calls import call
from ..network.inputs import Inputs
from ..network.state import device_of, eager, frozen, seeded
from ..steering import Steering


def openness(
    steering: Steering, model: nn.Module, inputs: Any, *, tokenizer: Any = None, batch_size: int | None = None,
    max_length: int | None = None, seed: int = 0,
) -> NDArray[np.float32]:  # fmt: skip
    """How far a steering's gate is open for each of some inputs: above 0.5 it acts.

    Parameters
    ----------
    steering : Steering
        With a gate.
    model : nn.Module
        Left as it was.
    inputs : as `src` of `lineas.fit`
    tokenizer, batch_size, max_length, seed : as in `lineas.fit`

    Returns
    -------
    (samples,) float32 array, 0 to 1
        At the end of each text, where the gate has a running mean; the mean over tokens, where it reads them singly.

    Raises
    ------
    TypeError, ValueError, LookupError
        As in `lineas.fit`; a steering without a gate.

    Examples
    --------
    >>> import torch, lineas
    >>> net = torch.nn.Sequential(torch.nn.Identity())
    >>> steering = lineas.Steering({"0": ([2.0], [0.0])}).gated(lineas.Gate("0", [9.0], 0.0, "all"))
    >>> lineas.evaluation.openness(steering, net, torch.tensor([[-1.0], [0.0], [1.0]])).round(3)
    array([0. , 0.5, 1. ], dtype=float32)
    """
    if not isinstance(steering, Steering):
        raise TypeError(f"steering: expected a Steering, got {type(steering).__name__}")
    gate = steering.gate
    if gate is None:
        raise ValueError("steering: expected one with a gate, got one that always acts; lineas.fit_gate makes one")
    given, device, found = Inputs(model), device_of(model), []
    with seeded(seed, device), frozen(model), eager(), torch.no_grad(), steering.apply(model, 0.0) as handle:
        (batches,) = given.batches({"inputs": inputs}, tokenizer, batch_size, max_length, 1)
        for batch in batches:
            call(model, batch.to(device))
            (opened,) = handle.openness().values()
            opened = opened.cpu()
            if opened.ndim > 1:
                mask = torch.ones_like(opened) if batch.mask is None else (batch.mask.cpu() != 0).to(opened.dtype)
                if gate.pooling == "running":  # the last real token of each row
                    last = (mask * torch.arange(1, mask.shape[1] + 1)).argmax(1, keepdim=True)
                    opened = opened.gather(1, last).flatten()
                else:
                    opened = (opened * mask).sum(1) / mask.sum(1)
            found.append(opened.numpy())
    return np.concatenate(found).astype(np.float32)
