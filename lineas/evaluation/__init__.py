"""What a steering does to a model: how likely text is, what it writes, what its units do, how it does at tasks.

`evaluate`, which is `lineas.evaluate`, measures all of it; the other functions are its parts.
"""

from ..responses.collect import responses
from .activations import distance
from .divergence import kl_divergence
from .diversity import distinct, self_bleu
from .harness import TaskResult, tasks
from .intervals import Estimate
from .language import continuations, perplexity
from .measure import evaluate
from .report import Report
from .scorers import Scorer, classifier, scorer

__all__ = [
    "Estimate",
    "Report",
    "Scorer",
    "TaskResult",
    "classifier",
    "continuations",
    "distance",
    "distinct",
    "evaluate",
    "kl_divergence",
    "perplexity",
    "responses",
    "scorer",
    "self_bleu",
    "tasks",
]
