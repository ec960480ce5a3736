"""A report's values as JSON has them, and back: no NaN, no tuples, no bytes."""

import base64
import math
from typing import Any


def without_nan(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, (list, tuple)) else value


def lists_as_tuples(values: dict[str, Any]) -> dict[str, Any]:
    def back(item: Any) -> Any:
        return tuple(math.nan if x is None else x for x in item) if isinstance(item, list) else item

    return {key: back(item) for key, item in values.items()}


def as_base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def with_bytes(values: dict[str, Any]) -> dict[str, Any]:
    pictures = tuple(base64.b64decode(text, validate=True) for text in values["pictures"])
    return {**values, "prompts": tuple(values["prompts"]), "pictures": pictures}
