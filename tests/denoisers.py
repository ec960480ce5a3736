"""Tiny denoisers of diffusers with random weights, each with the keyword arguments of a pass over n rows.

Every function returns (model, batch): `model(**batch(n))` runs, and `batch(n, seed)` draws other numbers. What a
pipeline passes beside tensors of rows is there too: tensors that all rows share, nested dicts, None and False.
"""

from collections.abc import Callable
from typing import Any

import torch

Batch = Callable[..., dict[str, Any]]


def flux(**config) -> tuple[torch.nn.Module, Batch]:
    """Two blocks of two streams, one of a single one; `img_ids` and `txt_ids` are shared by all rows."""
    from diffusers import FluxTransformer2DModel

    sizes = {
        "patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 12, "pooled_projection_dim": 10, "axes_dims_rope": (4, 4, 8),
    }  # fmt: skip

    def batch(rows: int, seed: int = 0) -> dict[str, Any]:
        normal = _normal(seed)
        places = torch.stack(torch.meshgrid(torch.zeros(1), torch.arange(4.0), torch.arange(4.0), indexing="ij"), -1)
        return {
            "hidden_states": normal(rows, 16, 4), "encoder_hidden_states": normal(rows, 5, 12),
            "pooled_projections": normal(rows, 10), "timestep": _times(rows) / 1000, "img_ids": places.reshape(16, 3),
            "txt_ids": torch.zeros(5, 3), "guidance": None, "joint_attention_kwargs": None, "return_dict": False,
        }  # fmt: skip

    return _random(lambda: FluxTransformer2DModel(**sizes | config)), batch


def sd3(**config) -> tuple[torch.nn.Module, Batch]:
    """Two blocks, the first with the two attentions of Stable Diffusion 3.5; the last norms its text in another way."""
    from diffusers import SD3Transformer2DModel

    sizes = {
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8,
        "num_attention_heads": 4, "joint_attention_dim": 12, "caption_projection_dim": 32, "pooled_projection_dim": 10,
        "out_channels": 4, "pos_embed_max_size": 8, "dual_attention_layers": (0,), "qk_norm": "rms_norm",
    }  # fmt: skip

    def batch(rows: int, seed: int = 0) -> dict[str, Any]:
        normal = _normal(seed)
        return {
            "hidden_states": normal(rows, 4, 8, 8), "encoder_hidden_states": normal(rows, 5, 12),
            "pooled_projections": normal(rows, 10), "timestep": _times(rows), "joint_attention_kwargs": None,
            "return_dict": False,
        }  # fmt: skip

    return _random(lambda: SD3Transformer2DModel(**sizes | config)), batch


def pixart(**config) -> tuple[torch.nn.Module, Batch]:
    """Two blocks, which one linear layer modulates together with a table of each."""
    from diffusers import PixArtTransformer2DModel

    sizes = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 8, "num_layers": 2,
        "norm_num_groups": 4, "cross_attention_dim": 32, "sample_size": 8, "patch_size": 2, "caption_channels": 12,
        "use_additional_conditions": False,
    }  # fmt: skip

    def batch(rows: int, seed: int = 0) -> dict[str, Any]:
        normal = _normal(seed)
        return {
            "hidden_states": normal(rows, 4, 8, 8), "encoder_hidden_states": normal(rows, 5, 12),
            "encoder_attention_mask": torch.ones(rows, 5), "timestep": _times(rows),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}, "return_dict": False,
        }  # fmt: skip

    return _random(lambda: PixArtTransformer2DModel(**sizes | config)), batch


def unet(**config) -> tuple[torch.nn.Module, Batch]:
    """A UNet of Stable Diffusion: attention to text in one of its two levels."""
    from diffusers import UNet2DConditionModel

    sizes = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 12, "attention_head_dim": 4,
        "norm_num_groups": 4,
    }  # fmt: skip

    def batch(rows: int, seed: int = 0) -> dict[str, Any]:
        normal = _normal(seed)
        return {
            "sample": normal(rows, 4, 8, 8), "timestep": torch.tensor(300), "cross_attention_kwargs": None,
            "encoder_hidden_states": normal(rows, 5, 12), "timestep_cond": None, "added_cond_kwargs": None,
            "return_dict": False,
        }  # fmt: skip

    return _random(lambda: UNet2DConditionModel(**sizes | config)), batch


def sdxl(**config) -> tuple[torch.nn.Module, Batch]:
    """As `unet`, with pooled text and sizes in a nested dict, and linear projections around its transformers."""
    added = {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "use_linear_projection": True,
        "projection_class_embeddings_input_dim": 10 + 6 * 4, "transformer_layers_per_block": (1, 2),
    }  # fmt: skip
    model, plain = unet(**added | config)

    def batch(rows: int, seed: int = 0) -> dict[str, Any]:
        sizes = torch.tensor([[8.0, 8.0, 0.0, 0.0, 8.0, 8.0]]).repeat(rows, 1)
        return plain(rows, seed) | {
            "added_cond_kwargs": {"text_embeds": _normal(seed + 1)(rows, 10), "time_ids": sizes}
        }

    return model, batch


def ddpm(**config) -> tuple[torch.nn.Module, Batch]:
    """A UNet without text."""
    from diffusers import UNet2DModel

    sizes = {
        "sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4, "norm_num_groups": 4,
    }  # fmt: skip

    def batch(rows: int, seed: int = 0) -> dict[str, Any]:
        return {"sample": _normal(seed)(rows, 3, 8, 8), "timestep": 300, "class_labels": None, "return_dict": False}

    return _random(lambda: UNet2DModel(**sizes | config)), batch


def _random(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """Scales that are not 1, biases and modulations that are not 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def _normal(seed: int) -> Callable[..., torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=draw)


def _times(rows: int) -> torch.Tensor:
    return torch.linspace(100, 900, rows)
