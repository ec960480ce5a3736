"""Models of images are steered along their channels."""

import numpy as np
import pytest
import torch
from conftest import assert_untouched, normal, snapshot
from network_cases import fit, seeded
from torch import nn

import lineas


def vit():
    import transformers as hf

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return hf.ViTModel(hf.ViTConfig(**sizes, image_size=16, patch_size=8))


def convnext():
    import transformers as hf

    return hf.ConvNextModel(hf.ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], image_size=16))


class UNet(nn.Module):
    """As diffusion's are: images, a time and a context go in, a skip joins both halves, an output object comes out."""

    def __init__(self):
        super().__init__()
        self.time, self.context = nn.Linear(1, 8), nn.Linear(5, 8)
        self.down, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8)
        self.middle, self.up = nn.Conv2d(8, 8, 3, padding=1), nn.ConvTranspose2d(16, 3, 2, stride=2)

    def forward(self, sample, timestep, encoder_hidden_states):
        h = torch.relu_(self.norm(self.down(sample)) + self.time(timestep[:, None])[:, :, None, None])
        middle = torch.tanh(self.middle(h) + self.context(encoder_hidden_states).mean(1)[:, :, None, None])
        return {"sample": self.up(torch.cat([h, middle], 1))}


def noisy(n, seed):
    return {
        "sample": normal(n, 3, 8, 8, seed=seed, shift=seed / 2), "timestep": torch.linspace(0, 1, n),
        "encoder_hidden_states": normal(n, 7, 5, seed=seed),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "sites", "sides", "units"),
    [
        (vit, None, [{"pixel_values": normal(8, 3, 16, 16, seed=k, shift=k / 2)} for k in (0, 1)], [16, 16]),
        (
            convnext,
            r".*\.dwconv|.*\.pwconv2",
            [normal(8, 3, 16, 16, seed=k, shift=k / 2) for k in (0, 1)],
            [8, 8, 16, 16],
        ),
        (UNet, ["down", "norm", "middle", "up"], [noisy(8, 0), noisy(9, 1)], [8, 8, 8, 3]),
    ],
)
def test_models_of_images_are_steered_along_their_channels(make, sites, sides, units):
    model = seeded(make)
    before = snapshot(model)
    steering = fit(model, sites=sites, sides=sides)
    assert [len(steering.weight(name)) for name in steering.sites] == units
    assert steering.history["loss"][-1] < 0.5 * steering.history["loss"][0]
    assert_untouched(model, before)


class LayerNorm2d(torch.nn.LayerNorm):
    """As torchvision and timm have it: over the channels of (batch, channels, height, width)."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ChannelNorm(torch.nn.Module):
    """Over the channels of (batch, channels, time), with weights of its own, as in audio models."""

    def __init__(self, units):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(units))

    def forward(self, x):
        return x / x.square().mean(1, keepdim=True).sqrt() * self.weight[:, None]


@pytest.mark.parametrize(("norm", "shape"), [(LayerNorm2d, (12, 9)), (LayerNorm2d, (6, 6)), (ChannelNorm, (12,))])
def test_norms_that_leave_channels_in_front_are_mapped_there(norm, shape):
    net = torch.nn.Sequential(norm(6))
    x = normal(12, 6, *shape)
    y = x.clone()
    y[:, 2] += 3 + y[:, 1] / 10
    steering = lineas.fit(net, x, y, sites="0", progress=False)
    assert steering.weight("0").shape == (6,)
    assert lineas.experts.rank(net, x, y, sites="0").sizes == {"0": 6}
    with lineas.Steering({"0": (np.array([1, 1, 2, 1, 1, 1.0]), np.zeros(6))}).apply(net):
        steered = net(x)
    scale = torch.ones(6)
    scale[2] = 2
    assert torch.allclose(steered, net(x) * scale.view(6, *[1] * len(shape)), atol=1e-6)


def test_convnexts_own_norms_have_the_units_that_they_announce():
    model = seeded(convnext)
    images = [normal(8, 3, 16, 16, seed=k, shift=k / 2) for k in (0, 1)]
    pattern = r"embeddings\.layernorm|.*downsampling_layer\.0|.*layernorm"
    announced = {site.name: site.units for site in lineas.find_sites(model, pattern)}
    assert len(announced) >= 4
    steering = lineas.fit(model, *images, sites=pattern, steps=1, progress=False)
    assert {name: len(steering.bias(name)) for name in steering.sites} == announced
