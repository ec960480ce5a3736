"""The one way in which lineas writes files: whole, so that a reader finds the old version or the new one, whenever the
process or the machine may die, and whoever else saves there.

New content goes into a file of its own name beside the old one, and replaces it by one rename. Savers take turns in a
folder, so that what lies there under such a name at the end of a turn is of no use to anybody. The turns are those of
one machine: where two of them share a disk, only one may save to a folder at a time.
"""

import errno
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

if sys.platform != "win32":
    import fcntl

Read = TypeVar("Read")

PATIENCE = 300.0  # seconds that a save waits for others in its folder


def replace_file(path: Path, data: bytes) -> None:
    """A file that is the old one or the new one, whenever the process or the machine may die."""
    if path.exists() and not path.is_file():  # a pipe or a device, which is to be written to, not to be replaced
        path.write_bytes(data)
        return
    path = Path(os.path.realpath(path))
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    with turn(path.parent):
        try:
            rename(staged(path, data), path)
        finally:
            remove(leftovers(path))


def staged(path: Path, data: bytes) -> Path:
    """A new file beside a path, safe on the disk, and as private as the one that it is to replace."""
    temporary = path.with_name(f"{path.name}.{os.urandom(8).hex()}.tmp")
    with open(temporary, "xb") as file:
        with suppress(OSError):
            shutil.copymode(path, temporary)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # or a power cut could leave the new name with no content
    return temporary


def rename(source: Path, target: Path, folder: int | None = None) -> None:
    """Replace a file; with a folder, the change of names is safe on the disk afterwards."""
    for _ in range(500 if sys.platform == "win32" else 0):  # where nobody can replace what somebody reads
        with suppress(PermissionError):
            os.replace(source, target)
            return
        time.sleep(0.01)
    os.replace(source, target)
    if folder is not None:
        try:
            os.fsync(folder)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that know no such thing
                raise


def leftovers(path: Path) -> list[Path]:
    """What savers of a file left beside it, for whoever has the turn: nobody else is at work on them now."""
    name = re.compile(re.escape(path.name) + r"\.[0-9a-f]+\.tmp")
    return [left for left in path.parent.iterdir() if name.fullmatch(left.name)]


def remove(left: list[Path]) -> None:
    for path in left:
        with suppress(OSError):  # on Windows, while somebody reads it: the next save removes it
            path.unlink()


@contextmanager
def turn(folder: Path) -> Iterator[int | None]:
    """Alone among all threads and processes that save in a folder. The system ends the turn of one that dies.

    Gives the open folder, where there is such a thing.
    """
    if sys.platform == "win32":  # a file that is there for as long as it is open
        how = os.O_CREAT | os.O_EXCL | os.O_TEMPORARY
        lock = _waited(folder, lambda: os.open(folder / ".lineas.lock", how))
        try:
            yield None
        finally:
            os.close(lock)
    else:
        opened = os.open(folder, os.O_RDONLY)
        try:
            _waited(folder, lambda: fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB))
            yield opened
        finally:
            with suppress(OSError):
                fcntl.flock(opened, fcntl.LOCK_UN)  # closing is not enough where a child was forked meanwhile
            os.close(opened)


def _waited(folder: Path, take: Callable[[], Any]) -> Any:
    start = time.monotonic()
    while True:
        try:
            return take()
        except (BlockingIOError, FileExistsError) as error:
            if time.monotonic() - start > PATIENCE:
                raise TimeoutError(
                    f"{folder}: expected other saves there to end within {PATIENCE:g} seconds, and they did not"
                ) from error
        except PermissionError:  # on Windows: the lock is being removed; or nobody may write there
            if time.monotonic() - start > 2:
                raise
        except OSError as error:
            message = f"{folder} has no locks ({error.strerror}): expected that nobody else saves there meanwhile"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            return None
        time.sleep(0.001)


def read_whole(read: Callable[[Path], Read], folder: Path) -> Read:
    """What a function reads in a folder. What it refuses may have been of two versions, or on Windows just being
    replaced: it reads again when nobody saves there."""
    try:
        return read(folder)
    except (OSError, ValueError) as error:
        refused = error
    with suppress(OSError), turn(folder):
        return read(folder)
    raise refused
