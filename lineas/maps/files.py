"""The files of a steering: a folder with a config in JSON, its maps as safetensors, and a card to read.

Whatever lies in such a folder is data: nothing in it is run, and its sizes are looked at before anything is read.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._storage.pairs import TENSORS_LIMIT, brief, check_name, read_config, read_tensors, write_pair
from .._storage.saving import read_whole
from ..core.arrays import Vector
from ..core.text import warn
from . import card
from .card import CARD, CONFIG, GRID, MARK, TENSORS
from .gate import Gate
from .info import check_hub_name
from .kinds import KINDS
from .maps import Maps
from .pictures import as_png

FORMAT = {"format": "lineas-steering", "version": 1}
GATE = "gate"  # its key in the config, and its tensor, which no site's tensors are called


def save(
    maps: Maps, folder: Path, metrics: Mapping[str, float | str] | None = None, base_model: str | None = None,
    grid: Any = None,
) -> None:  # fmt: skip
    """All files, into a folder that is made if need be. A README.md that somebody else wrote is left alone.

    What was measured, and the base model's name, go into the card, and with the rest of `info` into the config. A
    picture comes beside the card, which shows it.
    """
    if metrics is not None and not isinstance(metrics, Mapping):
        raise TypeError(f"metrics: expected a dict of name -> number, got {type(metrics).__name__}")
    tensors: dict[str, Vector] = {}
    listed: dict[str, list[str]] = {key: [] for key in KINDS}
    for name in maps.sites:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = maps.weight(name).copy(), maps.bias(name).copy()
    for name, kind in maps.special.items():
        if KINDS.get(kind.key) is not type(kind):
            raise TypeError(f"site {name!r}: expected a kind of map that files know, got {type(kind).__name__}")
        listed[kind.key].append(name)
        tensors |= {f"{name}.{part}": values.copy() for part, values in kind.tensors().items()}
    measured = {**maps.info.get("metrics", {}), **(metrics or {})}
    info = {**maps.info, "metrics": measured} if measured else dict(maps.info)
    if base_model is not None:
        info["base_model"] = check_hub_name(base_model)
    config = {**FORMAT, "sites": maps.sizes, **{key: names for key, names in listed.items() if names}}
    if (gate := maps.gate) is not None:
        tensors[GATE] = gate.weight.copy()
        told = {"site": gate.site, "units": len(gate.weight), "bias": gate.bias, "pooling": gate.pooling}
        config[GATE] = {**told, "facts": gate.facts}
    config |= {"info": info, "history": maps.history}
    more = {} if grid is None else {folder / GRID: as_png(grid, "grid")}
    of_others = grid is None and is_ours(folder / CARD) and _shows_picture(folder / CARD)
    if is_ours(folder / CARD):
        more[folder / CARD] = card.text_of(maps, info, measured, has_grid=bool(more)).encode()
    elif more:
        warn(f"expected a card of lineas to show the picture, got one of your own, which stays; {GRID} lies beside it")
    write_pair(folder / CONFIG, config, folder / TENSORS, tensors, more)
    if of_others:  # the picture beside the card, which no longer shows it
        (folder / GRID).unlink(missing_ok=True)


def read(folder: Path) -> dict[str, Any]:
    """The arguments of `Maps`; FileNotFoundError, or ValueError where a file is not as it was written."""
    return read_whole(_read, folder)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    config = read_config(path, FORMAT)
    sizes = config["sites"]
    history, info = _restored(config.get("history") or {}, path), config.get("info") or {}
    kinds = {name: kind for key, kind in KINDS.items() for name in _listed(key, config.get(key, []), sizes, path)}
    parts = [(name, part) for name in sizes for part in ("weight", "bias")]
    parts += [(name, part) for name, kind in kinds.items() for part in kind.neutral]
    expected = {f"{name}.{part}": ("F32", [sizes[name]]) for name, part in parts}
    if (told := config.get(GATE)) is not None:
        expected[GATE] = ("F32", [_units_of_gate(told, path)])
    tensors = read_tensors(folder / TENSORS, expected, config.get("sha256"), path)
    return {
        "maps": {name: (tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in sizes},
        "kinds": {name: kind(*(tensors[f"{name}.{part}"] for part in kind.neutral)) for name, kind in kinds.items()},
        "gate": None if told is None else _gate(told, tensors[GATE], path), "history": history, "info": info,
    }  # fmt: skip


def _listed(key: str, names: Any, sizes: Mapping[str, int], path: Path) -> list[str]:
    """The sites whose maps are of one kind."""
    known = isinstance(names, list) and all(isinstance(name, str) and name in sizes for name in names)
    if not known or len(set(names)) < len(names):
        raise ValueError(f"{path}: expected {key} with names of sites, each once, got {brief(names)}")
    return names


def _units_of_gate(told: Any, path: Path) -> int:
    """How many numbers its tensor has; ValueError where the config has no such gate."""
    units = told.get("units") if isinstance(told, dict) else None
    if type(units) is not int or not 0 < units <= TENSORS_LIMIT // 8:
        raise ValueError(f"{path}: expected a gate with its site, units, bias and pooling, got {brief(told)}")
    check_name(told.get("site"), path)
    return units


def _gate(told: Mapping[str, Any], weight: Vector, path: Path) -> Gate:
    facts = told.get("facts") or {}
    try:
        return Gate(told["site"], weight, told.get("bias"), told.get("pooling"), facts)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a gate: {error}") from None


def is_ours(card: Path) -> bool:
    """Whether the card may be written: there is none, or it is one that nobody has made their own."""
    if not card.exists():
        return True
    with open(card, "rb") as file:
        return MARK.encode() in file.read(1 << 16)


def _shows_picture(path: Path) -> bool:
    return path.exists() and card.shows_picture(path.read_text(encoding="utf-8", errors="replace"))


def _restored(history: Any, path: Path) -> dict[str, list]:
    """A history as `plain` was given it: the infinite losses of trials that overflowed are infinite again."""
    if not isinstance(history, dict) or not all(isinstance(column, list) for column in history.values()):
        raise ValueError(f"{path}: expected a history of lists, got {brief(history)}")

    def restored(value: Any) -> Any:
        return math.inf if value is None else value

    return {
        key: [[restored(part) for part in item] if isinstance(item, list) else restored(item) for item in column]
        for key, column in history.items()
    }
