"""Algebra of steerings that needs two of them; what needs one is a method of `Steering`."""

from .maps.algebra import Overlap, interpolate, overlap

__all__ = ["Overlap", "interpolate", "overlap"]
