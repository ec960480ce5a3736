"""Responses to two sets of inputs side by side: what rankings and tests of units are made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..attaching.handle import what_is_on
from ..core import checks
from ..network.identity import name_of
from ..network.inputs import Inputs
from ..network.pipelines import is_pipeline, network_of
from ..network.pipelines.rows import columns_of, images_of_a_prompt
from ..network.sites import Site
from ..network.texts import as_texts
from ..responses.collect import responses_to


@dataclass(frozen=True, eq=False)
class Samples:
    """Responses of all sites side by side to a positive set (n, N) and a negative one (m, N), and their inputs.

    `inputs` has the texts or chats of both sets, None for a set of another kind.
    """

    sizes: dict[str, int]
    positive: NDArray
    negative: NDArray
    inputs: tuple[list | None, list | None] = (None, None)

    @classmethod
    def of(
        cls, positive: Mapping[str, ArrayLike], negative: Mapping[str, ArrayLike],
        inputs: tuple[list | None, list | None] = (None, None),
    ) -> "Samples":  # fmt: skip
        """From responses by site; ValueError where the sets disagree in sites or units, or a value is not finite."""
        if not positive or list(positive) != list(negative):
            names = [", ".join(map(repr, list(given)[:3])) or "none" for given in (positive, negative)]
            raise ValueError(f"expected responses of both sets at the same sites, got {names[0]} and {names[1]}")
        sides: tuple[list[NDArray], list[NDArray]] = [], []
        for name in positive:
            try:
                parts = checks.samples(positive[name], negative[name], ("positive", "negative"))
            except ValueError as error:
                raise ValueError(f"responses of site {name!r}: {error}") from None
            for side, part in zip(sides, parts, strict=True):
                side.append(part)
        for word, side in (("positive", sides[0]), ("negative", sides[1])):
            if len(counts := {len(part) for part in side}) > 1:
                raise ValueError(f"{word}: expected as many samples at every site, got {sorted(counts)}")
        sizes = {name: part.shape[1] for name, part in zip(positive, sides[0], strict=True)}
        return cls(sizes, np.concatenate(sides[0], axis=1), np.concatenate(sides[1], axis=1), inputs)

    @property
    def counts(self) -> tuple[int, int]:
        """Positive and negative samples."""
        return len(self.positive), len(self.negative)


def side_by_side(values: Mapping[str, NDArray]) -> NDArray:
    """Responses of all sites, (samples, N)."""
    return np.concatenate(list(values.values()), axis=1)


def shown(model: Any, inputs: Any, rows: int, call: Mapping[str, Any] | None) -> list | None:
    """Inputs that can be shown beside what they do, one for each response: texts, chats, a pipeline's prompts."""
    if not is_pipeline(model):
        return as_texts(inputs, "inputs")
    prompts = columns_of(inputs, "inputs", model).get("prompt")
    if prompts is None or not all(isinstance(prompt, str) for prompt in prompts):
        return None
    of_a_step = [prompt for prompt in prompts for _ in range(images_of_a_prompt(call))]
    return of_a_step * (rows // len(of_a_step))


def collect(
    model: Any, positive: Any, negative: Any, sites: str | Sequence[str | Site] | None, options: Mapping[str, Any]
) -> Samples:
    """Run the model over both sets; options as in `lineas.evaluation.responses`."""
    sides = (("positive", positive), ("negative", negative))
    first, second = (responses_to(name, model, inputs, sites, **options) for name, inputs in sides)
    call = options["call"]
    return Samples.of(
        first, second, (shown(model, positive, count_of(first), call), shown(model, negative, count_of(second), call))
    )


def count_of(responses: Mapping[str, NDArray]) -> int:
    return len(next(iter(responses.values())))


def facts(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a result's `info` keeps of where it comes from."""
    network = network_of(model, options["component"])
    info = {"model": name_of(network) or type(network).__name__, "pooling": options["pooling"], **what_is_on(network)}
    if not is_pipeline(model):
        return info
    how = {key: options[key] for key in ("component", "call", "at", "seed")}
    return {**info, "pipeline": {**Inputs(model, **how).facts()["pipeline"], "seed": options["seed"]}}
