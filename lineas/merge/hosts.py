"""Classes with a place for a bias that a model's own class, or its config, has not.

Two kinds: the model's own class with options of its config on (Llama's `attention_bias`, `mlp_bias`), and another
class that computes the same (a Qwen2 is a Llama with biases). What differs between two architectures is written down
here, one function each; what no class can hold is nobody's host.
"""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..network.sharding import kind_of
from ..network.state import device_of, dtype_of
from ..network.weights import Weights, on_disk
from .layers import Journal

SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "attention_dropout",
    "id2label", "label2id", "problem_type",
)  # fmt: skip
ROPE = ("rope_parameters", "rope_theta", "rope_scaling")  # the first since transformers 5, the others before
State = dict[str, Tensor]


@dataclass(frozen=True)
class Host:
    """A plain class that has places for biases.

    Attributes
    ----------
    label : str
        What a user calls it: "LlamaForCausalLM with attention_bias and mlp_bias".
    kind : type
    config : a config of transformers
    shapes : dict of str -> tuple
        Of all that its state dict has.
    renamed : callable
        A state dict of the given model, which may have biases that its class does not, in the host's names.
    options : tuple of str
        Switches of the config that are on; empty for another class than the model's own.
    """

    label: str
    kind: type
    config: Any
    shapes: Mapping[str, tuple[int, ...]]
    renamed: Callable[[State], State]
    options: tuple[str, ...] = ()

    @property
    def is_own(self) -> bool:
        """Whether it is the model's own class."""
        return bool(self.options)

    def holds(self, needs: State) -> bool:
        """Whether every bias of these names (any values of the right shapes) has a place."""
        return all(self.shapes.get(name) == tuple(value.shape) for name, value in self.renamed(needs).items())

    def adopt(self, model: Any, journal: Journal) -> None:
        """Make the model one of this class, which is its own: the remaining biases are zero, the config says so."""
        for name in sorted(self.shapes.keys() - model.state_dict().keys()):
            path, _, leaf = name.rpartition(".")
            module = model.get_submodule(path)
            journal.put(module, leaf, torch.zeros(self.shapes[name], device="cpu"), module.get_parameter("weight"))
        if isinstance(model.config, Mapping):  # of diffusers, which keeps its config in this attribute
            frozen: Any = type(model.config)
            journal.set(model, "_internal_dict", frozen(self.config))
            return
        for option in self.options:
            part, _, name = option.rpartition(".")
            journal.set(getattr(model.config, part) if part else model.config, name, True)

    def build(self, model: nn.Module) -> nn.Module:
        """A model of this class with the given one's weights; where some of those are offloaded, all are."""
        weights = Weights(model)
        built = self._offloaded(model, weights) if weights.hooks else self._in_memory(model)
        built.config._name_or_path = getattr(model.config, "_name_or_path", "")
        if hasattr(model, "generation_config"):
            built.generation_config = copy.deepcopy(model.generation_config)
        return built.train(model.training)

    def _in_memory(self, model: nn.Module) -> Any:
        state = self.renamed({name: tensor.detach() for name, tensor in model.state_dict().items()})
        first = next(tensor for tensor in state.values() if tensor.is_floating_point())
        if len({tensor.device for tensor in state.values()}) > 1:
            raise ValueError(f"a {type(model).__name__} on several devices cannot become a {self.kind.__name__}")
        for name in self.shapes.keys() - state.keys():
            state[name] = first.new_zeros(self.shapes[name])
        with torch.random.fork_rng(devices=[]):
            built = _quietly(lambda: _loaded(self.kind, self.config, state, first.dtype))
        built.to(first.device)
        taken = built.state_dict()
        wrong = [name for name, value in state.items() if name not in taken or not torch.equal(taken[name], value)]
        if wrong:
            raise RuntimeError(f"{self.kind.__name__} did not take the weights as they are, first {wrong[0]}")
        return built

    def _offloaded(self, model: nn.Module, weights: Weights) -> Any:
        from accelerate import init_empty_weights

        with init_empty_weights(), torch.random.fork_rng(devices=[]):  # what is no weight, is there
            empty = self.kind(copy.deepcopy(self.config)).to(dtype_of(model))

        def values() -> Iterator[tuple[str, Tensor]]:
            left = dict(self.shapes)
            for path, module, name in _places(model):
                value: Tensor = weights.whole(module, name)  # type: ignore[assignment]
                for new, part in self.renamed({f"{path}.{name}".lstrip("."): value}).items():
                    del left[new]
                    yield new, part
            for name, shape in left.items():
                yield name, torch.zeros(shape, dtype=dtype_of(model), device="cpu")

        return on_disk(empty, values(), device_of(model))


