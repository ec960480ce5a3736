"""Checkpoints: all that a fit needs to go on where it was, in one file that is always whole."""

import json
import os
import time
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .._storage.saving import read_whole, replace_file
from ..network.identity import digest
from ..steering import Steering
from .option_table import DEFAULT

__all__ = ["Checkpoint", "Keeper", "read", "write"]

FILE = "checkpoint.safetensors"
FORMAT = {"format": "lineas-checkpoint", "version": 1}
SHARE = 0.01  # of a fit's time may go into writing


@dataclass(frozen=True)
class Checkpoint:
    """A fit at one moment.

    Attributes
    ----------
    problem : dict
        What the fit is of (`fingerprint`): it can only go on with the same.
    maps : (2 N,) float32
        [weights, biases] at this moment.
    history : dict of lists
    state : dict or None
        Of the optimiser: arrays, numbers, strings. None before its first step and after its last.
    callbacks : dict
        States of the callbacks that have one; those of a fit's other processes under "process 1" and so on.
    stopped : str
        Why the fit ended; empty while it has not.
    seconds : float
        That it has taken so far, over all its parts.
    ridge : float or None
        The strength of the ridge, once the fit has ended.
    predicted_kl : float or None
        What the maps are predicted to cost, in nats a token, once the fit has ended and if that is known.
    """

    problem: Mapping[str, Any]
    maps: NDArray[np.float32]
    history: dict[str, list] = field(default_factory=dict)
    state: dict[str, Any] | None = None
    callbacks: dict[str, Any] = field(default_factory=dict)
    stopped: str = ""
    seconds: float = 0.0
    ridge: float | None = None
    predicted_kl: float | None = None

    def steering(self) -> Steering:
        """The maps at this moment."""
        sites = self.problem["sites"]
        return Steering.from_flat(sites, sites.values(), self.maps, history=self.history)


