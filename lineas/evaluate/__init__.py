"""What a steering does to a language model: perplexity on given text, and continuations of prompts."""

from .language import continuations, perplexity

__all__ = ["continuations", "perplexity"]
