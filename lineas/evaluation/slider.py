"""A slider over a steering's dial, for notebooks: what the model writes at each price."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from torch import nn

from ..maps.dial import said
from ..samples import PROMPTS
from ..steering import Steering
from .language import continuations

STOPS = 21  # places of the slider
WITHOUT_DIAL = 2.0  # the largest strength where nobody knows what one costs


def slider(
    steering: Steering, model: nn.Module, prompts: Sequence[Any] = PROMPTS[:3], *, tokenizer: Any = None,
    strengths: Sequence[float] | None = None, **options: Any,
) -> Any:  # fmt: skip
    """What a language model writes without and with a steering, side by side, and a slider that says how strong it is.

    Parameters
    ----------
    steering : Steering
    model : a causal language model of transformers
        Steered only while it writes.
    prompts : list of str, or of chats
    tokenizer : optional
        Looked up from the model's own name if not given.
    strengths : list of float, optional
        The slider's places. If not given, from 0 to the end of the steering's dial, or to 2 where it has none.
    **options
        Of `continuations`: new_tokens, temperature, top_p, seed. All places have the same seed.

    Returns
    -------
    ipywidgets.VBox
        Its children are the slider, whose labels are what strengths cost where there is a dial, and the texts as HTML.

    Raises
    ------
    ImportError
        There is no ipywidgets.
    ValueError, TypeError, LookupError
        As of `continuations` and `Steering.apply`, at once: the place at which the slider begins is written.
    """
    try:
        import ipywidgets
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "a slider needs ipywidgets; install it with: pip install 'lineas[notebook]'"
        ) from None
    places = _places(steering, strengths)
    base = continuations(model, prompts, tokenizer=tokenizer, **options)

    def written(strength: float) -> str:
        with steering.apply(model, strength):
            return _table(prompts, base, continuations(model, prompts, tokenizer=tokenizer, **options))

    begin = min((s for _, s in places), key=lambda s: abs(s - 1))
    texts = ipywidgets.HTML(written(begin))
    knob = ipywidgets.SelectionSlider(
        options=places, value=begin, description="steered", continuous_update=False, layout={"width": "90%"}
    )

    def moved(change: Any) -> None:
        try:
            texts.value = written(change["new"])
        except Exception as error:  # which a notebook else keeps in a log that nobody reads
            texts.value = f"<p>{escape(f'{type(error).__name__}: {error}')}</p>"
            raise

    knob.observe(moved, names="value")
    return ipywidgets.VBox([knob, texts])


def _places(steering: Steering, strengths: Sequence[float] | None) -> list[tuple[str, float]]:
    """Labels, each another one, and strengths."""
    dial = steering.dial
    if strengths is None:
        strengths = np.linspace(0, WITHOUT_DIAL if dial is None else dial.strengths[-1], STOPS).tolist()
    places = []
    for s in dict.fromkeys(map(float, strengths)):
        known = dial is not None and 0 <= s <= dial.strengths[-1]
        cost = f": {said(dial.price, dial.cost(s).value)}" if known and dial is not None else ""
        places.append((f"{s:.3g}{cost}", s))
    if not places:
        raise ValueError("strengths: expected at least one, got none")
    return places


def _table(prompts: Sequence[Any], base: Sequence[str], steered: Sequence[str]) -> str:
    heads = "".join(f'<th style="text-align: left; width: 50%">{head}</th>' for head in ("base model", "steered"))
    rows = []
    for prompt, *texts in zip(prompts, base, steered, strict=True):
        asked = prompt if isinstance(prompt, str) else str(prompt[-1].get("content"))
        style = "text-align: left; vertical-align: top"
        lines = (" ".join(text.split()) for text in texts)
        cells = "".join(f'<td style="{style}"><b>{escape(asked)}</b> {escape(line)}</td>' for line in lines)
        rows.append(f"<tr>{cells}</tr>")
    return f'<table style="width: 100%"><tr>{heads}</tr>{"".join(rows)}</table>'
