"""One pass over texts for several steerings: how likely the text is under each, and how far each is from the base."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..attaching.positions import Position
from ..network.batch import Batch
from ..network.data import as_batches
from ..network.generation import is_encoder_decoder
from ..network.identity import data_digest
from ..network.links import check_network
from ..network.sharding import refuse_others, refuse_slices, team_of
from ..network.state import device_of, frozen
from ..network.texts import listed_texts

if TYPE_CHECKING:
    from ..steering import Steering

Condition = Callable[[], AbstractContextManager[Any]]


class Sums(NamedTuple):
    """What each text adds up to under one condition, each (texts,)."""

    losses: NDArray[np.float64]  # negative log-likelihood of all tokens but the first
    predicted: NDArray[np.float64]  # how many tokens that are
    divergences: NDArray[np.float64]  # from the base model, of the distributions after each token
    tokens: NDArray[np.float64]


class Reading(NamedTuple):
    """What texts add up to under one condition, and how far each of their tokens is from the base model."""

    sums: Sums
    by_token: NDArray[np.float64]  # (tokens of all texts,), in any order


def check_causal(model: nn.Module) -> None:
    """TypeError for what is no causal language model, as far as it says so itself."""
    check_network(model)
    can_generate = getattr(model, "can_generate", None)
    if is_encoder_decoder(model) or (can_generate is not None and not can_generate()):
        raise TypeError(f"model: expected a causal language model, got {type(model).__name__}")


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """(rows, tokens, words)"""
    team = team_of(model)
    output = model(**batch.kwargs, use_cache=False)
    if not isinstance(logits := getattr(output, "logits", None), Tensor):
        raise TypeError(f"model: expected a causal language model, got {type(model).__name__}, which returns no logits")
    if team:
        refuse_slices(team, {"the model's output": logits.flatten(0, -2).mean(0)})
    return logits


def losses_of(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each row's tokens but the first, and how many they are; each (rows,)."""
    ids, counts = batch.kwargs["input_ids"][:, 1:], batch.kwargs["attention_mask"][:, 1:] != 0
    losses = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids.flatten(), reduction="none")
    return torch.where(counts, losses.view_as(ids), 0).sum(1), counts.sum(1)


def divergences_of(logits: Tensor, base: Tensor, batch: Batch) -> list[Tensor]:
    """KL(steered || base) after each of a row's tokens, (tokens,) for each row."""
    real = batch.kwargs["attention_mask"] != 0
    found = []
    # By row: log-probabilities of a batch are large.
    for steered_logits, base_logits, row in zip(logits, base, real, strict=True):
        steered, plain = (x[row].float().log_softmax(-1) for x in (steered_logits, base_logits))
        found.append(nn.functional.kl_div(plain, steered, reduction="none", log_target=True).sum(-1))
    return found


def read(
    model: nn.Module, texts: Sequence[str] | Mapping[str, Tensor], conditions: Sequence[Condition], *, tokenizer: Any,
    batch_size: int, max_length: int | None = None, divergence: bool = True,
) -> list[Reading]:  # fmt: skip
    """What a causal language model makes of texts under each condition, of which the first is the base model's.

    Texts, which may be a dict of "input_ids" and "attention_mask", pass in the order of their lengths, which saves
    padding; results come in the order of the texts.
    """
    check_causal(model)
    order, ordered = _by_length(texts)
    rows: list[list[list[Tensor]]] = [[[] for _ in Sums._fields] for _ in conditions]
    tokens: list[list[Tensor]] = [[] for _ in conditions]
    device = device_of(model)
    batches = as_batches(ordered, "texts", model, tokenizer, batch_size, max_length)
    refuse_others(model, "texts", lambda: data_digest(batches))
    with frozen(model), torch.no_grad():
        for batch in batches:
            batch, base = batch.to(device).trimmed(), None
            for condition, parts, each in zip(conditions, rows, tokens, strict=True):
                with condition():
                    logits = _logits(model, batch)
                base = logits if base is None else base
                away = divergences_of(logits, base, batch) if divergence else [logits[0, :0, 0]] * batch.size
                counts = torch.tensor([len(one) for one in away], device="cpu")
                flat = torch.cat(away).cpu().double()  # at once: a GPU would be waited for text by text
                each.append(flat)
                sums = torch.stack([one.sum() for one in flat.split(counts.tolist())])
                for part, values in zip(parts, (*losses_of(logits, batch), sums, counts), strict=True):
                    part.append(values.cpu())
    back = np.argsort(order)
    found = [Sums(*(torch.cat(part).double().numpy()[back] for part in parts)) for parts in rows]
    if not found[0].predicted.any():
        raise ValueError("texts: expected some with at least 2 tokens, got none; there is nothing to predict")
    return [Reading(s, torch.cat(t).numpy()) for s, t in zip(found, tokens, strict=True)]


def _by_length(texts: Sequence[str] | Mapping[str, Tensor]) -> tuple[list[int], list[str] | dict[str, Tensor]]:
    """Where each text was, and the texts, the shortest first."""
    if isinstance(texts, Mapping):
        order = texts["attention_mask"].sum(1).argsort(stable=True).tolist()
        return order, {key: value[order] for key, value in texts.items()}
    texts = listed_texts(texts, "texts")
    order = sorted(range(len(texts)), key=lambda k: len(texts[k]))
    return order, [texts[k] for k in order]


def kl_divergence(
    model: nn.Module, texts: Sequence[str], steering: "Steering", strength: float = 1.0, *, tokenizer: Any = None,
    batch_size: int = 16, max_length: int | None = None, position: Position = "all", strict: bool = True,
) -> float:  # fmt: skip
    """How far a steering moves the next-token distributions on texts: mean over tokens of KL(steered || base), in nats.

    Parameters
    ----------
    model : a causal language model of transformers
        Anything already on it is part of the base.
    texts : list of str, at least 2
    steering, strength, position, strict : as in `Steering.apply`
    tokenizer : optional
        Looked up from the model's own name if not given.
    batch_size : int
        Texts that pass through the model together.
    max_length : int, optional
        Tokens beyond it are cut off.

    Returns
    -------
    float, at least 0 up to rounding
        Over the distributions after every token of every text; padding never counts.
    """

    def steered() -> AbstractContextManager[Any]:
        return steering.apply(model, strength, position=position, strict=strict)

    options: dict[str, Any] = {"tokenizer": tokenizer, "batch_size": batch_size, "max_length": max_length}
    found = read(model, list(texts), [nullcontext, steered], **options)[1].sums
    return float(found.divergences.sum() / found.tokens.sum())
