"""Passes under reentrant checkpointing: autograd computes them again, with the hooks that there are by then."""

import sys
from types import FrameType

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointFunction

FIRST, AGAIN = CheckpointFunction.forward.__code__, CheckpointFunction.backward.__code__


class Recomputed:
    """How many passes through a module in training wait to be computed again."""

    def __init__(self):
        self.waiting = 0

    def note(self, module: nn.Module) -> None:
        """A pass goes through the module. The first time gradients are off: only then is the stack worth a look."""
        if module.training and (self.waiting or not torch.is_grad_enabled()):
            first, again = False, False
            frame: FrameType | None = sys._getframe(1)
            while frame is not None:
                first |= frame.f_code is FIRST and any(frame.f_locals["ctx"].needs_input_grad)  # or no backward comes
                again |= frame.f_code is AGAIN
                frame = frame.f_back
            self.waiting += first - again
