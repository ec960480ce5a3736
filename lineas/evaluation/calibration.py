"""calibrate(): what strengths of a steering cost, as a dial that is measured at few of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..attaching.handle import what_is_on
from ..attaching.positions import Position
from ..core.text import warn
from ..maps.dial import Cost, Dial, Price, predicted_kl, said
from ..merge.in_pipelines import call_as_fitted
from ..network.batch import Batch
from ..network.calls import call as called
from ..network.calls import output_of
from ..network.generation import is_encoder_decoder
from ..network.identity import name_of
from ..network.inputs import Inputs
from ..network.pipelines import is_pipeline
from ..network.sharding import kind_of
from ..network.state import device_of, eager, frozen
from ..network.texts import as_texts, find_tokenizer
from ..steering import Steering
from . import intervals
from .conditions import check_confidence
from .divergence import read
from .images import CHANGE, measure_pictures
from .language import own_tokens

__all__ = ["calibrate"]

BUDGET = {"perplexity": 0.05, "kl": 0.05, "pixel_change": 0.05, "output_change": 0.05}
OF_TEXTS = "perplexity", "kl"
AROUND = (0.5, 1.0, 2.0)  # times the first guess, which are measured first
CLOSE = 0.05  # of the budget: a strength so close to its price is what was looked for
ROUNDS = 6
TEXTS, TOKENS = 32, 32  # that the model writes where the user gives none
HIGH = 95  # percentile
Measured = dict[str, Cost]
Meter = Callable[[Sequence[float]], list[Measured]]


def calibrate(
    steering: Steering, model: Any, texts: Any = None, *, price: str | None = None,
    budget: str | float | None = None, tokenizer: Any = None, position: Position = "all", strict: bool = True,
    component: str | None = None, call: Mapping[str, Any] | None = None, batch_size: int | None = None,
    max_length: int | None = None, seed: int = 0, confidence: float = 0.95, progress: bool = True,
) -> Dial:  # fmt: skip
    """Measure what strengths of a steering cost, around the one that costs a budget.

    Parameters
    ----------
    steering : Steering
    model : nn.Module or pipeline
        What it was fitted on; left as it was. Anything already on it is part of the base.
    texts : list of str, or inputs as `lineas.fit` takes them, optional
        What the price is paid on: neutral texts, captions of a pipeline, inputs of any other network. If not given, a
        causal language model writes 32 texts of up to 32 tokens itself, from nothing and without steering.
    price : {"perplexity", "kl", "pixel_change", "output_change"}, optional
        What a price is in: the relative change of the texts' perplexity; KL(steered || base) a token, in nats; the mean
        change of a pixel from the picture without steering, of values from 0 to 1, from the same noise; the length of
        the change of a network's output by that of the output. The first that the model and the texts allow: for
        language models "perplexity", for captions "pixel_change", else "output_change".
    budget : str or float, optional
        Where to look closely: "+5% perplexity", "+5%", "0.05 nats", or a number of what `price` says. +5% if not given,
        of a divergence 0.05 nats.
    tokenizer : optional
        Looked up from the model's own name if not given.
    position, strict, component : as in `Steering.apply`
    call : dict, optional
        Of a pipeline; what the fit was called with if not given.
    batch_size : int, optional
        Inputs that pass together: 16 texts, 8 pictures.
    max_length : int, optional
        Tokens of a text beyond it are cut off.
    seed : int
        Of the texts that the model writes, and of noise.
    confidence : float
        Of the intervals.
    progress : bool

    Returns
    -------
    Dial
        Both "perplexity" and "kl", with "kl_95", the 95th percentile over tokens, for language models.
        `steering.with_dial(dial)` keeps it.

    Raises
    ------
    TypeError, ValueError
        A price that this model does not have; no texts for a model that writes none; a steering that changes nothing;
        a budget that no strength up to 64 times the first guess costs, or that the smallest exceeds.

    Notes
    -----
    Four passes over the texts and one or two for each further strength, at most six of them. Intervals are over texts,
    those of a change over pairs of the same text with and without steering.

    Examples
    --------
    >>> import lineas
    >>> def dial_of(steering, model):
    ...     dial = lineas.calibrate(steering, model, budget="+2%")
    ...     return dial.strength_for("+2%")
    """
    if not isinstance(steering, Steering):
        raise TypeError(f"steering: expected a Steering, got {type(steering).__name__}")
    check_confidence(confidence)
    kinds = prices_of(model, texts)
    if price is not None and price not in kinds:
        raise ValueError(f"price: expected {' or '.join(kinds)} of this model and texts, got {price!r:.60}")
    wanted = None if budget is None else budget_in(kinds, budget)
    price = price or (kinds[0] if wanted is None or wanted.measure in (None, *OF_TEXTS) else str(wanted.measure))
    wanted = wanted or Price.of(BUDGET[price])
    if wanted.measure not in (None, price) and not {wanted.measure, price} <= {*OF_TEXTS}:
        raise ValueError(f"budget: expected one in {price}, which price= says, got {budget!r:.60}")
    if not any(map(len, steering.support().values())):
        raise ValueError("steering: expected maps that change something, got the identity, which costs nothing")
    if on := what_is_on(model):
        warn(f"{len(on['attached'])} steerings are on this model: prices are beside it as it is, with them")
    if call is None and is_pipeline(model):
        call = call_as_fitted(steering, model)
    apply: Any = partial(steering.apply, model, position=position, strict=strict, component=component)
    with apply(0.0):  # refused before any work where it does not fit
        pass
    facts: dict[str, Any] = {"model": name_of(model) or kind_of(model).__name__, "seed": seed}
    with tqdm(desc="calibrate", disable=not progress, total=ROUNDS) as bar, eager():
        if price == "pixel_change":
            meter, own = _of_pictures(
                steering, model, list(texts), call, batch_size, seed, confidence, strict, component
            )
        elif price == "output_change":
            meter, own = _of_outputs(
                model, texts, apply, tokenizer, batch_size, max_length, component, call, seed, confidence
            )
        else:
            meter, own = _of_texts(model, texts, apply, tokenizer, batch_size or 16, max_length, seed, confidence)
        points = _search(meter, price, wanted, _guess(steering, price, wanted), bar)
    return _dial(price, points, facts | own)


def prices_of(model: Any, texts: Any) -> list[str]:
    """What prices can be in, the first by default."""
    if is_pipeline(model):
        are_captions = isinstance(texts, (list, tuple)) and all(isinstance(text, str) for text in texts)
        if texts is None:
            raise TypeError(f"texts: expected captions for a {type(model).__name__}, got none")
        return ["pixel_change", "output_change"] if are_captions else ["output_change"]
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a network or a pipeline, got {type(model).__name__}")
    if texts is None and not writes_texts(model):
        raise TypeError(f"texts: expected inputs of a {type(model).__name__}, which writes no texts itself; got none")
    if texts is None:
        return list(OF_TEXTS)
    return [*OF_TEXTS, "output_change"] if writes_texts(model) and as_texts(texts, "texts") else ["output_change"]


def budget_in(kinds: Sequence[str], budget: Any) -> Price:
    """The budget, in one of these; TypeError or ValueError where it is none."""
    wanted = Price.of(budget, "budget")
    if wanted.measure not in (None, *kinds):
        raise ValueError(f"budget: expected {' or '.join(kinds)} of this model and texts, got {budget!r:.60}")
    return wanted


def writes_texts(model: Any) -> bool:
    """Whether it is a causal language model."""
    can_generate = getattr(model, "can_generate", None)
    return callable(can_generate) and bool(can_generate()) and not is_encoder_decoder(model)


def _guess(steering: Steering, price: str, wanted: Price) -> float:
    """Where the budget may be: what the fit predicted of a divergence, whose root goes with the strength."""
    predicted = predicted_kl(steering.info)
    if not predicted or price not in OF_TEXTS:
        return 1.0
    nats = math.log1p(wanted.value) if wanted.measure != "kl" and price == "perplexity" else wanted.value
    return min(max(math.sqrt(nats / predicted), 2**-6), 2.0**6)


def _search(meter: Meter, price: str, wanted: Price, guess: float, bar: Any) -> dict[float, Measured]:
    """Strengths around the one that costs the budget, until one costs it nearly, and what each costs."""
    points: dict[float, Measured] = {}
    tried: list[float] = []

    def look(strengths: Sequence[float]) -> None:
        new = [s for s in strengths if s not in tried]
        tried.extend(new)
        for s, found in zip(new, meter(new), strict=True):
            if all(math.isfinite(cost.value) for cost in found.values()):
                points[s] = found
        bar.update()

    look([guess * k for k in AROUND])
    for _ in range(ROUNDS - 1):
        if not points:  # nothing but overflow so far
            look([min(tried) / 8])
            continue
        dial = _dial(price, points, {})
        name = dial.measure_of(wanted)
        costs = [dial.costs[name][k].value for k in range(len(dial.strengths))]
        if max(costs) >= wanted.value and any(abs(cost - wanted.value) <= CLOSE * wanted.value for cost in costs):
            return points
        if max(costs) < wanted.value:
            beyond = [s for s in tried if s > max(points)]  # which overflowed
            look([(max(points) + min(beyond)) / 2 if beyond else 2 * max(points)])
        else:
            look([dial.strength_for(wanted)])
    end = _dial(price, points, {}) if points else None
    if end is None or max(cost.value for cost in end.costs[end.measure_of(wanted)]) < wanted.value:
        most = "" if end is None else f": {said(price, end.costs[price][-1].value)} at {end.strengths[-1]:g}"
        raise ValueError(
            f"budget: expected one that some strength costs, got {said(price, wanted.value)}; what was measured costs "
            f"less{most}"
        )
    return points


def _dial(price: str, points: Mapping[float, Measured], facts: Mapping[str, Any]) -> Dial:
    ascending = sorted(points)
    names = list(points[ascending[0]])
    return Dial(price, tuple(ascending), {name: tuple(points[s][name] for s in ascending) for name in names}, facts)


def _cost(estimate: intervals.Estimate) -> Cost:
    return Cost(estimate.value, estimate.low, estimate.high)


# -- of language models --


def _of_texts(
    model: nn.Module, texts: Any, apply: Any, tokenizer: Any, batch_size: int, max_length: int | None, seed: int,
    confidence: float,
) -> tuple[Meter, dict[str, Any]]:  # fmt: skip
    given = texts is not None
    tokenizer = find_tokenizer(model, "texts", tokenizer) if given or isinstance(tokenizer, str) else tokenizer
    read_on = list(texts) if given else own_tokens(model, tokenizer, TEXTS, TOKENS, seed)
    options: dict[str, Any] = {"tokenizer": tokenizer, "batch_size": batch_size, "max_length": max_length}

    def measure(strengths: Sequence[float]) -> list[Measured]:
        base, *steered = read(model, read_on, [nullcontext, *(partial(apply, s) for s in strengths)], **options)
        found = []
        for one in steered:
            with np.errstate(invalid="ignore", over="ignore"):  # what overflows is left out of the dial
                apart = one.sums.losses - base.sums.losses
                likelihood = intervals.exponential(intervals.ratio(apart, base.sums.predicted, confidence), minus=1.0)
                divergence = intervals.ratio(one.sums.divergences, one.sums.tokens, confidence)
                high = Cost(float(np.percentile(one.by_token, HIGH)))
            found.append({"perplexity": _cost(likelihood), "kl": _cost(divergence), "kl_95": high})
        return found

    written_by = "given" if given else f"written by the model, up to {TOKENS} tokens"
    return measure, {"texts": len(read_on) if given else TEXTS, "which": written_by}


# -- of pipelines --


def _of_pictures(
    steering: Steering, pipe: Any, captions: list[str], call: Mapping[str, Any] | None, batch_size: int | None,
    seed: int, confidence: float, strict: bool, component: str | None,
) -> tuple[Meter, dict[str, Any]]:  # fmt: skip
    given = dict(call or {})

    def measure(strengths: Sequence[float]) -> list[Measured]:
        report = measure_pictures(
            pipe, steering, prompts=captions, strengths=strengths, seeds=seed, call=given, pictures=0, progress=False,
            batch_size=batch_size or 8, confidence=confidence, strict=strict, component=component,
        )  # fmt: skip
        return [{CHANGE: _cost(report.estimate(CHANGE, s))} for s in strengths]

    return measure, {"captions": len(captions), "call": str(given)}


# -- of any network --


def _of_outputs(
    model: Any, given: Any, apply: Any, tokenizer: Any, batch_size: int | None, max_length: int | None,
    component: str | None, call: Mapping[str, Any] | None, seed: int, confidence: float,
) -> tuple[Meter, dict[str, Any]]:  # fmt: skip
    inputs = Inputs(model, component=component, call=call, seed=seed)
    network = inputs.network
    (batches,) = inputs.batches({"texts": given}, tokenizer, batch_size, max_length)

    def outputs() -> list[Tensor]:
        with frozen(network), torch.no_grad():
            return [row for batch in batches for row in _rows(network, batch.to(device_of(network)))]

    base = outputs()

    def measure(strengths: Sequence[float]) -> list[Measured]:
        found = []
        for s in strengths:
            with apply(s):
                steered = outputs()
            apart = [float((a - b).norm() / b.norm()) for a, b in zip(steered, base, strict=True)]
            found.append({"output_change": _cost(intervals.mean(apart, confidence, "samples"))})
        return found

    return measure, {"inputs": sum(batch.size for batch in batches)}


def _rows(network: nn.Module, batch: Batch) -> Tensor:
    """What the network puts out for each sample, (rows, numbers), 0 where it is padding."""
    output = output_of(called(network, batch))[0].cpu().double()  # in this order: not every GPU has doubles
    mask = batch.mask
    if mask is not None and mask.shape == output.shape[:2]:
        output = output * (mask != 0).cpu().view(*mask.shape, *[1] * (output.ndim - 2))
    return output.flatten(1)