def locate(path: str | os.PathLike) -> Path:
    """The checkpoint's file, of a path that names it or its folder."""
    given = Path(path)
    return given if given.suffix == ".safetensors" else given / FILE


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a file that is either whole or not there, whenever the process or the machine may die."""
    from safetensors.numpy import save

    tensors, rest = _split(checkpoint)
    text = json.dumps({**FORMAT, **rest})
    replace_file(path, save(tensors, {"lineas": text, "crc32": str(_checksum(tensors, text))}))


def read(path: str | os.PathLike) -> Checkpoint:
    """Read the checkpoint in a folder, or of a file's name.

    Raises
    ------
    FileNotFoundError
        There is none.
    ValueError
        It is truncated, corrupted, of another format or version, or its maps are not of its sites.
    """
    where = locate(path)
    return read_whole(lambda folder: _read(where), where.parent)


def _read(where: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    if not where.is_file():
        raise FileNotFoundError(f"no checkpoint {where}")
    try:
        with safe_open(where, framework="np") as file:
            header = file.metadata() or {}
            tensors = {key: np.array(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118 -- not a dict
    except SafetensorError as error:
        raise ValueError(f"{where} is truncated or corrupted: {error}") from error
    text = header.get("lineas", "")
    if not text:
        raise ValueError(f"{where}: expected a {FORMAT['format']} file, got one with {sorted(tensors)[:3]}")
    if header.get("crc32") != str(_checksum(tensors, text)):
        raise ValueError(f"{where} is corrupted: its checksum is not that of its content")
    rest = json.loads(text)
    got = {key: rest.pop(key, None) for key in FORMAT}
    if got != FORMAT:
        raise ValueError(f"{where}: expected {FORMAT}, got {got}; written by another lineas?")
    found = _join(tensors, rest)
    _check_sizes(found, where)
    return found


def _check_sizes(found: Checkpoint, where: Path) -> None:
    """The checksum tells that nothing was damaged, not that whoever wrote it knew what belongs together."""
    sites = found.problem.get("sites")
    if not isinstance(sites, dict):  # of no fit: none will go on from it
        return
    expected = np.dtype(np.float32), (2 * sum(sites.values()),)
    for name, x in (("maps", found.maps), ("x of the state", (found.state or {}).get("x", found.maps))):
        if (got := (x.dtype, x.shape)) != expected:
            raise ValueError(
                f"{where}: expected {name} of {expected[0]} {expected[1]}, all weights before all biases of "
                f"{len(sites)} sites, got {got[0]} {got[1]}"
            )


def _split(checkpoint: Checkpoint) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """Arrays, columns of the history among them, and what JSON can hold."""
    rest = dict(vars(checkpoint))
    tensors = {"maps": np.ascontiguousarray(rest.pop("maps"))}
    for part, to_array in (("history", _column), ("state", _array)):
        if rest[part] is not None:
            arrays = {key: array for key, value in rest[part].items() if (array := to_array(value)) is not None}
            tensors.update({f"{part}.{key}": array for key, array in arrays.items()})
            rest[part] = {key: None if key in arrays else value for key, value in rest[part].items()}
    return tensors, rest


def _array(value: Any) -> NDArray | None:
    return np.array(value, order="C") if isinstance(value, (np.ndarray, np.generic)) else None


def _column(values: list) -> NDArray | None:
    """A list of numbers, or of equally long lists of them, as an array that `tolist` turns back; None for all else."""
    try:
        array = np.array(values)
    except ValueError:  # lists of different lengths
        return None
    return array if array.dtype.kind in "bif" else None


def _join(tensors: dict[str, NDArray], rest: dict[str, Any]) -> Checkpoint:
    for key, array in tensors.items():
        part, _, name = key.partition(".")
        if part == "history":
            rest[part][name] = array.tolist()
        elif part == "state":
            rest[part][name] = array if array.ndim else array[()]
    return Checkpoint(maps=tensors["maps"], **rest)


def _checksum(tensors: Mapping[str, NDArray], text: str) -> int:
    total = zlib.crc32(text.encode())
    for key in sorted(tensors):
        total = zlib.crc32(key.encode(), total)
        total = zlib.crc32(tensors[key].reshape(-1).view(np.uint8).data, total)
    return total


class Keeper:
    """Keeps the last checkpoint of a fit in a folder, at a hundredth of the fit's time.

    A checkpoint is written if a hundred times what the last one took has passed since, else it waits: for the next one,
    which replaces it, or for `flush`. So a fit whose steps take half a second or more loses one step at most.
    """

    def __init__(self, folder: str | os.PathLike):
        self.path = Path(folder) / FILE
        self.pending: Checkpoint | None = None
        self.due = 0.0

    def begin(self, checkpoint: Checkpoint) -> None:
        """Make the folder and write the first checkpoint. OSError where that cannot be done."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write(checkpoint)
        except OSError as error:
            message = f"checkpoint_dir: cannot write to {self.path.parent}: {error.strerror or error}"
            raise OSError(error.errno, message) from error

    def offer(self, checkpoint: Checkpoint, now: bool = False) -> None:
        self.pending = checkpoint
        if now or time.monotonic() >= self.due:
            self.flush()

    def flush(self) -> None:
        """Write what waits. A disk that is full by now costs the checkpoint, with a warning, not the fit."""
        if self.pending is None:
            return
        try:
            self._write(self.pending)
        except OSError as error:
            self.due = 0.0  # try again at the next chance
            warnings.warn(f"no checkpoint written, the last one stays: {error}", RuntimeWarning, stacklevel=2)

    def _write(self, checkpoint: Checkpoint) -> None:
        start = time.monotonic()
        write(self.path, checkpoint)
        end = time.monotonic()
        self.pending, self.due = None, end + (end - start) / SHARE


class KeeperElsewhere(Keeper):
    """In a process that leaves the checkpoints of a fit which several share to another one."""

    def __init__(self) -> None:
        pass

    def begin(self, checkpoint: Checkpoint) -> None:
        pass

    def offer(self, checkpoint: Checkpoint, now: bool = False) -> None:
        pass

    def flush(self) -> None:
        pass


# -- which fit it is --


def fingerprint(
    data: Mapping[str, str], weights: str | None, penalty: Any, facts: Mapping[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """What must be the same for a fit to go on: the facts, digests of the data and of the weights, our own version."""
    try:
        ours = version("lineas")
    except PackageNotFoundError:  # a source tree that was never installed
        ours = "unknown"
    told = {**data, "weights": weights, "lineas": ours}
    if isinstance(groups := getattr(penalty, "groups", None), np.ndarray):
        told["penalty_groups"] = digest([torch.tensor(groups, device="cpu")])  # their repr is cut short
    return json.loads(json.dumps({**facts, **told}, default=lambda number: number.item()))


def refuse_another(now: Mapping[str, Any], then: Mapping[str, Any], where: Any) -> None:
    """ValueError, with both values, where a checkpoint is of another fit.

    An option that its writer did not know yet had the value that it has now by default.
    """
    now, then = ({**vars(DEFAULT), **facts} for facts in (now, then))
    differ = [key for key in {**then, **now} if now.get(key) != then.get(key)]
    if differ:
        lines = [f"  {key}: {_brief(then.get(key))} there, {_brief(now.get(key))} here" for key in differ]
        raise ValueError(
            f"resume_from: expected the fit that {where} was written by; different are\n" + "\n".join(lines)
        )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:400]}..."
