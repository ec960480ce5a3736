"""`lineas generate`: how a steered model goes on from prompts."""

from typing import Annotated, Any

import typer

from . import texts
from .models import load
from .options import (
    CAUSAL,
    Column,
    Device,
    Dtype,
    Field,
    Json,
    Model,
    Position,
    Progress,
    Revision,
    Seed,
    SteeringFolder,
)  # fmt: skip
from .running import note, one_line, print_json

LIKELIEST = 1e-6  # of top_p: so little of the probability that only one token is left


def generate(
    model: Model,
    steering: SteeringFolder,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")] = None,
    prompts: Annotated[str | None, typer.Option(help="A file of prompts, or chats; - is the standard input.")] = None,
    column: Column = None,
    field: Field = None,
    strength: Annotated[list[float] | None, typer.Option(help="1 if not given; may be given several times.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also without steering: at strength 0.")] = False,
    position: Position = "all",
    strict: Annotated[bool, typer.Option("--strict/--no-strict", help="Refuse a model of another name.")] = True,
    count: Annotated[int, typer.Option(min=1, help="Continuations of each prompt.")] = 1,
    new_tokens: Annotated[int, typer.Option(min=1, help="Length of a continuation.")] = 24,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest tokens that have this probability.")] = 0.9,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Continuations that are made at once.")] = 64,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    progress: Progress = True,
    as_json: Json = False,
) -> None:
    """Sample how a steered language model goes on from prompts.

    With --json, a line for each continuation: its prompt, strength, number and text.

    \b
    Example:
      lineas generate model --steering polite --prompt "The movie was" --compare
    """
    rows: list[texts.Text] = list(prompt or ())
    if prompts is not None:
        rows += texts.read(prompts, column=column, field=field).texts
    if not rows:
        raise typer.BadParameter("expected --prompt TEXT or --prompts FILE, got neither")
    strengths = list(dict.fromkeys([0.0] * compare + (strength or [1.0])))
    import lineas

    maps = lineas.Steering.from_pretrained(steering)
    network, tokenizer = load(model, model_class=CAUSAL, revision=revision, dtype=dtype, device=device)
    options: dict[str, Any] = {"count": count, "new_tokens": new_tokens, "seed": seed, "batch_size": batch_size}
    options |= {"temperature": temperature, "top_p": top_p} if temperature else {"top_p": LIKELIEST}
    found: dict[float, list[str]] = {}
    for value in strengths:
        note(f"strength {value:g}: {count * len(rows)} continuations")
        with maps.apply(network, value, position=position, strict=strict):
            found[value] = lineas.evaluation.continuations(network, rows, tokenizer=tokenizer, **options)
        if as_json:
            for k, text in enumerate(found[value]):
                print_json({"prompt": rows[k // count], "strength": value, "number": k % count, "text": text})
    if not as_json:
        _print_side_by_side(rows, found, count)


def _print_side_by_side(prompts: list[texts.Text], found: dict[float, list[str]], count: int) -> None:
    for k, prompt in enumerate(prompts):
        print(f"{one_line(prompt if isinstance(prompt, str) else str(prompt[-1].get('content')))} ...")
        for strength, continuations in found.items():
            for text in continuations[k * count : (k + 1) * count]:
                print(f"{strength:>6g}  {one_line(text)}")
