"""Whatever the user has, as batches of tensors with a mask."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.checks import whole
from .batch import TOKENWISE, Batch
from .kept import Kept
from .limits import most_tokens, vocabulary
from .links import arguments_of
from .texts import as_texts, check_columns, check_fields, find_tokenizer, padded, refuse_too_long, token_rows

__all__ = ["as_batches", "is_stream"]


TOKENS = ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds")
LARGEST_IN_MASK = 2  # Longformer's sign for a token that all others see


def is_stream(inputs: Any) -> bool:
    """Whether its samples can only be asked for one after another, and nobody knows how many there are: a generator,
    an iterator, an IterableDataset."""
    if isinstance(inputs, torch.utils.data.IterableDataset):  # which may have a length
        return True
    return isinstance(inputs, Iterable) and not isinstance(inputs, (Sized, Mapping, Tensor, str, bytes))


def as_batches(
    inputs: Any, name: str, model: nn.Module, tokenizer: Any = None, batch_size: int | None = None,
    max_length: int | None = None, least: int = 2, into: Kept | None = None,
    seen: Callable[[int], None] | None = None,
) -> Sequence[Batch]:  # fmt: skip
    """Turn strings, chats, tensors, dicts of tensors, a Dataset, a DataLoader or a stream of samples into batches,
    where their tensors are.

    Parameters
    ----------
    inputs : see the public docstring of `lineas.fit`
    name : str
        What to call these inputs in messages: "src" or "tgt".
    batch_size : int, optional
        Samples of a batch; all in one if not given. A DataLoader keeps its own batches, a stream must have it.
    least : int
        How many samples there must be.
    into : Kept, optional
        Where batches go as they come; memory if not given.
    seen : function, optional
        Called after each batch with how many samples it has.

    Raises
    ------
    TypeError, ValueError
        On inputs of another kind, too few samples, tensors that disagree in length, a row that is all padding.
    """
    for option, value in (("batch_size", batch_size), ("max_length", max_length)):
        if value is not None:
            whole(value, option)
    tokenizer_of = cache(lambda: find_tokenizer(model, name, tokenizer))
    raw = _raw_batches(inputs, name, model, tokenizer_of, batch_size, max_length)
    precision, most, known = _precision_of(model), most_tokens(model), vocabulary(model)
    batches, is_new = Kept() if into is None else into, not isinstance(inputs, (Tensor, Mapping))
    for number, batch in enumerate(raw):
        batch = replace(_with_decoder(batch, model, name).cast(precision), number=number)
        _check_mask(batch, name, "")
        _check_mask(batch, name, "decoder_")
        _check_tokens(batch, name, type(model).__name__, most, known)
        batches.append(batch, is_new)
        if seen:
            seen(batch.size)
    if (count := sum(batches.sizes)) < least:
        why = "; one sample has no distribution" * (least > 1)
        raise ValueError(f"{name}: expected at least {least} sample{'s' * (least > 1)}, got {count}{why}")
    return batches if into is not None else [*batches]


def _raw_batches(inputs, name, model, tokenizer_of, batch_size, max_length) -> Iterator[Batch]:
    texts = as_texts(inputs, name)
    if texts is not None:
        yield from _text_batches(texts, name, model, tokenizer_of, batch_size, max_length)
    elif isinstance(inputs, (Tensor, Mapping)):
        if isinstance(inputs, Mapping):
            check_columns(inputs, name, model)
        batch = _tensor_batch(inputs, name, model)
        for start in range(0, batch.size, batch_size or max(batch.size, 1)):
            yield batch.rows(start, start + (batch_size or batch.size))
    elif isinstance(inputs, torch.utils.data.DataLoader):
        for item in inputs:
            texts = as_texts(item, name)
            if texts is not None:
                yield from _text_batches(texts, name, model, tokenizer_of, None, max_length)
            else:
                check_fields(item, name, model)
                yield _tensor_batch(item, name, model)
    elif is_stream(inputs):
        yield from _stream_batches(inputs, name, model, tokenizer_of, batch_size, max_length)
    elif hasattr(inputs, "__getitem__") and isinstance(inputs, Sized):
        if len(inputs) == 0:
            return
        if isinstance(inputs, (list, tuple)):
            _refuse_row_of_numbers(inputs[0], name)
        rows: Any = list(inputs) if hasattr(inputs, "iloc") else inputs  # type: ignore[call-overload]  # by position
        loader = torch.utils.data.DataLoader(rows, batch_size=batch_size or len(rows))
        yield from _raw_batches(loader, name, model, tokenizer_of, batch_size, max_length)
    else:
        advice = f"; make it a list({name})" * isinstance(inputs, Iterable)
        raise TypeError(
            f"{name}: expected strings, chats, a tensor, a dict of tensors, a Dataset, a DataLoader or a stream of "
            f"samples; got {type(inputs).__name__}{advice}"
        )


def _stream_batches(inputs, name, model, tokenizer_of, batch_size, max_length) -> Iterator[Batch]:
    """No more than a batch of samples is held; each is asked for once."""
    if batch_size is None:
        raise ValueError(
            f"{name}: expected batch_size with a stream of samples, which may be longer than a batch can be; got "
            f"{type(inputs).__name__} without; pass one, or make it a list({name})"
        )
    samples, first = iter(inputs), 0
    while some := [*islice(samples, batch_size)]:
        texts = as_texts(some, name)
        if texts is not None:
            yield from _text_batches(texts, name, model, tokenizer_of, None, max_length, first)
        else:
            _refuse_row_of_numbers(some[0], name)
            item = torch.utils.data.default_collate(some)
            check_fields(item, name, model, "()")
            yield _tensor_batch(item, name, model)
        first += len(some)


def _refuse_row_of_numbers(item: Any, name: str) -> None:
    if _is_row_of_numbers(item):
        raise TypeError(
            f"{name}: expected a tensor, got a list of lists; pass torch.tensor({name}), or of tokens, where texts "
            "differ in length, a dict of padded input_ids and attention_mask"
        )


def _is_row_of_numbers(item: Any) -> bool:
    """Of lists, a DataLoader would take each place for an argument of the model."""
    return isinstance(item, list) and bool(item) and all(isinstance(x, (int, float, list)) for x in item)


def _tensor_batch(item: Any, name: str, model: nn.Module | None) -> Batch:
    if isinstance(item, Tensor):
        args: tuple = (item,)
        kwargs: dict[str, Any] = {}
    elif isinstance(item, Mapping):
        args, kwargs = (), {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in item.items()}
    elif isinstance(item, (list, tuple)):
        args, kwargs = _by_argument(item, name, model)
    else:
        raise TypeError(f"{name}: expected batches of tensors or dicts of tensors, got {type(item).__name__}")
    named = [*((f"[{k}]", v) for k, v in enumerate(args)), *kwargs.items()]
    lengths = {key: value.shape[0] for key, value in named if isinstance(value, Tensor) and value.ndim}
    if not lengths:
        advice = "; a tokenizer makes them with return_tensors='pt'" * ("input_ids" in kwargs)
        raise TypeError(f"{name}: expected tensors with samples in dimension 0, got {item!r:.100}{advice}")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name}: expected tensors of one length in dimension 0, got {lengths}")
    return Batch(args, kwargs, next(iter(lengths.values())))


def _by_argument(items: Sequence[Any], name: str, model: nn.Module | None) -> tuple[tuple, dict[str, Any]]:
    """Several items by the names of the model's arguments, where it has such, so that a mask is known to be one."""
    if len(items) < 2 or model is None:
        return tuple(items), {}
    arguments = arguments_of(model).values()
    if any(argument.kind in (argument.VAR_POSITIONAL, argument.POSITIONAL_ONLY) for argument in arguments):
        return tuple(items), {}
    names = [argument.name for argument in arguments if argument.kind is argument.POSITIONAL_OR_KEYWORD]
    if len(items) > len(names):
        got = ", ".join(f"{tuple(item.shape)}" if isinstance(item, Tensor) else f"{item!r:.40}" for item in items)
        raise TypeError(
            f"{name}: expected samples of what {type(model).__name__}.forward takes, ({', '.join(names)}); got "
            f"{len(items)} items a sample, {got} in a batch. Labels are not wanted: TensorDataset(X) rather than "
            "TensorDataset(X, y), or [sample[0] for sample in dataset]"
        )
    return (), dict(zip(names, items, strict=False))


