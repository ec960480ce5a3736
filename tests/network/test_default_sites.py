"""Default sites feed the MLPs in fact: a forward pass tells, architecture by architecture, or a fit refuses them."""

import pytest
import torch
from conftest import normal
from network_cases import seeded
from torch import nn

import lineas

INNER = 20  # the width of every MLP here, and of nothing else
SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "embedding_size"), 16),
    "word_embed_proj_dim": 16, "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "d_ff"), INNER),
    **dict.fromkeys(("hidden_dim", "d_inner", "moe_intermediate_size", "intermediate_size_mlp"), INNER),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers", "num_local_experts", "num_experts_per_tok"), 2),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 2),
    **dict.fromkeys(("encoder_num_hidden_layers", "decoder_num_hidden_layers", "num_feat_extract_layers"), 2),
    "head_dim": 8, "d_kv": 8, "rotary_dim": 4, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions"), 64),
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id"), 1), "eos_token_id": 2, "pad_token_id": 0,
    "vocab_size": 64, "image_size": 64, "patch_size": 8, "mlp_ratio": INNER / 16, "num_mel_bins": 8,
}  # fmt: skip


def tiny(kind, **options):
    import transformers as hf

    known = hf.AutoConfig.for_model(kind)
    sizes = {name: size for name, size in SIZES.items() if name in known.to_dict()} | options
    return seeded(lambda: hf.AutoModel.from_config(hf.AutoConfig.for_model(kind, **sizes)))


def inputs_of(model):
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 60, (2, 5), generator=draw)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 64, 64, generator=draw)}
    shapes = {"input_values": (2, 2000), "input_features": (2, 8, 128)}
    name = model.main_input_name
    first = {name: torch.randn(shapes[name], generator=draw) if name in shapes else ids}
    return first | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})


def fed(model, inputs):
    """What every MLP's first layers, those of the width INNER, were given; and what every module returned."""
    given, returned = [], {}

    def before(path):
        def see(module, args, kwargs):
            x = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
            wide = any({INNER, 2 * INNER} & set(weight.shape[-2:]) for weight in module.parameters(recurse=False))
            if wide and x is not None and x.shape[-1] not in (INNER, 2 * INNER):
                given.append((path, x))

        return see

    for path, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(before(path), with_kwargs=True)
        module.register_forward_hook(lambda m, args, output, path=path: returned.setdefault(path, output))
    with torch.no_grad():
        model(**inputs)
    return given, returned


def assert_default_sites_feed_the_mlps(model, inputs):
    sites = [site.name for site in lineas.find_sites(model)]
    given, returned = fed(model, inputs)
    assert given
    places = {path: x.untyped_storage().data_ptr() for path, x in given}
    feeding = {site: returned[site].untyped_storage().data_ptr() for site in sites}
    assert set(feeding.values()) == set(places.values()), (sites, list(places))


