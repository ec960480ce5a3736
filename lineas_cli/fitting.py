"""`lineas fit`: from two files of texts to a steering's folder."""

from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer

from . import texts
from .looking import report
from .models import load
from .options import (
    CAUSAL,
    Column,
    Device,
    Dtype,
    Field,
    Json,
    Model,
    ModelClass,
    Progress,
    Revision,
    check_folder,
    given,
)
from .running import note


def fit(
    model: Model,
    src: Annotated[str, typer.Option(help="A file of texts to move away from; - is the standard input.")],
    tgt: Annotated[str, typer.Option(help="A file of texts to move towards.")],
    out: Annotated[str, typer.Option(help="The folder to save the steering in.")],
    column: Column = None,
    field: Field = None,
    sites: Annotated[
        str | None, typer.Option(help="Where to put maps: a regular expression; see lineas sites.")
    ] = None,
    loss_sites: Annotated[str | None, typer.Option(help="Where to compare; as --sites if not given.")] = None,
    l1: Annotated[float | None, typer.Option(help="Penalty on units: larger leaves more of them alone.")] = None,
    group: Annotated[float | None, typer.Option(help="Penalty on whole sites.")] = None,
    method: Annotated[str | None, typer.Option(help="How maps are found; a wrong name gets the list.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Of other methods than lineas: at_once or sequential.")] = None,
    within_range: Annotated[
        bool,
        typer.Option("--within-range", help="Of other methods than lineas: map only what the source's range holds."),
    ] = False,
    recipe: Annotated[str | None, typer.Option(help="fast, or published: the paper's schedule.")] = None,
    loss: Annotated[str | None, typer.Option(help="auto, wasserstein, excess or significant.")] = None,
    ridge: Annotated[float | None, typer.Option(help="How much to hold back; from the data if not given.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="Published recipe: sgd, momentum, adam, adamw.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Published recipe only.")] = None,
    steps: Annotated[int | None, typer.Option(help="At most so many accepted steps.")] = None,
    max_evaluations: Annotated[int | None, typer.Option(help="At most so many passes over the source texts.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Texts that pass through the model at once.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest text in tokens; the rest is cut off.")] = None,
    compute_dtype: Annotated[str | None, typer.Option(help="bfloat16 or float16 for matrix products.")] = None,
    pooling: Annotated[str | None, typer.Option(help="A unit's response: mean, max, min or last token.")] = None,
    position: Annotated[str | None, typer.Option(help="Which tokens are mapped.")] = None,
    seed: Annotated[int | None, typer.Option(help="For models that draw random numbers.")] = None,
    checkpoint_dir: Annotated[str | None, typer.Option(help="Keep a checkpoint in this folder.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from it, if there is one.")] = False,
    resume_from: Annotated[
        str | None, typer.Option(help="Go on from this checkpoint, or start from the maps in this steering's folder.")
    ] = None,
    model_class: ModelClass = CAUSAL,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    progress: Progress = True,
    as_json: Json = False,
) -> None:
    """Learn a steering that moves a model from one set of texts towards another.

    Files: a text a line; .csv and .tsv with a --column; .jsonl with a --field, which may hold chats. The sets are
    unpaired, and 32 texts each will do. Options are those of lineas.fit in Python, and their defaults its own.

    \b
    Example:
      lineas fit model --src from.txt --tgt to.txt --out polite --l1 2e-6
    """
    if resume and (checkpoint_dir is None or resume_from is not None):
        raise typer.BadParameter("--resume goes with --checkpoint-dir, and without --resume-from")
    if src == tgt == "-":
        raise typer.BadParameter("--src, --tgt: only one of them can be the standard input")
    check_folder(out)
    source, target = (_read(name, path, column, field) for name, path in (("src", src), ("tgt", tgt)))
    options = given(
        sites=sites, loss_sites=loss_sites, method=method, schedule=schedule,
        within_range=within_range or None, recipe=recipe, loss=loss, ridge=ridge, optimizer=optimizer,
        learning_rate=learning_rate, steps=steps, max_evaluations=max_evaluations, batch_size=batch_size,
        max_length=max_length, compute_dtype=compute_dtype, pooling=pooling, position=position, seed=seed,
        penalty=_penalty(l1, group), checkpoint_dir=checkpoint_dir, resume_from=checkpoint_dir if resume else None,
    )  # fmt: skip
    _check(options)
    if resume_from is not None:
        options["resume_from"] = _start(resume_from)
    import lineas

    network, tokenizer = load(model, model_class=model_class, revision=revision, dtype=dtype, device=device)
    steering = lineas.fit(network, source, target, tokenizer=tokenizer, progress=progress, **options)
    steering.save_pretrained(out)
    note(f"saved in {out}")
    report(out, steering, as_json)


def _read(name: str, path: str, column: str | None, field: str | None) -> list[texts.Text]:
    found = texts.read(path, column=column, field=field)
    note(f"{name}: {len(found.texts)} texts from {path}" + f", {found.empty} empty ones left out" * bool(found.empty))
    return found.texts


def _penalty(l1: float | None, group: float | None) -> Any:
    from lineas import penalties

    try:
        if group is not None:
            return penalties.SparseGroupLasso(l1 or 0.0, group)
        return None if l1 is None else penalties.L1(l1)
    except ValueError as error:
        raise typer.BadParameter(f"--{error}") from None


def _check(options: dict[str, Any]) -> None:
    """What the library says of plain values, before a large model is loaded for nothing."""
    import lineas
    from lineas.fitting.options import Options

    defaults = {name: parameter.default for name, parameter in signature(lineas.fit).parameters.items()}
    try:
        Options.checked(**{field.name: options.get(field.name, defaults[field.name]) for field in fields(Options)})
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None


def _start(path: str) -> Any:
    import lineas
    from lineas.maps.card import CONFIG

    return lineas.Steering.from_pretrained(path) if (Path(path) / CONFIG).exists() else path
