"""Dicts, lists and tuples in each other, as a network takes them, and the tensors in them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The same with each leaf, which is whatever is no dict, list or tuple, passed through a function."""
    if isinstance(value, Mapping):
        return {key: mapped(function, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [mapped(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return function(value)


def mapped_with_path(function: Callable[[str, Any], Any], value: Any) -> Any:
    """`mapped`, for a function that also takes where the leaf is, as `leaves` has it."""
    places = iter([path for path, _ in leaves(value)])
    return mapped(lambda leaf: function(next(places), leaf), value)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each leaf with the keys and places that lead to it: "added_cond_kwargs.time_ids"."""
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, (list, tuple)):
        pairs = enumerate(value)
    else:
        yield path, value
    for key, item in pairs:
        yield from leaves(item, f"{path}.{key}" if path else str(key))