def _precision_of(model: nn.Module | None) -> torch.dtype | None:
    """Of the model's weights, where none is double."""
    kinds = [] if model is None else [w.dtype for w in model.parameters() if w.is_floating_point()]
    return kinds[0] if kinds and torch.float64 not in kinds else None


def _check_mask(batch: Batch, name: str, side: str) -> None:
    mask, key = batch.mask_of(side), f"{side}attention_mask"
    if mask is None:
        return
    if mask.ndim != 2:
        raise ValueError(f"{name}: expected {key} (batch, tokens), got {tuple(mask.shape)}")
    ids = batch.kwargs.get(f"{side}input_ids")
    if isinstance(ids, Tensor) and ids.shape != mask.shape:
        raise ValueError(
            f"{name}: expected {key} in the shape of {side}input_ids, got {tuple(mask.shape)} and {tuple(ids.shape)}"
        )
    if mask.numel() and not 0 <= float(mask.min()) <= float(mask.max()) <= LARGEST_IN_MASK:
        raise ValueError(f"{name}: expected {key} of 0 and 1, got values from {mask.min():g} to {mask.max():g}")
    empty = (mask != 0).sum(1) == 0
    if empty.any():
        raise ValueError(f"{name}: sample {int(empty.nonzero()[0])} of a batch is all padding; it has no response")


