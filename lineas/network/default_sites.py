"""The sites there are unless told: the normalisation that feeds each block's MLP, by the names of many architectures;
of a network that makes pictures, all normalisations.

A block is a module that holds an MLP, or the first layer of one. Most blocks normalise what their parts take in; which
ones normalise what comes out of them instead, their flags and classes tell.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping

from torch import nn

from .links import core
from .sharding import kind_of

__all__ = ["all_norms", "default_names", "outline"]

MLP = re.compile(
    r"((shared|audio|txt)_)?(mlp|ffn?|feed_?forward)\d?(_context|_block)?|(block_sparse_)?moe|experts|intermediate|"
    r"DenseReluDense|proj_mlp|fc1|fc_in|lin(ear)?1|pwconv1"
)
# What a norm that feeds the MLP is called; of the first line that names some, all.
FEEDING = (
    # after the MLP
    r"(pre_)?(feed_?forward|ffn?|mlp)\d?_?(layer_?)?norm(_\d)?|norm_(feed_forward|ffn?|mlp)\d?|ffn_norm1|ln_mlp|"
    r"channel_pre_norm",
    r"final_layer_?norm",  # Whisper, OPT, Pegasus, mBART; Moonshine, where post_attention_layernorm feeds attention
    r"layernorm_after",  # ViT, DeiT
    r"(audio_)?post_attention_(layer_?|rms)?norm(_moe_gen)?|post_sa_norm",  # Llama, Qwen, Mistral, GPT-NeoX, BLOOM
    r"sa_layer_norm",  # DistilBERT
)
# The last of these, of every kind: GPT-2, CLIP, timm, diffusers, whose norm2 feeds cross-attention where there is some.
NUMBERED = re.compile(r"((?:\w+_)?(?:layer_?|rms_)?norm_?|ln_?)(\d)((?:_context)?)")
# The only norm of a block, of which attention and MLP read at once (Falcon, GPT-J, Phi, Cohere), or of an MLP's own
# block (T5, ConvNeXt).
ONLY = re.compile(r"input_layernorm|ln(_1)?|LayerNorm|layer_?norm|norm")
INSIDE = (  # of a part of the block
    "norm_attn_norm.norm_2",  # DBRX
    "intermediate.LayerNorm", "ffn.layernorm_before_ffn", "feed_forward.layer_norm",
    "crossattention.output.LayerNorm", "attention.output.LayerNorm",  # BERT, RoBERTa, ELECTRA
    "fourier.output.LayerNorm", "post_attention.layernorm", "attention.LayerNorm", "attention.layer_norm",
    "rel_attn.layer_norm",
)  # fmt: skip
# These classes normalise behind their parts, after adding: the norm before the last one feeds the MLP.
BEHIND = re.compile(
    r".*\.((Bart|PLBart|Marian|BlenderbotSmall|Mvp|LED|TrOCR|ProphetNet|SpeechT5|Informer|Autoformer|"
    r"TimeSeriesTransformer|(?!Sam3\w*DetrEnc)\w*Detr(V\d)?|PPDocLayoutV\d|\w*GroundingDino)(En|De)coderLayer|CLIPSegDecoderLayer|"
    r"(Wav2Vec2|Hubert|UniSpeech|UniSpeechSat|SEW|WavLM|Data2VecAudio|Vits)EncoderLayer|"
    r"\w*(GroundingDino\w+|PixelDecoderEncoder|DeformableTransformerDecoder)Layer|"
    r"modeling_fsmt\.(En|De)coderLayer|modeling_openai\.Block)"
)
BEFORE_FLAGS = ("norm_first", "do_layer_norm_before", "normalize_before")  # of blocks that can do either
# These normalise each part's output before adding: no norm feeds the MLP.
BETWEEN = re.compile(
    r"Swinv2Layer|Swin2SRLayer|SwinTransformerV2(Cr)?Block|ResPost(RelPos)?Block|EvaBlockPostNorm|"
    r"FastSpeech2ConformerEncoderLayer|(DFine|Deimv2)DecoderLayer"
)
OF_ATTENTION = re.compile(r"norm_(added_)?[qkv]|([a-z]+_)?[qkv]_([a-z]+_)?norm|norm_cross")
MODULATION = re.compile(r"\w*AdaLayerNormSingle")  # returns shifts and scales for others
HOW = "a list of module paths or a regular expression"
OTHERWISE = {"TwoWayAttentionBlock": "layer_norm2", "XCABlock": "norm2", "WanAnimate2TransformerBlock": "norm2"}


def default_names(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Of modules by bare name, those that feed an MLP, and each one's block.

    LookupError, with candidates, where none does; also where some blocks are known to have none.
    """
    below: dict[str, dict[str, nn.Module]] = defaultdict(dict)
    for path in filter(None, modules):
        above, _, name = path.rpartition(".")
        below[above][name] = modules[path]
    found: dict[str, str] = {}
    why = ""
    for path, children in below.items():
        if not any(map(MLP.fullmatch, children)) or MLP.fullmatch(path.rpartition(".")[2]):
            continue
        block, before = core(modules[path]), f"{path}." if path else ""
        if _normalises_between(block, children):
            why = why or f" in every block ({path or type(block).__name__} normalises what its parts put out)"
        inside = [name for name in INSIDE if before + name in modules][:1]
        found |= {before + name: path for name in _feeding(block, children) or inside}
    if found and not why:
        return {path: found[path] for path in modules if path in found}
    inner = {path: module for path, module in modules.items() if path}
    raise LookupError(
        f"found no normalisation that feeds an MLP{why}, so there is no default: pass sites=, {HOW}. "
        f"Candidates here: {outline(inner) or 'none, it has no modules inside'}"
    )


