"""What a set of inputs gives each row of a pipeline's call: prompts, noise, and whatever else differs between rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...core.checks import whole
from ...core.text import first_few, nearest
from .components import arguments_taken

__all__ = ["check_call", "columns_of", "fresh_seed", "images_of_a_prompt", "noise_of_rows", "plain_arguments"]


def noise_of_rows(seed: int, rows: Sequence[int]) -> list[torch.Generator]:
    """A generator for each row, told by the seed and the row alone: however rows are batched, and whatever their
    prompts are, a row starts from the same noise."""
    states = (np.random.SeedSequence([seed & (2**64 - 1), row]).generate_state(2, np.uint32) for row in rows)
    return [torch.Generator("cpu").manual_seed(int(low) | int(high & 0x7FFFFFFF) << 32) for low, high in states]


def fresh_seed(seed: int) -> int:
    """The seed of noise that a fit with `seed` has not seen, for pictures that show what the fit does."""
    return int(np.random.SeedSequence(seed & (2**64 - 1), spawn_key=(1,)).generate_state(1, np.uint32)[0])


def columns_of(inputs: Any, name: str, pipe: Any) -> dict[str, list]:
    """What a set of inputs gives each row of the pipeline's call: a list of as many for each argument.

    Parameters
    ----------
    inputs : list of str, or dict of argument -> list, or list of such dicts with one value each
    name : str
        What messages call it.

    Raises
    ------
    TypeError, ValueError
        Neither; arguments that the call does not take; lists of different lengths.
    """
    takes, takes_more = arguments_taken(pipe)
    kind = type(pipe).__name__
    if isinstance(inputs, Mapping):
        if not inputs:
            raise ValueError(f"{name}: expected what {kind} takes for each row, got an empty dict")
        columns = {key: _listed(value, f"{name}[{key!r}]") for key, value in inputs.items()}
    else:
        columns = _of_list(_listed(inputs, name), name, kind, takes, takes_more)
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{name}: expected as many of each, got {lengths}")
    if unknown := [key for key in columns if key not in takes and not takes_more]:
        raise TypeError(f"{name}: {kind} takes no {', '.join(unknown)}; {nearest(unknown[0], takes)}")
    return columns


def _of_list(rows: list, name: str, kind: str, takes: Mapping[str, Any], takes_more: bool) -> dict[str, list]:
    """Of prompts, or of dicts with the same keys."""
    if rows and all(isinstance(row, Mapping) for row in rows):
        keys = list(rows[0])
        if odd := next((k for k, row in enumerate(rows) if list(row) != keys), None):
            raise ValueError(f"{name}: expected {keys} in every row, got {list(rows[odd])} in row {odd}")
        return {key: [row[key] for row in rows] for key in keys}
    if (other := next((row for row in rows if not isinstance(row, str)), None)) is not None:
        raise TypeError(f"{name}: expected prompts (str), or dicts of a call's arguments, got {other!r:.60}")
    first = "prompt" if "prompt" in takes or takes_more else next(iter(takes), "batch_size")
    if first == "batch_size":
        raise TypeError(
            f'{name}: {kind} takes no prompts; expected what it takes for each row, such as {{"generator": seeds}}, '
            "or its network in its place, and tensors"
        )
    return {first: rows}


def _listed(values: Any, name: str) -> list:
    if isinstance(values, (str, Mapping)) or not hasattr(values, "__len__"):
        raise TypeError(f"{name}: expected a list, one for each row, got {type(values).__name__}")
    return list(values)


def images_of_a_prompt(call: Mapping[str, Any] | None) -> int:
    """How many pictures of each prompt a call makes."""
    counts = (whole(v, k) for k, v in (call or {}).items() if k.startswith("num_") and k.endswith("_per_prompt"))
    return next(counts, 1)


def plain_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a call that a file can hold."""
    return {k: v for k, v in call.items() if isinstance(v, (str, int, float, bool, type(None)))}


def check_call(call: Any, pipe: Any) -> dict[str, Any]:
    """Arguments for every call of the pipeline. TypeError where it does not take them, or not for all rows."""
    if call is not None and not isinstance(call, Mapping):
        raise TypeError(f"call: expected a dict of {type(pipe).__name__}'s arguments, got {type(call).__name__}")
    given, (takes, takes_more) = dict(call or {}), arguments_taken(pipe)
    if unknown := [key for key in given if key not in takes and not takes_more]:
        raise TypeError(f"call: {type(pipe).__name__} takes no {first_few(unknown)}; {nearest(unknown[0], takes)}")
    return given
