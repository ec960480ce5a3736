"""Arrays that outgrow memory: in temporary files, by rows or by blocks of columns."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet, finalize

import numpy as np
from numpy.typing import NDArray

from .arrays import Floats, Vector

LANES = 64  # columns that the kernels take together


class File:
    """A temporary file that has no name, where the system allows it: none outlives the process, whatever ends that.

    Read and written by calls, not mapped: what is in memory is then no more than what was asked for, and a disk that is
    full is an error, where the page of a map that finds no room ends the process.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 -- open for as long as this is
        self.close = finalize(self, self._file.close)
        self.end = 0

    def extend(self, size: int) -> int:
        """Take so many bytes at the end, and say where they begin. OSError where the disk has no room for them."""
        start, self.end = self.end, self.end + size
        if hasattr(os, "posix_fallocate") and size:
            try:
                with _telling(size):
                    os.posix_fallocate(self._file.fileno(), start, size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # not every file system can; then writes tell
                    raise
        return start

    def write(self, start: int, values: NDArray) -> None:
        left = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        with _telling(len(left)):
            self._file.seek(start)
            while left:
                left = left[self._file.write(left) :]

    def read(self, start: int, out: NDArray) -> NDArray:
        """Into `out`, C-contiguous, which comes back."""
        left = out.reshape(-1).view(np.uint8).data
        self._file.seek(start)
        while left:
            count = self._file.readinto(left)
            if not count:
                raise EOFError(f"expected {len(left)} more bytes in a temporary file, got none")
            left = left[count:]
        return out


@contextmanager
def _telling(size: int) -> Iterator[None]:
    """While open, an error of a disk that is full says what was to be written where, and what can be done."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"memory: no room for {size / 1e9:.3g} GB more in {tempfile.gettempdir()} ({error.strerror}); set TMPDIR "
            "to a folder on a larger disk, or allow more memory",
        ) from error


class Spill:
    """Temporary files, closed together: after that nothing of them is left, whoever still has an array in them.

    Parameters
    ----------
    width : int
        Columns of a block, a multiple of `LANES`.
    """

    def __init__(self, width: int = LANES):
        self.width = width
        self._files: WeakSet[File] = WeakSet()

    def __enter__(self) -> "Spill":
        return self

    def __exit__(self, *exception: Any) -> None:
        for file in [*self._files]:
            file.close()

    def file(self) -> File:
        file = File()
        self._files.add(file)
        return file

    def table(self, rows: int, columns: int) -> "OnDisk":
        return OnDisk(self, rows, columns)


class OnDisk:
    """A float32 array (n, N) in a file, whose rows go in and out as those of an array do.

    It lies there block by block of its columns, each (n, width): whoever needs whole columns, as a sort does, reads
    what lies together. By rows alone, each would be read once for every 64 columns. What is left over in the last
    block is no block of its own if it is narrower than a tile: sums over rows have the same bits in any block that is
    not.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, spill: Spill, rows: int, columns: int):
        self.spill, self.shape = spill, (rows, columns)
        starts = [*range(0, columns, spill.width)]
        if len(starts) > 1 and columns - starts[-1] < LANES:
            starts.pop()
        self.blocks = [slice(a, b) for a, b in zip(starts, [*starts[1:], columns], strict=True)]
        self._file = spill.file()
        self._file.extend(4 * rows * columns)

    def __len__(self) -> int:
        return self.shape[0]

    def like(self, rows: int | None = None) -> "OnDisk":
        """A new one with the same columns."""
        return self.spill.table(len(self) if rows is None else rows, self.shape[1])

    def _place(self, block: slice, row: int) -> int:
        return 4 * (len(self) * block.start + row * (block.stop - block.start))

    def __getitem__(self, rows: slice) -> Vector:
        start, stop, _ = rows.indices(len(self))
        out = np.empty((max(stop - start, 0), self.shape[1]), np.float32)
        for block in self.blocks:
            part = np.empty((len(out), block.stop - block.start), np.float32)
            out[:, block] = self._file.read(self._place(block, start), part)
        return out

    def __setitem__(self, rows: slice, values: Vector) -> None:
        for block in self.blocks:
            self._file.write(self._place(block, rows.indices(len(self))[0]), values[:, block])

    def columns(self, block: slice) -> Vector:
        """One of the blocks, (n, width)."""
        out = np.empty((len(self), block.stop - block.start), np.float32)
        return self._file.read(self._place(block, 0), out)

    def put(self, block: slice, values: Vector) -> None:
        self._file.write(self._place(block, 0), values)


Table = Vector | OnDisk


def by_blocks(function: Callable[..., Any], *tables: Table) -> Floats:
    """function(columns, *what the tables have there), (..., width) each, for all columns: (..., N).

    Tables in memory are one block. Those in files must have the same blocks.
    """
    first = tables[0]
    if not isinstance(first, OnDisk):
        return np.asarray(function(slice(None), *tables))
    parts = [function(block, *(table.columns(block) for table in tables)) for block in first.blocks]  # type: ignore[union-attr]
    return np.concatenate([np.asarray(part) for part in parts], -1)
