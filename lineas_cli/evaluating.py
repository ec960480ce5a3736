"""`lineas evaluate`: what a steering does to a model, and what it costs, as a table."""

from typing import Annotated, Any

import typer

from .models import load
from .options import (
    CAUSAL,
    Column,
    Device,
    Dtype,
    Field,
    Force,
    Json,
    Model,
    Position,
    Progress,
    Revision,
    check_file,
    given,
    read_texts,
)  # fmt: skip
from .running import note, print_json


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
        typer.Option(help="sentiment, toxicity, or hf:NAME#LABEL; the first two if not given; several times for more."),
    ] = None,
    texts_file: Annotated[
        str | None,
        typer.Option("--texts", help="A file of texts for the perplexity; newspaper sentences if not given."),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")] = None,
    prompts: Annotated[str | None, typer.Option(help="A file of prompts, or chats; 16 of ours if not given.")] = None,
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
    seed: Annotated[list[int] | None, typer.Option(help="Continuations are sampled once with each.")] = None,
    position: Position = "all",
    strict: Annotated[bool, typer.Option("--strict/--no-strict", help="Refuse a model of another name.")] = True,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Continuations that are sampled at once.")] = None,
    text_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Texts that pass through the model at once.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Longest text in tokens; the rest is cut off.")] = None,
    confidence: Annotated[float | None, typer.Option(help="Of the intervals; 0.95 if not given.")] = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    progress: Progress = True,
    as_json: Json = False,
) -> None:
    """Measure what a steering does to a language model and what it costs, beside the base model.

    A table: perplexity and divergence on texts, scores of sampled continuations, and the distance of held-out texts.
    With --json, a line for the base model and for each steering and strength. Options are those of lineas.evaluate in
    Python, and their defaults its own.

    \b
    Example:
      lineas evaluate model --steering polite --scorer sentiment --count 2 --src from.txt --tgt to.txt
    """
    if no_prompts and (prompt or prompts or scorer):
        raise typer.BadParameter("--no-prompts goes without --prompt, --prompts and --scorer")
    files = {"texts": texts_file, "prompts": prompts, "src": src, "tgt": tgt}
    if list(files.values()).count("-") > 1:
        raise typer.BadParameter("--texts, --prompts, --src, --tgt: only one of them can be the standard input")
    if (src is None) != (tgt is None):
        raise typer.BadParameter(
            f"expected --src and --tgt, or neither; got only {'--src' if tgt is None else '--tgt'}"
        )
    if out is not None:
        check_file(out, force)
    read: dict[str, Any] = {
        name: read_texts(name, path, column, field) for name, path in files.items() if path is not None
    }
    if prompt or no_prompts:
        read["prompts"] = [*(prompt or ()), *read.get("prompts", ())]
    import lineas

    maps = {path: lineas.Steering.from_pretrained(path) for path in steering}
    options: dict[str, Any] = given(
        strengths=strength, seeds=seed, count=count, new_tokens=new_tokens, temperature=temperature, top_p=top_p,
        batch_size=batch_size, text_batch_size=text_batch_size, max_length=max_length, confidence=confidence,
    )  # fmt: skip
    if scorer:
        options["scorers"] = [lineas.evaluation.scorer(name) for name in scorer]
    network, tokenizer = load(model, model_class=CAUSAL, revision=revision, dtype=dtype, device=device)
    report = lineas.evaluate(
        network, maps, tokenizer=tokenizer, position=position, strict=strict, progress=progress, **read, **options
    )
    if out is not None:
        report.to_json(out)
        note(f"saved in {out}")
    if not as_json:
        print(report)
        return
    for row in report.rows():
        print_json(row)
