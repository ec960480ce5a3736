"""A config in JSON and its arrays as safetensors, side by side: written whole, read as data that anybody may have made.

Nothing in such files is run, and their sizes are looked at before anything is read.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIG_LIMIT, TENSORS_LIMIT, HEADER_LIMIT = 1 << 26, 1 << 30, 1 << 25  # bytes; a thousand times what a large fit needs
NAME_LIMIT = 1000  # characters of a site's name


# -- writing --


def write_pair(config_path: Path, config: Mapping[str, Any], path: Path, tensors: Mapping[str, NDArray]) -> None:
    """Tensors, and a config with their checksum, a line an entry."""
    from safetensors.numpy import save

    data = save(dict(tensors))
    entries = plain({"sha256": hashlib.sha256(data).hexdigest(), **config})
    text = "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items()) + "\n}\n"
    if len(text) > CONFIG_LIMIT or len(data) > TENSORS_LIMIT:
        raise ValueError(
            f"expected at most {CONFIG_LIMIT} bytes of {config_path.name} and {TENSORS_LIMIT} of {path.name}, got "
            f"{len(text)} and {len(data)}: they could not be read again"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data)
    replace_file(config_path, text.encode())


def replace_file(path: Path, data: bytes) -> None:
    """A file that is the old one or the new one, whenever the process may die."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
    path: Path, expected: Mapping[str, tuple[str, list[int]]], checksum: Any, config: str
) -> dict[str, NDArray]:
    """Only types and shapes that the config announces, so that no file asks for more memory than it has bytes."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no {path}")
    size, header = path.stat().st_size, _header_size(path)
    if size > TENSORS_LIMIT + HEADER_LIMIT:
        raise ValueError(f"{path}: expected at most {TENSORS_LIMIT + HEADER_LIMIT} bytes, got {size}")
    if header > min(size, HEADER_LIMIT):
        raise ValueError(f"{path} is truncated or corrupted: a header of {header} bytes in {size}")
    try:
        with safe_open(path, framework="np") as file:
            found = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 -- not a dict
            got = {key: (part.get_dtype(), part.get_shape()) for key, part in found.items()}
            if got != expected:
                different = [key for key in {**got, **expected} if got.get(key) != expected.get(key)][:2]
                reasons = "; ".join(f"{key!a:.80}: {got.get(key)}, expected {expected.get(key)}" for key in different)
                raise ValueError(f"{path} disagrees with {config}, first at {reasons}")
            if checksum is not None and checksum != _sha256(path):
                raise ValueError(f"{path} is corrupted, or of another folder: its checksum is not that in {config}")
            return {key: file.get_tensor(key) for key in expected}
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or corrupted: {error}") from error


def _header_size(path: Path) -> int:
    with open(path, "rb") as file:
        return int.from_bytes(file.read(8), "little")


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()


def brief(value: Any) -> str:
    """A few characters of what came, however large it is."""
    if isinstance(value, (dict, list)):
        first = ", ".join("..." if isinstance(item, (dict, list)) else f"{item!a:.30}" for item in list(value)[:3])
        return f"{type(value).__name__} of {len(value)}: {first}"
    return f"{value!a:.60}"
