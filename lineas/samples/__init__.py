"""A little real text, so that examples run offline: rated movie reviews, neutral newspaper sentences, and prompts.

The sentences come from the data sets published with VADER (Hutto & Gilbert, ICWSM 2014), MIT licence beside them.
"""

import csv
import random
from importlib.resources import files

__all__ = ["PROMPTS", "movie_reviews", "neutral_sentences"]

PROMPTS = (
    "The movie was",
    "I think that",
    "My neighbour told me that the",
    "When we arrived at the house,",
    "The book is about",
    "Yesterday at work",
    "The restaurant on the corner",
    "In the end, the story",
    "People say that this town",
    "The trip to the coast",
    "Her latest album",
    "The new teacher",
    "Once upon a time",
    "The game last night",
    "This year the company",
    "It was a day when",
)


def _read(name: str) -> list[tuple[float, str]]:
    text = (files(__package__) / name).read_text(encoding="utf-8")
    return [(float(row["score"]), row["text"]) for row in csv.DictReader(text.splitlines())]


def movie_reviews(count: int = 32, seed: int = 0) -> tuple[list[str], list[str]]:
    """Two unpaired lists, `count` negative and `count` positive review sentences (at most 160), drawn by seed."""
    rated = _read("movie_reviews.csv")
    draw = random.Random(seed)
    negative, positive = [t for score, t in rated if score < 0], [t for score, t in rated if score > 0]
    if not 1 <= count <= len(negative):
        raise ValueError(f"count: expected 1 to {len(negative)}, got {count}")
    return draw.sample(negative, count), draw.sample(positive, count)


def neutral_sentences(count: int = 80) -> list[str]:
    """The first `count` (at most 200) neutral newspaper sentences; none of them is about movies."""
    sentences = [text for _, text in _read("editorials.csv")]
    if not 1 <= count <= len(sentences):
        raise ValueError(f"count: expected 1 to {len(sentences)}, got {count}")
    return sentences[:count]
