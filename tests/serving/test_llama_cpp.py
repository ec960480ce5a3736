"""In llama.cpp itself, where it is installed (`pip install xllamacpp`), on Linux on x86-64: its C functions by ctypes.

A small random Llama is written as GGUF in float32; llama.cpp keeps keys and values in half precision.
"""

import ctypes
import platform

import numpy as np
import pytest
import torch

import lineas
from lineas.serving import to_gguf

gguf = pytest.importorskip("gguf")
library = pytest.importorskip("xllamacpp.xllamacpp", reason="llama.cpp is not installed")
pytestmark = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="structures are passed as they are there"
)
IDS = [3, 17, 42, 8, 25, 60, 11]
BLOCK = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
OTHERS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


class Options(ctypes.Structure):
    """Whatever llama.cpp's own defaults are: more room than they need, passed in memory."""

    _fields_ = (("raw", ctypes.c_char * 1024),)


class Batch(ctypes.Structure):
    _fields_ = (("tokens", ctypes.c_int32), *((name, ctypes.c_void_p) for name in "abcdef"))


class LlamaCpp:
    def __init__(self, file):
        self.library = ctypes.CDLL(library.__file__)
        options = self.function("llama_model_default_params", Options)()
        model = self.function("llama_model_load_from_file", ctypes.c_void_p)(str(file).encode(), options)
        options = self.function("llama_context_default_params", Options)()
        self.context = self.function("llama_init_from_model", ctypes.c_void_p)(ctypes.c_void_p(model), options)
        assert self.context

    def function(self, name, result):
        found = getattr(self.library, name)
        found.restype = result
        return found

    def steer(self, data, units, blocks):
        """As its programs do with a file: all directions from block 1 on, side by side."""
        steer = self.function("llama_set_adapter_cvec", ctypes.c_int32)
        given = ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.size), units, 1, blocks
        assert steer(ctypes.c_void_p(self.context), *given) == 0

    def logits(self):
        memory = self.function("llama_get_memory", ctypes.c_void_p)(ctypes.c_void_p(self.context))
        self.function("llama_memory_clear", None)(ctypes.c_void_p(memory), True)
        tokens = (ctypes.c_int32 * len(IDS))(*IDS)
        batch = self.function("llama_batch_get_one", Batch)(tokens, len(IDS))
        assert self.function("llama_decode", ctypes.c_int32)(ctypes.c_void_p(self.context), batch) == 0
        found = self.function("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float))(ctypes.c_void_p(self.context), -1)
        return np.ctypeslib.as_array(found, (64,)).copy()


def small_llama():
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=64, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=96, max_position_embeddings=128, head_dim=16,
        ))  # fmt: skip
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def write(model, file):
    config, writer = model.config, gguf.GGUFWriter(file, "llama")
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads["q_proj"])
    writer.add_head_count_kv(heads["k_proj"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in model.state_dict().items():
        base, _, leaf = name.rpartition(".")
        values, short = tensor.numpy(), base.rpartition(".")[2]
        if short in heads:  # llama.cpp turns neighbouring channels, transformers the two halves of a head
            values = values.reshape(heads[short], 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        block = base.split(".", 3)
        new = OTHERS.get(base) or f"blk.{block[2]}.{BLOCK[block[3]]}"
        writer.add_tensor(f"{new}.{leaf}", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(model, steering=None, strength=1.0):
    with torch.no_grad():
        if steering is None:
            return model(torch.tensor([IDS])).logits[0, -1].numpy()
        with steering.apply(model, strength):
            return logits(model)


def apart(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


def test_a_control_vector_does_there_what_the_attached_steering_does(tmp_path):
    model, draw = small_llama(), np.random.default_rng(0)
    write(model, tmp_path / "model.gguf")
    there, base = LlamaCpp(tmp_path / "model.gguf"), logits(model)
    assert apart(there.logits(), base) < 1e-3
    steering = lineas.Steering({f"model.layers.{k}": (np.ones(64), 0.3 * draw.normal(size=64)) for k in (1, 3)})
    to_gguf(steering, tmp_path / "vector.gguf")
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "vector.gguf").tensors}
    data = np.concatenate([found.get(f"direction.{k}", np.zeros(64)) for k in (1, 2, 3)]).astype(np.float32)
    for strength in (1.0, 0.5, -1.0):
        wanted = logits(model, steering, strength)
        there.steer(np.float32(strength) * data, 64, 4)
        assert apart(there.logits(), wanted) < 1e-3 < 0.05 < apart(wanted, base)


def test_a_merged_llama_has_its_biases_there(tmp_path):
    model, draw = small_llama(), np.random.default_rng(0)
    sites = [site.name for site in lineas.find_sites(model, r".*layernorm")]
    steering = lineas.Steering({s: (1 + 0.2 * draw.normal(size=64), 0.3 * draw.normal(size=64)) for s in sites})
    merged = steering.merge(model)
    assert merged.config.mlp_bias
    assert merged.config.attention_bias
    write(merged, tmp_path / "merged.gguf")
    wanted = logits(model, steering)
    assert apart(LlamaCpp(tmp_path / "merged.gguf").logits(), wanted) < 1e-3 < 0.05 < apart(wanted, logits(model))
