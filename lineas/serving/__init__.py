"""Steerings where models are served: hooks for engines, and files for PEFT and llama.cpp.

`lineas.serving.sglang` and `lineas.serving.vllm` are what these engines import.
"""

from .adapters import to_peft
from .control_vectors import to_gguf

__all__ = ["to_gguf", "to_peft"]
