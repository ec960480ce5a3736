"""What counts as texts, and texts as tokens."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .limits import most_tokens
from .links import arguments_of


def as_texts(inputs: Any, name: str) -> list | None:
    """The strings and chats of any sequence of them, by position; None for what is something else.

    Raises
    ------
    TypeError
        One string or chat, a table of columns, or a sequence of strings and something else.
    """
    if isinstance(inputs, (str, bytes)):
        raise TypeError(
            f"{name}: expected a list of strings, got {'bytes' * isinstance(inputs, bytes) or 'one string'}"
        )
    others = (Tensor, Mapping, torch.utils.data.Dataset, torch.utils.data.DataLoader)
    if isinstance(inputs, others) or not (isinstance(inputs, Collection) and hasattr(inputs, "__getitem__")):
        return None
    if hasattr(inputs, "columns"):
        columns = [str(column) for column in inputs.columns]
        raise TypeError(
            f"{name}: expected texts, got a {type(inputs).__name__} of columns {columns[:6]}; pass one of them"
        )
    is_strings = isinstance(inputs, np.ndarray) and inputs.dtype.kind in "US"
    is_listed = isinstance(inputs, (list, tuple)) or is_strings or hasattr(inputs, "iloc")
    if not is_listed and not _is_text(next(iter(inputs), None)):
        return None  # perhaps large, or each item made when it is asked for
    listed = list(inputs)
    if _is_chat(listed):
        raise TypeError(f"{name}: expected a list of chats, got one chat; pass [{name}]")
    other = next((k for k, item in enumerate(listed) if not _is_text(item)), None)
    if other is not None and any(map(_holds_text, listed)):
        raise TypeError(f"{name}: expected strings, got {listed[other]!r:.60} at position {other}")
    return listed if listed and other is None else None


def listed_texts(inputs: Any, name: str) -> list:
    """The strings and chats of a sequence or an iterator; TypeError where there are others, or none can be told."""
    inputs = list(inputs) if isinstance(inputs, Iterator) else inputs
    texts = as_texts(inputs, name)
    if texts is None and not (isinstance(inputs, Sized) and len(inputs) == 0):
        raise TypeError(f"{name}: expected a list of strings, or of chats, got {type(inputs).__name__}")
    return texts or []


def _holds_text(item: Any) -> bool:
    """Whether it is a text, or what one may have been left in: bytes, or a list that begins with one."""
    first = item[0] if isinstance(item, (list, np.ndarray)) and len(item) else item
    return isinstance(first, (str, bytes))


def check_columns(inputs: Mapping, name: str, model: nn.Module | None) -> None:
    """Refuse a dict that has texts, in a column that the model does not take, or as its values."""
    takes = arguments_of(model) if model is not None else ()
    for key, value in inputs.items():
        if isinstance(value, str) and key not in takes:
            raise TypeError(f"{name}: expected a list of strings, got a dict of them; pass list({name}.values())")
        if isinstance(value, (list, tuple)) and value and all(map(_is_text, value)) and key not in takes:
            raise TypeError(
                f"{name}: expected texts or tensors, got a dict of {list(inputs)[:6]}; pass {name}[{key!r}]"
            )


def check_fields(batch: Any, name: str, model: nn.Module | None, brackets: str = "[]") -> None:
    """Refuse a dataset's rows with texts in them that the model does not take as they are.

    `brackets`: of what makes texts of them; round ones where they shall not be listed.
    """
    if not isinstance(batch, Mapping):
        return
    takes = arguments_of(model) if model is not None else ()
    fields = [key for key, value in batch.items() if isinstance(value, list) and all(map(_is_text, value))]
    if fields and fields[0] not in takes:
        advice = f"{brackets[0]}row[{fields[0]!r}] for row in {name}{brackets[1]}"
        raise TypeError(f"{name}: expected texts or tensors, got rows with the fields {list(batch)[:6]}; pass {advice}")


def _is_text(item: Any) -> bool:
    return isinstance(item, str) or _is_chat(item)


def _is_chat(item: Any) -> bool:
    return isinstance(item, Sequence) and bool(item) and all(isinstance(x, Mapping) and "role" in x for x in item)


def find_tokenizer(model: nn.Module, name: str, given: Any = None) -> Any:
    """The one given, or that of a name given, or that of the model's own name, as transformers would load it."""
    if given is not None and not isinstance(given, (str, os.PathLike)):
        if isinstance(given, (type, nn.Module)) or not callable(given):
            kind = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
            raise TypeError(f"tokenizer: expected a tokenizer of transformers, or the name of one, got {kind}")
        return given
    own = getattr(model, "name_or_path", "") or getattr(getattr(model, "config", None), "_name_or_path", "")
    path = str(given) if given else own
    advice = f"{name}: strings need a tokenizer; pass tokenizer="
    if not path:
        raise ValueError(f"{advice} (this {type(model).__name__} has no name to look one up by)")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ValueError(f"{advice}, or install transformers to look it up") from error
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{advice} (there is none to load at {path!r})") from error


