"""`lineas inspect` and `lineas sites`: look, change nothing."""

import json
from typing import Annotated, Any

import typer

from .models import outline, outline_of_pipeline
from .options import CAUSAL, Component, Folder, Json, Model, ModelClass, Pipeline, Revision, check_goes_with
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
