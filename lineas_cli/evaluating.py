"""`lineas evaluate`: what a steering does to a model, and what it costs, as a table."""

from typing import Annotated, Any

import typer

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
    arguments,
    check_file,
    check_goes_with,
    check_price,
    given,
    read_texts,
)  # fmt: skip
from .running import note, print_json

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


def evaluate(
    model: Model,
    steering: Annotated[
        list[str], typer.Option(help="A steering's folder, or a name on the hub; several are compared.")
    ],
    strength: Annotated[
        list[float] | None, typer.Option(help="0.5 and 1 if not given; may be given several times.")
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            help="sentiment, toxicity, hf:NAME#LABEL; the first two if not given; several times for more. Of a "
            "pipeline: judge:FILE#CONCEPT, clip:NAME, clip:NAME#A TEXT|ANOTHER, dino:NAME, lpips; none if not given."
        ),
    ] = None,
    texts_file: Annotated[
        str | None,
        typer.Option("--texts", help="A file of texts for the perplexity; newspaper sentences if not given."),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="A file of prompts, or chats; 16 of ours if not given. A pipeline needs some.")
    ] = None,
    no_prompts: Annotated[bool, typer.Option("--no-prompts", help="Sample nothing, and score nothing.")] = False,
    src: Annotated[
        str | None, typer.Option(help="A file of held-out texts to move away from; goes with --tgt.")
    ] = None,
    tgt: Annotated[str | None, typer.Option(help="A file of held-out texts to move towards.")] = None,
    out: Annotated[str | None, typer.Option(help="A file for the whole report, as JSON.")] = None,
    force: Force = False,
    column: Column = None,
    field: Field = None,
    count: Annotated[int | None, typer.Option(min=1, help="Continuations of each prompt, for each seed.")] = None,
    new_tokens: Annotated[int | None, typer.Option(min=1, help="Length of a continuation.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the sampling.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest tokens of this probability.")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Continuations are sampled, or pictures made, once with each.")
    ] = None,
    position: Position = "all",
    strict: Annotated[bool, typer.Option("--strict/--no-strict", help="Refuse a model of another name.")] = True,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Continuations that are sampled, or pictures that are made, at once.")
    ] = None,
    text_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Texts that pass through the model at once.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Longest text in tokens; the rest is cut off.")] = None,
    best: Annotated[
        str | None, typer.Option(metavar="PRICE", help="Also which strength does most for at most this, such as +5%.")
    ] = None,
    confidence: Annotated[float | None, typer.Option(help="Of the intervals; 0.95 if not given.")] = None,
    pipeline: Pipeline = False,
    call: Call = None,
    grid: Annotated[str | None, typer.Option(help="Of a pipeline: a file for its pictures side by side.")] = None,
    pictures: Annotated[
        int | None, typer.Option(min=1, help="Of a pipeline: so many prompts are in it, 8 if not given.")
    ] = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    progress: Progress = True,
    as_json: Json = False,
) -> None:
    """Measure what a steering does to a model and what it costs, beside the base model.

    A table: perplexity and divergence on texts, scores of sampled continuations, and the distance of held-out texts. Or
    with --pipeline, scores of pictures, and how far they are from those without steering. With --json, a line for the
    base model and for each steering and strength. Options are those of lineas.evaluate, and their defaults its own.

    \b
    Example:
      lineas evaluate model --steering polite --scorer sentiment --count 2 --src from.txt --tgt to.txt
    """
    if best is not None:
        check_price("--best", best)
        if no_prompts or (pipeline and not scorer):
            raise typer.BadParameter("--best: expected a --scorer, whose effect it compares, got none")
    if no_prompts and (prompt or prompts or scorer):
        raise typer.BadParameter("--no-prompts goes without --prompt, --prompts and --scorer")
    files = {"texts": texts_file, "prompts": prompts, "src": src, "tgt": tgt}
    if list(files.values()).count("-") > 1:
        raise typer.BadParameter("--texts, --prompts, --src, --tgt: only one of them can be the standard input")
    if (src is None) != (tgt is None):
        raise typer.BadParameter(
            f"expected --src and --tgt, or neither; got only {'--src' if tgt is None else '--tgt'}"
        )
    sampled: dict[str, Any] = given(
        count=count, new_tokens=new_tokens, temperature=temperature, top_p=top_p, text_batch_size=text_batch_size,
        max_length=max_length,
    )  # fmt: skip
    of_texts = {"texts": texts_file, "src": src, "tgt": tgt, **sampled}
    check_goes_with(
        pipeline, {"call": call, "grid": grid, "pictures": pictures},
        {name: value is not None for name, value in of_texts.items()}
        | {"no_prompts": no_prompts, "position": position != "all"},
    )  # fmt: skip
    given_call = arguments(call)
    if best is not None and not strength:
        note("--best: of strengths 0.5 and 1; --strength, several times, has it look at more")
    if grid is not None and not grid.lower().endswith(ENDINGS):
        raise typer.BadParameter(f"--grid {grid}: expected a name that ends in {', '.join(ENDINGS)}")
    for name, file in (("--out", out), ("--grid", grid)):
        if file is not None:
            check_file(file, force, name)
    read: dict[str, Any] = {
        name: read_texts(name, path, column, field) for name, path in files.items() if path is not None
    }
    if prompt or no_prompts:
        read["prompts"] = [*(prompt or ()), *read.get("prompts", ())]
    if pipeline and not read.get("prompts"):
        raise typer.BadParameter("expected --prompt TEXT or --prompts FILE for the pictures, got neither")
    import lineas

    maps = {path: lineas.Steering.from_pretrained(path) for path in steering}
    options: dict[str, Any] = given(strengths=strength, seeds=seed, batch_size=batch_size, confidence=confidence)
    options |= {"strict": strict, "progress": progress, **read}
    if scorer:
        known = lineas.evaluation.picture_scorer if pipeline else lineas.evaluation.scorer
        options["scorers"] = [known(name) for name in scorer]
    if pipeline:
        pipe = load_pipeline(model, revision=revision, dtype=dtype, device=device)
        options |= {"call": {**_call_of(maps, pipe), **given_call}, **given(pictures=pictures)}
        report = lineas.evaluate(pipe, maps, **options)
    else:
        network, tokenizer = load(model, model_class=CAUSAL, revision=revision, dtype=dtype, device=device)
        report = lineas.evaluate(network, maps, tokenizer=tokenizer, position=position, **sampled, **options)
    if grid is not None:
        report.save_grid(grid)
    if out is not None:
        report.to_json(out)
    for file in given(grid=grid, out=out).values():
        note(f"saved in {file}")
    if as_json:
        for row in report.rows():
            print_json(row)
    else:
        print(report)
    if best is not None:
        _print_best(report, best, as_json)


def _print_best(report: Any, price: str, as_json: bool) -> None:
    found = report.best(price)
    if as_json:
        figures = {"effect": found.effect._asdict(), "price": found.price._asdict()}
        print_json({"best": price, "steering": found.steering, "strength": found.strength, **figures})
        return
    effect, paid = found.effect, found.price
    print(
        f"\nbest for {price}: {found.steering} at strength {found.strength:g}, effect {effect.value:+.3g} "
        f"[{effect.low:+.3g}, {effect.high:+.3g}], price {paid.value:.3g} [{paid.low:.3g}, {paid.high:.3g}]"
    )


def _call_of(maps: dict[str, Any], pipe: Any) -> dict[str, Any]:
    """What the pipeline was called with when the steerings were fitted."""
    from lineas.merge.in_pipelines import call_as_fitted

    (first, call), *others = ((name, call_as_fitted(one, pipe)) for name, one in maps.items())
    for name, other in others:
        if other != call:
            raise ValueError(f"expected steerings fitted with one call, got {first}: {call}, {name}: {other}")
    note(f"called with {call}")
    return call
