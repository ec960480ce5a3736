"""The files of a ranking: a config in JSON and its arrays as safetensors, in a folder; `_storage` has the rules."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._storage.pairs import brief, read_config, read_tensors, write_pair
from .._storage.saving import read_whole
from .samples import Samples
from .scores import METRICS

CONFIG, TENSORS = "ranking_config.json", "ranking.safetensors"
FORMAT = {"format": "lineas-ranking", "version": 1}
SIDES = ("positive", "negative")


def write(folder: Path, scores: NDArray, signs: NDArray, samples: Samples | None, facts: Mapping[str, Any]) -> None:
    """Scores and signs (N,); facts: what `read` gives beside arrays."""
    tensors, inputs = {"scores": scores, "signs": signs}, None
    if samples is not None:
        for name, side in zip(SIDES, (samples.positive, samples.negative), strict=True):
            tensors[name] = side.astype(np.float32)  # what models give; float64 only came from the caller's own arrays
        inputs = samples.inputs
    config = {
        **FORMAT, "sites": facts["sizes"], "metric": facts["metric"], "either_way": facts["either_way"],
        "samples": None if samples is None else samples.counts, "info": facts["info"], "inputs": inputs,
    }  # fmt: skip
    write_pair(folder / CONFIG, config, folder / TENSORS, tensors)


def read(folder: Path) -> dict[str, Any]:
    """The arguments of `Ranking`. ValueError where a file is not as it was written."""
    return read_whole(_read, folder)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    config = read_config(path, FORMAT)
    sizes, metric, counts = config["sites"], config.get("metric"), config.get("samples")
    if metric not in list(METRICS) or not isinstance(config.get("either_way"), bool):
        raise ValueError(f"{path}: expected a metric of {', '.join(METRICS)}, got {brief(metric)}")
    if counts is not None and not (isinstance(counts, list) and len(counts) == 2 and all(_is_count(n) for n in counts)):
        raise ValueError(f"{path}: expected two numbers of samples, got {brief(counts)}")
    units = sum(sizes.values())
    expected: dict[str, tuple[str, list[int]]] = {"scores": ("F64", [units]), "signs": ("I8", [units])}
    for name, count in zip(SIDES, counts or (), strict=False):
        expected[name] = ("F32", [count, units])
    tensors = read_tensors(folder / TENSORS, expected, config.get("sha256"), path)
    if any(not np.isfinite(array).all() for array in tensors.values()):
        raise ValueError(f"{folder / TENSORS}: expected finite scores and responses, got a NaN or infinity")
    samples = None
    if counts is not None:
        samples = Samples(sizes, tensors["positive"], tensors["negative"], _inputs(config.get("inputs"), counts, path))
    return {
        "sizes": sizes, "scores": tensors["scores"], "signs": tensors["signs"], "metric": metric,
        "either_way": config["either_way"], "samples": samples, "info": config.get("info"),
    }  # fmt: skip


def _is_count(n: Any) -> bool:
    return type(n) is int and n >= 1


def _inputs(given: Any, counts: list[int], path: Path) -> tuple[list | None, list | None]:
    """Of both sets: a list as long as there are samples, or none."""
    if not isinstance(given, list) or len(given) != 2:
        raise ValueError(f"{path}: expected the inputs of two sets, got {brief(given)}")
    for side, count in zip(given, counts, strict=True):
        if side is not None and (not isinstance(side, list) or len(side) != count):
            raise ValueError(f"{path}: expected {count} inputs, got {brief(side)}")
    return given[0], given[1]
