"""What the app may know: of lineas public names only, and Gradio in one file."""

import ast
import importlib
from pathlib import Path

import lineas_app

HERE = Path(lineas_app.__file__).parent


def imports():
    """(file, module, name) of everything that the app imports from elsewhere."""
    for path in HERE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path.name, alias.name, None) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield from ((path.name, node.module, alias.name) for alias in node.names)


def test_of_lineas_it_knows_public_names_only():
    found = [(module, name) for _, module, name in imports() if module.split(".")[0] == "lineas"]
    assert {module for module, _ in found} == {"lineas"}
    public = {*importlib.import_module("lineas").__all__, "plot", None}
    assert {name for _, name in found} <= public


def test_one_file_knows_gradio_and_the_command_line_is_not_known():
    assert {file for file, module, _ in imports() if module.split(".")[0] == "gradio"} == {"page.py"}
    assert not [file for file, module, _ in imports() if module.startswith("lineas_cli")]
