"""Models and tokenizers: a folder, a GGUF file, or a name on the hub."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

from .running import Settings, note


def load(model: str, *, model_class: str, revision: str | None, dtype: str, device: str | None) -> tuple[Any, Any]:
    """A model and its tokenizer, None where it has none, as `from_pretrained` loads them."""
    import torch

    transformers = _transformers()
    kind, numbers = _class(transformers, model_class), _dtype(dtype)
    where, options = _place(model, revision)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    spread = {"device_map": "auto"} if device == "auto" else {}
    key = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    note(f"loading {model}")
    try:
        network = kind.from_pretrained(where, **{key: numbers}, **options, **spread)
    except (OSError, ValueError) as error:
        raise OSError(f"cannot load {model}: {error}") from error
    if not spread:
        network = network.to(device)
    note(f"{type(network).__name__} in {str(network.dtype).removeprefix('torch.')} on {network.device}")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
    except (OSError, ValueError, KeyError) as error:
        note(f"{model} has no tokenizer: {error}")
        tokenizer = None
    return network.eval(), tokenizer


def outline(model: str, *, model_class: str, revision: str | None) -> Any:
    """The modules of a model without its weights, of which only the config is read."""
    import torch

    transformers = _transformers()
    kind = _class(transformers, model_class)
    where, options = _place(model, revision)
    try:
        config = transformers.AutoConfig.from_pretrained(where, **options)
    except (OSError, ValueError) as error:
        raise OSError(f"cannot load {model}: {error}") from error
    make = getattr(kind, "from_config", None) or kind._from_config  # of the Auto classes, or of a model's own class
    with torch.device("meta"):
        return make(config)


def _transformers() -> ModuleType:
    try:
        import transformers
    except ModuleNotFoundError:
        raise ModuleNotFoundError("models need transformers; install it with: pip install 'lineas[cli]'") from None
    transformers.utils.logging.set_verbosity_error()
    if not Settings.progress:
        transformers.utils.logging.disable_progress_bar()
    return transformers


def _place(model: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes first, and with it."""
    path = Path(model)
    options: dict[str, Any] = {"trust_remote_code": False}  # else transformers asks whoever sits at the terminal
    if revision is not None:
        options["revision"] = revision
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"no model file {model}")
        return str(path.parent), {**options, "gguf_file": path.name}
    is_path = path.is_absolute() or model.startswith(".") or len(path.parts) > 2 or model.endswith(("/", os.sep))
    if is_path and not path.is_dir():  # else it would be looked up as a name
        raise FileNotFoundError(f"no model folder {model}")
    return model, options


def _class(transformers: ModuleType, name: str) -> Any:
    kind = getattr(transformers, name, None)
    if not hasattr(kind, "from_pretrained"):
        raise typer.BadParameter(f"--model-class: expected a model class of transformers, got {name!r}")
    return kind


def _dtype(name: str) -> Any:
    import torch

    dtype = "auto" if name == "auto" else getattr(torch, name, None)
    if dtype != "auto" and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise typer.BadParameter(f"--dtype: expected auto, or a float dtype such as bfloat16, got {name!r}")
    return dtype
