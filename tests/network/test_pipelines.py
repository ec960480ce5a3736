"""What pipelines are, which sites they have, and what they give their networks."""

import pytest
import torch
from pipelines import CASES, SRC, Plain, shared
from torch import nn

import lineas
from lineas.network.inputs import Inputs
from lineas.network.pipelines import is_pipeline
from lineas.network.pipelines.components import with_component
from lineas.network.pipelines.passes import Given, Rows, batch_of, part_with_prompt, with_lists

# -- sites --

SITES = {  # how many normalisations, and some of them
    "StableDiffusion": (33, ["down_blocks.0.resnets.0.norm1", "mid_block.attentions.0.transformer_blocks.0.norm3"]),
    "StableDiffusionXL": (33, ["conv_norm_out"]),
    "Flux": (7, ["transformer_blocks.0.norm1_context", "single_transformer_blocks.1.norm", "norm_out"]),
    "StableDiffusion3": (8, ["transformer_blocks.1.norm2", "norm_out"]),
    "PixArt": (5, ["transformer_blocks.0.norm1", "norm_out"]),
    "QwenImage": (6, ["txt_norm", "norm_out"]),
    "ZImage": (14, ["layers.0.attention_norm1", "cap_embedder.0"]),  # the latter of all prompts together
    "DDPM": (21, ["mid_block.attentions.0.group_norm"]),
    "Img2Img": (33, ["conv_norm_out"]),
    "Inpaint": (33, ["conv_norm_out"]),
    "ControlNet": (33, ["conv_norm_out"]),
    "Plain": (1, ["norm"]),
    "Doubled": (1, ["norm"]),
}


@pytest.mark.parametrize("name", CASES)
def test_default_sites_of_a_pipeline_are_all_normalisations_of_its_denoiser(name):
    count, some = SITES[name]
    names = [site.name for site in lineas.find_sites(shared(name))]
    assert len(names) == count
    assert set(some) <= set(names)
    assert is_pipeline(shared(name))


def test_sites_of_a_text_encoder_are_those_that_feed_its_mlps():
    clip = lineas.find_sites(shared("StableDiffusion"), component="text_encoder")
    assert [site.name.rpartition(".")[2] for site in clip] == ["layer_norm2", "layer_norm2"]
    t5 = lineas.find_sites(shared("Flux"), component="text_encoder_2")
    assert [site.name for site in t5] == [f"encoder.block.{k}.layer.1.layer_norm" for k in range(2)]


def test_what_holds_no_denoiser_and_what_is_not_called_is_no_pipeline():
    class Tool:
        def __init__(self):
            self.unet = nn.Linear(1, 1)

    assert not is_pipeline(Tool())
    assert not is_pipeline(Plain)
    assert not is_pipeline(nn.Linear(1, 1))


def test_a_pipeline_with_another_network_says_so_in_its_config_and_the_first_one_does_not():
    from diffusers import UNet2DModel

    pipe = shared("StableDiffusion")
    another = UNet2DModel(sample_size=8, block_out_channels=(8,), down_block_types=("DownBlock2D",),
                          up_block_types=("UpBlock2D",), norm_num_groups=2)  # fmt: skip
    new = with_component(pipe, "unet", another)
    assert type(new) is type(pipe)
    assert (new.unet, new.vae) == (another, pipe.vae)
    assert tuple(new.config.unet) == ("diffusers", "UNet2DModel")
    assert tuple(pipe.config.unet) == ("diffusers", "UNet2DConditionModel")
    assert pipe.unet is not another


# -- what the network is given --


def given(name, batch_size=None, rows=None, seed=0, pipe=None, call=None, **options):
    """The batches of a network for the rows of `src`."""
    case = CASES[name]
    inputs = Inputs(pipe or shared(name), call={**case.call, **(call or {})}, seed=seed, **options)
    (batches,) = inputs.batches({"src": case.src if rows is None else rows}, batch_size=batch_size)
    return batches


def by_sample(batches):
    """Each sample's tensors."""
    return [[list(batch.rows(k, k + 1).tensors()) for k in range(batch.size)] for batch in batches]


@pytest.mark.parametrize("name", CASES)
def test_a_row_is_the_same_whatever_the_batches_are(name):
    def samples(batch_size):
        return [tensors for batch in by_sample(given(name, batch_size)) for tensors in batch]

    whole = samples(None)
    assert len(whole) == 4
    for batch_size in (1, 3):
        for a, b in zip(whole, samples(batch_size), strict=True):
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def noise_of(batch):
    return next(iter(batch.tensors()))


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("DDPM", "Img2Img", "Inpaint")])
def test_row_k_of_both_sets_starts_from_the_same_noise(name):
    (src,), (tgt,) = given(name), given(name, rows=CASES[name].tgt)
    assert torch.equal(noise_of(src), noise_of(tgt))
    assert not torch.equal(noise_of(src)[0], noise_of(src)[1])
    (other,) = given(name, seed=1)
    assert not torch.equal(noise_of(src), noise_of(other))


def test_the_networks_own_pass_over_a_batch_is_that_of_the_pipeline():
    pipe, seen = shared("StableDiffusion"), []
    (batch,) = given("StableDiffusion")
    hook = pipe.unet.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    try:
        noise = noise_of(batch) / pipe.scheduler.init_noise_sigma
        CASES["StableDiffusion"].pictures(pipe, latents=noise)
    finally:
        hook.remove()
    args, kwargs = batch.plain()
    with torch.no_grad():
        assert torch.equal(pipe.unet(*args, **kwargs)[0], seen[0])


# -- guidance, pictures of a prompt, steps --

