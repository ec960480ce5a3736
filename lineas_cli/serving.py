"""`lineas app`: a page with sliders, on this computer."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .models import load, load_pipeline
from .options import CAUSAL, Call, Device, Dtype, Progress, Revision, arguments
from .running import note

HOST = "127.0.0.1"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    steerings: Annotated[
        list[str], typer.Argument(metavar="FOLDER...", help="Folders of steerings, or names on the hub.")
    ],
    model: Annotated[str | None, typer.Option(help="A model folder, a GGUF file, or a name on the hub.")] = None,
    pipeline: Annotated[
        str | None, typer.Option(help="Instead: a pipeline of diffusers, a folder or a name on the hub.")
    ] = None,
    report: Annotated[
        str | None, typer.Option(help="What `lineas evaluate --out` wrote: its effect against price is shown.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 lets other computers in.")] = HOST,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The first free one from 7860 on if not given.")
    ] = None,
    call: Call = None,
    strict: Annotated[bool, typer.Option("--strict/--no-strict", help="Refuse a model of another name.")] = True,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    progress: Progress = True,
) -> None:
    """Serve a page with a slider for each steering, and what the model makes with them and without, side by side.

    Sliders are in units of price where a steering has a dial, else of strength. Several that are on act one after the
    other, in the order given. The page needs no network; Ctrl-C ends it.

    \b
    Example:
      lineas app --model model polite
    """
    if (model is None) == (pipeline is None):
        raise typer.BadParameter(f"expected --model or --pipeline, got {'neither' if model is None else 'both'}")
    if call and pipeline is None:
        raise typer.BadParameter("--call: expected --pipeline with it")
    given_call = arguments(call)
    from lineas_app import page

    page.gradio()  # before any work
    page.check_address(host, port)
    import lineas
    from lineas_app.desk import Desk

    maps = _named(steerings, lineas.Steering.from_pretrained)
    found = None if report is None else lineas.evaluation.Report.from_json(Path(report))
    maker = (
        _writer(model, revision=revision, dtype=dtype, device=device) if model is not None
        else _painter(str(pipeline), list(maps.values()), given_call, revision=revision, dtype=dtype, device=device)
    )  # fmt: skip
    desk = Desk(maker, maps, report=found, strict=strict, may_open=host in LOOPBACK)
    served, address = page.serve(desk, host=host, port=port)
    try:
        print(address, flush=True)
        note("Ctrl-C ends it")
        page.wait()
    finally:
        served.close(verbose=False)


def _writer(model: str, **options: Any) -> Any:
    from lineas_app.makers import Writer

    network, tokenizer = load(model, model_class=CAUSAL, **options)
    if tokenizer is None:
        raise ValueError(f"{model}: expected a model with its tokenizer, got one without")
    return Writer(network, tokenizer, Path(model).name)


def _painter(pipeline: str, maps: list[Any], call: dict[str, Any], **options: Any) -> Any:
    from lineas.merge.in_pipelines import call_as_fitted
    from lineas_app.makers import Painter

    pipe = load_pipeline(pipeline, **options)
    call = {**call_as_fitted(maps[0], pipe), **call}
    note(f"called with {call}")
    return Painter(pipe, call, Path(pipeline).name)


def _named(folders: list[str], read: Any) -> dict[str, Any]:
    """Each steering under the last part of its folder's name, with a number where several have the same."""
    found: dict[str, Any] = {}
    for folder in folders:
        name = stem = Path(folder).resolve().name
        number = 1
        while name in found:
            number += 1
            name = f"{stem} ({number})"
        found[name] = read(folder)
    return found
