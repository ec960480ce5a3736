"""The house: every package on its floor, imports only downwards, and one door to the extension."""

import ast
import importlib
from pathlib import Path

import pytest

import lineas

FLOORS = {  # what a line must know decides where it stands: docs/development.md
    "_storage": 1, "core": 1, "samples": 1,
    "network": 2, "maps": 2, "ot": 2, "penalties": 2, "transport": 2,
    "responses": 3, "optim": 3, "attaching": 3, "directions": 3, "plot": 3, "algebra": 3,
    "merge": 4, "experts": 4,
    "steering": 5,
    "evaluation": 6, "serving": 6,
    "fitting": 7,
    "__init__": 8, "callbacks": 8, "checkpoint": 8,
    "__main__": 9,
}  # fmt: skip
HERE = Path(lineas.__file__).parent


def room(path: Path) -> str:
    return path.relative_to(HERE).parts[0].removesuffix(".py")


def imported(path: Path):
    """Every module of lineas that a file imports, wherever in it and whatever for, as its parts below lineas."""
    package = ("lineas", *path.relative_to(HERE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            names = [[*base, *(node.module or "").split("."), alias.name] for alias in node.names]
        else:
            continue
        yield from ([part for part in name[1:] if part] for name in names if name[0] == "lineas")


FILES = sorted(HERE.rglob("*.py"))


def test_every_file_has_a_floor():
    assert {room(path) for path in FILES} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HERE)))
def test_imports_run_downwards_only(path):
    own = room(path)
    for parts in imported(path):
        target = parts[0] if parts and parts[0] in FLOORS else "__init__"
        assert target == own or FLOORS[target] < FLOORS[own], f"{path.name} imports {'.'.join(parts)}"
        assert "_core" not in parts or parts[:2] == ["core", "_core"], "there is one door to the extension"
        assert "reference" not in parts, "the reference is a twin, and no part of the product"


def test_no_two_files_import_each_other_in_a_circle():
    arrows = {path: set() for path in FILES}
    for path in FILES:
        for parts in imported(path):
            for k in range(len(parts), 0, -1):
                target = HERE.joinpath(*parts[:k]).with_suffix(".py")
                if target in arrows:
                    arrows[path].add(target)
                    break
    while free := [path for path, targets in arrows.items() if not targets]:
        for path in free:
            del arrows[path]
        for targets in arrows.values():
            targets.difference_update(free)
    assert not arrows, f"in a circle, or above one: {[str(path.relative_to(HERE)) for path in arrows]}"


@pytest.mark.parametrize("name", ["algebra", "callbacks", "checkpoint"])
def test_modules_that_moved_are_still_found_under_their_public_names(name):
    there, here = importlib.import_module(f"lineas.{name}"), getattr(lineas, name)
    assert there.__all__ == here.__all__
    assert all(getattr(there, public) is getattr(here, public) for public in there.__all__)
