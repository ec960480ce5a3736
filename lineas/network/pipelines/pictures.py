"""Pictures that a pipeline makes of rows of its call, from the noise that responses to these rows start from."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..state import seeded
from .capture import Capture
from .components import arguments_taken, is_of_diffusers, quiet

__all__ = ["pictures_of_rows"]


def pictures_of_rows(
    pipe: Any, columns: Mapping[str, list], rows: Sequence[int], *, call: Mapping[str, Any] | None = None, seed: int = 0
) -> list[list[Any]]:
    """The pictures of some rows of a set of inputs, a list for each row.

    Parameters
    ----------
    pipe : pipeline
    columns : dict of argument -> list
        Of all rows, as `rows.columns_of` has them.
    rows : list of int
        Which of them. A row starts from the noise that `seed` and its number tell, whatever the others are.
    call, seed : as in `lineas.fit`

    Returns
    -------
    list of list of PIL images
        As many for each row as the call makes of a prompt.

    Raises
    ------
    TypeError
        The pipeline returns something else.
    """
    how = {**(call or {}), **({"output_type": "pil"} if "output_type" in arguments_taken(pipe)[0] else {})}
    capture = Capture(pipe, None, how, "first", seed)
    together = [list(rows)] if is_of_diffusers(pipe) else [[row] for row in rows]
    found: list[Any] = []
    with quiet(pipe), seeded(seed, torch.device("cpu")), torch.no_grad():
        for numbers in together:
            part = {key: [values[row] for row in numbers] for key, values in columns.items()}
            output = pipe(**capture.arguments(part, numbers))
            found += _images(output, len(numbers) * capture.images, type(pipe).__name__)
    return [found[k : k + capture.images] for k in range(0, len(found), capture.images)]


def _images(output: Any, count: int, kind: str) -> list[Any]:
    images = getattr(output, "images", output[0] if isinstance(output, tuple) else output)
    if not isinstance(images, (list, tuple)) or len(images) != count or not all(hasattr(i, "convert") for i in images):
        many = f" of {len(images)}" if isinstance(images, (list, tuple)) else ""
        got = f"{type(images).__name__}{many}"
        raise TypeError(f"expected {kind} to return {count} PIL images, got {got}")
    return list(images)
