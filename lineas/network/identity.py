"""What tells a model, and data, from others: names and digests."""

import os
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .data import Batch
from .state import dtype_of


def of_model(model: nn.Module) -> dict[str, Any]:
    """What a steering's `info` keeps of a model; `model` is its name, or its class where it has none."""
    config, kind = getattr(model, "config", None), type(model).__name__
    return {
        "model": name_of(model) or kind,
        "model_class": kind,
        "revision": getattr(config, "_commit_hash", None),
        "weights": weights_digest(model),
        "dtype": str(dtype_of(model)).removeprefix("torch."),
    }


def of_data(shares: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What `info` keeps of the data: a digest of each set, of all processes' shares where there are several."""
    sides = zip(("src", "tgt"), zip(*shares, strict=True), strict=True)
    return {name: parts[0] if len(parts) == 1 else _hash("".join(parts).encode()) for name, parts in sides}


def _hash(text: bytes) -> str:
    return blake2b(text, digest_size=16).hexdigest()


def name_of(model: nn.Module) -> str:
    """What a model was loaded by, as on the hub, or the last part of a folder's path; empty for one made in memory."""
    name = getattr(model, "name_or_path", "") or getattr(getattr(model, "config", None), "_name_or_path", "") or ""
    if not isinstance(name, str) or not name:
        return ""
    parts = Path(name).parts
    cached = next((part for part in parts if part.startswith("models--")), "")
    if cached:  # a folder of the hub's own cache
        return cached.removeprefix("models--").replace("--", "/")
    is_folder = len(parts) > 2 or Path(name).is_absolute() or name.startswith(".") or Path(name).is_dir()
    return Path(os.path.abspath(name)).name if is_folder else name  # where it lies is nobody's business


# -- digests --


def digest(tensors: Iterable[Tensor]) -> str:
    total = blake2b(digest_size=16)
    for tensor in tensors:
        total.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def data_digest(batches: Iterable[Batch]) -> str:
    """Of all tensors that go into the model, batch by batch."""
    values = (value for batch in batches for value in (*batch.args, *batch.kwargs.values()))
    return digest(value for value in values if isinstance(value, Tensor))


def weights_digest(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """Of a few numbers of every weight, as they are or as another dtype has them: enough to tell models apart."""
    held = [weight.detach() for weight in model.parameters() if not weight.is_meta]
    plain = (weight for weight in held if type(weight) is Tensor)  # what packs its numbers cannot be sampled
    few = (weight.reshape(-1)[:: max(1, weight.numel() // 16)] for weight in plain)
    return digest(part.to(dtype) if dtype and part.is_floating_point() else part for part in few)


def has_whole_weights(model: nn.Module) -> bool:
    """Whether all of them are here and say their numbers: none offloaded, none packed."""
    return all(not weight.is_meta and type(weight.detach()) is Tensor for weight in model.parameters())
