"""Tiny pipelines with random weights, of several classes of diffusers and of one that it does not know."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from conftest import ROOT
from torch import nn

import lineas

WORDS = (
    "a photo of the cat dog house tree sea in snow at night with hat red blue green big small on fire heart by drawing"
)
SRC = ["a red cat", "a blue dog", "the green house", "a big tree"]
TGT = ["snow at night", "the sea in snow", "a heart on fire", "small cat in snow"]
ONE_STEP = {"num_inference_steps": 1, "guidance_scale": 0.0}


def shaken(make, size=0.1):
    """What `make` makes with seeded weights, no norm of which is 1 nor any bias 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(size * torch.randn_like(parameter))
    return model.eval()


@functools.cache
def clip_tokenizer():
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(ROOT / "examples" / "image_model" / "pipeline" / "tokenizer")


@functools.cache
def t5_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: k for k, word in enumerate(["<pad>", "</s>", "<unk>", *dict.fromkeys(WORDS.split())])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )


def clip(projection=None):
    import transformers as hf

    kind = hf.CLIPTextModel if projection is None else hf.CLIPTextModelWithProjection
    config = hf.CLIPTextConfig(
        vocab_size=len(clip_tokenizer()), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=clip_tokenizer().model_max_length,
        projection_dim=projection or 16, eos_token_id=clip_tokenizer().eos_token_id,
        bos_token_id=clip_tokenizer().bos_token_id, pad_token_id=clip_tokenizer().pad_token_id,
    )  # fmt: skip
    return shaken(lambda: kind(config))


def t5():
    import transformers as hf

    config = hf.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    return shaken(lambda: hf.T5EncoderModel(config))


def vae():
    import diffusers

    return shaken(
        lambda: diffusers.AutoencoderTiny(
            encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
    )  # fmt: skip


def unet(**options):
    import diffusers

    return shaken(
        lambda: diffusers.UNet2DConditionModel(
            **{
                "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 16,
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 4, **options,
            }
        )
    )  # fmt: skip


def scheduler(kind="DDIMScheduler", **options):
    import diffusers

    of_ddim = {"steps_offset": 1, "clip_sample": False, "timestep_spacing": "trailing"}
    return getattr(diffusers, kind)(**(of_ddim if kind == "DDIMScheduler" else {}), **options)


def stable_diffusion(kind="StableDiffusionPipeline", **parts):
    import diffusers

    own = {
        "vae": vae(), "text_encoder": clip(), "tokenizer": clip_tokenizer(), "unet": unet(), "scheduler": scheduler(),
        "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False,
    }  # fmt: skip
    return getattr(diffusers, kind)(**{**own, **parts})


def stable_diffusion_xl():
    import diffusers

    pooled_and_sizes = 16 + 6 * 8
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip(), text_encoder_2=clip(projection=16), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), scheduler=scheduler("EulerDiscreteScheduler"), add_watermarker=False,
        unet=unet(
            cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=pooled_and_sizes,
        ),
    )  # fmt: skip


def flux():
    import diffusers

    transformer = shaken(
        lambda: diffusers.FluxTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 2, 2),
        )
    )  # fmt: skip
    return diffusers.FluxPipeline(
        scheduler=scheduler("FlowMatchEulerDiscreteScheduler"), vae=vae(), text_encoder=clip(),
        tokenizer=clip_tokenizer(), text_encoder_2=t5(), tokenizer_2=t5_tokenizer(), transformer=transformer,
    )  # fmt: skip


def stable_diffusion_3():
    import diffusers

    transformer = shaken(
        lambda: diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32, out_channels=4,
            pos_embed_max_size=16,
        )
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=scheduler("FlowMatchEulerDiscreteScheduler"), vae=vae(),
        text_encoder=clip(projection=16), tokenizer=clip_tokenizer(), text_encoder_2=clip(projection=16),
        tokenizer_2=clip_tokenizer(), text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def pixart():
    import diffusers

    transformer = shaken(
        lambda: diffusers.PixArtTransformer2DModel(
            sample_size=8, num_layers=2, patch_size=2, num_attention_heads=2, attention_head_dim=8, in_channels=4,
            out_channels=8, cross_attention_dim=16, caption_channels=16, norm_num_groups=4,
        )
    )  # fmt: skip
    return diffusers.PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(), text_encoder=t5(), vae=vae(), transformer=transformer,
        scheduler=scheduler(),
    )  # fmt: skip


