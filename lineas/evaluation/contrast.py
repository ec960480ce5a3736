"""A scorer that is learned from two sets of texts: how much a text is like those of the second."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.text import warn
from ..network.texts import listed_texts
from .scorers import Scorer, missing

LEAST, FOLDS = 8, 4
SURE = 0.75  # of texts that it has not seen, told apart


def contrast(source: Sequence[str], target: Sequence[str], *, name: str = "like_target") -> Scorer:
    """A small classifier of two kinds of texts, for a score where nobody has made one.

    Parameters
    ----------
    source, target : list of str, at least 8 each
        Others than a fit has seen: halves of the same two files, for instance.
    name : str
        What the figure is called in a report.

    Returns
    -------
    Scorer
        The probability that a text is of the target's kind, higher is better. Logistic regression on words, pairs of
        words and up to four letters in a row, weighted by how rare they are, with both sets counting the same.

    Raises
    ------
    ImportError
        scikit-learn is missing.
    TypeError, ValueError
        Too few texts, or something else.

    Warns
    -----
    UserWarning
        It tells fewer than three quarters of the texts apart that it was not shown, by cross-validation: what it says
        of a steering then means little.

    Notes
    -----
    It knows words and letters, not meaning: a steering that only repeats a word of the target can please it. Compare
    diversity and perplexity, which a report has beside it.

    Examples
    --------
    >>> import lineas
    >>> formal, casual = lineas.samples.formal_and_casual(64)
    >>> score = lineas.evaluation.contrast(formal[32:], casual[32:], name="casual")
    >>> polite, rough = score(["We kindly request a reply.", "hey, gotta go, see ya"])
    >>> assert polite < 0.5 < rough
    """
    sides = [listed_texts(source, "source"), listed_texts(target, "target")]
    for texts, side in zip(sides, ("source", "target"), strict=True):
        if other := next((one for one in texts if not isinstance(one, str)), None):
            raise TypeError(f"{side}: expected strings, got {type(other).__name__} {other!r:.60}")
        if len(texts) < LEAST:
            raise ValueError(f"{side}: expected at least {LEAST} texts, got {len(texts)}")
    classifier, texts = _classifier(), [*sides[0], *sides[1]]
    kinds = np.repeat([0, 1], [len(side) for side in sides])
    right = _told_apart(classifier, texts, kinds)
    if right < SURE:
        warn(
            f"{name}: of texts that it was not shown, the classifier tells {right:.0%} apart; expected {SURE:.0%}. "
            "Give it more texts, or texts that differ more in their words"
        )
    classifier.fit(texts, kinds)
    return Scorer(name, lambda given: classifier.predict_proba(given)[:, 1] if given else np.empty(0))


def _classifier() -> Any:
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline, make_union
    except ImportError as error:
        raise ImportError(missing("contrast", "scikit-learn")) from error
    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"[\w']+", sublinear_tf=True),
        TfidfVectorizer(ngram_range=(1, 4), analyzer="char_wb", sublinear_tf=True),
    )
    return make_pipeline(features, LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000))


def _told_apart(classifier: Any, texts: list[str], kinds: Any) -> float:
    """Of texts left out in turn, which share is taken for what it is; both kinds count the same."""
    from sklearn.model_selection import cross_val_predict

    found = cross_val_predict(classifier, texts, kinds, cv=FOLDS)
    return float(np.mean([(found[kinds == kind] == kind).mean() for kind in (0, 1)]))
