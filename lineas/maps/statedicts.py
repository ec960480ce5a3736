"""Read maps that the released implementation of LinEAS wrote: a file of torch for each module.

The files may come from anywhere. A file is only opened by torch once it is known to be a plain, uncompressed archive of
its own size that names no other types than tensors are made of; and then with `weights_only`, mapped rather than read.
"""

import io
import os
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._storage.pairs import check_name, read_limited
from ..core.text import natural_order

SUFFIX = ".statedict"
WEIGHT, BIAS, DIM = "net.w1", "net.b1", "dim"
FILE_LIMIT, PICKLE_LIMIT, COUNT_LIMIT, TOTAL_LIMIT = 1 << 25, 1 << 12, 1 << 14, 1 << 30  # bytes, bytes, files, bytes
STORAGES = {
    f"torch {kind}Storage": size
    for kind, size in {"Float": 4, "Double": 8, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4}.items()
}  # with the bytes of a number
GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *STORAGES,
}
END_RECORD = 22  # bytes of a zip archive's last record, where no comment follows it


def read(folder: str | os.PathLike) -> dict[str, tuple[NDArray, NDArray]]:
    """Site -> (weight, bias), in the order of the numbers in their names."""
    files = sorted(Path(folder).glob(f"*{SUFFIX}"), key=lambda file: natural_order(file.name[:200]))
    if not files:
        raise FileNotFoundError(f"{folder}: expected files called <module>{SUFFIX}, found none")
    total = sum(file.stat().st_size for file in files)
    if len(files) > COUNT_LIMIT or total > TOTAL_LIMIT:
        raise ValueError(
            f"{folder}: expected at most {COUNT_LIMIT} files and {TOTAL_LIMIT} bytes, got {len(files)} and {total}"
        )
    maps = {}
    for file in files:
        name = file.name.removesuffix(SUFFIX)
        check_name(name, file)
        maps[name] = _maps(file, _load(file))
    return maps


def _load(path: Path) -> Any:
    _check_archive(path, read_limited(path, FILE_LIMIT))
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # whatever a file that is no state dict makes of it
        raise ValueError(f"{path} is corrupted, or no state dict: {str(error)[:200]}") from error


def _check_archive(path: Path, data: bytes) -> None:
    """Nothing is compressed, nothing stands for more than it has bytes, and all bytes are those that were written."""
    if data[-END_RECORD:][:4] != b"PK\5\6":  # with anything behind it, two readers might see two archives
        raise ValueError(f"{path}: expected a file that torch.save wrote, a zip archive, got something else")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            packed = [e for e in entries if e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size]
            if packed or len(entries) > 100 or sum(entry.file_size for entry in entries) > len(data):
                raise ValueError(f"{path}: expected at most 100 entries, none compressed; torch.save writes no others")
            pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
            if len(pickles) != 1 or pickles[0].file_size > PICKLE_LIMIT:
                raise ValueError(f"{path}: expected one data.pkl of at most {PICKLE_LIMIT} bytes")
            damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"{path} is corrupted: {damaged[:80]!r} has another checksum than when it was written")
            content = archive.read(pickles[0])
    except (zipfile.BadZipFile, NotImplementedError, OSError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is truncated or corrupted: {error}") from error
    root = pickles[0].filename.removesuffix("data.pkl")
    sizes = {entry.filename: entry.file_size for entry in entries}
    for key, size in _storages(path, content):
        found = sizes.get(f"{root}data/{key}")
        if found != size:  # torch reads on into the next entry
            raise ValueError(f"{path} is truncated: expected {size} bytes in data/{key:.20}, got {found}")


def _storages(path: Path, content: bytes) -> list[tuple[str, int]]:
    """The storages that a pickle asks for, each with its bytes. It is only read, never run.

    `weights_only` allows more types than are needed here, some of which take memory. Only strings and types may be used
    twice: of nested values used twice, a few bytes make more than a computer holds.
    """
    kept: dict[Any, tuple[str, Any]] = {}
    pushed: list[Any] = []  # the last values, of which a storage's type, name, device and length are made
    storages = []
    last: tuple[str, Any] = ("", None)
    try:
        for op, argument, _ in pickletools.genops(content):
            if op.name in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
                if op.name != "GLOBAL" or argument not in GLOBALS:
                    raise ValueError(f"it names {argument or op.name!r}, which no tensor is made of")
            elif "PUT" in op.name or op.name == "MEMOIZE":
                kept[len(kept) if op.name == "MEMOIZE" else argument] = last
                continue
            elif "GET" in op.name:
                last = kept.get(argument, last)
                if last[0] not in ("BINUNICODE", "GLOBAL"):
                    raise ValueError("it uses a value twice")
                pushed.append(last[1])
                continue
            elif op.name == "DUP":
                raise ValueError("it uses a value twice")
            elif op.name == "BINPERSID":
                kind, key, _, length = pushed[-4:] if len(pushed) > 3 else [None] * 4
                if kind not in STORAGES or not isinstance(key, str) or not isinstance(length, int):
                    raise ValueError("it asks for something that is no storage")
                storages.append((key, length * STORAGES[kind]))
            last = op.name, argument
            if argument is not None:
                pushed.append(argument)
    except ValueError as error:
        raise ValueError(f"{path}: expected a state dict of plain tensors: {str(error)[:200]}") from error
    return storages


def _maps(path: Path, state: Any) -> tuple[NDArray, NDArray]:
    if not isinstance(state, dict) or not {WEIGHT, BIAS} <= set(state) <= {WEIGHT, BIAS, DIM}:
        keys = list(state)[:6] if isinstance(state, dict) else []
        got = [key[:40] if isinstance(key, str) else type(key).__name__ for key in keys] or type(state).__name__
        raise ValueError(f"{path}: expected {WEIGHT}, {BIAS} and {DIM}, got {got}")
    weight, bias = (_vector(path, key, state[key]) for key in (WEIGHT, BIAS))
    if weight.shape != bias.shape:
        raise ValueError(f"{path}: expected {WEIGHT} and {BIAS} of one shape, got {weight.shape} and {bias.shape}")
    dim = state.get(DIM, len(weight))
    if isinstance(dim, Tensor) and dim.numel() == 1 and not dim.is_floating_point():
        dim = dim.item()
    if type(dim) is not int or (dim != len(weight) and not -4 <= dim <= 4):  # the units, or the axis that they are on
        given = dim if type(dim) is int else type(dim).__name__
        raise ValueError(f"{path}: expected {DIM} {len(weight)}, or an axis, got {given}")
    return weight, bias


def _vector(path: Path, key: str, value: Any) -> NDArray[np.float32]:
    """(1, d) to (d,). Strides of 0 would make a large tensor of a small file."""
    plain = isinstance(value, Tensor) and value.is_floating_point() and value.layout == torch.strided
    if not plain or value.ndim != 2 or len(value) != 1 or not value.numel() or not value.is_contiguous():
        got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{path}: expected {key} with floats (1, d), got {got}")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"{path} is truncated: {key} has fewer bytes than its shape says")
    return value.detach()[0].to(torch.float32).numpy().copy()
