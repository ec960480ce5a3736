"""The commands in one application."""

from typing import Annotated

import typer

from .evaluating import evaluate
from .fitting import fit
from .generating import generate
from .looking import dry_run, inspect, sites
from .merging import merge
from .running import Settings, guarded
from .serving import serve

app = typer.Typer(
    rich_markup_mode=None,  # plain text, which goes through pipes and into files
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import lineas

        print(f"lineas {lineas.__version__}")
        raise typer.Exit


@app.callback()
def start(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Steer language models by small affine maps of their activations.

    Results go to stdout, progress to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. For offline
    use, MODEL is a folder, and HF_HUB_OFFLINE=1 keeps transformers from looking for more.

    \b
    Example:
      lineas fit model --src from.txt --tgt to.txt --out polite
      lineas generate model --steering polite --prompt "The movie was"
    """
    Settings.debug = debug


for command in (fit, evaluate, generate, merge, inspect, sites, dry_run):
    app.command()(guarded(command))
app.command("app")(guarded(serve))