BEFORE = [
    "llama", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "glm4", "granite", "granitemoe", "mixtral", "gpt_oss",
    "apertus", "starcoder2", "falcon_h1", "gpt2", "opt", "xglm", "biogpt", "modernbert", "esm", "roberta-prelayernorm",
    "megatron-bert", "vit", "beit", "clip_vision_model", "siglip_vision_model", "mbart", "pegasus", "m2m_100",
    "nllb-moe", "t5", "umt5", "longt5", "whisper", "moonshine", "wav2vec2-conformer",
]  # fmt: skip
AT_ONCE = ["gptj", "phi", "cohere", "cohere2"]  # attention and MLP read the same
BEHIND = [
    "bert", "electra", "deberta-v2", "nomic_bert", "distilbert", "albert", "mpnet", "squeezebert", "fnet", "bart",
    "fsmt", "marian", "wav2vec2", "hubert", "data2vec-audio",
]  # fmt: skip
OPTIONS = [
    ("opt", {"do_layer_norm_before": False}),
    ("wav2vec2", {"do_stable_layer_norm": True}),
    ("falcon", {"ffn_hidden_size": INNER}),
    ("falcon", {"ffn_hidden_size": INNER, "parallel_attn": False}),
    ("falcon", {"ffn_hidden_size": INNER, "new_decoder_architecture": True}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("gpt_neox", {"use_parallel_residual": True}),
    ("stablelm", {"use_parallel_residual": False}),
    ("stablelm", {"use_parallel_residual": True}),
    ("openai-gpt", {"n_embd": 5, "n_head": 1}),
    ("gpt_neo", {"attention_types": [[["global"], 2]], "intermediate_size": INNER}),
    ("convnext", {"depths": [1, 1], "hidden_sizes": [5, 10], "num_stages": 2}),
]


@pytest.mark.parametrize(
    ("kind", "options"), [*((kind, {}) for kind in (*BEFORE, *AT_ONCE, *BEHIND)), *OPTIONS], ids=str
)
def test_default_sites_feed_the_mlps_of_an_architecture(kind, options):
    model = tiny(kind, **options)
    assert_default_sites_feed_the_mlps(model, inputs_of(model))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_first", [False, True])
def test_default_sites_of_torchs_own_transformer_feed_its_mlps(norm_first):
    model = seeded(lambda: nn.Transformer(16, 2, 2, 2, INNER, norm_first=norm_first, batch_first=True))
    assert_default_sites_feed_the_mlps(model, {"src": normal(2, 5, 16), "tgt": normal(2, 3, 16)})
    layer = seeded(lambda: nn.TransformerEncoderLayer(16, 2, INNER, norm_first=norm_first, batch_first=True))
    assert [site.name for site in lineas.find_sites(layer)] == ["norm2" if norm_first else "norm1"]


@pytest.mark.parametrize(("kind", "block"), [("olmo2", "layers.0"), ("exaone4", "layers.0")])
def test_blocks_that_normalise_only_what_comes_out_have_no_default(kind, block):
    with pytest.raises(LookupError, match=rf"{block} normalises what its parts put out.*Candidates here: .*norm \(2 "):
        lineas.find_sites(tiny(kind))


def test_other_norms_are_no_default():
    """A model's last norm, one inside the MLP, those of a convolution: none of them feeds an MLP."""
    names = [site.name for site in lineas.find_sites(tiny("opt"))]
    assert names == [f"decoder.layers.{k}.final_layer_norm" for k in range(2)]
    inside = nn.ModuleDict({"mlp": nn.ModuleDict({"fc1": nn.Linear(2, 4), "norm": nn.LayerNorm(4)})})
    stem = nn.ModuleDict({"conv1": nn.Conv2d(3, 2, 1), "norm1": nn.BatchNorm2d(2), "norm2": nn.BatchNorm2d(2)})
    for net in (inside, stem):
        with pytest.raises(LookupError, match="so there is no default"):
            lineas.find_sites(net)


class Block(nn.Module):
    """As diffusers and others name their parts; whether norms come before or behind them, no name tells."""

    def __init__(self, behind=False, cross=False, modulated=False):
        super().__init__()
        self.behind, self.modulated = behind, modulated
        self.norm1, self.attn1 = nn.LayerNorm(4), nn.Linear(4, 4)
        self.norm2, self.attn2 = nn.LayerNorm(4), nn.Linear(4, 4)
        self.norm3, self.ff = nn.LayerNorm(4) if cross else None, nn.Linear(4, 4)

    def forward(self, x):
        parts = [(self.norm1, self.attn1), (self.norm2, self.attn2), (self.norm3, self.ff)]
        if self.norm3 is None:
            parts = [(self.norm1, self.attn1), (self.norm2, self.ff)]
        for norm, part in parts:
            y = norm(x + part(x)) if self.behind else norm(x)
            x = y if self.behind else x + part(2 * y + 1 if self.modulated else y)
        return x


def of_blocks(**options):
    return seeded(lambda: nn.Sequential(*(Block(**options) for _ in range(2)), nn.Linear(4, 4)))


SIDES = normal(12, 5, 4), normal(12, 5, 4, seed=1)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_the_last_of_numbered_norms_feeds_the_mlp_whatever_cross_attention_there_is(cross, modulated):
    net = of_blocks(cross=cross, modulated=modulated)
    name = "norm3" if cross else "norm2"
    assert lineas.fit(net, *SIDES, steps=2, progress=False).sites == [f"0.{name}", f"1.{name}"]


@pytest.mark.parametrize("call", [lineas.fit, lambda net, src, tgt, **options: lineas.evaluation.responses(net, src)])
def test_a_default_site_that_feeds_no_mlp_in_fact_is_refused_with_the_one_that_does(call):
    with pytest.raises(
        LookupError, match=r"'0\.norm2' feeds no MLP here: it runs behind 0\.ff, and 0\.ff gets what 0\.norm1"
    ):
        call(of_blocks(behind=True), *SIDES, progress=False)

    class Crossed(Block):
        def forward(self, x):
            return x + self.ff(x + self.attn2(self.norm2(x)))

    with pytest.raises(LookupError, match=r"'0\.norm2' feeds no MLP here: 0\.attn2 runs next; pass sites="):
        call(nn.Sequential(Crossed()), *SIDES, progress=False)
    steering = lineas.fit(of_blocks(behind=True), *SIDES, sites=r"\d\.norm2", steps=2, progress=False)
    assert steering.sites == ["0.norm2", "1.norm2"], "named, it is taken"


class TwoTowers(nn.Module):
    """Texts always, and pictures where there are some: as many patches as there are pixels."""

    def __init__(self):
        super().__init__()
        self.vision, self.language = of_blocks(), of_blocks()

    def forward(self, x, attention_mask=None, pixels=None):
        if pixels is not None:
            x = x + self.vision(pixels).mean(1, keepdim=True)
        return self.language(x)


def test_default_sites_that_the_inputs_do_not_reach_are_left_out():
    net = TwoTowers()
    assert len(lineas.find_sites(net)) == 4
    language = ["language.0.norm2", "language.1.norm2"]
    assert lineas.fit(net, *SIDES, steps=2, progress=False).sites == language
    assert list(lineas.evaluation.responses(net, SIDES[0])) == language
    with pytest.raises(LookupError, match=r"not run in the forward pass.*: vision\.0\.norm2$"):
        lineas.fit(net, *SIDES, sites=["vision.0.norm2", *language], progress=False)
    src, tgt = ({"x": x, "pixels": normal(12, 7, 4)} for x in SIDES)
    assert len(lineas.fit(net, src, tgt, steps=2, progress=False).sites) == 4


def test_default_sites_whose_tokens_the_mask_does_not_know_are_left_out_with_a_warning():
    src, tgt = ({"x": x, "attention_mask": torch.ones(12, 5), "pixels": normal(12, 7, 4)} for x in SIDES)
    message = (
        r"left out 2 of 4 default sites; the first is 'vision\.0\.norm2': has 7 tokens, attention_mask has \(2, 5\)"
    )
    with pytest.warns(UserWarning, match=message):
        steering = lineas.fit(TwoTowers(), src, tgt, steps=2, progress=False)
    assert steering.sites == ["language.0.norm2", "language.1.norm2"]