def qwen_image():
    import diffusers
    import transformers as hf

    transformer = shaken(
        lambda: diffusers.QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
        )
    )  # fmt: skip
    text = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 128, "rope_theta": 1e6, "bos_token_id": 0, "eos_token_id": 1,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, bos_token_id=0, eos_token_id=1)
    autoencoder = shaken(
        lambda: diffusers.AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True],
            latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
        )
    )  # fmt: skip
    return diffusers.QwenImagePipeline(
        transformer=transformer, vae=autoencoder, scheduler=scheduler("FlowMatchEulerDiscreteScheduler"),
        text_encoder=shaken(lambda: hf.Qwen2_5_VLForConditionalGeneration(config)), tokenizer=t5_tokenizer(),
    )  # fmt: skip


def z_image():
    import copy

    import diffusers
    import transformers as hf

    def network():
        made = diffusers.ZImageTransformer2DModel(
            in_channels=16, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
            axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
        )  # fmt: skip
        with torch.no_grad():  # made empty
            for pad in (made.x_pad_token, made.cap_pad_token):
                pad.fill_(1.0)
        return made

    config = hf.Qwen3Config(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=128, max_position_embeddings=64, head_dim=8,
    )  # fmt: skip
    autoencoder = shaken(
        lambda: diffusers.AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=16,
            block_out_channels=[8, 16], norm_num_groups=4, sample_size=32, scaling_factor=0.36, shift_factor=0.1,
        )
    )  # fmt: skip
    tokenizer = copy.deepcopy(t5_tokenizer())
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}{% endfor %}"
    return diffusers.ZImagePipeline(
        transformer=shaken(network), vae=autoencoder, scheduler=scheduler("FlowMatchEulerDiscreteScheduler"),
        text_encoder=shaken(lambda: hf.Qwen3Model(config)), tokenizer=tokenizer,
    )  # fmt: skip


def ddpm():
    import diffusers

    made = shaken(
        lambda: diffusers.UNet2DModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
    )  # fmt: skip
    return diffusers.DDPMPipeline(unet=made, scheduler=scheduler("DDPMScheduler"))


def image_to_image():
    return stable_diffusion("StableDiffusionImg2ImgPipeline")


def inpainting():
    return stable_diffusion("StableDiffusionInpaintPipeline", unet=unet(in_channels=9))


def controlled():
    import diffusers

    denoiser = unet()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        control = diffusers.ControlNetModel.from_unet(denoiser, conditioning_embedding_out_channels=(4, 8)).eval()
    return stable_diffusion("StableDiffusionControlNetPipeline", unet=denoiser, controlnet=control)


class Plain:
    """A pipeline that diffusers does not know: no base class, no generator, no schedule, one prompt at a time or many.

    Under guidance the network runs twice a step, first without the prompt.
    """

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.lead, self.norm, self.out = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4)

        def forward(self, hidden_states, timestep, context):
            return self.out(torch.tanh(self.norm(self.lead(hidden_states) + context[:, None] + timestep / 100)))

    def __init__(self):
        self.unet = shaken(self.Network)

    def __call__(self, prompt, num_inference_steps=1, guidance_scale=0.0):
        prompts = [prompt] if isinstance(prompt, str) else prompt
        latents = torch.randn(len(prompts), 6, 4)
        context = torch.stack([self.embedding(text) for text in prompts])
        for step in range(num_inference_steps, 0, -1):
            plain = self.unet(latents, torch.tensor(float(step)), torch.zeros_like(context)) if guidance_scale else 0
            told = self.unet(latents, torch.tensor(float(step)), context)
            latents = latents - (told + guidance_scale * (told - plain)) / num_inference_steps
        return latents

    @staticmethod
    def embedding(text):
        return torch.randn(8, generator=torch.Generator().manual_seed(sum(map(ord, text))))


class Doubled(Plain):
    """The same with both halves of guidance in one pass, the prompt's in front."""

    def __call__(self, prompt, num_inference_steps=1, guidance_scale=0.0):
        prompts = [prompt] if isinstance(prompt, str) else prompt
        latents = torch.randn(len(prompts), 6, 4)
        context = torch.stack([self.embedding(text) for text in prompts])
        for step in range(num_inference_steps, 0, -1):
            if guidance_scale:
                both = torch.cat([context, torch.zeros_like(context)])
                told, plain = self.unet(torch.cat([latents] * 2), torch.tensor(float(step)), both).chunk(2)
            else:
                told, plain = self.unet(latents, torch.tensor(float(step)), context), 0
            latents = latents - (told + guidance_scale * (told - plain)) / num_inference_steps
        return latents


