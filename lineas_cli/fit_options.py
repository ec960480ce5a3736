"""The table of `lineas.fit`'s options, read without importing `lineas`, which would import PyTorch."""

import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer


def _table() -> dict[str, Any]:
    spec = find_spec("lineas")  # finds the package, and does not run it
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "fitting" / "option_table.py"
    return runpy.run_path(str(path), run_name="lineas.fitting.option_table")["BY_NAME"]


TABLE = _table()


def of_fit(name: str, *names: str) -> Any:
    """The option of a command that is one of `lineas.fit`; `names` if it is called otherwise than it."""
    return typer.Option(*names, help=TABLE[name].on_command_line)
