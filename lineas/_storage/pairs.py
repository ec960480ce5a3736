"""A config in JSON and its arrays as safetensors, side by side: saved whole, read as data that anybody may have made.

**Saved whole.** Of the two files the config decides, by the checksum of its tensors that it has. New tensors first lie
beside the old ones, under a name with their checksum; then comes the config; then they take their place:

    config          old    old    new    new
    tensors         old    old    old    new
    beside them     -      new    new    -

So those of the config are always there, under one of two names, whenever a save dies. That takes savers one at a time
(`saving.turn`), else the tensors of one could come to lie under the config of another, whose own are gone.

**Read as data.** Nothing in such files is run, and their sizes are looked at before anything is read.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .saving import leftovers, remove, rename, staged, turn

CONFIG_LIMIT, TENSORS_LIMIT, HEADER_LIMIT = 1 << 26, 1 << 30, 1 << 25  # bytes; a thousand times what a large fit needs
NAME_LIMIT = 1000  # characters of a site's name


# -- writing --


def write_pair(
    config_path: Path, config: Mapping[str, Any], path: Path, tensors: Mapping[str, NDArray],
    more: Mapping[Path, bytes] | None = None,
) -> None:  # fmt: skip
    """Tensors, and a config with their checksum, a line an entry; then what else is to lie there."""
    from safetensors.numpy import save

    data = save(dict(tensors))
    checksum = hashlib.sha256(data).hexdigest()
    entries = plain({"sha256": checksum, **config})
    text = "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items()) + "\n}\n"
    if len(text) > CONFIG_LIMIT or len(data) > TENSORS_LIMIT:
        raise ValueError(
            f"expected at most {CONFIG_LIMIT} bytes of {config_path.name} and {TENSORS_LIMIT} of {path.name}, got "
            f"{len(text)} and {len(data)}: they could not be read again"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {path: data, config_path: text.encode(), **(more or {})}
    with turn(path.parent) as folder:
        try:
            new = {name: staged(name, content) for name, content in files.items()}  # a full disk is noticed here
            rename(new.pop(path), _beside(path, checksum), folder)
            rename(new.pop(config_path), config_path, folder)
            rename(_beside(path, checksum), path)
            for name, temporary in new.items():
                rename(temporary, name)
        finally:
            _settle(config_path, path)
            for name in files:
                remove(leftovers(name))


def _beside(path: Path, checksum: str) -> Path:
    """Where tensors lie until they take their place."""
    return path.with_name(f"{path.name}.{checksum}.tmp")


def _settle(config_path: Path, path: Path) -> None:
    """End what a save that failed or died has begun: the tensors that the config speaks of take their place."""
    checksum = _announced(config_path) if leftovers(path) else None
    if checksum is not None and (waiting := _beside(path, checksum)).is_file():
        rename(waiting, path)


def _announced(config_path: Path) -> str | None:
    """The checksum in a config, whatever else it may be."""
    try:
        config = json.loads(read_limited(config_path, CONFIG_LIMIT))
    except (OSError, ValueError, RecursionError):
        return None
    return _checksum(config.get("sha256")) if isinstance(config, dict) else None


def _checksum(given: Any) -> str | None:
    """It becomes part of a file's name."""
    return given if isinstance(given, str) and re.fullmatch("[0-9a-f]{64}", given) else None


def plain(value: Any) -> Any:
    """As JSON can hold it: infinity becomes null, NumPy's numbers Python's."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(item) for item in value]
    if value is not None and not isinstance(value, (str, int, float)):
        raise TypeError(f"expected numbers, strings, lists and dicts in what is saved as JSON, got {value!r:.60}")
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- reading --


def check_name(name: Any, where: Path) -> None:
    """Names go into tables, messages and pages: nothing may be hidden in them."""
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= NAME_LIMIT:
        raise ValueError(f"{where}: expected printable site names of at most {NAME_LIMIT} characters, got {name!a:.60}")


def read_limited(path: Path, limit: int) -> bytes:
    """A regular file of at most so many bytes; not a pipe, which would never end."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path}")
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path}: expected at most {limit} bytes, got more")
    return data


