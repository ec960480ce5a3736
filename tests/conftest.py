"""Small models and data for all tests. Nothing is downloaded: models are built from a config with random weights.

Every folder of tests imports this file and its neighbours by name (`from conftest import tiny`, `from oracle import
bounded`): pytest puts their folder on the path. So no other folder has a conftest.py, and no two files one name.
"""

import functools
import gc
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).parent.parent
IMAGE_MODEL = ROOT / "examples" / "image_model"
IMAGE_CALL = {"num_inference_steps": 1, "guidance_scale": 0.0}  # with which it was trained
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the one hub model that the pages may name


def pytest_collection_modifyitems(config, items):
    """Each worker begins with its share of what is slow, in whole files, and of that with the last folder, `project`,
    whose tests are the longest. Who is done takes over from the end of another's queue: what is left there is quick."""
    slow, quick = {}, []
    for item in items:
        (slow.setdefault(item.path, []) if item.get_closest_marker("slow") else quick).append(item)
    files, rest, ordered = [*slow.values()][::-1], iter(quick), []
    count = getattr(config, "workerinput", {}).get("workercount", 1)
    for k in range(count):  # xdist deals the items out in equal parts
        share = [item for file in files[k::count] for item in file]
        size = (len(items) - len(ordered)) // (count - k)
        ordered += [*share, *itertools.islice(rest, max(0, size - len(share)))]
    items[:] = [*ordered, *rest]


def pytest_collection_finish():
    """What is here by now stays, and is left out of every collection of garbage to come; and these are rarer than they
    would be. Each is a tenth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


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


def tiny(kind: str, layers: int = 3):
    """A random model of a Hugging Face architecture, small enough to run in a millisecond."""
    import transformers as hf

    common = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2}
    llama = {**common, "intermediate_size": 24, "num_key_value_heads": 1, "max_position_embeddings": 64, "head_dim": 8}
    configs = {
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**llama)),
        "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**llama)),
        "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**llama, query_pre_attn_scalar=8)),
        "gpt2": lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=64, n_embd=16, n_layer=layers, n_head=2, n_positions=64)
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


def small_tokenizer():
    """A word is a token; unlike WordTokenizer, it decodes, pads and knows a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from lineas import samples

    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=500, special_tokens=["<unk>", "<eos>"], show_progress=False)
    negative, positive = samples.movie_reviews()
    words.train_from_iterator([*negative, *positive], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>",
        model_input_names=["input_ids", "attention_mask"],
        chat_template="{% for turn in messages %}{{ turn.role }}: {{ turn.content }} <eos>{% endfor %}",
    )  # fmt: skip


def small_model(vocabulary: int):
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=vocabulary, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=24, max_position_embeddings=256, bos_token_id=None, eos_token_id=1, pad_token_id=1,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    model.name_or_path = HUB_NAME
    return model.eval()


def minding_model(vocabulary: int):
    """The same with stronger weights, so that what it writes minds a steering."""
    model = small_model(vocabulary)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


LANGUAGE_MODELS = ("llama", "qwen2", "gemma2", "gpt2")
NEGATIVE = [f"{a} is a {b} and dull film" for a in ("this", "that", "it") for b in ("bad", "sad", "poor", "weak")]
POSITIVE = [
    f"what {b} joy {a} gave us all today" for a in ("she", "he") for b in ("great", "true", "pure", "much", "rare")
]

# 12 and 10 texts of different lengths: unequal sets, padding on the right.
TEXTS = NEGATIVE, [text + " indeed" * (k % 3) for k, text in enumerate(POSITIVE)]


@pytest.fixture
def llama():
    return tiny("llama")


@pytest.fixture
def texts():
    return tuple(map(list, TEXTS))


@pytest.fixture(scope="session")
def fitted_llama():
    """A fit of the tiny Llama as everybody has it."""
    import lineas

    return lineas.fit(tiny("llama"), *TEXTS, tokenizer=WordTokenizer(), progress=False, steps=4)


