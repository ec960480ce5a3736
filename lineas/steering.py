"""Steering: the fitted maps; apply them, look at them, save and load them."""

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from . import _reference, ops, sites
from .state import make_new_to_compilers

__all__ = ["Handle", "Steering"]

CONFIG, TENSORS = "steering_config.json", "steering.safetensors"
FORMAT = {"format": "lineas-steering", "version": 1}
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
        return Handle(model, {site: _Map(self, site.name, float(strength)) for site in found})

    @contextmanager
    def apply(self, model: nn.Module, strength: float = 1.0) -> Iterator["Handle"]:
        """Steer a model inside a `with` block; it is restored whatever happens inside. See `attach`."""
        with self.attach(model, strength) as handle:
            yield handle

    # -- keeping --

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write `steering_config.json` and `steering.safetensors` into a folder, which is made if need be."""
        from safetensors.numpy import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for name in self.sites:
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = self.weight(name).copy(), self.bias(name).copy()
        save_file(tensors, folder / TENSORS)
        config = {**FORMAT, "sites": self._sizes, "info": self.info, "history": self.history}
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in _plain(config).items())
        (folder / CONFIG).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

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
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            try:
                found = snapshot_download(str(folder_or_repo), revision=revision, allow_patterns=[CONFIG, TENSORS])
            except (OSError, ValueError) as error:
                raise FileNotFoundError(f"no folder {folder}, and nothing of that name on the hub: {error}") from error
            folder = Path(found)
        config, tensors = _read_config(folder / CONFIG), _read_tensors(folder / TENSORS)
        expected = {f"{name}.{part}": (size,) for name, size in config["sites"].items() for part in ("weight", "bias")}
        got = {key: value.shape for key, value in tensors.items()}
        if got != expected:
            odd = sorted(set(got.items()) ^ set(expected.items()))[:4]
            raise ValueError(f"{folder / TENSORS} disagrees with {CONFIG}, first at {odd}")
        maps = {name: (tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in config["sites"]}
        return cls(maps, history=_restored(config.get("history") or {}), info=config.get("info"))

    def push_to_hub(self, repo: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Upload to a repository of the Hugging Face hub, made if need be; returns the commit's address."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload a lineas steering"))


class _Map:
    """A site's map at one strength, on whatever device and in whatever dtype the activations come."""

    def __init__(self, steering: Steering, name: str, strength: float):
        self.steering, self.name = steering, name  # `attach` knows its own hooks by this
        scale = 1 + strength * (steering.weight(name).astype(np.float64) - 1)
        shift = strength * steering.bias(name).astype(np.float64)
        self.scale, self.shift = (torch.from_numpy(part.astype(np.float32)) for part in (scale, shift))
        self.by_device: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.support = ((self.scale != 1) | (self.shift != 0)).nonzero().flatten()
        self.sparse = self.support, self.scale[self.support], self.shift[self.support]

    def __call__(self, module: nn.Module, h: Tensor) -> Tensor:
        dim = sites.channel_dim(module, h)
        if h.shape[dim] != len(self.scale):
            raise ValueError(
                f"site {self.name!r}: the steering has weight ({len(self.scale)},), the model produced {tuple(h.shape)}"
            )
        if self._is_cheaper_sparse(h):
            return ops.affine_sparse_(h.clone(), *self.sparse, channel_dim=dim)
        if h.device not in self.by_device:
            self.by_device[h.device] = self.scale.to(h.device), self.shift.to(h.device)
        return _reference.affine(h, *self.by_device[h.device], dim)

    def _is_cheaper_sparse(self, h: Tensor) -> bool:
        """Few channels of many numbers, and no autograd to record it. The result is the same."""
        few = 4 * len(self.support) <= len(self.scale) and h.numel() >= ops.SMALL
        return few and not torch.is_grad_enabled() and h.is_contiguous() and ops.runs_in_c(h)


class Handle:
    """Steering that is on; `remove()` ends it, and so does leaving a `with` block."""

    def __init__(self, model: nn.Module, maps: Mapping[sites.Site, _Map]):
        self._open = sites.hooked(model, maps)
        self._open.__enter__()
        self._modules = [model.get_submodule(site.path) for site in maps]
        for module in self._modules:
            make_new_to_compilers(module, hooked=True)
        self.active = True

    def remove(self) -> None:
        """Take the hooks off; a second call does nothing."""
        if self.active:
            self.active = False
            self._open.__exit__(None, None, None)
            for module in self._modules:
                others = any(isinstance(hook, sites.Hook) for hook in module._forward_hooks.values())
                make_new_to_compilers(module, hooked=others)

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *exception) -> None:
        self.remove()


def _plain(value: Any) -> Any:
    """As JSON can hold it: infinity becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _restored(value: Any) -> Any:
    """A history as `_plain` was given it: the infinite losses of trials that overflowed are infinite again."""
    if isinstance(value, dict):
        return {key: _restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item) for item in value]
    return math.inf if value is None else value


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON; truncated or corrupted? {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT["format"]:
        raise ValueError(f"{path}: expected a {FORMAT['format']} file, got {str(config)[:60]}")
    if config.get("version") != FORMAT["version"]:
        raise ValueError(f"{path}: expected version {FORMAT['version']}, got {config.get('version')}; a newer lineas?")
    sizes = config.get("sites")
    if not isinstance(sizes, dict) or not sizes or not all(isinstance(n, int) and n > 0 for n in sizes.values()):
        raise ValueError(f"{path}: expected sites with their units, got {str(sizes)[:60]}")
    return config


def _read_tensors(path: Path) -> dict[str, NDArray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise FileNotFoundError(f"no {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or corrupted: {error}") from error