# -- each of them with what its call takes --


@dataclass
class Case:
    """A pipeline, what its call takes besides rows, and rows of two sets.

    Attributes
    ----------
    output : str or None
        What the call calls pictures that are tensors; None where it takes no such argument.
    """

    make: Callable[[], Any]
    call: dict = field(default_factory=lambda: dict(ONE_STEP))
    src: Any = field(default_factory=lambda: list(SRC))
    tgt: Any = field(default_factory=lambda: list(TGT))
    output: str | None = "latent"

    def pictures(self, pipe, rows=None, **call):
        """A tensor of pictures of the rows of `src`, always of the same noise."""
        rows = self.src if rows is None else rows
        given = {**self.call, **(rows if isinstance(rows, dict) else {"prompt": rows}), **call}
        if self.output is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(7)
                return pipe(**given)
        pipe.set_progress_bar_config(disable=True)
        if "generator" in given:
            given = {**given, "batch_size": len(given["generator"])}
            given["generator"] = [torch.Generator().manual_seed(seed) for seed in given["generator"]]
        else:
            given["generator"] = torch.Generator().manual_seed(7)
        with torch.no_grad():
            return torch.as_tensor(pipe(**given, output_type=self.output).images)


def images(seed):
    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(3, 16, 16, generator=draw) for _ in SRC]


def left_half():
    return [(torch.arange(16) < 8).float().expand(1, 16, 16) for _ in SRC]


FLOW = {"num_inference_steps": 1, "height": 16, "width": 16}
CASES = {
    "StableDiffusion": Case(stable_diffusion),
    "StableDiffusionXL": Case(stable_diffusion_xl),
    "Flux": Case(flux, {**FLOW, "guidance_scale": 0.0, "max_sequence_length": 16}),
    "StableDiffusion3": Case(stable_diffusion_3, {**FLOW, "guidance_scale": 0.0}),
    "PixArt": Case(pixart, {**ONE_STEP, "use_resolution_binning": False, "clean_caption": False}),
    "QwenImage": Case(qwen_image, {**FLOW, "true_cfg_scale": 1.0, "max_sequence_length": 16}),
    "ZImage": Case(z_image, {**FLOW, "guidance_scale": 0.0, "max_sequence_length": 16}),
    "DDPM": Case(
        ddpm, {"num_inference_steps": 1}, {"generator": [1, 2, 3, 4]}, {"generator": [5, 6, 7, 8]}, output="np"
    ),
    "Img2Img": Case(
        image_to_image, {**ONE_STEP, "strength": 1.0}, {"prompt": SRC, "image": images(1)},
        {"prompt": TGT, "image": images(2)},
    ),
    "Inpaint": Case(
        inpainting, {**ONE_STEP, "strength": 1.0, "height": 16, "width": 16},
        {"prompt": SRC, "image": images(1), "mask_image": left_half()},
        {"prompt": TGT, "image": images(2), "mask_image": left_half()},
    ),
    "ControlNet": Case(
        controlled, dict(ONE_STEP), {"prompt": SRC, "image": images(1)}, {"prompt": TGT, "image": images(2)}
    ),
    "Plain": Case(Plain, dict(ONE_STEP), output=None),
    "Doubled": Case(Doubled, dict(ONE_STEP), output=None),
}  # fmt: skip


@functools.cache
def shared(name):
    """One for all tests, which leave it as it was."""
    return CASES[name].make()


def fit(name, pipe=None, **options):
    case = CASES[name]
    given = {"src": case.src, "tgt": case.tgt, "call": case.call, "max_evaluations": 3, "progress": False, **options}
    return lineas.fit(pipe or shared(name), **given)


@functools.cache
def fitted(name):
    return fit(name)


def strong_maps(name, seed=0, size=0.3, sites=None, **options):
    """Random maps that anybody can tell from none, at the default sites or others."""
    case = CASES[name]
    found = lineas.evaluation.responses(shared(name), case.src, sites, call=case.call, **options)
    draw = np.random.default_rng(seed)
    return lineas.Steering(
        {
            site: (1 + size * draw.normal(size=h.shape[1]), size * draw.normal(size=h.shape[1]))
            for site, h in found.items()
        }
    )
