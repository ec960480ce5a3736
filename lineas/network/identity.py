"""What tells a model, and data, from others: names and digests."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import adapters_of, effective_weights
from .batch import Batch
from .links import core
from .pipelines.components import NETWORKS
from .sharding import is_spread, kind_of, own_numbers, reshard
from .state import dtype_of

PIPELINE_INDEX = "model_index.json"  # which diffusers puts beside the folders of a pipeline's parts


Share = Callable[[Any], list[Any]]  # a value -> every process's value


def of_model(model: nn.Module, share: Share | None = None) -> dict[str, Any]:
    """What a steering's `info` keeps of a model; `model` is its name, or its class where it has none."""
    config, kind, adapters = getattr(model, "config", None), kind_of(core(model)).__name__, adapters_of(model)
    return {
        "model": name_of(model) or kind,
        "model_class": kind,
        "revision": getattr(config, "_commit_hash", None),
        "weights": weights_digest(model, share),
        "dtype": str(dtype_of(model)).removeprefix("torch."),
        **({"adapters": adapters} if adapters else {}),
    }


def of_data(shares: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What `info` keeps of the data: a digest of each set, of all processes' shares where there are several."""
    sides = zip(("src", "tgt"), zip(*shares, strict=True), strict=True)
    return {name: parts[0] if len(parts) == 1 else _hash("".join(parts).encode()) for name, parts in sides}


def _hash(text: bytes) -> str:
    return blake2b(text, digest_size=16).hexdigest()


def name_of(model: nn.Module) -> str:
    """What a model was loaded by, as on the hub, or the last part of a folder's path; empty for one made in memory.

    Of a network that was loaded as part of a pipeline it is the pipeline's name: that of its own folder, "unet" for
    instance, tells it from no other. `folder_in_pipeline` has that.
    """
    name = _loaded_by(model)
    if not name:
        return ""
    parts = Path(name).parts
    cached = next((part for part in parts if part.startswith("models--")), "")
    if cached:  # a folder of the hub's own cache
        return cached.removeprefix("models--").replace("--", "/")
    if folder_in_pipeline(model):
        return Path(os.path.abspath(name)).parent.name
    is_folder = len(parts) > 2 or Path(name).is_absolute() or name.startswith(".") or Path(name).is_dir()
    return Path(os.path.abspath(name)).name if is_folder else name  # where it lies is nobody's business


def folder_in_pipeline(model: nn.Module) -> str:
    """The name of the folder in a pipeline's that a network was loaded from; empty where it was loaded by itself.

    A pipeline's folder has an index. Where it lies there no more, what its networks are usually called must do.
    """
    name = _loaded_by(model)
    if not name:
        return ""
    path, is_path = Path(os.path.abspath(name)), Path(name).is_absolute() or len(Path(name).parts) > 2
    if (path.parent / PIPELINE_INDEX).is_file() and path.is_dir():
        return path.name
    return path.name if is_path and path.name in NETWORKS and not path.is_dir() else ""


def _loaded_by(model: nn.Module) -> str:
    name = getattr(model, "name_or_path", "") or getattr(getattr(model, "config", None), "_name_or_path", "")
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    return name if isinstance(name, str) else ""


# -- digests --


class Digest:
    """Of tensors that come one after another."""

    def __init__(self) -> None:
        self._total = blake2b(digest_size=16)

    def update(self, tensors: Iterable[Tensor]) -> "Digest":
        for tensor in tensors:
            self._total.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            self._total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return self

    def text(self) -> str:
        return self._total.hexdigest()


def digest(tensors: Iterable[Tensor]) -> str:
    return Digest().update(tensors).text()


def data_digest(batches: Iterable[Batch]) -> str:
    """Of all tensors that go into the model, batch by batch; of batches that know theirs, nothing is read for it."""
    if known := getattr(batches, "digest", ""):
        return known
    return digest(tensor for batch in batches for tensor in batch.tensors())


def weights_digest(model: nn.Module, share: Share | None = None) -> str | None:
    """Of a few numbers of every weight, those of adapters added in: enough to tell models apart.

    Of weights that are spread over processes it is that of the whole ones, with `share`, which all then must call;
    None where it cannot be told.
    """
    reshard(model)
    if share is None or not any(map(is_spread, model.parameters())):
        return digest(_few(effective_weights(model)))  # one after another: with adapters in, each is new
    weights = list(effective_weights(model))
    own = [own_numbers(weight, _step(weight)) if is_spread(weight) else None for weight in weights]
    everyone = share(own)
    if any(is_spread(weight) and part is None for weight, part in zip(weights, own, strict=True)):
        return None
    few: list[Tensor] = []
    for weight, *parts in zip(weights, *everyone, strict=True):
        few.extend([_joined(weight, parts)] if is_spread(weight) else _few([weight]))
    return digest(few)


def _joined(weight: Tensor, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The few numbers of one weight, from what each process has of them."""
    few = torch.zeros(len(range(0, weight.numel(), _step(weight))), dtype=weight.dtype)
    for places, values in parts:
        few[places] = values
    return few


def has_digest(model: nn.Module, known: str, dtypes: Iterable[torch.dtype]) -> bool:
    """Whether the model's weights have this digest, as they are or as other dtypes have them.

    Adapters may also count as they lie, beside the weights: so they were in the first files.
    """
    kinds = [effective_weights(model)] + [iter(model.parameters())] * bool(adapters_of(model))
    for few in map(list, map(_few, kinds)):
        if digest(few) == known:
            return True
        for dtype in dtypes:
            if digest(part.to(dtype) if part.is_floating_point() else part for part in few) == known:
                return True
    return False


def _few(weights: Iterable[Tensor]) -> Iterator[Tensor]:
    held = (weight.detach() for weight in weights if not weight.is_meta)
    plain = (weight for weight in held if type(weight) is Tensor)  # what packs its numbers cannot be sampled
    # A copy: memory that NumPy has seen cannot be given back, as fully_shard does with what it gathered.
    return (weight.reshape(-1)[:: _step(weight)].clone() for weight in plain)


def _step(weight: Tensor) -> int:
    return max(1, weight.numel() // 16)


def has_whole_weights(model: nn.Module) -> bool:
    """Whether all of them are here and say their numbers: none offloaded, none packed."""
    return all(not weight.is_meta and type(weight.detach()) is Tensor for weight in model.parameters())
