"""Where a site of a transformers model is in an engine that serves: SGLang and vLLM name most modules alike, but fuse
some, and leave out others."""

import re
from dataclasses import dataclass

BLOCK = r"(?:.+\.)?(?:layers|h)\.\d+"
WHOLE = "whole"  # the output, or the first of what the module returns
STREAM = "stream"  # the sum of the two that a block returns: what it adds, and what it adds that to
SUMMED = "summed"  # the output, to which each rank adds its part

# (pattern, the engine's module, what of its output)
RULES = (
    (rf"({BLOCK}\.(?:input|post_attention|pre_feedforward|post_feedforward)_layernorm)", r"\1", WHOLE),
    (rf"({BLOCK}\.ln_[12])", r"\1", WHOLE),
    (rf"((?!{BLOCK}\.)(?:.+\.)?(?:norm|ln_f))", r"\1", WHOLE),
    (rf"({BLOCK}\.(?:self_attn|attn|mlp|self_attn\.o_proj|attn\.c_proj|mlp\.down_proj|mlp\.c_proj))", r"\1", SUMMED),
    (rf"({BLOCK}\.self_attn)\.([qkv])_proj", r"\1.qkv_proj", "{2}"),
    (rf"({BLOCK}\.mlp)\.(gate|up)_proj", r"\1.gate_up_proj", "{2}"),
    (rf"({BLOCK}\.(?:self_attn\.qkv_proj|attn\.c_attn))", r"\1", "q k v"),
    (rf"({BLOCK}\.mlp\.gate_up_proj)", r"\1", "gate up"),
    (rf"({BLOCK}\.mlp\.c_fc)", r"\1", "columns"),
    (rf"({BLOCK})", r"\1", STREAM),
)
REFUSED = (
    (r".*:\d+", "it is one of several that a module returns, and engines return others"),
    (rf"{BLOCK}\..*\b[qk]_(?:layer)?norm", "engines fuse the norms of heads with the rotary embedding"),
    (rf"{BLOCK}\.mlp\.(?:act_fn|act)", "engines fuse the activation with the product that follows it"),
    (rf"{BLOCK}\..*(?:experts|gate|router).*", "engines run experts and their router in kernels of their own"),
    (r"(?:.+\.)?(?:embed_tokens|wte|wpe|embed_positions)", "engines read, scale and share tables in ways of their own"),
    (r"(?:.+\.)?(?:lm_head|embed_out)", "engines compute logits from its weight, and never call it"),
)


@dataclass(frozen=True)
class Place:
    """Where a site is in an engine.

    Attributes
    ----------
    site, module : str
        Its name in transformers, and the engine's module.
    part : str
        What of the module's output it is: "whole", "stream" or "summed"; "columns" of which each rank has some; "q",
        "k", "v", "gate" or "up" of a fused layer, or several of these.
    """

    site: str
    module: str
    part: str


def place(site: str) -> Place:
    """LookupError, with the reason, where no engine has the site as a module's output."""
    name = re.sub(r"(self_attn|attn|layers\.\d+|h\.\d+):0$", r"\1", site)  # of a tuple the first is the output itself
    for pattern, why in REFUSED:
        if re.fullmatch(pattern, name) and not re.fullmatch(rf"{BLOCK}\.mlp\.(gate|gate_up)_proj", name):
            raise LookupError(f"{site}: {why}")
    for pattern, module, part in RULES:
        if found := re.fullmatch(pattern, name):
            return Place(site, found.expand(module), found[2] if part == "{2}" else part)
    raise LookupError(f"{site}: no rule says where an engine has it")


def by_module(sites: list[str]) -> dict[str, list[Place]]:
    """The places of all sites, by the engine's modules; ValueError names every site that has none, with the reason."""
    places, refused = [], []
    for site in sites:
        try:
            places.append(place(site))
        except LookupError as error:
            refused.append(error.args[0])
    if refused:
        lines = "\n".join(f"  {why}" for why in refused)
        raise ValueError(
            f"{len(refused)} of {len(sites)} sites cannot be mapped in an engine:\n{lines}\n"
            "steering.merge needs no hooks; steering.restricted(sites) leaves sites out"
        )
    found: dict[str, list[Place]] = {}
    for each in places:
        found.setdefault(each.module, []).append(each)
    return found


def root(module: str) -> str:
    """The module that holds the list of blocks: what runs whenever one of them does."""
    block = re.match(r"(.+)\.(?:layers|h)\.\d+", module)
    return block[1] if block else module.rpartition(".")[0]
