"""Pipelines: what calls a network with what it makes of prompts, as those of diffusers do, and what they give it.

Anything is one that can be called and holds a network under a name of `components.DENOISERS`.
"""

from .components import is_pipeline, network_of

__all__ = ["is_pipeline", "network_of"]
