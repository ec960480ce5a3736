"""Small models and data for all tests. Nothing is downloaded: models are built from a config with random weights."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).parent.parent


def count_hooks(model: torch.nn.Module) -> int:
    return sum(
        len(getattr(module, name))
        for module in model.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )


def snapshot(model: torch.nn.Module) -> dict:
    """Everything a call must leave as it was."""
    return {
        "hooks": count_hooks(model),
        "modes": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grad": [parameter.grad is None for parameter in model.parameters()],
        "weights": [tensor.clone() for tensor in model.state_dict().values()],
        "random": torch.get_rng_state(),
    }


def assert_untouched(model: torch.nn.Module, before: dict) -> None:
    after = snapshot(model)
    for key in ("hooks", "modes", "requires_grad", "grad"):
        assert after[key] == before[key], key
    assert all(torch.equal(a, b) for a, b in zip(after["weights"], before["weights"], strict=True))
    assert torch.equal(after["random"], before["random"]), "the global random state moved"


class WordTokenizer:
    """The few calls of a Hugging Face tokenizer that lineas needs: a word is a token. It has no pad token."""

    pad_token_id = None
    eos_token_id = 1

    def __init__(self, vocabulary: int = 64):
        self.vocabulary = vocabulary

    def __call__(self, text, truncation=False, max_length=None):
        ids = [2 + sum(map(ord, word)) % (self.vocabulary - 2) for word in text.split()]
        return {"input_ids": ids[:max_length] if truncation else ids}

    def apply_chat_template(self, chat, tokenize=True, return_dict=True, **options):
        assert tokenize
        assert return_dict
        return self(" ".join(f"{turn['role']}: {turn['content']}" for turn in chat), **options)


@pytest.fixture
def tokenizer():
    return WordTokenizer()


def tiny(kind: str):
    """A random model of a Hugging Face architecture, small enough to run in a millisecond."""
    import transformers as hf

    common = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    llama = {**common, "intermediate_size": 24, "num_key_value_heads": 1, "max_position_embeddings": 64, "head_dim": 8}
    configs = {
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**llama)),
        "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**llama)),
        "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**llama, query_pre_attn_scalar=8)),
        "gpt2": lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=64, n_embd=16, n_layer=3, n_head=2, n_positions=64)
        ),
        "bert": lambda: hf.BertModel(hf.BertConfig(**common, intermediate_size=24, max_position_embeddings=64)),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = configs[kind]()
        with torch.no_grad():  # random scales and stronger weights, so that sites differ and text matters
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def random_maps(model, seed=0, size=0.1):
    from lineas import Steering, find_sites

    draw = np.random.default_rng(seed)
    return Steering(
        {
            site.name: (1 + size * draw.normal(size=site.units), size * draw.normal(size=site.units))
            for site in find_sites(model)
        }
    )


@pytest.fixture
def model():
    return tiny("llama")


@pytest.fixture
def steering(model):
    return random_maps(model, size=0.3)


LANGUAGE_MODELS = ("llama", "qwen2", "gemma2", "gpt2")
NEGATIVE = [f"{a} is a {b} and dull film" for a in ("this", "that", "it") for b in ("bad", "sad", "poor", "weak")]
POSITIVE = [
    f"what {b} joy {a} gave us all today" for a in ("she", "he") for b in ("great", "true", "pure", "much", "rare")
]


@pytest.fixture
def llama():
    return tiny("llama")


@pytest.fixture
def texts():
    """12 and 10 texts of different lengths: unequal sets, padding on the right."""
    return NEGATIVE, [text + " indeed" * (k % 3) for k, text in enumerate(POSITIVE)]


class Mlp(torch.nn.Module):
    """2-D outputs, and dropout that only evaluation mode turns off."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second, self.third = (torch.nn.Linear(a, b) for a, b in ((4, 9), (9, 8), (8, 3)))
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x):
        return self.third(torch.tanh(self.second(self.drop(torch.tanh(self.first(x))))))


@pytest.fixture
def mlp():
    return Mlp()


def normal(*shape, seed=0, shift=0.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + shift


def load_example(name: str):
    """A file of examples/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
