"""Arguments and options that several commands have."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from . import texts
from .running import note

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a GGUF file, or a name on the hub.")]
Folder = Annotated[str, typer.Argument(metavar="FOLDER", help="A steering's folder, or a name on the hub.")]
SteeringFolder = Annotated[str, typer.Option("--steering", help="A steering's folder, or a name on the hub.")]
Json = Annotated[bool, typer.Option("--json", help="Results as JSON, an object a line.")]
Progress = Annotated[bool, typer.Option("--progress/--no-progress", help="Tell on stderr how it goes.")]
Force = Annotated[bool, typer.Option("--force", help="Write over what --out has already.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same result.")]
Column = Annotated[str | None, typer.Option(help="Of CSV files: the column with the texts; `text` if not given.")]
Field = Annotated[str | None, typer.Option(help="Of JSON lines: the field with the texts; `text` if not given.")]
ModelClass = Annotated[
    str, typer.Option(help="A class of transformers to load the model with, AutoModel for instance.")
]
Revision = Annotated[str | None, typer.Option(help="Of a model on the hub: branch, tag or commit.")]
Dtype = Annotated[str, typer.Option(help="Of the weights: auto (the checkpoint's own), float32, bfloat16, ...")]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, mps, or auto to spread the model; a GPU where there is one if not given."),
]
Position = Annotated[str, typer.Option(help="Which tokens are steered: all, last, prompt or generated.")]
CAUSAL = "AutoModelForCausalLM"


def given(**options: Any) -> dict[str, Any]:
    """Those that were given: for all others the library's own defaults hold."""
    return {name: value for name, value in options.items() if value is not None}


def check_folder(out: str, results: Sequence[str], force: bool) -> None:
    """That the result can be saved, before there is one; and that no file is there that would be written over."""
    path = Path(os.path.abspath(out))
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise OSError(f"--out {out}: expected a folder that can be written, but {there} is none")
    old = next((file.name for pattern in results for file in path.glob(pattern)), None)
    if old is not None and not force:
        raise FileExistsError(f"--out {out}: expected a folder without results, there is {old}; --force writes over it")


def check_file(out: str, force: bool) -> None:
    """The same of a file."""
    path = Path(os.path.abspath(out))
    if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OSError(f"--out {out}: expected a file that can be written, in a folder that is there")
    if path.exists() and not force:
        raise FileExistsError(f"--out {out}: expected a new file, this one is there; --force writes over it")


def read_texts(name: str, path: str, column: str | None, field: str | None) -> list[texts.Text]:
    """A file's texts, with a word on how many they are."""
    found = texts.read(path, column=column, field=field)
    note(f"{name}: {len(found.texts)} texts from {path}" + f", {found.empty} empty ones left out" * bool(found.empty))
    return found.texts