def _check_tokens(batch: Batch, name: str, kind: str, most: int | None, known: int | None) -> None:
    """That the model has a position and an embedding for each: else it fails somewhere inside, or takes a GPU along."""
    given = {"the tensor": next(iter(batch.args), None)} | {key: batch.kwargs.get(key) for key in TOKENS}
    tokens = {key: value for key, value in given.items() if isinstance(value, Tensor) and value.ndim > 1}
    tokens = {key: value for key, value in tokens.items() if key in TOKENS or not value.is_floating_point()}
    for key, value in tokens.items():
        if most is not None and value.shape[1] > most and "position_ids" not in batch.kwargs:
            raise ValueError(
                f"{name}: expected at most {most} tokens, as many as this {kind} has positions for; got {key} "
                f"{tuple(value.shape)}: cut it to [:, :{most}]"
            )
    ids = tokens.get("input_ids", tokens.get("the tensor"))
    is_text = batch.kwargs.keys() <= {*TOKENWISE, *TOKENS, "labels"}  # pictures may have tokens of their own
    if known is not None and ids is not None and is_text and ids.numel() and int(ids.max()) >= known:
        raise ValueError(
            f"{name}: expected tokens below {known}, as many as this {kind} has embeddings; got {int(ids.max())}: is "
            "the tokenizer the model's own?"
        )


def _with_decoder(batch: Batch, model: Any, name: str) -> Batch:
    """What the decoder of an encoder-decoder model that generates reads: what was given, else the tokens before each
    of the `labels`, else the one token that generation starts from.
    """
    config, given = getattr(model, "config", None), batch.kwargs
    generates = getattr(config, "is_encoder_decoder", False) and getattr(model, "can_generate", bool)()
    if not generates or batch.args or "decoder_input_ids" in given or "decoder_inputs_embeds" in given:
        return batch
    labels = given.get("labels")
    if labels is not None and hasattr(model, "prepare_decoder_input_ids_from_labels"):
        added = {
            "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels=labels),
            "decoder_attention_mask": (labels != -100).long(),
        }
        return replace(batch, kwargs={**added, **{key: value for key, value in given.items() if key != "labels"}})
    settings = (getattr(model, "generation_config", None), config)
    start = next((s for c in settings if (s := getattr(c, "decoder_start_token_id", None)) is not None), None)
    if start is None:
        raise ValueError(f"{name}: this {type(model).__name__} has no decoder_start_token_id; pass decoder_input_ids")
    return replace(batch, kwargs={**given, "decoder_input_ids": torch.full((batch.size, 1), start, device="cpu")})


def _text_batches(texts, name, model, tokenizer_of, batch_size, max_length, first=0) -> Iterator[Batch]:
    """Tokens of one batch at a time; `first`: the number of the first text."""
    tokenizer, step = tokenizer_of(), batch_size or len(texts)
    for start in range(0, len(texts), step):
        some = texts[start : start + step]
        rows = token_rows(some, name, tokenizer, max_length, first + start)
        refuse_too_long(some, rows, name, model, first + start)
        yield Batch((), padded(rows, tokenizer), len(some))
