"""Pictures: float32 arrays (n, height, width, 3) of values from 0 to 1, however a pipeline returns them."""

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..network.pipelines.rows import fresh_seed, noise_of_rows

if TYPE_CHECKING:
    from PIL.Image import Image

SLACK = 1e-3  # how far beyond 0 and 1 rounding may lead


def pictures_of(output: Any, count: int) -> NDArray[np.float32]:
    """The pictures that a pipeline returned: PIL images, an array (n, height, width, 3) or a tensor (n, 3, height,
    width), in an output with `images` or first in a tuple.

    Raises
    ------
    TypeError, ValueError
        Something else, latents for instance; not so many; values that are not finite, or not from 0 to 1.
    """
    images = getattr(output, "images", output)
    if isinstance(images, tuple) and images and not _is_one(images[0]):
        images = images[0]
    found = as_pictures(images, "the pipeline's pictures")
    if len(found) != count:
        raise ValueError(f"expected a picture a prompt, {count}; the pipeline returned {len(found)}")
    return found


def as_pictures(given: Any, name: str) -> NDArray[np.float32]:
    """TypeError for what is no array, ValueError for what can be no pictures."""
    if isinstance(given, (list, tuple)) and given and all(map(_is_one, given)):
        each = [_array(one) for one in given]
        if sizes := sorted({one.shape for one in each[1:] if one.shape != each[0].shape}):
            raise ValueError(f"{name}: expected all of one size, got {each[0].shape} and {sizes[0]}")
        given = np.stack(each)
    if not isinstance(given, (np.ndarray, Tensor)):
        raise TypeError(f"{name}: expected PIL images, an array or a tensor, got {type(given).__name__}")
    values = _array(given)
    if values.ndim != 4 or values.shape[-1] != 3 or 0 in values.shape:
        shape, order = tuple(given.shape), "3, height, width" if isinstance(given, Tensor) else "height, width, 3"
        raise ValueError(f'{name}: expected (n, {order}), got {shape}; output_type="latent" gives no pictures')
    if bad := int((~np.isfinite(values)).any((1, 2, 3)).sum()):
        raise ValueError(f"{name}: expected finite values, got others in {bad} of {len(values)}; does float32 help?")
    low, high = float(values.min()), float(values.max())
    if low < -SLACK or high > 1 + SLACK:
        raise ValueError(f"{name}: expected values from 0 to 1, got {low:.3g} to {high:.3g}")
    return values.clip(0, 1)


def _is_one(item: Any) -> bool:
    return hasattr(item, "convert") or (isinstance(item, (np.ndarray, Tensor)) and item.ndim == 3)


def _array(given: Any) -> NDArray[np.float32]:
    """Colours last, whole numbers from 0 to 255 as parts of 255."""
    if hasattr(given, "convert"):
        given = np.asarray(given.convert("RGB"))
    if isinstance(given, Tensor):
        tensor = given.detach().cpu().movedim(-3, -1) if given.ndim >= 3 else given.detach().cpu()
        given = (tensor.float() if tensor.dtype != torch.uint8 else tensor).numpy()
    return given.astype(np.float32) / 255 if given.dtype == np.uint8 else given.astype(np.float32)


def as_images(pictures: NDArray[np.float32]) -> "list[Image]":
    """As PIL images."""
    image = pillow("pictures").fromarray
    return [image(np.rint(255 * picture).astype(np.uint8)) for picture in pictures]


def as_png(image: "Image", most: int) -> bytes:
    """At most so many pixels wide and high."""
    smaller = image.copy()
    smaller.thumbnail((most, most))
    file = io.BytesIO()
    smaller.save(file, "PNG")
    return file.getvalue()


def from_png(content: bytes) -> "Image":
    return pillow("pictures").open(io.BytesIO(content)).convert("RGB")


def pillow(what: str) -> Any:
    """PIL.Image, which comes with diffusers, and does not with lineas."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"{what}: Pillow is missing, which lineas does not bring: pip install Pillow") from error
    return Image


def generators(seed: int, count: int) -> list[torch.Generator]:
    """Where the noise of so many prompts comes from in an evaluation: each has a generator of its own.

    Parameters
    ----------
    seed : int, at least 0
    count : int
        Prompts. The first generators do not depend on it.

    Returns
    -------
    list of torch.Generator
        On the CPU, so that every device begins with the same noise; not the noise that a fit with this seed has seen.

    Examples
    --------
    >>> from lineas import evaluation
    >>> def picture(pipe, prompts, row):  # as `lineas.evaluate` drew it with seed 0
    ...     return pipe(prompts[row], generator=evaluation.generators(0, len(prompts))[row]).images[0]
    """
    return noise_of_rows(fresh_seed(seed), range(count))
