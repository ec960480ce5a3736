"""A little text, so that examples run offline: rated movie reviews, neutral newspaper sentences, formal and casual
ones, and prompts.

Reviews and newspaper sentences come from the data sets published with VADER (Hutto & Gilbert, ICWSM 2014), MIT licence
beside them. The formal and casual sentences are our own.
"""

import csv
import random
from importlib.resources import files

__all__ = ["PROMPTS", "formal_and_casual", "movie_reviews", "neutral_sentences"]

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


def formal_and_casual(count: int = 32, seed: int = 0) -> tuple[list[str], list[str]]:
    """Two unpaired lists, `count` formal and `count` casual sentences (at most 64), drawn by seed."""
    text = (files(__package__) / "tone.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    formal, casual = ([row["text"] for row in rows if row["tone"] == tone] for tone in ("formal", "casual"))
    if not 1 <= count <= len(formal):
        raise ValueError(f"count: expected 1 to {len(formal)}, got {count}")
    draw = random.Random(seed)
    return draw.sample(formal, count), draw.sample(casual, count)


def neutral_sentences(count: int = 80) -> list[str]:
    """The first `count` (at most 200) neutral newspaper sentences; none of them is about movies."""
    sentences = [text for _, text in _read("editorials.csv")]
    if not 1 <= count <= len(sentences):
        raise ValueError(f"count: expected 1 to {len(sentences)}, got {count}")
    return sentences[:count]