def hosts(model: nn.Module) -> Iterator[Host]:
    """Classes that may hold the model with biases, its own first; none but for models of transformers and diffusers."""
    if not hasattr(model, "config") or not hasattr(model, "save_pretrained"):
        return
    yield from _own(model)
    if (make := OTHERS.get(getattr(model.config, "model_type", ""))) is None:
        return
    import transformers

    for config, suffix, prefix, renamed in make(model.config):
        family = kind_of(model).__name__.removeprefix(prefix)
        kind = getattr(transformers, suffix + family, None)
        if kind is not None and kind_of(model).__module__.startswith("transformers."):
            shapes = _shapes(kind, config)
            yield Host(f"{kind.__name__} with attention_bias and mlp_bias", kind, config, shapes, renamed)


def _own(model: Any) -> Iterator[Host]:
    """The class itself with options on that give biases: each alone, and all of them together."""
    kind, now = kind_of(model), {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found: list[tuple[str, ...]] = []
    for option in _options(model.config):
        shapes = _with(kind, model.config, (option,))[1]
        new = shapes.items() - now.items()
        if new and now.keys() <= shapes.keys() and all(name.endswith(".bias") for name, _ in new):
            found.append((option,))
    if len(found) > 1:
        found.append(tuple(option for (option,) in found))
    for options in found:  # the smallest change that is enough is the best
        config, shapes = _with(kind, model.config, options)
        yield Host(f"{kind.__name__} with {' and '.join(options)}", kind, config, shapes, _same, options)


def _options(config: Any) -> list[str]:
    """Switches for biases that are off, also those of a part (`text_config.attention_bias`)."""
    parts = {"": config} | {f"{name}.": part for name, part in vars(config).items() if hasattr(part, "model_type")}
    return [
        at + name
        for at, part in parts.items()
        for name, value in vars(part).items()
        if value is False and "bias" in name
    ]


def _with(kind: type, config: Any, options: tuple[str, ...]) -> tuple[Any, dict[str, tuple[int, ...]]]:
    if isinstance(config, Mapping):  # of diffusers
        changed: Any = {**config, **dict.fromkeys(options, True)}
    else:
        changed = copy.deepcopy(config)
        for option in options:
            part, _, name = option.rpartition(".")
            setattr(getattr(changed, part) if part else changed, name, True)
    try:
        return changed, _shapes(kind, changed)
    except Exception:  # an option that this class cannot have, or that means something else
        return changed, {}


def _shapes(kind: Any, config: Any) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        empty = kind.from_config(config) if isinstance(config, Mapping) else kind(copy.deepcopy(config))
    return {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}


def _loaded(kind: Any, config: Any, state: State, dtype: torch.dtype) -> Any:
    name = "dtype" if hasattr(config, "dtype") else "torch_dtype"
    config._attn_implementation = getattr(config, "_attn_implementation", None)
    return kind.from_pretrained(None, config=config, state_dict=state, **{name: dtype})


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Every parameter of a model: its module's path, the module, its name; one that is in two places is there twice."""
    for path, module in model.named_modules(remove_duplicate=False):
        for name, value in module._parameters.items():
            if value is not None:
                yield path, module, name


def _quietly(call: Callable[[], Any]) -> Any:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return call()
    finally:
        if shown:
            logging.enable_progress_bar()


# -- other classes: (config, prefix of the new class, prefix of the old one, names and values of weights) --

Candidate = tuple[Any, str, str, Callable[[State], State]]


def _shared(config: Any) -> dict[str, Any]:
    names = [*SHARED, *ROPE]
    return {name: copy.deepcopy(getattr(config, name)) for name in names if getattr(config, name, None) is not None}


def _llama(config: Any, **changes: Any) -> Any:
    from transformers import LlamaConfig

    return _finished(LlamaConfig(**_shared(config) | {"attention_bias": True, "mlp_bias": True} | changes), config)


def _smollm3(config: Any, layer_types: list[str]) -> Any:
    """SmolLM3 is a Llama whose layers may look back over a window only, as Mistral's do."""
    from transformers import SmolLM3Config

    layers = config.num_hidden_layers
    window = {"use_sliding_window": True, "sliding_window": config.sliding_window, "layer_types": layer_types}
    biases = {"attention_bias": True, "mlp_bias": True, "no_rope_layers": [1] * layers}
    absent = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # its own are other tokens
    return _finished(SmolLM3Config(**absent | _shared(config) | window | biases), config)


def _finished(new: Any, config: Any) -> Any:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(new, name, getattr(config, name, None))
    new._attn_implementation = getattr(config, "_attn_implementation", None)
    return new


def _same(state: State) -> State:
    return state


def _from_mistral(config: Any) -> Iterator[Candidate]:
    if getattr(config, "sliding_window", None) is None:
        yield _llama(config), "Llama", "Mistral", _same
    elif _has("SmolLM3Config"):
        yield _smollm3(config, ["sliding_attention"] * config.num_hidden_layers), "SmolLM3", "Mistral", _same


def _from_qwen2(config: Any) -> Iterator[Candidate]:
    types = getattr(config, "layer_types", None) or []
    if getattr(config, "sliding_window", None) is None or (types and "sliding_attention" not in types):
        yield _llama(config), "Llama", "Qwen2", _same
    elif types and _has("SmolLM3Config"):
        yield _smollm3(config, list(types)), "SmolLM3", "Qwen2", _same


def _from_phi3(config: Any) -> Iterator[Candidate]:
    """Phi-3 keeps q, k, v, and gate, up, in one matrix each."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    plain = rope.get("rope_type", "default") == "default" and rope.get("partial_rotary_factor", 1.0) == 1.0
    if not plain or getattr(config, "partial_rotary_factor", 1.0) != 1.0:
        return
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    parts = {
        "self_attn.qkv_proj": ({"q_proj": queries, "k_proj": keys, "v_proj": keys}),
        "mlp.gate_up_proj": dict.fromkeys(("gate_proj", "up_proj"), config.intermediate_size),
    }

    def renamed(state: State) -> State:
        new: State = {}
        for name, value in state.items():
            fused = re.search(r"(self_attn\.qkv_proj|mlp\.gate_up_proj)\.(weight|bias)$", name)
            if fused is None:
                new[name] = value
                continue
            sizes = parts[fused[1]]
            for part, rows in zip(sizes, value.split(list(sizes.values())), strict=True):
                new[f"{name[: fused.start()]}{fused[1].split('.')[0]}.{part}.{fused[2]}"] = rows.contiguous()
        return new

    rope_changes = {"rope_parameters": {k: v for k, v in rope.items() if k != "partial_rotary_factor"}} if rope else {}
    if getattr(config, "sliding_window", None) is None:
        yield _llama(config, **rope_changes), "Llama", "Phi3", renamed
    elif _has("SmolLM3Config"):
        yield _smollm3(config, ["sliding_attention"] * config.num_hidden_layers), "SmolLM3", "Phi3", renamed


def _from_gemma(config: Any) -> Iterator[Candidate]:
    """Gemma scales by 1 + w where Llama scales by w, and multiplies its embeddings, which it shares with the head."""
    if getattr(config, "use_bidirectional_attention", None):
        return

    def renamed(state: State) -> State:
        new = dict(state)
        for name, value in state.items():
            if re.search(r"norm\.weight$", name):
                new[name] = (1 + value.double()).to(value.dtype)
            elif name.endswith("embed_tokens.weight"):
                new[name] = (value.double() * config.hidden_size**0.5).to(value.dtype)
        return new

    yield _llama(config, tie_word_embeddings=False), "Llama", "Gemma", renamed


def _has(name: str) -> bool:
    import transformers

    return hasattr(transformers, name)


OTHERS = {"mistral": _from_mistral, "qwen2": _from_qwen2, "phi3": _from_phi3, "gemma": _from_gemma}
