"""What a network is given: inputs of its own, or what its pipeline makes of prompts."""

from collections.abc import Mapping
from typing import Any

from .batch import Batch
from .data import as_batches
from .pipelines import is_pipeline, network_of
from .pipelines.capture import At, Capture
from .pipelines.components import is_denoiser

__all__ = ["Inputs"]


class Inputs:
    """Makes batches for a network.

    Parameters
    ----------
    model : nn.Module or pipeline
    component, call, at, seed : as `pipelines.capture.Capture` takes them
        For a pipeline only; ValueError for a network by itself.

    Attributes
    ----------
    network : nn.Module
        The model itself, or the component of the pipeline.
    makes_pictures : bool
        Whether it is a pipeline's denoiser.
    """

    def __init__(
        self, model: Any, *, component: str | None = None, call: Mapping[str, Any] | None = None, at: At = None,
        seed: int = 0,
    ):  # fmt: skip
        self.network, self.makes_pictures = network_of(model, component), is_denoiser(model, component)
        self.capture = Capture(model, component, call, at, seed) if is_pipeline(model) else None
        if self.capture is None and (given := [k for k, v in (("call", call), ("at", at)) if v is not None]):
            raise ValueError(f"{', '.join(given)}: for a pipeline only, got a {type(model).__name__}")

    def batches(
        self, sets: Mapping[str, Any], tokenizer: Any = None, batch_size: int | None = None,
        max_length: int | None = None, least: int = 2,
    ) -> list[list[Batch]]:  # fmt: skip
        """Of each set by its name in messages. Errors are those of `as_batches`, or of `Capture`."""
        if self.capture is None:
            return [
                as_batches(inputs, name, self.network, tokenizer, batch_size, max_length, least)
                for name, inputs in sets.items()
            ]
        if given := [k for k, v in (("tokenizer", tokenizer), ("max_length", max_length)) if v is not None]:
            raise ValueError(f"{', '.join(given)}: not for a pipeline, which has its own; see call=")
        columns = {name: self.capture.columns(inputs, name) for name, inputs in sets.items()}
        self.capture.learn(*columns.values())
        return [self.capture.batches(rows, name, batch_size, least) for name, rows in columns.items()]

    def facts(self) -> dict[str, Any]:
        """What `info` keeps of the pipeline; empty without one."""
        return {} if self.capture is None else {"pipeline": self.capture.facts()}
