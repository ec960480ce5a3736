"""The judge of the image model in examples/image_model: a small network that says what is in a picture of 64 x 64."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import silu

from ..core.text import nearest
from .picture_scorers import PictureScorer

SIZE = 64
GROUPS = 8
KINDS = {"extra": "extras", "style": "styles", "subject": "subjects", "ground": "colours"}  # heads, and lists of names
UNSEEN = ("glasses", "rain")  # extras that it hardly knows


class JudgeNetwork(nn.Module):
    """Logits of each head, by its name, for pictures (n, 3, height, width)."""

    def __init__(self, widths: Sequence[int], heads: dict[str, int]):
        super().__init__()
        pairs = list(zip((widths[0], *widths), widths, strict=False))
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(before, width, 3, stride=2, padding=1) for before, width in pairs)
        self.more = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for width in widths)
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, width) for width in widths)
        self.norms2 = nn.ModuleList(nn.GroupNorm(GROUPS, width) for width in widths)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * widths[-1] + 6, size) for name, size in heads.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        x = self.stem(2 * pictures - 1)
        for down, norm, more, norm2 in zip(self.down, self.norms, self.more, self.norms2, strict=True):
            x = silu(norm(down(x)))
            x = x + silu(norm2(more(x)))
        pixels = (-2, -1)
        seen = (x.mean(pixels), x.amax(pixels), pictures.mean(pixels), pictures.std(pixels))
        features = torch.cat(seen, dim=1)
        return {name: head(features) for name, head in self.heads.items()}


class Judge:
    """What is in a picture, by a network; its methods are scorers for `lineas.evaluate`.

    Attributes
    ----------
    extras, styles, subjects, colours : list of str
        The names that it knows. Of the extras it hardly sees glasses and rain.
    """

    def __init__(self, network: nn.Module, names: dict[str, list[str]]):
        self.network = network.eval().requires_grad_(False)
        self.names = {head: list(names[head]) for head in KINDS}

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "Judge":
        """From a file such as examples/image_model/judge.safetensors.

        Raises
        ------
        OSError
            There is no such file.
        ValueError
            It is something else.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"judge: expected a file, got {os.fspath(path)!r}")
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 -- no dict
                names = {head: json.loads((file.metadata() or {})[kind]) for head, kind in KINDS.items()}
            widths = [
                len(tensors[f"down.{k}.bias"]) for k in range(sum(name.startswith("down.") for name in tensors) // 2)
            ]
            heads = {name.split(".")[1]: len(value) for name, value in tensors.items() if name.startswith("heads.")}
            network = JudgeNetwork(widths, heads)
            network.load_state_dict(tensors)
        except (SafetensorError, LookupError, ValueError, RuntimeError) as error:
            raise ValueError(f"expected a judge's file, got something else: {os.fspath(path)!r}: {error!r}") from error
        return cls(network, names)

    @property
    def extras(self) -> list[str]:
        return self.names["extra"]

    @property
    def styles(self) -> list[str]:
        return self.names["style"]

    @property
    def subjects(self) -> list[str]:
        return self.names["subject"]

    @property
    def colours(self) -> list[str]:
        return self.names["ground"]

    # -- scorers --

    def presence(self, concept: str) -> PictureScorer:
        """1 for a picture with this extra, of this style, with this subject, or on this background; else 0."""
        head = next((head for head, names in self.names.items() if concept in names), None)
        if head is None:
            every = [name for names in self.names.values() for name in names]
            raise LookupError(f"the judge does not know {concept!r}; {nearest(concept, every)}")
        k = self.names[head].index(concept)
        if head == "extra":
            return self._scorer(concept, lambda logits, _: logits["extra"][:, k] > 0, better="")
        return self._scorer(concept, lambda logits, _: logits[head].argmax(1) == k, better="")

    def subject(self, names: Sequence[str]) -> PictureScorer:
        """1 for a picture whose subject is the one that its prompt names, else 0.

        Parameters
        ----------
        names : list of str, one for each prompt
        """
        return self._right("subject", "subject", names)

    def background(self, names: Sequence[str]) -> PictureScorer:
        """1 for a picture whose background has the colour that its prompt names, else 0."""
        return self._right("background", "ground", names)

    def style(self, names: Sequence[str]) -> PictureScorer:
        """1 for a picture of the style that its prompt names, else 0; "plain" is one."""
        return self._right("style", "style", names)

    def other_extras(self, apart_from: Sequence[str] = ()) -> PictureScorer:
        """How many extras are in a picture that nobody asked for: of all but these, glasses and rain."""
        self._check("extra", apart_from)
        kept = [k for k, name in enumerate(self.extras) if name not in (*apart_from, *UNSEEN)]
        return self._scorer("other_extras", lambda logits, _: (logits["extra"][:, kept] > 0).sum(1), better="lower")

    def _right(self, name: str, head: str, names: Sequence[str]) -> PictureScorer:
        right = torch.tensor([self.names[head].index(one) for one in self._check(head, names)])
        return self._scorer(name, lambda logits, rows: logits[head].argmax(1) == right[rows], prompts=len(names))

    def _check(self, head: str, names: Sequence[str]) -> Sequence[str]:
        if isinstance(names, str):
            raise TypeError(f"names: expected a list of them, got one string, {names!r}")
        if unknown := [name for name in names if name not in self.names[head]]:
            near = nearest(unknown[0], self.names[head])
            raise LookupError(f"the judge knows no {KINDS[head]} called {unknown[0]!r}; {near}")
        return names

    def _scorer(
        self, name: str, verdict: Callable[[dict[str, Tensor], list[int]], Tensor], better: str = "higher",
        prompts: int | None = None,
    ) -> PictureScorer:  # fmt: skip
        def score(pictures: ArrayLike, rows: list[int]) -> ArrayLike:
            return verdict(self._logits(pictures), rows).float().numpy()

        return PictureScorer(name, score, better, takes=("pictures", "rows"), prompts=prompts)

    def _logits(self, pictures: ArrayLike) -> dict[str, Tensor]:
        values = torch.as_tensor(pictures, dtype=torch.float32, device="cpu").movedim(-1, 1)
        if values.shape[2:] != (SIZE, SIZE):
            raise ValueError(f"judge: expected pictures of {SIZE} x {SIZE}, got {values.shape[2]} x {values.shape[3]}")
        with torch.no_grad():
            return self.network(values)
