"""A picture to lie beside a card, as the bytes of a PNG."""

import io
import os
from pathlib import Path
from typing import Any

from .._storage.pairs import read_limited

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LIMIT = 1 << 25  # bytes, which a page can still show


def as_png(picture: Any, name: str) -> bytes:
    """Of a PIL image, or of a file that is one; `name` is what messages call it.

    TypeError for something else; FileNotFoundError; ValueError for another file, or one that is too large.
    """
    if isinstance(picture, (str, os.PathLike)):
        data, what = read_limited(Path(picture), LIMIT), f"{os.fspath(picture)}, which is none"
    elif hasattr(picture, "save") and hasattr(picture, "convert"):
        file = io.BytesIO()
        picture.save(file, format="PNG")
        data, what = file.getvalue(), "another"
    else:
        raise TypeError(f"{name}: expected a PIL image, or the path of a PNG file, got {type(picture).__name__}")
    if not data.startswith(SIGNATURE):
        raise ValueError(f"{name}: expected a PNG file, got {what}")
    if len(data) > LIMIT:
        raise ValueError(f"{name}: expected a picture of at most {LIMIT} bytes as a PNG, got {len(data)}")
    return data
