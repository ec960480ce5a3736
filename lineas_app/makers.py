"""What a model makes of prompts, with whatever is on it: texts, or pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from lineas import evaluation

from .controls import finite

__all__ = ["Maker", "Painter", "Sampling", "Writer"]

LIKELIEST = 1e-6  # of top_p: so little of the probability that only one token is left
MOST_TOKENS, HOTTEST = 256, 5.0


class Sampling(NamedTuple):
    """How texts are drawn; of pictures, only the seed counts. Temperature 0 always takes the likeliest token."""

    new_tokens: int = 24
    temperature: float = 1.0
    seed: int = 0

    @classmethod
    def of(cls, new_tokens: Any, temperature: Any, seed: Any) -> "Sampling":
        """From what a page sent; ValueError for what cannot be drawn so."""
        tokens, number = finite(new_tokens, "new tokens"), finite(seed, "seed")
        heat = finite(temperature, "temperature")
        if tokens != int(tokens) or not 1 <= tokens <= MOST_TOKENS:
            raise ValueError(f"new tokens: expected a whole number from 1 to {MOST_TOKENS}, got {tokens:g}")
        if not 0 <= heat <= HOTTEST:
            raise ValueError(f"temperature: expected a number from 0 to {HOTTEST:g}, got {heat:g}")
        if number != int(number) or not 0 <= number < 2**31:
            raise ValueError(f"seed: expected a whole number from 0 to {2**31 - 1}, got {number:g}")
        return cls(int(tokens), heat, int(number))


class Maker(Protocol):
    """A model with what it takes to use it."""

    makes: str  # "texts" or "pictures"
    name: str  # of the model, as the page calls it
    model: Any  # which a steering goes on
    most: int  # prompts at once
    examples: Sequence[str]

    def make(self, prompts: Sequence[str], sampling: Sampling) -> list[Any]:
        """One text or picture for each prompt; the same ones for the same seed."""
        ...


@dataclass(frozen=True)
class Writer:
    """A causal language model and its tokenizer."""

    model: Any
    tokenizer: Any
    name: str = ""
    examples: Sequence[str] = (
        "The committee has decided that", "Dear Sir or Madam, we are writing to", "The report states that",
    )  # fmt: skip
    makes = "texts"
    most = 16

    def make(self, prompts: Sequence[str], sampling: Sampling) -> list[str]:
        heat: dict[str, Any] = {"temperature": sampling.temperature} if sampling.temperature else {"top_p": LIKELIEST}
        return evaluation.continuations(
            self.model, prompts, tokenizer=self.tokenizer, new_tokens=sampling.new_tokens, seed=sampling.seed, **heat
        )


@dataclass(frozen=True)
class Painter:
    """A text-to-image pipeline of diffusers, and arguments of its call."""

    model: Any
    call: dict[str, Any]
    name: str = ""
    examples: Sequence[str] = ("a cat", "a house")
    makes = "pictures"
    most = 8

    def make(self, prompts: Sequence[str], sampling: Sampling) -> list[Any]:
        noise = evaluation.generators(sampling.seed, len(prompts))  # each prompt begins with its own
        with torch.no_grad():
            found = self.model(prompt=list(prompts), generator=noise, **self.call)
        return list(found.images)
