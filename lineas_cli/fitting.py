"""`lineas fit`: from two files of texts to a steering's folder."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .fit_options import TABLE, of_fit
from .looking import report
from .models import load, load_pipeline
from .options import (
    CAUSAL,
    Column,
    Device,
    Dtype,
    Field,
    Force,
    Json,
    Model,
    ModelClass,
    Pipeline,
    Progress,
    Revision,
    arguments,
    check_folder,
    check_goes_with,
    given,
    read_texts,
    steps_of,
)
from .running import note

STEERING = ("steering_config.json", "steering.safetensors")  # what `save_pretrained` writes
CHECKPOINT = "checkpoint.safetensors"


def fit(
    model: Model,
    src: Annotated[str, typer.Option(help="A file of texts to move away from; - is the standard input.")],
    tgt: Annotated[str, typer.Option(help="A file of texts to move towards.")],
    out: Annotated[str, typer.Option(help="The folder to save the steering in.")],
    force: Force = False,
    column: Column = None,
    field: Field = None,
    sites: Annotated[str | None, of_fit("sites")] = None,
    loss_sites: Annotated[str | None, of_fit("loss_sites")] = None,
    l1: Annotated[float | None, typer.Option(help="Penalty on units: larger leaves more of them alone.")] = None,
    group: Annotated[float | None, typer.Option(help="Penalty on whole sites.")] = None,
    method: Annotated[str | None, of_fit("method")] = None,
    schedule: Annotated[str | None, of_fit("schedule")] = None,
    within_range: Annotated[bool, of_fit("within_range", "--within-range")] = False,
    recipe: Annotated[str | None, of_fit("recipe")] = None,
    loss: Annotated[str | None, of_fit("loss")] = None,
    loss_weights: Annotated[str | None, of_fit("loss_weights")] = None,
    ridge: Annotated[float | None, of_fit("ridge")] = None,
    optimizer: Annotated[str | None, of_fit("optimizer")] = None,
    learning_rate: Annotated[float | None, of_fit("learning_rate")] = None,
    steps: Annotated[int | None, of_fit("steps")] = None,
    max_evaluations: Annotated[int | None, of_fit("max_evaluations")] = None,
    batch_size: Annotated[int | None, of_fit("batch_size")] = None,
    max_length: Annotated[int | None, of_fit("max_length")] = None,
    compute_dtype: Annotated[str | None, of_fit("compute_dtype")] = None,
    pooling: Annotated[str | None, of_fit("pooling")] = None,
    position: Annotated[str | None, of_fit("position")] = None,
    budget: Annotated[str | None, of_fit("budget")] = None,
    gate: Annotated[str | None, of_fit("gate")] = None,
    neutral: Annotated[str | None, of_fit("neutral")] = None,
    pipeline: Pipeline = False,
    component: Annotated[str | None, of_fit("component")] = None,
    call: Annotated[list[str] | None, of_fit("call")] = None,
    at: Annotated[str | None, of_fit("at")] = None,
    memory: Annotated[str | None, of_fit("memory")] = None,
    seed: Annotated[int | None, of_fit("seed")] = None,
    checkpoint_dir: Annotated[str | None, of_fit("checkpoint_dir")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from it, if there is one.")] = False,
    resume_from: Annotated[str | None, of_fit("resume_from")] = None,
    model_class: ModelClass = CAUSAL,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    progress: Progress = True,
    as_json: Json = False,
) -> None:
    """Learn a steering that moves a model from one set of texts towards another.

    Files: a text a line; .csv and .tsv with a --column; .jsonl with a --field, which may hold chats. The sets are
    unpaired, and 32 texts each will do. Options are those of lineas.fit in Python, and their defaults its own. With
    --pipeline texts are prompts, and the network that makes the pictures is steered.

    \b
    Example:
      lineas fit model --src from.txt --tgt to.txt --out polite --l1 2e-6
    """
    options = given(**{name: value for name, value in locals().items() if name in TABLE and name != "progress"})
    if resume and (checkpoint_dir is None or resume_from is not None):
        raise typer.BadParameter("--resume goes with --checkpoint-dir, and without --resume-from")
    if [src, tgt, neutral].count("-") > 1:
        raise typer.BadParameter("--src, --tgt, --neutral: only one of them can be the standard input")
    goes_on = resume and (Path(str(checkpoint_dir)) / CHECKPOINT).exists()  # the same line again
    check_folder(out, STEERING, force or goes_on)
    source, target = (read_texts(name, path, column, field) for name, path in (("src", src), ("tgt", tgt)))
    if neutral is not None:
        options["neutral"] = read_texts("neutral", neutral, column, field)
    check_goes_with(pipeline, {"component": component, "call": call, "at": at}, {"model_class": model_class != CAUSAL})
    options |= given(call=arguments(call) or None, at=steps_of(at))
    if not within_range:
        del options["within_range"]
    if pooling and "," in pooling:
        options["pooling"] = tuple(pooling.split(","))
    if (penalty := _penalty(l1, group)) is not None:
        options["penalty"] = penalty
    if resume:
        options["resume_from"] = checkpoint_dir
    _check({name: value for name, value in options.items() if name != "resume_from"})
    if resume_from is not None:
        options["resume_from"] = _start(resume_from)
    import lineas

    if pipeline:
        network: Any = load_pipeline(model, revision=revision, dtype=dtype, device=device)
    else:
        network, options["tokenizer"] = load(
            model, model_class=model_class, revision=revision, dtype=dtype, device=device
        )
    steering = lineas.fit(network, source, target, progress=progress, **options)
    steering.save_pretrained(out)
    note(f"saved in {out}")
    report(out, steering, as_json)


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
    from lineas.fitting.options import Options

    try:
        Options.checked(options)
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None


def _start(path: str) -> Any:
    import lineas
    from lineas.maps.card import CONFIG

    return lineas.Steering.from_pretrained(path) if (Path(path) / CONFIG).exists() else path
