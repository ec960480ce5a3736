"""Steering: the fitted maps; apply them, look at them, save and load them."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from . import files, sites
from .attach import Handle, attach
from .positions import Position

__all__ = ["Handle", "Steering"]

SUPPORT = 1e-5  # a unit moved by less is left out of the support


def is_moved(weight: NDArray, bias: NDArray) -> NDArray[np.bool_]:
    """Which units are in the support."""
    return (np.abs(weight - 1) > SUPPORT) | (np.abs(bias) > SUPPORT)


class Steering:
    """One affine map per unit at several sites of a network.

    Parameters
    ----------
    maps : dict of site name -> (weight (d,), bias (d,))
        Kept in float32; identity is weight 1, bias 0.
    history : dict of lists, optional
        What `lineas.fit` recorded, one entry an evaluation.
    info : dict, optional
        Where the maps come from: model, data sizes, recipe, penalty, seed.

    Notes
    -----
    At strength s a unit's activation z becomes s * (weight z + bias) + (1 - s) * z: 0 is exactly the base model.
    All weights lie side by side in one array, all biases in another; `weight` and `bias` are views of them.
    """

    def __init__(
        self, maps: Mapping[str, tuple[ArrayLike, ArrayLike]], *, history: dict[str, list] | None = None,
        info: dict[str, Any] | None = None,
    ):  # fmt: skip
        names = list(maps)
        weights, biases = zip(*maps.values(), strict=True) if names else ((), ())
        parts = [np.asarray(part, np.float32) for part in (*weights, *biases)]
        for name, weight, bias in zip(names, parts, parts[len(names) :], strict=False):
            if weight.ndim != 1 or weight.shape != bias.shape or not len(weight):
                raise ValueError(f"{name}: expected weight (d,) and bias (d,), got {weight.shape} and {bias.shape}")
        if not names:
            raise ValueError("expected maps for at least one site, got none")
        self._setup(names, [len(part) for part in parts[: len(names)]], np.concatenate(parts), history, info)

    @classmethod
    def _from_flat(cls, names, sizes, x, *, history=None, info=None) -> "Steering":
        """From the optimiser's vector [weights, biases], shared, not copied."""
        self = object.__new__(cls)
        self._setup(list(names), list(sizes), x, history, info)
        return self

    def _setup(self, names, sizes, x, history, info) -> None:
        if not np.isfinite(x).all():
            raise ValueError("expected finite maps, got a NaN or infinity")
        self._sizes = dict(zip(names, sizes, strict=True))
        ends = np.cumsum(sizes)
        self._slices = {
            name: slice(int(end - size), int(end)) for name, size, end in zip(names, sizes, ends, strict=True)
        }
        self._weights, self._biases = np.split(x, 2)
        self.history: dict[str, list] = history or {}
        self.info: dict[str, Any] = info or {}

    # -- looking --

    @property
    def sites(self) -> list[str]:
        """Names of the sites, in the order in which the forward pass reaches them."""
        return list(self._sizes)

    def weight(self, site: str) -> NDArray[np.float32]:
        """(d,), a view; 1 is no change. LookupError for a site without a map."""
        return self._weights[self._slice(site)]

    def bias(self, site: str) -> NDArray[np.float32]:
        """(d,), a view; 0 is no change. LookupError for a site without a map."""
        return self._biases[self._slice(site)]

    def _slice(self, site: str) -> slice:
        if site not in self._slices:
            raise LookupError(f"no map for site {site!r}; {sites.nearest(site, self.sites)}")
        return self._slices[site]

    def support(self) -> dict[str, NDArray[np.int64]]:
        """The units that the maps change, by site: abs(weight - 1) or abs(bias) above 1e-5."""
        moved = is_moved(self._weights, self._biases)
        return {name: np.flatnonzero(moved[where]) for name, where in self._slices.items()}

    def __repr__(self) -> str:
        units, moved = len(self._weights), sum(map(len, self.support().values()))
        count = len(self._sizes)
        return f"Steering({count} site{'s' * (count > 1)}, {units} units, support {moved} ({moved / units:.1%}))"

    def summary(self) -> str:
        """A table, a line a site: units, support, mean stretch and shift, and the site's loss before and after."""
        losses = self._site_losses()
        width = max(map(len, [*self._sizes, "site"]))
        lines = [
            f"{'site':{width}} {'units':>6} {'support':>8} {'|w - 1|':>8} {'|b|':>8} {'loss: first':>12} {'last':>9}"
        ]
        for name, units in self.support().items():
            first, last = losses.get(name, ("", ""))
            stretch, shift = np.abs(self.weight(name) - 1).mean(), np.abs(self.bias(name)).mean()
            lines.append(
                f"{name:{width}} {self._sizes[name]:6} {len(units):8} {stretch:8.4f} {shift:8.4f} {first:>12} {last:>9}"
            )
        if "evaluations" in self.info:
            lines.append(
                "{recipe} recipe, {evaluations} evaluations in {seconds} s; stopped: {stopped}".format(**self.info)
            )
        return "\n".join([repr(self), *lines])

    def _site_losses(self) -> dict[str, tuple[str, str]]:
        accepted = [
            row for row, kept in zip(*map(self.history.get, ("site_loss", "accepted"), ([], [])), strict=True) if kept
        ]
        if not accepted:
            return {}
        pairs = zip(accepted[0], accepted[-1], strict=True)
        return {n: (f"{a:.4g}", f"{b:.4g}") for n, (a, b) in zip(self.info.get("loss_sites", ()), pairs, strict=False)}

    # -- applying --

    def attach(
        self, model: nn.Module, strength: float | Sequence[float] | Tensor = 1.0, *, position: Position = "all",
        count: bool | None = None,
    ) -> "Handle":  # fmt: skip
        """Steer a model until the handle is removed.

        Parameters
        ----------
        model : nn.Module
            The network the maps were fitted on, or one of the same shape. Its weights are not touched: forward hooks
            map the sites' outputs out of place, on their device and in their dtype.
        strength : float, or list or tensor (batch,)
            0 is exactly the base model, 1 the fitted maps; between and beyond is linear. One number, or one for each
            row of the batch.
        position : {"all", "last", "prompt", "generated"} or callable
            Which tokens are steered. `lineas.attach`, which takes several steerings at once, says more.
        count : bool, optional
            Count tokens for `handle.coverage()`. Unless told, all positions but "all" do.

        Raises
        ------
        LookupError
            The model lacks a site.
        ValueError
            A site has another number of units, with both in the message; a strength that is not finite; not as many
            strengths as rows; a position at a site without tokens.
        RuntimeError
            This steering is on this model already.
        """
        return attach(model, [self], 0, strength, position=position, count=count)

    @contextmanager
    def apply(
        self, model: nn.Module, strength: float | Sequence[float] | Tensor = 1.0, *, position: Position = "all",
        count: bool | None = None,
    ) -> Iterator["Handle"]:  # fmt: skip
        """Steer a model inside a `with` block; it is restored whatever happens inside. See `attach`."""
        with self.attach(model, strength, position=position, count=count) as handle:
            yield handle

    # -- keeping --

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write `steering_config.json` and `steering.safetensors` into a folder, which is made if need be."""
        tensors = {}
        for name in self.sites:
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = self.weight(name).copy(), self.bias(name).copy()
        config = {"sites": self._sizes, "info": self.info, "history": self.history}
        files.write(Path(folder), config, tensors)

    @classmethod
    def from_pretrained(cls, folder_or_repo: str | os.PathLike, *, revision: str | None = None) -> "Steering":
        """Read what `save_pretrained` wrote, from a folder or from a repository of the Hugging Face hub.

        Raises
        ------
        FileNotFoundError
            The folder lacks one of the two files.
        ValueError
            A file is truncated, corrupted, of another format or version, or disagrees with the other.
        """
        folder = Path(folder_or_repo)
        config, tensors = files.read(folder if folder.is_dir() else files.from_hub(str(folder_or_repo), revision))
        maps = {name: (tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in config["sites"]}
        return cls(maps, history=config["history"], info=config.get("info"))

    def push_to_hub(self, repo: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Upload to a repository of the Hugging Face hub, made if need be; returns the commit's address."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return files.to_hub(folder, repo, private, token)