def all_norms(modules: Mapping[str, nn.Module]) -> list[str]:
    """Of modules by bare name, the normalisations of activations, each within no other: not those of queries and keys,
    nor what makes a modulation of the timestep.

    LookupError, with candidates, where there is none.
    """
    found: list[str] = []
    for path, module in modules.items():
        name, kind = path.rpartition(".")[2], kind_of(core(module)).__name__
        is_one = path and "norm" in kind.lower() and not MODULATION.fullmatch(kind) and not OF_ATTENTION.fullmatch(name)
        if is_one and not any(path.startswith(f"{above}.") for above in found):
            found.append(path)
    if not found:
        inner = {path: module for path, module in modules.items() if path}
        raise LookupError(
            f"found no normalisation, so there is no default: pass sites=, {HOW}. Candidates here: {outline(inner)}"
        )
    return found


def _feeding(block: nn.Module, children: Mapping[str, nn.Module]) -> list[str]:
    """Of a block's own norms, those that feed its MLP, or MLPs."""
    norms = [name for name, child in children.items() if is_norm(name, child)]
    kind = type(block).__name__
    if special := next((norm for end, norm in OTHERWISE.items() if kind.endswith(end)), None):
        return [special]
    if _normalises_behind(block):
        return norms[-2:-1]
    if "encoder_attn" not in children and "post_attention_layernorm" in norms:
        norms = [name for name in norms if name != "final_layernorm"]  # behind the MLP then
    for pattern in FEEDING:
        if named := [name for name in norms if re.fullmatch(pattern, name)]:
            return named
    return _last_numbered(norms) or _only(norms, children)


def _only(norms: list[str], children: Mapping[str, nn.Module]) -> list[str]:
    """The only norm, unless it may be inside the MLP; one that is called just `norm` where the MLP comes next to it."""
    if len(norms) != 1 or not ONLY.fullmatch(norms[0]) or "fc2" in children:
        return []
    parts = [name for name, child in children.items() if next(child.parameters(), None) is not None]
    next_to = parts[parts.index("norm") + 1 :][:1] if "norm" in parts else []
    return norms if norms != ["norm"] or any(map(MLP.fullmatch, next_to)) else []


def is_norm(path: str, module: nn.Module) -> bool:
    return "norm" in kind_of(core(module)).__name__.lower() and not MLP.fullmatch(path.rpartition(".")[2])


def _last_numbered(norms: list[str]) -> list[str]:
    """Of norm1, norm2, norm3 the last; of four, the third: the second and the fourth are of what comes out."""
    kinds: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for name in norms:
        if found := NUMBERED.fullmatch(name):
            kinds[found[1], found[3]][int(found[2])] = name
    return [by_number[min(max(by_number), 3)] for by_number in kinds.values() if len(by_number) > 1]


def _normalises_behind(block: nn.Module) -> bool:
    for flag in BEFORE_FLAGS:
        if isinstance(before := getattr(block, flag, None), bool):
            return not before
    return any(BEHIND.fullmatch(f"{kind.__module__}.{kind.__name__}") for kind in type(block).__mro__)


def _normalises_between(block: nn.Module, children: Mapping[str, nn.Module]) -> bool:
    behind_only = "post_feedforward_layernorm" in children and "pre_feedforward_layernorm" not in children
    return behind_only or BETWEEN.fullmatch(kind_of(block).__name__) is not None


def outline(modules: Mapping[str, nn.Module], limit: int = 8) -> str:
    """Leaf modules by shape of name, layer numbers folded: 'blocks.*.norm (12 LayerNorm)'."""
    leaves = Counter(
        (re.sub(r"\d+", "*", path), kind_of(core(module)).__name__)
        for path, module in modules.items()
        if next(core(module).children(), None) is None
    )
    ranked = sorted(leaves.items(), key=lambda entry: ("norm" not in entry[0][1].lower(), -entry[1]))
    return ", ".join(f"{path} ({count} {kind})" for (path, kind), count in ranked[:limit])
