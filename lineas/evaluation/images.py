"""What a steering does to the pictures of a text-to-image pipeline, beside those without it from the same noise."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..attaching.handle import what_is_on
from ..core.checks import whole
from ..core.text import warn
from ..network.identity import name_of
from ..network.pipelines.rows import check_call, fresh_seed, noise_of_rows
from ..network.texts import listed_texts
from ..steering import Steering
from .conditions import Condition, check_confidence, conditions_of, named_steerings, seeds_of
from .drawn import Drawn, files_of
from .named_scorers import picture_scorers_of
from .picture_scorers import PictureScorer
from .pictures import pictures_of, pillow
from .pipes import check_takes_prompts, fresh, left_alone
from .report import Measure, Outcome, Report

CHANGE = "pixel_change"
OURS = ("prompt", "generator", "latents", "num_images_per_prompt", "return_dict")


def measure_pictures(
    pipe: Any, steering: Steering | Mapping[str, Steering] | None = None, *, prompts: Sequence[str] = (),
    strengths: float | Sequence[float] = (0.5, 1.0), seeds: int | Sequence[int] = 0, scorers: Any = (),
    call: Mapping[str, Any] | None = None, batch_size: int = 8, pictures: int = 8, strict: bool = True,
    confidence: float = 0.95, progress: bool = True, component: str | None = None,
) -> Report:  # fmt: skip
    """`evaluate`, which says what is what, of a text-to-image pipeline."""
    check_takes_prompts(pipe)
    if on := what_is_on(pipe):
        count_on = len(on["attached"])
        warn(f"{count_on} steerings are on this pipeline: its pictures without steering, strength 0, are with them")
    captions = _captions(prompts)
    named, scoring, drawn = named_steerings(steering), picture_scorers_of(scorers), seeds_of(seeds, least=0)
    check_confidence(confidence)
    whole(batch_size, "batch_size")
    if whole(pictures, "pictures", least=0):
        pillow("pictures")
    call = _checked(call or {}, pipe)
    for one in scoring:
        one.check_prompts(len(captions))
        if one.name == CHANGE:
            raise ValueError(f"scorers: expected other names than {CHANGE}, got it")
    conditions = conditions_of(
        named, strengths, lambda one, strength: one.apply(pipe, strength, strict=strict, component=component)
    )
    gallery = Gallery(pipe, captions, conditions, scoring, call, pictures)
    steps = len(drawn) * len(conditions) * -(-len(captions) // batch_size)
    with tqdm(desc="evaluate", total=steps, disable=not progress) as bar, left_alone(pipe):
        for seed in drawn:
            gallery.measure(seed, batch_size, bar)
    settings = {
        "model": name_of(pipe) or type(pipe).__name__,
        "steerings": {name: repr(one) for name, one in named.items()},
        "seeds": drawn, "prompts": len(captions), "batch_size": batch_size,
        "call": {name: value if isinstance(value, (str, int, float)) else repr(value) for name, value in call.items()},
        **on,
    }  # fmt: skip
    gallery.warn_of_flagged()
    return Report(gallery.described(), tuple(gallery.outcomes), (), (settings,), confidence, tuple(gallery.drawn))


class Gallery:
    """What has been drawn and measured so far."""

    def __init__(
        self, pipe: Any, prompts: list[str], conditions: Sequence[Condition], scorers: Sequence[PictureScorer],
        call: Mapping[str, Any], kept: int,
    ):  # fmt: skip
        self.pipe, self.prompts, self.conditions, self.scorers = pipe, prompts, conditions, scorers
        self.call, self.kept, self.flagged = call, kept, 0
        self.measures = {one.name: Measure("effect", one.better, "pictures") for one in scorers}
        self.measures[CHANGE] = Measure("utility", "lower", "pictures")
        self.outcomes: list[Outcome] = []
        self.drawn: list[Drawn] = []

    def measure(self, seed: int, batch_size: int, bar: Any) -> None:
        """Batch by batch, under all conditions, so that no more pictures are held than those of two batches."""
        scores: dict[tuple[str, Condition], list[float]] = {}
        kept: dict[Condition, list[bytes]] = {at: [] for at in self.conditions}
        wanted = 0 if self.drawn else self.kept  # of one seed
        for start in range(0, len(self.prompts), batch_size):
            rows = list(range(start, min(start + batch_size, len(self.prompts))))
            base = None
            for at in self.conditions:
                pictures = self._draw(at, rows, fresh_seed(seed))
                base = pictures if base is None else base
                if base.shape != pictures.shape:
                    raise ValueError(f"expected pictures of one size, got {base.shape[1:]} and {pictures.shape[1:]}")
                for name, values in self._scored(pictures, base, rows):
                    scores.setdefault((name, at), []).extend(values)
                kept[at].extend(files_of(pictures[: max(wanted - start, 0)]))
                bar.update()
        for (name, at), values in scores.items():
            self.outcomes.append(Outcome(name, at.steering, at.strength, tuple(values), seed=seed))
        if wanted:
            captions = tuple(self.prompts[:wanted])
            self.drawn = [Drawn(at.steering, at.strength, seed, captions, tuple(kept[at])) for at in self.conditions]

    def _draw(self, at: Condition, rows: Sequence[int], seed: int) -> NDArray[np.float32]:
        prompts, noise = [self.prompts[row] for row in rows], noise_of_rows(seed, rows)
        with at.applied(), fresh(self.pipe, noise_of_rows(seed, [len(self.prompts) + rows[0]])[0]):
            output = self.pipe(prompt=prompts, generator=noise, **{"output_type": "np", **self.call})
        self.flagged += sum(map(bool, getattr(output, "nsfw_content_detected", None) or ()))
        return pictures_of(output, len(rows))

    def _scored(self, pictures: NDArray[np.float32], base: NDArray[np.float32], rows: Sequence[int]):
        prompts = [self.prompts[row] for row in rows]
        for one in self.scorers:
            yield one.name, map(float, one(pictures, prompts, base, rows))
        yield CHANGE, map(float, np.abs(pictures - base).mean((1, 2, 3), dtype=np.float64))

    def described(self) -> dict[str, Measure]:
        """The measures; what is 0 or 1 in every picture is a share."""
        values: dict[str, set[float]] = {}
        for outcome in self.outcomes:
            values.setdefault(outcome.measure, set()).update(outcome.totals)
        shares = {name: replace(one, is_share=values[name] <= {0.0, 1.0}) for name, one in self.measures.items()}
        return {**shares, CHANGE: self.measures[CHANGE]}

    def warn_of_flagged(self) -> None:
        if self.flagged:
            warn(f"the pipeline's safety checker blackened {self.flagged} pictures, which are measured so")


def _captions(prompts: Any) -> list[str]:
    found = listed_texts(prompts, "prompts")
    if not found:
        raise ValueError("prompts: expected captions for a pipeline to draw, got none")
    if other := next((one for one in found if not isinstance(one, str)), None):
        raise TypeError(f"prompts: expected captions, strings, got {type(other).__name__} {other!r:.60}")
    return found


def _checked(given: Any, pipe: Any) -> dict[str, Any]:
    """The arguments of a pipeline that are the same for all pictures."""
    if not isinstance(given, Mapping):
        raise TypeError(f"call: expected a dict of the pipeline's arguments, got {type(given).__name__}")
    call = check_call(given, pipe)
    if taken := [name for name in OURS if name in call]:
        raise ValueError(f"call: expected none of {', '.join(OURS)}, which are lineas's; got {', '.join(taken)}")
    if call.get("output_type", "np") not in ("np", "pil", "pt"):
        raise ValueError(f'call: expected an output_type of "np", "pil" or "pt", got {call["output_type"]!r}')
    for name, value in call.items():
        if "prompt" in name and value is not None and not isinstance(value, str):
            raise TypeError(f"call: {name}: expected one string for all pictures, got {type(value).__name__}")
    return call
