"""`lineas inspect`, `lineas sites` and `lineas dry-run`: look, change nothing."""

import json
from typing import Annotated, Any

import typer

from .fit_options import of_fit
from .models import numbers_of, outline, outline_of_pipeline
from .options import CAUSAL, Component, Dtype, Folder, Json, Model, ModelClass, Pipeline, Revision, check_goes_with
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
    model_class: ModelClass = CAUSAL,
    pipeline: Pipeline = False,
    component: Component = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """List the sites that would be steered: name, units and class. Of the model only the config is read.

    Without --sites these are the normalisations that feed each block's MLP; of a pipeline's denoiser, all of them.

    \b
    Example:
      lineas sites model --sites "model\\.layers\\.[01]\\..*_proj"
    """
    check_goes_with(pipeline, {"component": component}, {"model_class": model_class != CAUSAL})
    import lineas

    if pipeline:
        looked_at = outline_of_pipeline(model, component=component, revision=revision)
    else:
        looked_at = outline(model, model_class=model_class, revision=revision)
    found = lineas.find_sites(looked_at, sites)
    if as_json:
        for site in found:
            print_json({"name": site.name, "units": site.units, "kind": site.kind})
        return
    width = max(len(site.name) for site in found)
    for site in found:
        print(f"{site.name:{width}}  {site.units or '?':>6}  {site.kind}")


def dry_run(
    model: Model,
    samples: Annotated[int, typer.Option(help="Texts of each side, in all processes together.")] = 32,
    tokens: Annotated[int, typer.Option(help="Tokens of a text.")] = 32,
    batch_size: Annotated[int | None, of_fit("batch_size")] = None,
    processes: Annotated[int, typer.Option(help="That fit together.")] = 1,
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
        dtype=None if dtype == "auto" else numbers_of(dtype),
    )  # fmt: skip
    if as_json:
        print_json({**vars(found), "sharded_weights": found.sharded_weights})
    else:
        print(found)