GUIDED = {
    "StableDiffusion": {"guidance_scale": 5.0},
    "StableDiffusionXL": {"guidance_scale": 5.0},
    "Flux": {"true_cfg_scale": 4.0, "negative_prompt": "fire"},
    "StableDiffusion3": {"guidance_scale": 5.0},
    "PixArt": {"guidance_scale": 5.0},
    "QwenImage": {"true_cfg_scale": 4.0, "negative_prompt": "fire"},
    "ZImage": {"guidance_scale": 5.0},
    "Img2Img": {"guidance_scale": 5.0},
    "Inpaint": {"guidance_scale": 5.0},
    "ControlNet": {"guidance_scale": 5.0},
    "Plain": {"guidance_scale": 5.0},
    "Doubled": {"guidance_scale": 5.0},
}


@pytest.mark.parametrize("name", GUIDED)
def test_under_guidance_the_samples_are_the_rows_with_the_prompt(name):
    for batch_size in (None, 3):
        plain, guided = given(name, batch_size), given(name, batch_size, call=GUIDED[name])
        for a, b in zip(plain, guided, strict=True):
            assert a.size == b.size
            for x, y in zip(a.tensors(), b.tensors(), strict=True):
                torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["StableDiffusion", "StableDiffusion3", "Flux", "PixArt"])
def test_pictures_of_a_prompt_are_samples_of_their_own(name):
    (one,) = given(name, rows=SRC[:2])
    (two,) = given(name, rows=SRC[:2], call={"num_images_per_prompt": 2, **GUIDED[name]})
    assert (one.size, two.size) == (2, 4)
    of_one, of_two = (batch.kwargs["encoder_hidden_states"] for batch in (one, two))
    torch.testing.assert_close(of_two, of_one.repeat_interleave(2, 0), rtol=1e-4, atol=1e-5)
    noise = noise_of(two)
    assert len({row.sum().item() for row in noise}) == 4
    parts = given(name, 1, rows=SRC[:2], call={"num_images_per_prompt": 2})
    torch.testing.assert_close(torch.cat([noise_of(part) for part in parts]), noise)


def test_pictures_of_a_prompt_with_noise_of_its_own_start_from_different_noise():
    rows = {"prompt": SRC[:2], "generator": [3, 4]}
    (one,) = given("StableDiffusion", rows=rows)
    (three,) = given("StableDiffusion", rows=rows, call={"num_images_per_prompt": 3})
    noise = noise_of(three)
    assert len({row.sum().item() for row in noise}) == 6
    torch.testing.assert_close(noise[::3], noise_of(one))


def test_what_differs_between_prompts_and_is_no_row_is_refused():
    """In calls of one prompt each, which a class that diffusers does not know gets, it would be that of the first."""

    class Lengths(Plain):
        class Network(nn.Module):
            def __init__(self):
                super().__init__()
                self.norm = nn.LayerNorm(4)

            def forward(self, hidden_states, timestep, length):
                return self.norm(hidden_states) * length

        def __call__(self, prompt, num_inference_steps=1, guidance_scale=0.0):
            return self.unet(torch.randn(1, 6, 4), torch.tensor(1.0), torch.tensor(float(len(prompt[0]))))

    with pytest.raises(
        ValueError, match="expected a row in dimension 0, or the same for all prompts, got others in 0.2"
    ):
        given("Plain", pipe=Lengths(), rows=["a", "bcd", "ef"])


def test_lists_with_a_tensor_for_each_row_are_cut_and_joined_by_row():
    """As Z-Image's network takes its rows, under guidance all with the prompt first."""
    lists = [torch.full((k, 16), float(k)) for k in (5, 7, 3, 3)]
    noise = [torch.randn(4, 1, 8, 8)] * 4
    args, kwargs = with_lists((noise, torch.ones(4), lists, [torch.zeros(2)]), {"return_dict": False})
    one = Given(0, 0, args, kwargs)
    assert {path: len(leaf) for path, leaf in one.leaves().items()} == {"0.0": 4, "0.1": 4, "0.2": 4, "0.3.0": 2}
    assert part_with_prompt(one, 2, 1) == 1
    rows = Rows(2, 2, 0, 0, {"0.0": True, "0.1": True, "0.2": True, "0.3.0": False})
    batch = batch_of(one, 2, rows)
    assert [len(item) for item in batch.plain()[0][2]] == [5, 7]
    assert [len(item) for item in batch.take([1]).plain()[0][2]] == [7]
    assert [len(item) for item in batch.rows(0, 1).to(torch.device("cpu")).plain()[0][0]] == [4]
    assert [tuple(item.shape) for item in batch.tensors()] == [(4, 1, 8, 8)] * 2 + [(2,), (5, 16), (7, 16), (2,)]


def test_what_all_rows_share_is_no_sample():
    (batch,) = given("Flux")
    few = batch.rows(1, 3).plain()[1]
    assert few["img_ids"].shape == batch.plain()[1]["img_ids"].shape
    assert few["hidden_states"].shape[0] == 2


@pytest.mark.parametrize("name", ["StableDiffusion", "Flux", "Plain"])
@pytest.mark.parametrize("guided", [False, True])
def test_each_step_that_is_meant_is_a_batch(name, guided):
    call = {"num_inference_steps": 4, **(GUIDED[name] if guided else {})}

    def steps(at):
        return [batch.plain()[1].get("timestep", batch.args[1] if len(batch.args) > 1 else None).reshape(-1)[0].item()
                for batch in given(name, call=call, at=at)]  # fmt: skip

    every = steps("all")
    assert len(every) == len(set(every)) == 4
    assert every == sorted(every, reverse=True)
    assert steps("first") == every[:1]
    assert steps([3, 1]) == [every[1], every[3]]
