"""evaluate(): utility beside effect, at several strengths and seeds."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from tqdm.auto import tqdm

from .. import samples
from ..attaching.handle import what_is_on
from ..attaching.positions import Position
from ..core.checks import number, whole
from ..core.text import warn
from ..network.identity import name_of
from ..network.links import check_network
from ..network.sites import Site
from ..network.state import eager
from ..network.texts import as_texts, find_tokenizer, listed_texts
from ..responses.collect import responses_to
from ..steering import Steering
from . import diversity, harness
from .activations import distance
from .divergence import read
from .language import check_sampling, continuations
from .report import Measure, Outcome, Report, Written
from .scorers import Scorer, scorers_of

OURS = ("perplexity", "kl", "distinct_1", "distinct_2", "distinct_3", "self_bleu", "held_out")


def evaluate(
    model: nn.Module, steering: Steering | Mapping[str, Steering] | None = None, *, tokenizer: Any = None,
    strengths: float | Sequence[float] = (0.5, 1.0), seeds: int | Sequence[int] = 0,
    scorers: Any = ("sentiment", "toxicity"), prompts: Sequence[Any] = samples.PROMPTS,
    texts: Sequence[str] | None = None, src: Any = None, tgt: Any = None,
    sites: str | Sequence[str | Site] | None = None, tasks: str | Sequence[Any] = (),
    task_options: Mapping[str, Any] | None = None, count: int = 16, new_tokens: int = 24, temperature: float = 1.0,
    top_p: float = 0.9, position: Position = "all", strict: bool = True, batch_size: int = 256,
    text_batch_size: int = 16, max_length: int | None = None, confidence: float = 0.95, progress: bool = True,
) -> Report:  # fmt: skip
    """Measure what steering does to a language model and what it costs, beside the base model.

    Parameters
    ----------
    model : a causal language model of transformers
        Left as it was. Anything already on it is part of the base.
    steering : Steering, or dict of name -> Steering, optional
        What to measure; several are compared side by side. None: the base model only.
    tokenizer : optional
        Looked up from the model's own name if not given.
    strengths : float or list of float
        The base model, strength 0, is always measured and need not be among them.
    seeds : int or list of int
        Continuations are sampled once with each.
    scorers : str or callable, or a list or dict of them
        What continuations are scored by: "sentiment", "toxicity", "hf:NAME#LABEL", any function of a list of strings.
        See `lineas.evaluation.scorer`. () for none.
    prompts : list of str, or of chats
        What the model goes on from. () leaves out continuations, and with them scorers and diversity.
    texts : list of str, optional
        What perplexity and KL divergence are measured on; `lineas.samples.neutral_sentences()` if not given. () leaves
        both out.
    src, tgt : as in `lineas.fit`, optional
        Held-out inputs: how far apart they are, relative to the base model.
    sites : str or list, optional
        Where that is measured; by default at all sites of the steerings, the same ones for each.
    tasks : str or list
        Tasks of lm-eval. `task_options` go to `lineas.evaluation.tasks`: include_path, limit, num_fewshot, ...
    count : int
        Continuations of each prompt, for each seed.
    new_tokens, temperature, top_p : as in `generate`
    position, strict : as in `Steering.apply`
    batch_size : int
        Continuations that are sampled together; with the seeds it decides which are drawn.
    text_batch_size : int
        Texts, or held-out inputs, that pass through the model together.
    max_length : int, optional
        Tokens of a text, or of a held-out input, beyond it are cut off.
    confidence : float
        Of the intervals.
    progress : bool

    Returns
    -------
    Report
        With these measures, as far as they were asked for:

        - "perplexity", of the texts, as `lineas.evaluation.perplexity` has it;
        - "kl", KL divergence of the next-token distributions to the base model's, a token of the texts, in nats;
        - one for each scorer, the mean score of the continuations;
        - "distinct_1", "distinct_2", "distinct_3", "self_bleu", of all continuations of a seed together;
        - "held_out", distance of src to tgt, relative to the base model; targets are the base model's responses;
        - "TASK_METRIC" for each metric of each task.

    Raises
    ------
    ImportError
        A scorer or a task needs a package; the message says what to install. Nothing has run then.
    TypeError, ValueError, LookupError
        As in `scorer`, `Steering.apply`, `responses` and `tasks`; strengths that are not finite; one of src and tgt.

    Notes
    -----
    Each strength samples len(seeds) * len(prompts) * count continuations, which is most of the time. Texts pass once
    for each steering and strength.

    Examples
    --------
    >>> import lineas
    >>> def measured(model, steering, texts):
    ...     report = lineas.evaluate(model, steering, texts=texts, prompts=(), progress=False)
    ...     return report.change("perplexity", strength=1.0)
    """
    check_network(model)
    if on := what_is_on(model):
        count_on = len(on["attached"])
        warn(f"{count_on} steerings are on this model: its figures without steering, strength 0, are with them")
    prompts, texts = listed_texts(prompts, "prompts"), _texts(texts)
    named, scoring = _named(steering), scorers_of(scorers) if prompts else []
    conditions = [
        Condition(None, 0.0, nullcontext),
        *(
            Condition(name, strength, partial(one.apply, model, strength, position=position, strict=strict))
            for name, one in named.items()
            for strength in _strengths(strengths)
        ),
    ]
    drawn = [whole(seed, "seeds", least=None) for seed in dict.fromkeys(_each(seeds, "seeds", "whole numbers"))]
    if not (prompts or texts or tasks or src is not None or tgt is not None):
        raise ValueError("expected something to measure: prompts, texts, src and tgt, or tasks; got none of them")
    _check(src, tgt, confidence, scoring, drawn if prompts else [0])
    check_sampling(count, new_tokens, temperature, top_p, batch_size)
    for condition in conditions:  # a steering of another model is refused before any work
        with condition.applied():
            pass
    harnessed = {"position": position, "strict": strict, "batch_size": text_batch_size, **(task_options or {})}
    if tasks and "task_manager" not in harnessed:
        harnessed["task_manager"] = harness.manager_of(tasks, harnessed.get("include_path"))
    if prompts or texts or tasks:
        tokenizer = find_tokenizer(model, "texts", tokenizer)
    steps = bool(texts) + len(conditions) * (len(drawn) * bool(prompts) + (src is not None) + bool(tasks))
    found = Findings(model, tokenizer, conditions, drawn, tqdm(desc="evaluate", total=steps, disable=not progress))
    with found.bar, eager():
        if texts:
            found.measure_texts(texts, text_batch_size, max_length)
        if prompts:
            sampling = {"count": count, "new_tokens": new_tokens, "temperature": temperature, "top_p": top_p}
            found.measure_continuations(prompts, scoring, {**sampling, "batch_size": batch_size})
        if src is not None:
            where = list(dict.fromkeys(site for one in named.values() for site in one.sites)) or None
            found.measure_distance(
                src, tgt, where if sites is None else sites, batch_size=text_batch_size, max_length=max_length
            )
        if tasks:
            found.measure_tasks(tasks, harnessed, named)
    settings = {
        "model": name_of(model) or type(model).__name__,
        "steerings": {name: repr(one) for name, one in named.items()},
        "seeds": drawn, "texts": len(texts), "prompts": len(prompts), "count": count, "new_tokens": new_tokens,
        "temperature": temperature, "top_p": top_p, "batch_size": batch_size,
        "position": position if isinstance(position, str) else "a function", **on,
    }  # fmt: skip
    return Report(found.measures, tuple(found.outcomes), tuple(found.written), (settings,), confidence)


class Condition(NamedTuple):
    """A steering at a strength, and how to put it on."""

    steering: str | None
    strength: float
    applied: Callable[[], AbstractContextManager[Any]]


class Findings:
    """What has been measured so far, and the ways to measure more, each under all conditions."""

    def __init__(
        self, model: nn.Module, tokenizer: Any, conditions: Sequence[Condition], seeds: Sequence[int], bar: Any
    ):  # fmt: skip
        self.model, self.tokenizer, self.conditions, self.seeds, self.bar = model, tokenizer, conditions, seeds, bar
        self.measures: dict[str, Measure] = {}
        self.outcomes: list[Outcome] = []
        self.written: list[Written] = []

    def add(
        self, name: str, measure: Measure, at: Condition, totals: Any, counts: Any = (), seed: int | None = None,
        error: float | None = None,
    ) -> None:  # fmt: skip
        self.measures[name] = measure
        total, weights = tuple(map(float, totals)), tuple(map(float, counts))
        self.outcomes.append(Outcome(name, at.steering, at.strength, total, weights, seed, error))

    def measure_texts(self, texts: Sequence[str], batch_size: int, max_length: int | None) -> None:
        applied = [at.applied for at in self.conditions]
        options: dict[str, Any] = {"tokenizer": self.tokenizer, "batch_size": batch_size, "max_length": max_length}
        for at, sums in zip(self.conditions, read(self.model, texts, applied, **options), strict=True):
            likelihood = Measure("utility", "lower", "texts", is_log=True)
            self.add("perplexity", likelihood, at, sums.losses, sums.predicted)
            self.add("kl", Measure("utility", "lower", "texts"), at, sums.divergences, sums.tokens)
        self.bar.update()

    def measure_continuations(
        self, prompts: Sequence[Any], scorers: Sequence[Scorer], options: Mapping[str, Any]
    ) -> None:  # fmt: skip
        for at in self.conditions:
            for seed in self.seeds:
                with at.applied():
                    texts = continuations(self.model, prompts, tokenizer=self.tokenizer, seed=seed, **options)
                self.written.append(Written(at.steering, at.strength, seed, tuple(texts)))
                for one in scorers:
                    self.add(one.name, Measure("effect", one.better, "continuations"), at, one(texts), seed=seed)
                for n in (1, 2, 3):
                    share = diversity.distinct(texts, n)
                    self.add(f"distinct_{n}", Measure("diversity", "higher"), at, [share], seed=seed)
                if len(texts) > 1:
                    alike = diversity.self_bleu(texts)
                    self.add("self_bleu", Measure("diversity", "lower"), at, [alike], seed=seed)
                self.bar.update()

    def measure_distance(self, src: Any, tgt: Any, sites: Any, **options: Any) -> None:
        src, tgt = _by_length(src, "src"), _by_length(tgt, "tgt")
        target_responses = responses_to("tgt", self.model, tgt, sites, tokenizer=self.tokenizer, **options)
        unsteered = math.nan
        for at in self.conditions:
            with at.applied():
                source_responses = responses_to("src", self.model, src, sites, tokenizer=self.tokenizer, **options)
            apart = distance(source_responses, target_responses)
            unsteered = apart if at.steering is None else unsteered
            if not unsteered:
                raise ValueError("src, tgt: expected sets that the model responds to differently; the distance is 0")
            self.add("held_out", Measure("distance", "lower"), at, [apart], [unsteered])
            self.bar.update()

    def measure_tasks(self, tasks: Any, options: Mapping[str, Any], steerings: Mapping[str, Steering]) -> None:
        for at in self.conditions:
            on: dict[str, Any] = (
                {"steering": steerings[at.steering], "strength": at.strength} if at.steering is not None else {}
            )
            found = harness.tasks(self.model, self.tokenizer, tasks, **on, **options)
            for name, one in found.items():
                measure, items = Measure("utility", one.better, "items"), max(one.items, 1)
                self.add(name, measure, at, [one.value * items], [items], error=one.error)
            self.bar.update()


def _by_length(inputs: Any, name: str) -> Any:
    """Texts in the order of their lengths, which saves padding; a distance does not depend on it."""
    texts = as_texts(inputs, name)
    return inputs if texts is None else sorted(texts, key=lambda one: len(str(one)))


def _named(steering: Any) -> dict[str, Steering]:
    if steering is None or isinstance(steering, Steering):
        return {} if steering is None else {"steering": steering}
    if not isinstance(steering, Mapping):
        raise TypeError(f"steering: expected a Steering or a dict of them by name, got {type(steering).__name__}")
    for name, one in steering.items():
        if not isinstance(name, str) or not isinstance(one, Steering):
            raise TypeError(f"steering: expected str -> Steering, got {name!r} -> {type(one).__name__}")
    return dict(steering)


def _texts(given: Any) -> list:
    return samples.neutral_sentences() if given is None else listed_texts(given, "texts")


def _strengths(given: float | Sequence[float]) -> list[float]:
    """Each once, in order, without 0, which is the base model."""
    each = (number(strength, "strengths") for strength in _each(given, "strengths", "numbers"))
    return sorted({strength for strength in each if strength})


def _each(given: Any, name: str, what: str) -> list:
    """One number, or several; what they must be is looked at later."""
    if isinstance(given, (int, float, np.generic)):
        return [given]
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise TypeError(f"{name}: expected {what}, got {type(given).__name__} {given!r:.60}")
    return given.tolist() if isinstance(given, (np.ndarray, Tensor)) else list(given)


def _check(
    src: Any, tgt: Any, confidence: float, scorers: Sequence[Scorer], seeds: Sequence[int]
) -> None:  # fmt: skip
    """Whatever can be refused before anything runs."""
    if (src is None) != (tgt is None):
        raise ValueError(f"expected src and tgt, or neither; got only {'tgt' if src is None else 'src'}")
    if not 0 < number(confidence, "confidence") < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence}")
    if not seeds:
        raise ValueError("seeds: expected at least one, got none")
    if taken := {one.name for one in scorers} & set(OURS):
        raise ValueError(f"scorers: expected other names than {', '.join(OURS)}; got {', '.join(sorted(taken))}")
