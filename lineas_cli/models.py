"""Models, tokenizers and pipelines: a folder, a GGUF file, or a name on the hub."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

from .running import Settings, note


def load(model: str, *, model_class: str, revision: str | None, dtype: str, device: str | None) -> tuple[Any, Any]:
    """A model and its tokenizer, None where it has none, as `from_pretrained` loads them."""
    import torch

    transformers = _transformers()
    kind, numbers = _class(transformers, model_class), numbers_of(dtype)
    where, options = _place(model, revision)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    spread: dict[str, Any] = {"device_map": "auto"} if device == "auto" else {}
    if device == "disk":
        if "gguf_file" in options:
            raise typer.BadParameter("--device disk: expected a folder with safetensors, got a GGUF file")
        outlined = outline(model, model_class=model_class, revision=revision)
        spread = {"device_map": _on_disk(outlined), "offload_folder": _scratch()}
    key = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    note(f"loading {model}")
    try:
        network = kind.from_pretrained(where, **{key: numbers}, **options, **spread)
    except (OSError, ValueError) as error:
        raise OSError(f"cannot load {model}: {error}") from error
    if not spread:
        network = network.to(device)
    where_it_is = "disk" if device == "disk" else network.device
    note(f"{type(network).__name__} in {str(network.dtype).removeprefix('torch.')} on {where_it_is}")
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


def _on_disk(outlined: Any) -> dict[str, str]:
    """Where each module's weights stay: on the disk, but the embeddings, so that there is a device to run on."""
    ends = [end for end in (outlined.get_input_embeddings(), outlined.get_output_embeddings()) if end is not None]
    held = ends if getattr(outlined.config, "tie_word_embeddings", False) else ends[:1]
    return {
        path: "cpu" if module in held or not module._parameters else "disk"
        for path, module in outlined.named_modules()
        if module._parameters or module._buffers
    }


def _scratch() -> str:
    """A folder for what is not in safetensors, until this process ends."""
    folder = tempfile.mkdtemp(prefix="lineas-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def load_pipeline(model: str, *, revision: str | None, dtype: str, device: str | None) -> Any:
    """A pipeline as diffusers loads it, in float32 unless told."""
    import torch

    diffusers, (where, options) = _diffusers(), _place(model, revision)
    if device in ("auto", "disk"):
        raise typer.BadParameter(f"--device {device}: not for a pipeline; expected one device")
    key = "dtype" if tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 42) else "torch_dtype"
    numbers = {} if dtype == "auto" else {key: numbers_of(dtype)}
    note(f"loading {model}")
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(where, **numbers, **options)
    except (OSError, ValueError) as error:
        raise OSError(f"cannot load {model}: {error}") from error
    pipe = pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pipe.set_progress_bar_config(disable=True)
    note(f"{type(pipe).__name__} in {str(pipe.dtype).removeprefix('torch.')} on {pipe.device}")
    return pipe


class Outline:
    """Stands for a pipeline of which only one network is there."""

    def __init__(self, name: str, network: Any):
        setattr(self, name, network)

    def __call__(self) -> None:
        raise NotImplementedError


def outline_of_pipeline(model: str, *, component: str | None, revision: str | None) -> Any:
    """What `lineas.find_sites` takes for a pipeline's network, without weights: only configs are read."""
    from lineas.core.text import nearest
    from lineas.network.pipelines.components import DENOISERS

    diffusers, (where, options) = _diffusers(), _place(model, revision)
    del options["trust_remote_code"]
    try:
        index = diffusers.DiffusionPipeline.load_config(where, **options)
        known = {name: part for name, part in index.items() if isinstance(part, (list, tuple)) and all(part)}
        name = component or next((one for one in DENOISERS if one in known), "")
        if name not in known:
            raise ValueError(f"no network {name or ' or '.join(DENOISERS)} in it; {nearest(name, known)}")
        library, kind = known[name]
        network = _network_outline(library, kind, where, name, options)
    except (OSError, ValueError) as error:
        raise OSError(f"cannot load {model}: {error}") from error
    return Outline(name, network) if name in DENOISERS else network


def _network_outline(library: str, name: str, where: str, component: str, options: dict[str, Any]) -> Any:
    import diffusers
    import torch

    kind: Any = getattr({"diffusers": diffusers, "transformers": _transformers()}.get(library), str(name), None)
    is_network: bool = isinstance(kind, type) and issubclass(kind, torch.nn.Module)
    if not is_network:
        raise ValueError(f"component: expected a network of diffusers or transformers, got {name} of {library}")
    with torch.device("meta"):
        if library == "diffusers":
            return kind.from_config(kind.load_config(where, subfolder=component, **options))
        return kind._from_config(kind.config_class.from_pretrained(where, subfolder=component, **options))


def _diffusers() -> ModuleType:
    try:
        import diffusers
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "pipelines need diffusers; install it with: pip install 'lineas[cli,diffusers]'"
        ) from None
    diffusers.utils.logging.set_verbosity_error()
    if not Settings.progress:
        diffusers.utils.logging.disable_progress_bar()
    _transformers()
    return diffusers


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


def numbers_of(name: str) -> Any:
    import torch

    dtype = "auto" if name == "auto" else getattr(torch, name, None)
    if dtype != "auto" and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise typer.BadParameter(f"--dtype: expected auto, or a float dtype such as bfloat16, got {name!r}")
    return dtype
