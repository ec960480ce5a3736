"""Checkpoints of a fit: written as it goes, read to look at or to go on from."""

from .fitting.checkpoint import Checkpoint, Keeper, read, write

__all__ = ["Checkpoint", "Keeper", "read", "write"]
