"""Steering: the fitted maps; apply them, look at them, save and load them."""

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from . import files, sites
from . import merge as merging
from .attach import Handle, Map

__all__ = ["Handle", "Steering"]

SUPPORT = 1e-5  # a unit moved by less is left out of the support


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
        moved = (np.abs(self._weights - 1) > SUPPORT) | (np.abs(self._biases) > SUPPORT)
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

    def attach(self, model: nn.Module, strength: float = 1.0) -> "Handle":
        """Steer a model until the handle is removed.

        Parameters
        ----------
        model : nn.Module
            The network the maps were fitted on, or one of the same shape. Its weights are not touched: forward hooks
            map the sites' outputs out of place, on their device and in their dtype.
        strength : float
            0 is exactly the base model, 1 the fitted maps; between and beyond is linear.

        Raises
        ------
        LookupError
            The model lacks a site.
        ValueError
            A site has another number of units, with both in the message; a strength that is not finite.
        RuntimeError
            This steering is on this model already.
        """
        if isinstance(strength, bool) or not isinstance(strength, (int, float)):
            raise TypeError(f"strength: expected a number, got {type(strength).__name__}")
        if not math.isfinite(strength):
            raise ValueError(f"strength: expected a finite number, got {strength}")
        model = sites.unwrapped(model)
        found = sites.find_sites(model, self.sites)
        for site in found:
            if site.units is not None and site.units != self._sizes[site.name]:
                raise ValueError(
                    f"site {site.name!r}: the steering has weight ({self._sizes[site.name]},), the model's "
                    f"{site.kind} has ({site.units},) units; expected the model it was fitted on"
                )
            hooks = model.get_submodule(site.path)._forward_hooks.values()
            if any(isinstance(hook, sites.Hook) and getattr(hook.function, "steering", None) is self for hook in hooks):
                raise RuntimeError("this steering is already on this model; remove its handle first")
        return Handle(model, {site: Map(self, site.name, float(strength)) for site in found})

    @contextmanager
    def apply(self, model: nn.Module, strength: float = 1.0) -> Iterator["Handle"]:
        """Steer a model inside a `with` block; it is restored whatever happens inside. See `attach`."""
        with self.attach(model, strength) as handle:
            yield handle

    # -- merging --

    def merge_plan(self, model: nn.Module, strength: float = 1.0, *, probe: Any = None) -> "merging.MergePlan":
        """Say site by site how `merge` would fold the maps into weights. Changes nothing; runs the model once.

        Parameters are those of `merge`. Print the plan, or read its `sites`, `exact`, `refused` and `target`.
        """
        return merging.merge_plan(self, model, strength, probe=probe)

    def merge(
        self, model: nn.Module, strength: float = 1.0, *, inplace: bool = False, partial: bool = False,
        probe: Any = None, tolerance: float | None = None,
    ) -> nn.Module:  # fmt: skip
        """Fold the maps into the weights of a model, which then needs neither hooks nor lineas.

        Parameters
        ----------
        model : nn.Module
            Unless `inplace`, it is left as it is. Not steered at the moment, not sharded; not quantised at the sites.
        strength : float
            As for `attach`; it is fixed from then on.
        inplace : bool
            Change the model itself, and return it. Refused where only another class can hold the result.
        partial : bool
            Leave out the sites that no plain class can hold exactly, with a warning that has the measured error,
            instead of refusing.
        probe : tensor, tuple of arguments, or dict of keyword arguments
            A batch to check the result with. By default random tokens, or pixels, for models of transformers.
        tolerance : float
            Largest difference of an output from the steered model's, as a part of its largest entry. By default 1e-4 in
            float32, 1e-2 in float16, 5e-2 in bfloat16, where weights are rounded.

        Returns
        -------
        nn.Module
            Of the same class; or, where that has no place for a bias, of another that computes the same. Its attribute
            `lineas_merge` is a dict with the `error` measured, the `effect` of steering on the same scale, what became
            of each of the `sites`, and which were `left_out`.

        Raises
        ------
        ValueError
            A site cannot be merged exactly, with the reason; no probe, or one that the model does not take.
        RuntimeError
            The result is not within the tolerance (nothing is changed then); a steering is on the model.
        LookupError
            The model lacks a site.
        """
        return merging.merge(
            self, model, strength, inplace=inplace, partial=partial, probe=probe, tolerance=tolerance
        )  # fmt: skip

    def unmerge(
        self, model: nn.Module, strength: float = 1.0, *, inplace: bool = False, probe: Any = None,
        tolerance: float | None = None,
    ) -> nn.Module:  # fmt: skip
        """Undo `merge`, to rounding: a merged model becomes the one before, in the class that it has now.

        Parameters are those of `merge`, and must be those that it was called with. ValueError where a map has scale 0,
        with the units; RuntimeError where the result, steered, is not the given model.
        """
        return merging.unmerge(self, model, strength, inplace=inplace, probe=probe, tolerance=tolerance)

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
