"""The command line, `lineas`.

Beside the package and not in it: importing anything of `lineas` imports PyTorch, which takes seconds, and help, typing
errors and missing files should not wait for it. So nothing here imports `lineas` before there is work for it.
"""

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command, of `sys.argv` unless told; ends in SystemExit with its exit code."""
    try:
        import typer  # noqa: F401 -- only to see whether it is there
    except ModuleNotFoundError:
        sys.exit("lineas: error: the command line needs typer; install it with: pip install 'lineas[cli]'")
    from .app import app

    app(arguments, prog_name="lineas")
