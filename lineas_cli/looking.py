"""`lineas inspect`, `lineas sites` and `lineas dry-run`: look, change nothing."""

import json
import re
import shlex
from typing import Annotated, Any

import typer

from .fit_options import of_fit
from .models import load, load_pipeline, numbers_of, outline, outline_of_pipeline
from .options import (
    CAUSAL,
    Column,
    Component,
    Device,
    Dtype,
    Field,
    Folder,
    Json,
    Model,
    ModelClass,
    Pipeline,
    Revision,
    arguments,
    check_goes_with,
    given,
    read_texts,
)
from .running import one_line, print_json


def inspect(folder: Folder, as_json: Json = False) -> None:
    """Show what a steering does at each site, and where it comes from.

    The table has a line a site: its units, how many of them the maps change (the support), how far they stretch and
    shift on average, and the site's loss before and after the fit.

    \b
    Example:
      lineas inspect polite --json
    """
    import lineas

    report(folder, lineas.Steering.from_pretrained(folder), as_json)


def report(folder: str, steering: Any, as_json: bool) -> None:
    """A steering on stdout: the result of `inspect`, and of `fit`."""
    if not as_json:
        print(steering.summary())
        for key, value in _lines(steering.info):
            print(f"{key}: {value}")
        return
    from lineas.maps.summary import rows

    print_json(
        {
            "folder": folder, "units": sum(row.units for row in rows(steering)),
            "support": sum(row.support for row in rows(steering)),
            "sites": [row._asdict() for row in rows(steering)], "info": steering.info, "history": steering.history,
        }
    )  # fmt: skip


def _lines(info: Any, above: str = "") -> list[tuple[str, str]]:
    """`info` with what is nested in it, as names and values; what comes from files cannot obey a terminal."""
    lines = []
    for key, value in info.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{above}{one_line(str(key))}.")
        elif value is not None:
            lines.append((f"{above}{one_line(str(key))}", json.dumps(value)))
    return lines


def sites(
    model: Model,
    sites: Annotated[
        str | None, typer.Option(help="A regular expression over whole module paths; the default sites if not given.")
    ] = None,
    src: Annotated[str | None, typer.Option(help="With --tgt: look where these texts and those part.")] = None,
    tgt: Annotated[str | None, typer.Option(help="The other file of texts.")] = None,
    column: Column = None,
    field: Field = None,
    call: Annotated[list[str] | None, of_fit("call")] = None,
    batch_size: Annotated[int | None, of_fit("batch_size")] = None,
    max_length: Annotated[int | None, of_fit("max_length")] = None,
    pooling: Annotated[str | None, of_fit("pooling")] = None,
    seed: Annotated[int | None, of_fit("seed")] = None,
    model_class: ModelClass = CAUSAL,
    pipeline: Pipeline = False,
    component: Component = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    as_json: Json = False,
) -> None:
    """List the sites that would be steered: name, units and class. Of the model only the config is read.

    Without --sites these are the normalisations that feed each block's MLP; of a pipeline's denoiser, all of them.
    With --src and --tgt the model is run, and the table has all candidates, or those of --sites: how far the two files
    are apart there, what the output minds, and which are recommended, with what to tell lineas fit.

    \b
    Example:
      lineas sites model --sites "model\\.layers\\.[01]\\..*_proj"
      lineas sites model --src from.txt --tgt to.txt
    """
    how = given(batch_size=batch_size, max_length=max_length, pooling=pooling, seed=seed)
    check_goes_with(pipeline, {"component": component, "call": call}, {"model_class": model_class != CAUSAL})
    if src is not None and tgt is not None:
        texts = [read_texts(name, path, column, field) for name, path in (("src", src), ("tgt", tgt))]
        loaded: dict[str, Any] = {"revision": revision, "dtype": dtype, "device": device}
        if pipeline:
            network: Any = load_pipeline(model, **loaded)
            how |= given(component=component, call=arguments(call) or None)
        else:
            network, how["tokenizer"] = load(model, model_class=model_class, **loaded)
        suggest(network, texts, sites, how, as_json)
        return
    alone = given(src=src, tgt=tgt, column=column, field=field, call=call, device=device, **how)
    alone |= {"dtype": dtype} if dtype != "auto" else {}
    if alone:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in alone)
        raise typer.BadParameter(f"{names}: goes with both --src and --tgt")
    if pipeline:
        looked_at = outline_of_pipeline(model, component=component, revision=revision)
    else:
        looked_at = outline(model, model_class=model_class, revision=revision)
    list_sites(looked_at, sites, as_json)


def list_sites(looked_at: Any, sites: str | None, as_json: bool) -> None:
    import lineas

    found = lineas.find_sites(looked_at, sites)
    if as_json:
        for site in found:
            print_json({"name": site.name, "units": site.units, "kind": site.kind})
        return
    width = max(len(site.name) for site in found)
    for site in found:
        print(f"{site.name:{width}}  {site.units or '?':>6}  {site.kind}")


def suggest(network: Any, texts: list[Any], sites: str | None, how: dict[str, Any], as_json: bool) -> None:
    """The result of `lineas sites` with two files."""
    import lineas

    source, target = texts
    found = lineas.suggest_sites(network, source, target, sites, **how)
    pattern = "|".join(map(re.escape, found.sites))
    if as_json:
        for row in found.rows():
            print_json(row)
        print_json({"sites": pattern, "loss_sites": found.loss_sites, "is_default": found.is_default, "why": found.why})
        return
    print(found)
    if not found.is_default:
        compared = " --loss-sites output" if found.loss_sites else ""
        print(f"lineas fit: --sites {shlex.quote(pattern)}{compared}")


def dry_run(
    model: Model,
    samples: Annotated[int, typer.Option(help="Texts of each side, in all processes together.")] = 32,
    tokens: Annotated[int, typer.Option(help="Tokens of a text.")] = 32,
    batch_size: Annotated[int | None, of_fit("batch_size")] = None,
    processes: Annotated[int, typer.Option(help="That fit together.")] = 1,
    slices: Annotated[int, typer.Option(help="Of them, those that compute each pass together.")] = 1,
    sites: Annotated[str | None, of_fit("sites")] = None,
    loss_sites: Annotated[str | None, of_fit("loss_sites")] = None,
    dtype: Dtype = "auto",
    model_class: ModelClass = CAUSAL,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Say what a fit would need, of memory and of traffic between processes. Of the model only the config is read.

    \b
    Example:
      lineas dry-run model --samples 64 --tokens 64 --batch-size 4 --processes 8
    """
    looked_at = outline(model, model_class=model_class, revision=revision)
    import lineas

    found = lineas.dry_run(
        looked_at, samples, tokens, sites=sites, loss_sites=loss_sites, batch_size=batch_size, processes=processes,
        slices=slices, dtype=None if dtype == "auto" else numbers_of(dtype),
    )  # fmt: skip
    if as_json:
        print_json({**vars(found), "sharded_weights": found.sharded_weights})
    else:
        print(found)
