"""Maps into weights: a plan, site by site, the way there and back, and the measured proof that nothing is lost."""

from .merging import merge, merge_plan, unmerge
from .planning import MergePlan

__all__ = ["MergePlan", "merge", "merge_plan", "unmerge"]
