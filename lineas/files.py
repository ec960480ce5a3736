"""The files of a steering: a folder with a config in JSON and its maps as safetensors."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

CONFIG, TENSORS = "steering_config.json", "steering.safetensors"
FORMAT = {"format": "lineas-steering", "version": 1}


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, NDArray]) -> None:
    """Both files, into a folder that is made if need be."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / TENSORS)
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in _plain({**FORMAT, **config}).items())
    (folder / CONFIG).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def read(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """What `write` was given; FileNotFoundError, or ValueError where a file is not as it was written."""
    config, tensors = _read_config(folder / CONFIG), _read_tensors(folder / TENSORS)
    expected = {f"{name}.{part}": (size,) for name, size in config["sites"].items() for part in ("weight", "bias")}
    got = {key: value.shape for key, value in tensors.items()}
    if got != expected:
        odd = sorted(set(got.items()) ^ set(expected.items()))[:4]
        raise ValueError(f"{folder / TENSORS} disagrees with {CONFIG}, first at {odd}")
    return config | {"history": _restored(config.get("history") or {})}, tensors


def from_hub(repo: str, revision: str | None) -> Path:
    """The folder to which a repository of the Hugging Face hub was downloaded."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[CONFIG, TENSORS]))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"no folder {repo}, and nothing of that name on the hub: {error}") from error


def to_hub(folder: str, repo: str, private: bool | None, token: str | None) -> str:
    """Upload a folder to a repository, which is made if need be; returns the commit's address."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload a lineas steering"))


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
