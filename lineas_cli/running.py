"""What all commands share: results on stdout, notes on stderr, and one line for an error."""

import functools
import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import typer

BROKEN_PIPE, INTERRUPTED = 141, 130  # what a shell says of programs that these signals end


class Settings:
    """Of the running command: whether it may tell of its progress, and whether errors come with their traceback."""

    progress = True
    debug = False


def note(text: str) -> None:
    """A line of progress on stderr."""
    if Settings.progress:
        _tell(text)


def _tell(text: str) -> None:
    print(f"lineas: {one_line(text)}", file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """A line of JSON on stdout, in ASCII, so that it can go anywhere; numbers that are not finite become null."""
    from lineas._storage.pairs import plain

    print(json.dumps(plain(value), allow_nan=False))


def one_line(text: str) -> str:
    """Without line ends, and without characters that a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """A command that ends as programs do: with an exit code, and one line on stderr where it failed."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        Settings.progress = options.get("progress", True)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                command(**options)
            sys.stdout.flush()
        except (typer.Exit, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            _tell("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # `lineas ... | head`: whoever read has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it ends
            raise typer.Exit(BROKEN_PIPE) from None
        except Exception as error:
            if Settings.debug:
                raise
            _tell(f"error: {_described(error)}")
            raise typer.Exit(1) from None

    return run


def _described(error: Exception) -> str:
    """What went wrong; of errors that are not ours to raise, also which kind they are."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    ours = (ValueError, TypeError, OSError, FloatingPointError, ImportError)
    text = str(error)
    if text and (isinstance(error, ours) or type(error) in (LookupError, RuntimeError)):
        return text
    return f"{type(error).__name__}: {text} (`lineas --debug ...` shows where)"


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    _tell(f"warning: {message}")
