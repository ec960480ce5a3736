"""What a steering does to a model: how likely text is, what it writes or draws, what its units do, how tasks go.

`evaluate`, which is `lineas.evaluate`, measures all of it; the other functions are its parts.
"""

from ..responses.collect import responses
from .activations import distance
from .calibration import calibrate
from .contrast import contrast
from .divergence import kl_divergence
from .diversity import distinct, self_bleu
from .evaluate import evaluate
from .gating import openness
from .harness import TaskResult, tasks
from .intervals import Estimate
from .judge import Judge
from .language import continuations, perplexity
from .named_scorers import picture_scorer
from .picture_scorers import PictureScorer
from .pictures import generators
from .report import Report
from .scorers import Scorer, classifier, scorer
from .slider import slider
from .vision import clip, dino, lpips

__all__ = [
    "Estimate",
    "Judge",
    "PictureScorer",
    "Report",
    "Scorer",
    "TaskResult",
    "calibrate",
    "classifier",
    "clip",
    "continuations",
    "contrast",
    "dino",
    "distance",
    "distinct",
    "evaluate",
    "generators",
    "kl_divergence",
    "lpips",
    "openness",
    "perplexity",
    "picture_scorer",
    "responses",
    "scorer",
    "self_bleu",
    "slider",
    "tasks",
]
