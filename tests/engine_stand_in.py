"""A small Llama as SGLang and vLLM run one, with the weights of the transformers model: what hooks meet there.

Tokens of all requests lie side by side, norms add the residual in place and return a pair, blocks return what is still
to be added and the residual, linear layers return a pair, q, k, v and gate, up are fused. `register` does what SGLang's
page on hooks says that it does. Written from their documentation; nothing of them is in it.
"""

import fnmatch
import importlib
import json

import torch
from torch import nn


class Norm(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x, residual=None):
        if residual is not None:
            residual.add_(x)
        whole = x if residual is None else residual
        out = whole * torch.rsqrt(whole.square().mean(-1, keepdim=True) + self.eps) * self.weight
        return out if residual is None else (out, residual)


class Layer(nn.Module):
    """One linear layer, or several side by side; a row-parallel one knows that ranks add up their parts."""

    tp_size, tp_rank = 1, 0

    def __init__(self, *layers, **known):
        super().__init__()
        self.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
        self.output_sizes = [len(layer.weight) for layer in layers]
        vars(self).update(known)

    def forward(self, x):
        return x @ self.weight.T, None


class Attention(nn.Module):
    def __init__(self, attention, config):
        super().__init__()
        head, queries, keys = attention.head_dim, config.num_attention_heads, config.num_key_value_heads
        known = {"head_size": head, "num_heads": queries, "num_kv_heads": keys, "total_num_kv_heads": keys}
        layers = attention.q_proj, attention.k_proj, attention.v_proj
        self.qkv_proj = Layer(*layers, **known, num_kv_head_replicas=1)
        self.o_proj = Layer(attention.o_proj, reduce_results=True)
        self.head, self.theta = head, config.rope_parameters["rope_theta"]

    def forward(self, positions, x):
        qkv, _ = self.qkv_proj(x)
        q, k, v = (part.unflatten(-1, (-1, self.head)) for part in qkv.split(self.qkv_proj.output_sizes, -1))
        frequencies = self.theta ** -(torch.arange(0, self.head, 2) / self.head)
        angles = (positions[:, None] * frequencies).repeat(1, 2)[:, None]
        q, k = (z * angles.cos() + torch.cat([-z[..., self.head // 2 :], z[..., : self.head // 2]], -1) * angles.sin()
                for z in (q, k))  # fmt: skip
        k, v = (z.repeat_interleave(q.shape[1] // z.shape[1], 1) for z in (k, v))
        request = (positions == 0).cumsum(0)
        seen = (request[:, None] == request) & (positions[:, None] >= positions)
        scores = torch.einsum("shd,thd->hst", q, k) / self.head**0.5
        out = torch.einsum("hst,thd->shd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
        return self.o_proj(out.flatten(1))[0]


class Mlp(nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.gate_up_proj, self.down_proj = Layer(mlp.gate_proj, mlp.up_proj), Layer(mlp.down_proj)

    def forward(self, x):
        gate, up = self.gate_up_proj(x)[0].chunk(2, -1)
        return self.down_proj(nn.functional.silu(gate) * up)[0]


class Block(nn.Module):
    def __init__(self, block, config):
        super().__init__()
        self.self_attn, self.mlp = Attention(block.self_attn, config), Mlp(block.mlp)
        self.input_layernorm, self.post_attention_layernorm = map(
            Norm, (block.input_layernorm, block.post_attention_layernorm)
        )

    def forward(self, positions, hidden, residual):
        if residual is None:
            residual, hidden = hidden, self.input_layernorm(hidden)
        else:
            hidden, residual = self.input_layernorm(hidden, residual)
        hidden = self.self_attn(positions, hidden)
        hidden, residual = self.post_attention_layernorm(hidden, residual)
        return self.mlp(hidden), residual


class Trunk(nn.Module):
    def __init__(self, model, config):
        super().__init__()
        self.embed_tokens = model.embed_tokens
        self.layers = nn.ModuleList([Block(block, config) for block in model.layers])
        self.norm = Norm(model.norm)

    def forward(self, ids, positions):
        hidden, residual = self.embed_tokens(ids), None
        for block in self.layers:
            hidden, residual = block(positions, hidden, residual)
        return self.norm(hidden, residual)[0]


class Engine(nn.Module):
    def __init__(self, llama):
        super().__init__()
        self.model, self.head = Trunk(llama.model, llama.config), llama.lm_head.weight

    def forward(self, ids, positions):
        return self.model(ids, positions) @ self.head.T

    @torch.no_grad()
    def logits(self, ids):
        """Of a batch (requests, tokens), which an engine never sees: (requests, tokens, vocabulary)."""
        positions = torch.arange(ids.shape[1]).repeat(len(ids))
        return self.forward(ids.flatten(), positions).unflatten(0, ids.shape)  # not called: hooks of its own do not run


class PPMissingLayer(nn.Identity):
    """What stands in an engine for what another stage of the pipeline has."""


def register(model, given):
    """The hooks of a command line's `--forward-hooks`; the specs that matched nothing, of which SGLang logs a word."""
    unmatched = []
    for spec in json.loads(given):
        path, _, name = spec["hook_factory"].partition(":")
        hook = getattr(importlib.import_module(path), name)(spec["config"])
        matched = [
            module for name, module in model.named_modules()
            if any(fnmatch.fnmatch(name, pattern) for pattern in spec["target_modules"])
        ]  # fmt: skip
        for module in matched:
            module.register_forward_hook(hook)
        unmatched += [] if matched else [spec["name"]]
    return unmatched
