"""Perplexity and sampled continuations of causal language models, steered or not."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..core.checks import number, whole
from ..network.limits import most_tokens
from ..network.sharding import refuse_others
from ..network.state import device_of, frozen, seeded
from ..network.texts import find_tokenizer, listed_texts
from .divergence import check_causal, read

LEAST = 8  # tokens of a text that a model writes from nothing
LIKELIEST = 50  # tokens that `generate` draws from where a model's own settings do not say


def perplexity(
    model: nn.Module, texts: Sequence[str], *, tokenizer: Any = None, batch_size: int = 16,
    max_length: int | None = None,
) -> float:  # fmt: skip
    """exp of the mean negative log-likelihood of a token, over all tokens of all texts but the first of each.

    Parameters
    ----------
    model : a causal language model of transformers, with or without a steering on it
    texts : list of str, at least 2
    tokenizer : optional
        Looked up from the model's own name if not given.
    batch_size : int
        Texts that pass through the model together.
    max_length : int, optional
        Tokens beyond it are cut off.

    Returns
    -------
    float, at least 1; the vocabulary's size is guessing.
    """
    options: dict[str, Any] = {"tokenizer": tokenizer, "batch_size": batch_size, "max_length": max_length}
    (found,) = read(model, texts, [nullcontext], divergence=False, **options)
    return math.exp(found.sums.losses.sum() / found.sums.predicted.sum())


def continuations(
    model: nn.Module, prompts: Sequence[Any], *, tokenizer: Any = None, count: int = 1, new_tokens: int = 24,
    temperature: float = 1.0, top_p: float = 0.9, seed: int = 0, batch_size: int = 64,
) -> list[str]:  # fmt: skip
    """Sample how a model goes on from prompts.

    Parameters
    ----------
    model : a causal language model of transformers, with or without a steering on it
    prompts : list of str, or of chats
        A chat goes through the tokenizer's template, up to where the model's turn begins.
    count : int
        Continuations of each prompt.
    new_tokens, temperature, top_p : as in `generate`
        Of the likeliest tokens only, as many as the model's own settings say, else 50: as in `generate`, too.
    seed : int
        The same seed gives the same text; the global random state is not touched.

    Returns
    -------
    list of str, without the prompts: those of the first prompt, then those of the second, and so on.
    """
    check_causal(model)
    check_sampling(count, new_tokens, temperature, top_p, batch_size)
    prompts = listed_texts(prompts, "prompts")
    tokenizer = find_tokenizer(model, "prompts", tokenizer)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    top_k_of_model: int | None = model.generation_config.top_k  # type: ignore[union-attr, assignment]
    nucleus = Nucleus(temperature, LIKELIEST if top_k_of_model is None else top_k_of_model, top_p)
    encoded = [_ids(prompt, tokenizer) for prompt in prompts]
    _refuse_too_long(prompts, encoded, new_tokens, model)
    rows = [ids for ids in encoded for _ in range(count)]
    texts: list[str] = []
    refuse_others(model, "prompts", lambda: repr((encoded, count, new_tokens, seed)))
    with seeded(seed, device_of(model)), frozen(model), torch.no_grad():
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            longest = max(map(len, some))  # padded on the left, so that all go on from the same column
            ids = torch.tensor([[pad] * (longest - len(row)) + row for row in some], device="cpu")
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in some], device="cpu")
            out = model.generate(  # type: ignore[operator]
                input_ids=ids.to(device_of(model)), attention_mask=mask.to(device_of(model)), do_sample=True,
                temperature=1.0, top_k=0, top_p=1.0, logits_processor=[nucleus],
                max_new_tokens=new_tokens, pad_token_id=pad,
            )  # fmt: skip
            texts += tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
    return texts


def own_tokens(model: nn.Module, tokenizer: Any, count: int, new_tokens: int, seed: int) -> dict[str, Tensor]:
    """What a model writes from nothing, from its whole distribution, steered by whatever is on it.

    As tokens: of these, and not of what a tokenizer makes of their text, log perplexity under another model is the
    first one's entropy plus KL(first || other).

    Returns
    -------
    dict with "input_ids" and "attention_mask", (count, 1 + new_tokens), on the CPU; all begin with the same token.

    Raises
    ------
    ValueError
        There is no token to begin with; the model ends at once, as one may that was only taught to answer.
    """
    check_causal(model)
    begin = _begin(model, tokenizer)
    ids = torch.full((2 * count, 1), begin, device=device_of(model))
    ends = _ends(model, tokenizer)
    with seeded(seed, device_of(model)), frozen(model), torch.no_grad():
        out = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=new_tokens, pad_token_id=begin,
        ).cpu()  # fmt: skip
    is_end = torch.isin(out[:, 1:], torch.tensor(ends or [-1], device="cpu"))
    over = is_end.cumsum(1) - is_end.long()  # what comes behind the first end
    mask = torch.cat([torch.ones_like(out[:, :1]), (over == 0).long()], 1)
    long = torch.nonzero(mask.sum(1) > LEAST)[:count, 0]
    if len(long) < count:
        raise ValueError(
            f"texts: expected some; of {2 * count} that this {type(model).__name__} wrote from nothing, {len(long)} "
            f"have {LEAST} tokens"
        )
    return {"input_ids": out[long], "attention_mask": mask[long]}


def _begin(model: nn.Module, tokenizer: Any) -> int:
    """The token that a text begins with: that of a beginning, or else of an end."""
    for name in ("bos_token_id", "eos_token_id"):
        for holder in (tokenizer, getattr(model, "generation_config", None)):
            if found := _tokens_of(holder, name):
                return found[0]
    raise ValueError("texts: expected some; neither tokenizer nor model has a token that a text begins with")


def _ends(model: nn.Module, tokenizer: Any) -> list[int]:
    """Tokens at which `generate` ends a text."""
    own = _tokens_of(getattr(model, "generation_config", None), "eos_token_id")
    return own or _tokens_of(tokenizer, "eos_token_id")


def _tokens_of(holder: Any, name: str) -> list[int]:
    found = getattr(holder, name, None)
    return [] if found is None else [int(one) for one in (found if isinstance(found, (list, tuple)) else [found])]


def check_sampling(count: int, new_tokens: int, temperature: float, top_p: float, batch_size: int) -> None:
    """ValueError, or TypeError, where nothing can be sampled so."""
    for name, value in (("count", count), ("new_tokens", new_tokens), ("batch_size", batch_size)):
        whole(value, name)
    if number(temperature, "temperature") <= 0:
        raise ValueError(
            f"temperature: expected a number above 0, got {temperature}; top_p=1e-6 takes the likeliest token"
        )
    if not 0 < number(top_p, "top_p") <= 1:
        raise ValueError(f"top_p: expected a number above 0, at most 1, got {top_p}")


class Nucleus:
    """Leaves, of the `top_k` likeliest tokens, the likeliest that have the probability `top_p` together, at least one.

    What transformers does with these settings, token for token, without sorting the vocabulary: a seventh of the time
    that a small model takes to generate.
    """

    def __init__(self, temperature: float, top_k: int, top_p: float):
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        words = scores.shape[-1]
        best, tokens = (scores / self.temperature).topk(min(self.top_k or words, words))  # 0: all of them
        tails = best.flip(-1).softmax(-1).cumsum(-1).flip(-1)  # of each token and all less likely ones
        best[:, 1:] = best[:, 1:].masked_fill(tails[:, 1:] <= 1 - self.top_p, -math.inf)
        return torch.full_like(scores, -math.inf).scatter(-1, tokens, best)


def _refuse_too_long(prompts: Sequence[Any], encoded: list[list[int]], new_tokens: int, model: nn.Module) -> None:
    """ValueError where the model lacks positions for a prompt and what shall come after it; the last one needs none."""
    most = most_tokens(model)
    for k, ids in enumerate(encoded):
        if most is not None and len(ids) + new_tokens - 1 > most:
            raise ValueError(
                f"prompts: prompt {k} has {len(ids)} tokens, and new_tokens is {new_tokens}; this "
                f"{type(model).__name__} has positions for {most} in all; shorten the prompt, or ask for fewer: "
                f"{prompts[k]!r:.60}"
            )


def _ids(prompt: Any, tokenizer: Any) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    return list(tokenizer.apply_chat_template(prompt, **options)["input_ids"])
