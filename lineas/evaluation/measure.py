"""What a steering does to a language model, and what it costs, at several strengths and seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from .. import samples
from ..attaching.handle import what_is_on
from ..attaching.positions import Position
from ..core.text import warn
from ..network.identity import name_of
from ..network.links import check_network
from ..network.sharding import kind_of
from ..network.sites import Site
from ..network.state import eager
from ..network.texts import as_texts, find_tokenizer, listed_texts
from ..responses.collect import responses_to
from ..steering import Steering
from . import diversity, harness
from .activations import distance
from .conditions import Condition, check_confidence, conditions_of, named_steerings, seeds_of
from .divergence import read
from .language import check_sampling, continuations
from .report import Measure, Outcome, Report, Written
from .scorers import Scorer, scorers_of

OURS = ("perplexity", "kl", "distinct_1", "distinct_2", "distinct_3", "self_bleu", "held_out")


def measure_language(
    model: nn.Module, steering: Steering | Mapping[str, Steering] | None = None, *, tokenizer: Any = None,
    strengths: float | Sequence[float] = (0.5, 1.0), seeds: int | Sequence[int] = 0,
    scorers: Any = ("sentiment", "toxicity"), prompts: Sequence[Any] = samples.PROMPTS,
    texts: Sequence[str] | None = None, src: Any = None, tgt: Any = None,
    sites: str | Sequence[str | Site] | None = None, tasks: str | Sequence[Any] = (),
    task_options: Mapping[str, Any] | None = None, count: int = 16, new_tokens: int = 24, temperature: float = 1.0,
    top_p: float = 0.9, position: Position = "all", strict: bool = True, batch_size: int = 256,
    text_batch_size: int = 16, max_length: int | None = None, confidence: float = 0.95, progress: bool = True,
) -> Report:  # fmt: skip
    """`evaluate`, which says what is what, of a language model, or of a plain network that is given src and tgt."""
    check_network(model)
    if on := what_is_on(model):
        count_on = len(on["attached"])
        warn(f"{count_on} steerings are on this model: its figures without steering, strength 0, are with them")
    prompts, texts = listed_texts(prompts, "prompts"), _texts(texts)
    named, scoring = named_steerings(steering), scorers_of(scorers) if prompts else []
    drawn = seeds_of(seeds)
    check_confidence(confidence)
    if not (prompts or texts or tasks or src is not None or tgt is not None):
        raise ValueError("expected something to measure: prompts, texts, src and tgt, or tasks; got none of them")
    _check(src, tgt, scoring)
    check_sampling(count, new_tokens, temperature, top_p, batch_size)
    conditions = conditions_of(
        named, strengths, lambda one, strength: one.apply(model, strength, position=position, strict=strict)
    )
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
        "model": name_of(model) or kind_of(model).__name__,
        "steerings": {name: repr(one) for name, one in named.items()},
        "seeds": drawn, "texts": len(texts), "prompts": len(prompts), "count": count, "new_tokens": new_tokens,
        "temperature": temperature, "top_p": top_p, "batch_size": batch_size,
        "position": position if isinstance(position, str) else "a function", **on,
    }  # fmt: skip
    return Report(found.measures, tuple(found.outcomes), tuple(found.written), (settings,), confidence)


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
        for at, (sums, _) in zip(self.conditions, read(self.model, texts, applied, **options), strict=True):
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


def _texts(given: Any) -> list:
    return samples.neutral_sentences() if given is None else listed_texts(given, "texts")


def _check(src: Any, tgt: Any, scorers: Sequence[Scorer]) -> None:
    """Whatever can be refused before anything runs."""
    if (src is None) != (tgt is None):
        raise ValueError(f"expected src and tgt, or neither; got only {'tgt' if src is None else 'src'}")
    if taken := {one.name for one in scorers} & set(OURS):
        raise ValueError(f"scorers: expected other names than {', '.join(OURS)}; got {', '.join(sorted(taken))}")
