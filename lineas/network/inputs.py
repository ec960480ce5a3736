"""What a network is given: inputs of its own, or what its pipeline makes of prompts."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from .data import as_batches
from .kept import Kept
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
        max_length: int | None = None, least: int = 2, keep: Callable[[], Kept] = Kept,
        seen: Callable[[str, int], None] | None = None,
    ) -> list[Kept]:  # fmt: skip
        """Of each set by its name in messages. Errors are those of `as_batches`, or of `Capture`.

        `keep` makes what a set's batches go into as they come. `seen`, if given, is called after each batch with the
        set's name and how many samples it has.
        """
        found = [keep() for _ in sets]
        if self.capture is None:
            for (name, inputs), kept in zip(sets.items(), found, strict=True):
                told = None if seen is None else partial(seen, name)
                as_batches(inputs, name, self.network, tokenizer, batch_size, max_length, least, kept, told)
            return found
        if given := [k for k, v in (("tokenizer", tokenizer), ("max_length", max_length)) if v is not None]:
            raise ValueError(f"{', '.join(given)}: not for a pipeline, which has its own; see call=")
        columns = {name: self.capture.columns(inputs, name) for name, inputs in sets.items()}
        self.capture.learn(*columns.values())
        for (name, rows), kept in zip(columns.items(), found, strict=True):
            for batch in self.capture.batches(rows, name, batch_size, least):
                kept.append(batch)
        return found

    def facts(self) -> dict[str, Any]:
        """What `info` keeps of the pipeline; empty without one."""
        return {} if self.capture is None else {"pipeline": self.capture.facts()}
