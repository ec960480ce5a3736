"""The optimisers: numbers only. A problem says what its loss is, a recorder takes note of every evaluation."""

from .fast import fast
from .problem import Evaluation, Problem, Recorder
from .published import OPTIMIZERS, PUBLISHED_STEPS, published

__all__ = ["OPTIMIZERS", "PUBLISHED_STEPS", "Evaluation", "Problem", "Recorder", "fast", "published"]
