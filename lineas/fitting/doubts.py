"""What a result may mislead about: maps that change nothing, samples too few to tell a difference from chance, and a
strength 1 that costs much."""

from math import comb, expm1, log1p, sqrt

import numpy as np

from ..maps.units import is_moved
from .checkpoint import Checkpoint
from .log import ASKED, USED_UP
from .losses import LEVEL
from .options import Options

DEAR, SAFE = 0.1, 0.05  # nats a token: what is warned of, and +5% of the perplexity of text of the model's own


def doubts(end: Checkpoint, options: Options, counts: list[int], same: bool, is_priced: bool = False) -> str:
    """A sentence; empty where there is nothing to doubt.

    Parameters
    ----------
    end : Checkpoint
        The end of the fit, or of what a method computed.
    counts : two int
        Samples of source and target, of all processes.
    same : bool
        Whether the two sets are the same inputs.
    is_priced : bool
        Whether strength 1 will be what costs a budget.
    """
    few = "src and tgt are the same inputs" if same else _few(counts, options.least)
    if is_moved(*np.split(end.maps, 2)).any():
        return "; ".join(filter(None, (few, "" if is_priced else _dear(end.predicted_kl))))
    return f"the maps change nothing: {few or _why_nothing(end, options)}"


def _dear(nats: float | None) -> str:
    if nats is None or nats <= DEAR:
        return ""
    return (
        f"at strength 1 the maps are predicted to move next-token distributions by {nats:.2g} nats a token, about "
        f"{expm1(nats):+.0%} of perplexity; strength {sqrt(log1p(SAFE) / nats):.2g} costs about {SAFE:+.0%}. "
        f'budget="{SAFE:+.0%} perplexity" makes that strength 1; lineas.calibrate measures what strengths cost'
    )


def _few(counts: list[int], least: int) -> str:
    n, m = counts
    ways = comb(n + m, n) // (1 + (n == m))  # which of the two sets is which makes no difference to a distance
    if ways >= 1 / LEVEL or least < 2:  # of a thousand samples, more ways than a float can hold
        return ""
    return (
        f"{n} + {m} samples can be labelled in {ways} ways, so that what differs may be chance; give 4 of each or more"
    )


def _why_nothing(end: Checkpoint, options: Options) -> str:
    if not options.fits:
        return "src and tgt do the same at these sites"
    if end.stopped in (ASKED, USED_UP) and sum(end.history["accepted"]) < 2:
        return f"the fit ended before its first step ({end.stopped})"
    if options.penalty is not None and end.history["loss"][0] > 0:
        return f"the penalty leaves nothing; take a weaker one than {options.penalty!r:.80}"
    return "src and tgt differ by no more than chance explains; give more samples"
