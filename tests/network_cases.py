"""What the tests of networks share: a fit of a few steps, models with seeded weights, token ids, maps at any site."""

import numpy as np
import torch
from conftest import TEXTS, WordTokenizer
from torch import nn

import lineas
from lineas.network.hooks import channel_dim, hooked

IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 3]])


def fit(model, **options):
    sides = options.pop("sides", TEXTS)
    return lineas.fit(model, *sides, **{"tokenizer": WordTokenizer(), "progress": False, "steps": 4, **options})


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


class Blocks(nn.Module):
    """Modules with weights of their own around the sites, which accelerate loads until their forward pass ends."""

    class Block(nn.Module):
        def __init__(self, dim=4):
            super().__init__()
            self.scale, self.inner = nn.Parameter(torch.ones(dim)), nn.Linear(dim, dim)

        def forward(self, x):
            return x + self.scale * torch.tanh(self.inner(x))

    def __init__(self):
        super().__init__()
        self.shift, self.blocks = nn.Parameter(torch.zeros(4)), nn.Sequential(self.Block(), self.Block())

    def forward(self, x):
        return self.blocks(x + self.shift)


def t5():
    import transformers as hf

    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return hf.T5ForConditionalGeneration(hf.T5Config(**sizes, decoder_start_token_id=0))


def tokens(n, count, seed):
    return torch.randint(3, 60, (n, count), generator=torch.Generator().manual_seed(seed))


def mask_of(*lengths, tokens):
    return (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()


def pair(seed=0, encoder=6, decoder=6, **extra):
    """Four samples: as many tokens for encoder and decoder, and padding in different places."""
    return {
        "input_ids": tokens(4, encoder, seed), "attention_mask": mask_of(6, 2, 3, 5, tokens=encoder),
        "decoder_input_ids": tokens(4, decoder, seed + 9),
        "decoder_attention_mask": mask_of(1, 6, 4, 2, tokens=decoder),
    } | extra  # fmt: skip


def widths(model, batch, sites):
    """Channels of each site's tensor, as a pass with these keyword arguments has them."""
    found = {}
    functions = {
        site: lambda module, h, site=site: found.setdefault(site.name, h.shape[channel_dim(module, h)]) and h
        for site in sites
    }
    with torch.no_grad(), hooked(model, functions):
        model(**batch)
    return found


def steering_of(model, batch, names, size=0.1, seed=0):
    """A random map at each of these sites: weights around 1, biases around 0."""
    draw = np.random.default_rng(seed)
    units = widths(model, batch, lineas.find_sites(model, names))
    return lineas.Steering({n: (1 + size * draw.normal(size=d), size * draw.normal(size=d)) for n, d in units.items()})
