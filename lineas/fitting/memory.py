"""How much memory samples and responses may take, and where the rest of them goes."""

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

from ..core.spill import LANES, Spill
from ..network.batch import Batch
from ..network.kept import Kept, sizes_of
from ..optim.quadratic import bytes_of as bytes_of_optimiser
from ..responses.runner import Runner
from .distributed import Alone
from .ridge import ROOM

FLOAT = 4
STEPS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
SHARE_OF_A_SET = 8  # of the bound: an eighth for the batches of each of the two sets, a quarter if none was asked for
SHARE_OF_THE_MACHINE = 2  # the bound where none is given: half of its memory
A_UNIT = 120  # bytes beside the optimiser's: maps, gradients, curvatures, what is known of its noise
A_ROW = 1900  # bytes of a sample that the largest kernel, that of the null, and its inputs take for a tile of columns
LIMITS = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"  # of a container


def bytes_of(given: Any, name: str) -> int:
    """Of a number, or a text such as "4 GB" or "512 MiB". TypeError, ValueError where it is neither."""
    if isinstance(given, bool) or not isinstance(given, (int, str)):
        raise TypeError(f"{name}: expected bytes, such as '4 GB', got {type(given).__name__}")
    text = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?i?)b?\s*", str(given).lower())
    try:
        size = int(float(text[1]) * STEPS[text[2]]) if text else 0
    except (ValueError, KeyError):
        size = 0
    if size < 1:
        raise ValueError(f"{name}: expected bytes, such as '4 GB' or '512 MiB', got {given!r:.60}")
    return size


def of_machine() -> int | None:
    """Bytes of memory that this machine, or the container, has; None where it cannot be told."""
    found = []
    if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in map(Path, LIMITS):
        if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
            found.append(int(text))
    return min(found, default=None)


class Memory:
    """A bound on what a fit keeps beside the model, and the files for what does not fit; they are gone at its end.

    Parameters
    ----------
    asked : str or int, optional
        The bound; half of the machine's memory, shared by the processes there, if not given.
    world : Alone
        The processes that fit together: where one has no room, all keep responses in files.
    bounded : bool
        Whether there is to be one at all.
    """

    def __init__(self, asked: Any, world: Alone, bounded: bool):
        self.asked, self.world, self.spill = asked, world, Spill()
        self.beside = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))  # processes on this machine
        self.bound: int | None = None
        if bounded and asked is not None:
            self.bound = bytes_of(asked, "memory")
        elif bounded and (found := of_machine()):
            self.bound = found // SHARE_OF_THE_MACHINE // self.beside

    def __enter__(self) -> "Memory":
        self.spill.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.spill.__exit__(*exception)

    def kept(self) -> Kept:
        """What a set's batches go into."""
        if self.bound is None:
            return Kept()
        return Kept(self.bound // SHARE_OF_A_SET * (1 if self.asked is not None else 2), self.spill.file)

    def place_responses(self, runner: Runner, sources: Kept, targets: Kept, samples: Sequence[int], ridge: bool) -> str:
        """Say where the runner's responses to sources and targets go; and a sentence for the user if that is a file.

        ValueError where the bound is too small for what must be in memory at a time, OSError where the disk is.

        Parameters
        ----------
        samples : two int
            Of the source and of the target, of all processes.
        ridge : bool
            Whether there will be one, which keeps rows.
        """
        units, count, world = runner.compared.units, sum(samples), self.world
        bound, parts = self.bound or sys.maxsize, _parts(runner, sources, targets, ridge)
        fixed, tile = sum(parts.values()), A_ROW * count
        copies = 2 * count + max(samples) * (1 + (world.size > 1))  # while the null is made, and the target sorted
        whole = fixed + FLOAT * units * copies + tile
        single = len(sources) == 1  # it passes the model at once, so that most of it is in memory anyway
        if not any(world.share(whole > bound and not (single and self.asked is None))):
            return ""
        if fixed + tile > bound:
            parts |= {f"{LANES} units of all samples, which are sorted together": tile}
            got = _size(bound) + ("" if self.asked is not None else ", half of what there is")
            raise ValueError(
                f"memory: expected at least {_size(fixed + tile)} for {samples[0]} + {samples[1]} samples and {units} "
                f"units, got {got}: {', '.join(f'{name} {_size(size)}' for name, size in parts.items())}"
            )
        if single and self.asked is not None:
            raise ValueError(
                f"memory: expected batch_size where {_size(whole)} are to take no more than {_size(bound)}, got all "
                f"{samples[0]} sources in one batch"
            )
        self.spill.width = LANES * max(1, min(ceil(units / LANES), (bound - fixed) // tile))
        runner.spill, folder = self.spill, tempfile.gettempdir()
        own = sum(sources.sizes) + sum(targets.sizes) if world.size > 1 else 0
        needed, free = FLOAT * units * (4 * samples[0] + samples[1] + own), shutil.disk_usage(folder).free
        if needed * self.beside > free:
            shared = f" in each of {self.beside} processes" * (self.beside > 1)
            raise OSError(
                errno.ENOSPC,
                f"memory: responses need {_size(needed)} on disk{shared}, and {folder} has {_size(free)} free; set "
                "TMPDIR to a folder on a larger disk, or allow more memory",
            )
        return (
            f"lineas.fit: {_size(whole)} are more than memory={_size(bound)}; up to {_size(needed)} of responses go to "
            f"files in {folder}"
        )


def _parts(runner: Runner, sources: Kept, targets: Kept, ridge: bool) -> dict[str, int]:
    """What is in memory wherever responses are, by name: bytes."""
    mapped, compared = runner.mapped.units, runner.compared.units
    return {
        "the optimiser": bytes_of_optimiser(mapped) + A_UNIT * (mapped + compared),
        "rows of the ridge": FLOAT * min(ROOM, sum(targets.sizes) * 2 * mapped) * ridge,
        "samples": sources.used + targets.used,
        "a batch": 3 * FLOAT * compared * max(*sources.sizes, *targets.sizes),
    }


def any_on_disk(*sets: Sequence[Batch]) -> bool:
    """Whether batches are read from a file whenever they are asked for."""
    return any(isinstance(batches, Kept) and batches.outgrew for batches in sets)


def count_of(batches: Sequence[Batch]) -> int:
    """How many samples there are."""
    return sum(sizes_of(batches))


def _size(count: int) -> str:
    for step, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= step:
            return f"{count / step:.3g} {unit}"
    return f"{count} B"
