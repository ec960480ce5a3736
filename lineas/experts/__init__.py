"""Expert units: which units respond to a concept, how much concepts share, and which shifts are more than noise."""

from .concepts import Similarity, rank_concepts, similarity
from .pictures import strip
from .ranking import Example, Expert, Ranking, rank
from .scores import auroc, average_precision
from .sets import Stability, overlap
from .significant import Significance, false_discovery, significance

__all__ = [
    "Example",
    "Expert",
    "Ranking",
    "Significance",
    "Similarity",
    "Stability",
    "auroc",
    "average_precision",
    "false_discovery",
    "overlap",
    "rank",
    "rank_concepts",
    "significance",
    "similarity",
    "strip",
]