def token_rows(
    texts: list, name: str, tokenizer: Any, max_length: int | None, first: int = 0
) -> list[dict[str, list[int]]]:  # fmt: skip
    """Each text's tokens, no more than the tokenizer says that its model takes; `first`: the number of the first."""
    if max_length is None:
        limit = getattr(tokenizer, "model_max_length", None)
        max_length = limit if isinstance(limit, int) and limit < 10**9 else None  # beyond that it means "not known"
    rows = []
    for k, text in enumerate(texts, first):
        rows.append(_tokens(text, f"{name}: chat {k}", tokenizer, max_length))
        if not len(rows[-1]["input_ids"]):
            raise ValueError(f"{name}: text {k} has no tokens: {text!r:.60}")
    return rows


def refuse_too_long(
    texts: list, rows: list[dict[str, list[int]]], name: str, model: nn.Module | None, first: int = 0
) -> None:  # fmt: skip
    """ValueError where a text has more tokens than the model has positions; `first`: the number of the first."""
    lengths = [len(row["input_ids"]) for row in rows]
    most = most_tokens(model)
    beyond = [k for k, length in enumerate(lengths) if most is not None and length > most]
    if beyond:
        k, so_far = beyond[0], f"first {first + len(texts)}"
        others = f" ({len(beyond)} of the {so_far} texts are too long)" * (len(beyond) > 1)
        raise ValueError(
            f"{name}: text {first + k} has {lengths[k]} tokens, and this {type(model).__name__} positions for {most}; "
            f"shorten it, or pass max_length={most}, which cuts off the rest{others}: {texts[k]!r:.60}"
        )


def _tokens(text: Any, name: str, tokenizer: Any, max_length: int | None) -> dict[str, list[int]]:
    options = {"truncation": True, "max_length": max_length} if max_length else {}
    if isinstance(text, str):
        encoded = tokenizer(text, **options)
    else:
        for message in text:
            if not message.keys() & {"content", "tool_calls"}:
                raise ValueError(f"{name}: expected messages with a role and content, got {list(message)}")
        encoded = tokenizer.apply_chat_template(text, tokenize=True, return_dict=True, **options)
    if not isinstance(encoded, Mapping) or "input_ids" not in encoded:
        kind, got = type(tokenizer).__name__, type(encoded).__name__
        raise TypeError(
            f"tokenizer: expected one that returns a dict with input_ids, got a {kind} that returned a {got}"
        )
    return {key: list(encoded[key]) for key in ("input_ids", "token_type_ids") if key in encoded}


def padded(rows: list[dict[str, list[int]]], tokenizer: Any) -> dict[str, Tensor]:
    """Pad on the right, where no position depends on it; padding never counts, so any id can stand in for a pad."""
    lengths = [len(row["input_ids"]) for row in rows]
    longest = max(lengths)
    fill = {"input_ids": getattr(tokenizer, "pad_token_id", None) or 0}
    columns = {
        key: torch.tensor([row[key] + [fill.get(key, 0)] * (longest - len(row[key])) for row in rows], device="cpu")
        for key in rows[0]
    }
    columns["attention_mask"] = torch.tensor([[1] * n + [0] * (longest - n) for n in lengths], device="cpu")
    return columns
