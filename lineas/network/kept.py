"""Batches that may be more than memory has room for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from ..core.spill import File
from .batch import Batch, Shared
from .identity import Digest, digest

COPIES = 3  # of a batch with a mask: itself, in groups by length, and what tokens count in each


@dataclass(frozen=True)
class _There:
    """A tensor in a file."""

    start: int
    shape: torch.Size
    dtype: torch.dtype


@dataclass(frozen=True)
class _Written:
    """A batch whose tensors are in a file."""

    batch: Batch


class Kept(Sequence[Batch]):
    """The batches of a set, in the order in which they came; those that outgrow `room` are in a file, and read again
    whenever they are asked for.

    Parameters
    ----------
    room : int, optional
        Bytes that batches may take in memory; all that they take if not given.
    file : function, optional
        What makes the file; it is called when one is needed.

    Attributes
    ----------
    sizes : list of int
        How many samples each batch has.
    digest : str
        As `identity.data_digest` has it; where there is a bound, computed as batches came.
    """

    def __init__(self, room: int | None = None, file: Callable[[], File] | None = None):
        self.room, self.sizes, self.used = room, list[int](), 0
        self._make, self._digest = file, Digest()
        self._file: File | None = None
        self._batches: list[Batch | _Written] = []
        self._device: torch.device | None = None

    def append(self, batch: Batch, is_new: bool = True) -> None:
        """`is_new`: made for this set; else it is a view of what somebody else has in memory, and takes no room."""
        self.sizes.append(batch.size)
        tensors = [*batch.tensors()]
        if self.room is not None:  # else it can be told whenever somebody asks
            self._digest.update(tensors)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors) * (
            COPIES if batch.mask is not None else 1
        )
        if is_new and self.room is not None and self.used + size > self.room:
            self._batches.append(self._written(batch))
            return
        self.used += size * is_new
        self._batches.append(batch)

    @property
    def digest(self) -> str:
        if self.room is not None:
            return self._digest.text()
        return digest(tensor for batch in self for tensor in batch.tensors())

    @property
    def outgrew(self) -> bool:
        """Whether any are in a file."""
        return self._file is not None

    def stays(self, k: int) -> bool:
        """Whether batch k is in memory, the same one whenever it is asked for."""
        return not isinstance(self._batches[k], _Written)

    def on(self, device: torch.device) -> "Kept":
        """The same, with what is in memory on a device, and what is read brought there."""
        self._device = device
        self._batches = [batch if isinstance(batch, _Written) else batch.to(device) for batch in self._batches]
        return self

    def __len__(self) -> int:
        return len(self._batches)

    @overload
    def __getitem__(self, k: int) -> Batch: ...
    @overload
    def __getitem__(self, k: slice) -> list[Batch]: ...
    def __getitem__(self, k: int | slice) -> Batch | list[Batch]:
        if isinstance(k, slice):
            return [self[at] for at in range(*k.indices(len(self)))]
        batch = self._batches[k]
        if not isinstance(batch, _Written):
            return batch
        read = batch.batch.changed(self._read)
        return read if self._device is None else read.to(self._device)

    def _written(self, batch: Batch) -> _Written:
        if self._file is None:
            assert self._make is not None
            self._file = self._make()
        file = self._file

        def write(value: Any) -> Any:
            if isinstance(value, Shared):
                return Shared(write(value.value))
            if not isinstance(value, Tensor):
                return value
            host = value.detach().cpu().contiguous()
            start = file.extend(host.numel() * host.element_size())
            file.write(start, host.reshape(-1).view(torch.uint8).numpy())
            return _There(start, host.shape, host.dtype)

        return _Written(batch.changed(write))

    def _read(self, value: Any) -> Any:
        if isinstance(value, Shared):
            return Shared(self._read(value.value))
        if not isinstance(value, _There):
            return value
        found = torch.empty(value.shape, dtype=value.dtype, device="cpu")
        assert self._file is not None
        self._file.read(value.start, found.reshape(-1).view(torch.uint8).numpy())
        return found


def sizes_of(batches: Sequence[Batch]) -> list[int]:
    """How many samples each has; nothing is read for that."""
    return batches.sizes if isinstance(batches, Kept) else [batch.size for batch in batches]


def stays(batches: Sequence[Batch], k: int) -> bool:
    """Whether batch k is the same one whenever it is asked for."""
    return not isinstance(batches, Kept) or batches.stays(k)
