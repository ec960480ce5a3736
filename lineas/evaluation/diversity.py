"""How much texts differ from one another: distinct n-grams, and how well the others predict each."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

ORDERS = 4  # of n-grams that BLEU counts
UNSEEN = 0.1  # what a precision's numerator is taken for where no n-gram of this order is matched


def words(text: str) -> list[str]:
    """Words and punctuation marks, in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _grams(tokens: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(tokens[k:] for k in range(n)), strict=False)


def distinct(texts: Sequence[str], n: int = 2) -> float:
    """How many of the n-grams of all texts together are different ones, as a part of their number.

    Parameters
    ----------
    texts : list of str
        Compare only sets of about the same size: the more text, the lower it is.
    n : int
        Words of an n-gram; punctuation marks are words, case does not count.

    Returns
    -------
    float, 0 to 1; NaN where no text has n words. Source: Li et al., NAACL 2016, arXiv 1510.03055.

    Examples
    --------
    >>> from lineas import evaluation
    >>> evaluation.distinct(["a b a b", "a b"], 2)  # ab, ba, ab; ab
    0.5
    """
    if n < 1:
        raise ValueError(f"n: expected at least 1, got {n}")
    found = Counter(gram for text in texts for gram in _grams(words(text), n))
    return len(found) / found.total() if found else math.nan


def self_bleu(texts: Sequence[str]) -> float:
    """Mean over texts of the BLEU-4 of each against all others: 1 where they are all the same.

    Parameters
    ----------
    texts : list of str, at least 2
        Compare only sets of about the same size: the more others, the higher it is.

    Returns
    -------
    float, 0 to 1
        Words as in `distinct`. A precision without a match counts as 0.1 match, unless no word matches: then BLEU is 0.

    Notes
    -----
    O(words): for each n-gram the two texts that have most of it are known, so that no text meets all others.
    Source: Zhu et al., Texygen, SIGIR 2018, arXiv 1802.01886; BLEU: Papineni et al., ACL 2002; smoothing: Chen &
    Cherry, WMT 2014, method 1.

    Examples
    --------
    >>> from lineas import evaluation
    >>> evaluation.self_bleu(["so it goes on and on", "So it goes on and on"])
    1.0
    """
    if len(texts) < 2:
        raise ValueError(f"texts: expected at least 2, got {len(texts)}; one has no others")
    tokens = [words(text) for text in texts]
    counts = [[Counter(_grams(row, n + 1)) for row in tokens] for n in range(ORDERS)]
    most = [_two_largest(order) for order in counts]
    lengths = Counter(map(len, tokens))
    total = 0.0
    for k, row in enumerate(tokens):
        matched = [_matches(counts[n][k], most[n]) for n in range(ORDERS)]
        if not matched[0]:
            continue
        possible = [max(len(row) - n, 1) for n in range(ORDERS)]
        precisions = [(hits or UNSEEN) / count for hits, count in zip(matched, possible, strict=True)]
        nearest = _nearest(lengths, len(row))
        brevity = min(0.0, 1 - nearest / len(row))
        total += math.exp(brevity + sum(map(math.log, precisions)) / ORDERS)
    return total / len(texts)


def _two_largest(counts: Sequence[Counter]) -> dict[tuple[str, ...], tuple[int, int]]:
    """The largest count of each n-gram in any text, and that of any but one of the texts that reach it."""
    found: dict[tuple[str, ...], tuple[int, int]] = {}
    for counter in counts:
        for gram, count in counter.items():
            first, second = found.get(gram, (0, 0))
            found[gram] = (count, first) if count > first else (first, max(second, count))
    return found


def _matches(grams_of_text: Counter, most: dict[tuple[str, ...], tuple[int, int]]) -> int:
    """How many of a text's n-grams others have, each at most as often as one of them does."""
    total = 0
    for gram, count in grams_of_text.items():
        first, second = most[gram]
        total += min(count, second if count == first else first)
    return total


def _nearest(lengths: Counter, length: int) -> int:
    """The length of another text that is nearest; of two, the shorter."""
    others = (n for n, texts in lengths.items() if n != length or texts > 1)
    return min(others, key=lambda n: (abs(n - length), n))