@pytest.fixture(scope="session")
def llama_logits(fitted_llama):
    """What the tiny Llama says under that steering, and without."""
    from network_cases import IDS

    model = tiny("llama")
    with torch.no_grad(), fitted_llama.apply(model):
        logits = model(IDS).logits
    return logits, model(IDS).logits.detach()


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


@pytest.fixture
def in_c(monkeypatch):
    """Fails a test that takes the reference path."""

    def refuse(*arguments):
        raise AssertionError("the reference was called")

    from lineas.core import ops

    monkeypatch.setattr(ops, "device", SimpleNamespace(affine_pool=refuse, affine_sparse=refuse))


IDS = torch.randint(2, 60, (3, 6), generator=torch.Generator().manual_seed(0))  # three texts as tokens of `tiny`
SOURCE, TARGET = normal(14, 4), normal(11, 4, seed=1, shift=0.7)  # for Mlp


def flat(steering):
    """All weights, then all biases."""
    return np.concatenate([part(name) for part in (steering.weight, steering.bias) for name in steering.sites])


@pytest.fixture
def random_state_stays():
    from lineas.network.state import seeded

    with seeded(0, torch.device("cpu")):
        yield


@pytest.fixture(scope="session")
def command_line_folder(tmp_path_factory):
    from command_line import fill

    folder = tmp_path_factory.mktemp("cli")
    fill(folder)
    return folder


@pytest.fixture
def there(command_line_folder, tmp_path, monkeypatch):
    """A copy of that folder, to work in."""
    monkeypatch.chdir(shutil.copytree(command_line_folder, tmp_path / "work"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path / "work"
    torch.set_num_threads(threads)


@functools.cache
def read_real_model():
    """SmolLM2 and its tokenizer, by the examples' own loader, which takes a quarter of a minute."""
    import embedded_model

    return embedded_model.load()


@pytest.fixture
def real_model(monkeypatch):
    """What the examples load without a path is read once for all tests, which leave it as it was."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import embedded_model

    model = read_real_model()
    monkeypatch.setattr(embedded_model, "load", lambda path=None: model if path is None else pytest.fail(path))
    return model


def load_example(name: str):
    """A file of examples/ as a module, which finds its neighbours."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        spec.loader.exec_module(module)
    return module


def image_captions(count: int, concept: str = "snow"):
    """Captions of the image model without the concept, and with it."""
    captions = json.loads((IMAGE_MODEL / "prompts.json").read_text(encoding="utf-8"))
    return captions["without"]["fit"][:count], captions["with"][concept]["fit"][:count]


def read_image_pipe():
    pytest.importorskip("diffusers")
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(IMAGE_MODEL / "pipeline", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def image_pipe():
    """The one-step model of examples/image_model, which whoever takes it leaves as it was."""
    return read_image_pipe()


@pytest.fixture(scope="session")
def fitted_image_pipe(image_pipe):
    """A fit of it, at two sites of its denoiser."""
    import lineas

    source, target = image_captions(8)
    sites = [site.name for site in lineas.find_sites(image_pipe)][-2:]
    return lineas.fit(image_pipe, source, target, sites=sites, call=IMAGE_CALL, steps=2, progress=False)


@pytest.fixture(scope="session")
def kill():
    """Asks the program that kills fits and saves: one for all cases, since most of its time goes into imports."""
    programs = []

    def ask(case, rounds):
        if not programs or programs[-1].poll() is not None:
            command = [sys.executable, ROOT / "tests" / "kill.py"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            programs.append(subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes))
        programs[-1].stdin.write(f"{case}\t{rounds}\t{rounds}\n")
        programs[-1].stdin.flush()
        told = programs[-1].stdout.readline()
        assert told, f"exit status {programs[-1].wait()}; what it said is on the standard error"
        return json.loads(told)

    yield ask
    for program in programs:
        program.communicate()  # which ends its input
