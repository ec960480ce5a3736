"""What callbacks of `lineas.fit` hear, and ready-made ones."""

from .fitting.callbacks import EarlyStopping, Entry, on_step

__all__ = ["EarlyStopping", "Entry", "on_step"]