def read_config(path: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """A config of the expected format and version, with its sites and their units."""
    try:
        config = json.loads(read_limited(path, CONFIG_LIMIT).decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON; truncated or corrupted? {error}") from error
    except RecursionError:
        raise ValueError(f"{path}: expected a config, got JSON that is nested without end") from None
    if not isinstance(config, dict) or config.get("format") != expected["format"]:
        raise ValueError(f"{path}: expected a {expected['format']} file, got {brief(config)}")
    if config.get("version") != expected["version"]:
        got = brief(config.get("version"))
        raise ValueError(f"{path}: expected version {expected['version']}, got {got}; a newer lineas?")
    sizes = config.get("sites")
    if not isinstance(sizes, dict) or not sizes or not all(type(n) is int and n > 0 for n in sizes.values()):
        raise ValueError(f"{path}: expected sites with their units, got {brief(sizes)}")
    if sum(sizes.values()) > TENSORS_LIMIT // 8:
        raise ValueError(f"{path}: expected at most {TENSORS_LIMIT // 8} units, got {brief(sum(sizes.values()))}")
    for name in sizes:
        check_name(name, path)
    if not isinstance(config.get("info") or {}, dict):
        raise ValueError(f"{path}: expected info with names and values, got {brief(config['info'])}")
    return config


def read_tensors(
    path: Path, expected: Mapping[str, tuple[str, list[int]]], checksum: Any, config_path: Path
) -> dict[str, NDArray]:
    """Only types and shapes that the config announces, so that no file asks for more memory than it has bytes."""
    try:
        tensors = _tensors(path, expected, checksum, config_path)
    except (OSError, ValueError):
        if _checksum(checksum) is None or not (waiting := _beside(path, checksum)).is_file():
            raise
        return _tensors(waiting, expected, checksum, config_path)
    if checksum is None and _announced(config_path) is not None:
        raise ValueError(f"{path}: expected what {config_path.name} speaks of, but both were saved anew meanwhile")
    return tensors


def _tensors(
    path: Path, expected: Mapping[str, tuple[str, list[int]]], checksum: Any, config_path: Path
) -> dict[str, NDArray]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no {path}")
    with open(path, "rb") as raw:
        _check_header(path, raw)
        try:
            with safe_open(path, framework="np") as file:
                if not os.path.samestat(os.fstat(raw.fileno()), os.stat(path)):  # else the checksum is of another file
                    raise ValueError(f"{path}: expected one file, got another one while it was read")
                found = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 -- not a dict
                got = {key: (part.get_dtype(), part.get_shape()) for key, part in found.items()}
                _check_contents(path, got, expected, config_path)
                if checksum is not None and checksum != _sha256(raw):
                    reason = f"{path} is corrupted, or of another folder: its checksum is not that in"
                    raise ValueError(f"{reason} {config_path.name}")
                return {key: file.get_tensor(key) for key in expected}
        except SafetensorError as error:
            raise ValueError(f"{path} is truncated or corrupted: {error}") from error


def _check_header(path: Path, raw: BinaryIO) -> None:
    size, header = os.fstat(raw.fileno()).st_size, int.from_bytes(raw.read(8), "little")
    if size > TENSORS_LIMIT + HEADER_LIMIT:
        raise ValueError(f"{path}: expected at most {TENSORS_LIMIT + HEADER_LIMIT} bytes, got {size}")
    if header > min(size, HEADER_LIMIT):
        raise ValueError(f"{path} is truncated or corrupted: a header of {header} bytes in {size}")


def _check_contents(path: Path, got: Mapping[str, Any], expected: Mapping[str, Any], config_path: Path) -> None:
    if got != expected:
        different = [key for key in {**got, **expected} if got.get(key) != expected.get(key)][:2]
        reasons = "; ".join(f"{key!a:.80}: {got.get(key)}, expected {expected.get(key)}" for key in different)
        raise ValueError(f"{path} disagrees with {config_path.name}, first at {reasons}")


def _sha256(file: BinaryIO) -> str:
    total = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(1 << 20):
        total.update(chunk)
    return total.hexdigest()


def brief(value: Any) -> str:
    """A few characters of what came, however large it is."""
    if isinstance(value, (dict, list)):
        first = ", ".join("..." if isinstance(item, (dict, list)) else f"{item!a:.30}" for item in list(value)[:3])
        return f"{type(value).__name__} of {len(value)}: {first}"
    return f"{value!a:.60}"
