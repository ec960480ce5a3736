"""`lineas merge`: a steering into the weights of a plain checkpoint."""

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from .models import load, load_pipeline
from .options import (
    CAUSAL,
    Call,
    Component,
    Device,
    Dtype,
    Force,
    Json,
    Model,
    ModelClass,
    Pipeline,
    Progress,
    Revision,
    SteeringFolder,
    arguments,
    check_folder,
    check_goes_with,
    given,
)  # fmt: skip
from .running import note, print_json


def merge(
    model: Model,
    steering: SteeringFolder,
    out: Annotated[str | None, typer.Option(help="The folder to save the merged model in, with its tokenizer.")] = None,
    force: Force = False,
    strength: Annotated[float, typer.Option(help="Fixed from then on.")] = 1.0,
    partial: Annotated[bool, typer.Option("--partial", help="Leave out sites that cannot be merged exactly.")] = False,
    tolerance: Annotated[float | None, typer.Option(help="Largest relative error of an output.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say, site by site, what would be done.")] = False,
    model_class: ModelClass = CAUSAL,
    pipeline: Pipeline = False,
    component: Component = None,
    call: Call = None,
    max_shard_size: Annotated[
        str | None, typer.Option(help="Of a file of weights, 2GB for instance; 5GB if not given.")
    ] = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    progress: Progress = True,
    as_json: Json = False,
) -> None:
    """Fold a steering into a model's weights, and save a checkpoint that needs no lineas.

    The result is run beside the steered model on a small batch; the largest difference of their outputs, as a part of
    the largest output, is the error that is told.

    \b
    Example:
      lineas merge model --steering polite --out polite-model --strength 0.5
    """
    if out is None and not plan:
        raise typer.BadParameter("expected --out FOLDER, or --plan, got neither")
    check_goes_with(
        pipeline,
        {"component": component, "call": call},
        {"model_class": model_class != CAUSAL, "max_shard_size": max_shard_size is not None},
    )
    of_pipeline = given(component=component, call=arguments(call) or None)
    if out is not None:
        if Path(out).resolve() == Path(model).resolve():
            raise typer.BadParameter("--out: expected another folder than the model's own, whose files are in use")
        check_folder(out, ("config.json", "model_index.json", "*.safetensors", "*.bin"), force or plan)
    import lineas

    maps = lineas.Steering.from_pretrained(steering)
    network: Any
    tokenizer: Any = None
    if pipeline:
        network = load_pipeline(model, revision=revision, dtype=dtype, device=device)
    else:
        network, tokenizer = load(model, model_class=model_class, revision=revision, dtype=dtype, device=device)
    if plan:
        _print_plan(maps.merge_plan(network, strength, **of_pipeline), as_json)
        return
    merged: Any = maps.merge(network, strength, partial=partial, **given(tolerance=tolerance), **of_pipeline)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")  # which is what we want
        merged.save_pretrained(out, **({} if pipeline else {"max_shard_size": max_shard_size or "5GB"}))
    if tokenizer is not None:
        tokenizer.save_pretrained(out)
    record = _record(merged, maps, component) if pipeline else merged.lineas_merge
    note(f"saved in {out}")
    if as_json:
        print_json({"folder": out, **record})
        return
    done = len(record["sites"]) - len(record["left_out"])
    print(
        f"merged {done} of {len(record['sites'])} sites at strength {strength:g} into a {record['class']}: error "
        f"{record['error']:.2g} (steering itself moves outputs by {record['effect']:.2g})"
    )


def _record(pipe: Any, maps: Any, component: str | None) -> dict[str, Any]:
    """What was done to the network of the pipeline."""
    from lineas.maps.info import component_of_fit
    from lineas.network.pipelines import network_of

    network: Any = network_of(pipe, component_of_fit([maps.info], component))
    return network.lineas_merge


def _print_plan(plan: Any, as_json: bool) -> None:
    if not as_json:
        print(plan)
        return
    sites = [{"site": entry.site, "status": entry.status, "text": entry.text} for entry in plan.sites]
    head = {"class": plan.model_class, "target": plan.target, "exact": plan.exact, "unties": plan.unties}
    print_json({**head, "sites": sites})
