"""Expert units: which units respond to a concept, and how well each of them tells it from everything else."""

from .scores import auroc, average_precision

__all__ = ["auroc", "average_precision"]
