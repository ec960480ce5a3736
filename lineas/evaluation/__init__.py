"""What a steering does to a model: what its units do, its perplexity on given text, its continuations of prompts."""

from .activations import responses
from .language import continuations, perplexity

__all__ = ["continuations", "perplexity", "responses"]
