"""`lineas generate`: how a steered model goes on from prompts, or what a steered pipeline draws."""

from pathlib import Path
from typing import Annotated, Any

import typer

from . import texts
from .models import load, load_pipeline
from .options import (
    CAUSAL,
    Call,
    Column,
    Device,
    Dtype,
    Field,
    Force,
    Json,
    Model,
    Pipeline,
    Position,
    Progress,
    Revision,
    Seed,
    SteeringFolder,
    arguments,
    check_folder,
    check_goes_with,
    check_price,
)  # fmt: skip
from .running import note, one_line, print_json

NEW_TOKENS, TEMPERATURE, TOP_P = 24, 1.0, 0.9
CONTINUATIONS, PICTURES = 64, 8  # at once
LIKELIEST = 1e-6  # of top_p: so little of the probability that only one token is left


def generate(
    model: Model,
    steering: SteeringFolder,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")] = None,
    prompts: Annotated[str | None, typer.Option(help="A file of prompts, or chats; - is the standard input.")] = None,
    column: Column = None,
    field: Field = None,
    strength: Annotated[list[float] | None, typer.Option(help="1 if not given; may be given several times.")] = None,
    price: Annotated[
        list[str] | None, typer.Option(help="Instead: the strength that costs this, such as +2%; several times.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also without steering: at strength 0.")] = False,
    position: Position = "all",
    strict: Annotated[bool, typer.Option("--strict/--no-strict", help="Refuse a model of another name.")] = True,
    count: Annotated[int, typer.Option(min=1, help="Continuations of each prompt.")] = 1,
    new_tokens: Annotated[int, typer.Option(min=1, help="Length of a continuation.")] = NEW_TOKENS,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = TEMPERATURE,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest tokens that have this probability.")] = TOP_P,
    seed: Seed = 0,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Continuations that are made at once, 64 if not given; 8 pictures.")
    ] = None,
    pipeline: Pipeline = False,
    call: Call = None,
    out: Annotated[str | None, typer.Option(help="Of a pipeline: the folder for its pictures.")] = None,
    force: Force = False,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    progress: Progress = True,
    as_json: Json = False,
) -> None:
    """Sample how a steered language model goes on from prompts, or what a steered pipeline draws.

    With --json, a line for each continuation: its prompt, strength, number and text. With --pipeline pictures go into
    --out, with those at strength 0; a prompt's have the same noise at all strengths, and --count seeds after --seed.

    \b
    Example:
      lineas generate model --steering polite --prompt "The movie was" --compare
    """
    rows: list[texts.Text] = list(prompt or ())
    if prompts is not None:
        rows += texts.read(prompts, column=column, field=field).texts
    if not rows:
        raise typer.BadParameter("expected --prompt TEXT or --prompts FILE, got neither")
    if price and strength:
        raise typer.BadParameter("--price: goes without --strength")
    for one in price or ():
        check_price("--price", one)
    of_texts = {
        "new_tokens": new_tokens != NEW_TOKENS, "temperature": temperature != TEMPERATURE, "top_p": top_p != TOP_P,
        "position": position != "all",
    }  # fmt: skip
    check_goes_with(pipeline, {"call": call, "out": out}, of_texts)
    given_call = arguments(call)
    if pipeline:
        if out is None:
            raise typer.BadParameter("expected --out FOLDER for the pictures, got none")
        check_folder(out, ("*.png",), force)
    import lineas

    maps = lineas.Steering.from_pretrained(steering)
    wanted = [maps.strength_for(one) for one in price or ()] or strength or [1.0]
    strengths = list(dict.fromkeys([0.0] * (compare or pipeline) + wanted))
    if pipeline:
        pipe = load_pipeline(model, revision=revision, dtype=dtype, device=device)
        seeds = range(seed, seed + count)
        _draw(pipe, maps, rows, strengths, seeds, given_call, batch_size or PICTURES, strict, Path(str(out)), as_json)
        return
    network, tokenizer = load(model, model_class=CAUSAL, revision=revision, dtype=dtype, device=device)
    options: dict[str, Any] = {"count": count, "new_tokens": new_tokens, "seed": seed}
    options["batch_size"] = batch_size or CONTINUATIONS
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


def _draw(
    pipe: Any, maps: Any, prompts: list[texts.Text], strengths: list[float], seeds: range, call: dict[str, Any],
    batch_size: int, strict: bool, folder: Path, as_json: bool,
) -> None:  # fmt: skip
    """A picture for each prompt, strength and seed, as a file that is named by them, and a line for each."""
    from lineas.merge.in_pipelines import call_as_fitted
    from lineas.network.pipelines.pictures import pictures_of_rows
    from lineas.network.pipelines.rows import columns_of, fresh_seed, images_of_a_prompt

    call = {**call_as_fitted(maps, pipe), **call}
    note(f"called with {call}")
    if images_of_a_prompt(call) != 1:
        raise typer.BadParameter("--call: expected one picture of a prompt in a call; --count makes several")
    columns = columns_of(prompts, "prompts", pipe)
    folder.mkdir(parents=True, exist_ok=True)
    for strength in strengths:
        note(f"strength {strength:g}: {len(seeds) * len(prompts)} pictures")
        for seed in seeds:
            for start in range(0, len(prompts), batch_size):
                rows = range(start, min(start + batch_size, len(prompts)))
                with maps.apply(pipe, strength, strict=strict):
                    made = pictures_of_rows(pipe, columns, rows, call=call, seed=fresh_seed(seed))  # as evaluate has it
                for row, (picture,) in zip(rows, made, strict=True):
                    file = str(folder / f"prompt{row:03d}_strength{strength:g}_seed{seed}.png")
                    picture.save(file)
                    if as_json:
                        print_json({"prompt": prompts[row], "strength": strength, "seed": seed, "file": file})
                    else:
                        print(f"{strength:>6g}  {one_line(file)}  {one_line(str(prompts[row]))}")
