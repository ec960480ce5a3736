"""Pictures that a report keeps, to look at."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .pictures import as_images, as_png, from_png

if TYPE_CHECKING:
    from PIL.Image import Image

MOST = 256  # pixels a side: they are for looking, and reports of large pictures shall be small
SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Drawn:
    """Pictures under one steering at one strength, with one seed, in one run; PNG files."""

    steering: str | None  # None is the base model
    strength: float
    seed: int
    prompts: tuple[str, ...]
    pictures: tuple[bytes, ...]
    run: int = 0

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.pictures) or not all(one.startswith(SIGNATURE) for one in self.pictures):
            raise ValueError(f"expected {len(self.prompts)} PNG files, one a prompt; got {len(self.pictures)} others")

    def images(self) -> "list[Image]":
        return [from_png(content) for content in self.pictures]


def files_of(pictures: NDArray[np.float32]) -> list[bytes]:
    """As a report keeps them."""
    return [as_png(image, MOST) for image in as_images(pictures)]
