"""Arguments and options that several commands have."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
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
Dtype = Annotated[
    str, typer.Option(help="Of the weights: auto (the checkpoint's own, of a pipeline float32), float32, bfloat16, ...")
]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, cuda:1, mps; auto to spread the model, disk to read weights whenever they are used; a GPU "
        "where there is one if not given."
    ),
]
Position = Annotated[str, typer.Option(help="Which tokens are steered: all, last, prompt or generated.")]
Pipeline = Annotated[bool, typer.Option("--pipeline", help="MODEL is a pipeline of diffusers: a folder, or a name.")]
Call = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE", help="Of a pipeline: an argument of its call; that of the fit if not given; several times."
    ),
]
Component = Annotated[
    str | None, typer.Option(help="Of a pipeline: the network; that of the fit, or its denoiser, if not given.")
]
CAUSAL = "AutoModelForCausalLM"
WORDS = {"true": True, "false": False, "none": None, "null": None}


def given(**options: Any) -> dict[str, Any]:
    """Those that were given: for all others the library's own defaults hold."""
    return {name: value for name, value in options.items() if value is not None}


def check_goes_with(pipeline: bool, of_pipelines: Mapping[str, Any], of_texts: Mapping[str, bool]) -> None:
    """That no option was given that does not go with what MODEL is.

    `of_pipelines` has values that are None unless given, `of_texts` whether other options were given.
    """
    wrong = [name for name, was_given in of_texts.items() if was_given] if pipeline else list(given(**of_pipelines))
    if wrong:
        listed = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise typer.BadParameter(f"{listed}: {'not for a pipeline' if pipeline else 'expected --pipeline with it'}")


def check_price(option: str, text: str) -> None:
    """That it is a price, before any work."""
    from lineas.maps.dial import Price

    Price.of(text, option)


def arguments(pairs: Sequence[str] | None) -> dict[str, Any]:
    """KEY=VALUE as arguments of a call: numbers, true, false and none as such, all else as text."""
    found: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise typer.BadParameter(f"--call: expected KEY=VALUE, such as guidance_scale=0, got {pair!r:.60}")
        if key in found:
            raise typer.BadParameter(f"--call: expected each argument once, got {key} twice")
        found[key] = _value(value)
    return found


def _value(text: str) -> Any:
    word = text.strip().lower()
    if word in WORDS:
        return WORDS[word]
    for kind in (int, float):
        with suppress(ValueError):
            if math.isfinite(number := kind(text)):
                return number
    return text


def steps_of(at: str | None) -> Any:
    """`--at`: a word, or numbers with commas between them."""
    return [int(part) for part in at.split(",")] if at and re.fullmatch(r"\d+(,\d+)*", at) else at


def check_folder(out: str, results: Sequence[str], force: bool) -> None:
    """That the result can be saved, before there is one; and that no file is there that would be written over."""
    path = Path(os.path.abspath(out))
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise OSError(f"--out {out}: expected a folder that can be written, but {there} is none")
    old = next((file.name for pattern in results for file in path.glob(pattern)), None)
    if old is not None and not force:
        raise FileExistsError(f"--out {out}: expected a folder without results, there is {old}; --force writes over it")


def check_file(out: str, force: bool, option: str = "--out") -> None:
    """The same of a file."""
    path = Path(os.path.abspath(out))
    if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OSError(f"{option} {out}: expected a file that can be written, in a folder that is there")
    if path.exists() and not force:
        raise FileExistsError(f"{option} {out}: expected a new file, this one is there; --force writes over it")


def read_texts(name: str, path: str, column: str | None, field: str | None) -> list[texts.Text]:
    """A file's texts, with a word on how many they are."""
    found = texts.read(path, column=column, field=field)
    note(f"{name}: {len(found.texts)} texts from {path}" + f", {found.empty} empty ones left out" * bool(found.empty))
    return found.texts
