"""The table in docs/merge.md: which sites of which architectures fold, seen by merging into tiny random models.

    python docs/merge_table.py            # prints it
    python docs/merge_table.py --write    # puts it into docs/merge.md

A cell is what became of a random map at such a site of the first block: merged, saved, loaded by the Auto class of
transformers, and compared with the steered model on token ids that the merge had not seen.
"""

import argparse
import re
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers as hf

import lineas

PAGE = Path(__file__).with_name("merge.md")
START, END = "<!-- made by docs/merge_table.py -->", "<!-- end -->"
ROLES = ("norm before attention", "norm before MLP", "attention's linear", "attention", "MLP's linear", "MLP", "block",
         "embeddings", "last norm", "output layer")  # fmt: skip

SIZES = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDE = GROUPED | {"head_dim": 8}
GPT2 = {
    "vocab_size": 64,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT = {"ffn_dim": 24, "word_embed_proj_dim": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

# Modules by role, in the order of ROLES; "" where the architecture has none.
PRE = ("input_layernorm", "post_attention_layernorm")
LLAMA = [f"model.layers.0.{p}" for p in (*PRE, "self_attn.q_proj", "self_attn", "mlp.gate_proj", "mlp")]
ENDS = ["model.layers.0", "model.embed_tokens", "model.norm", "lm_head"]
GEMMA2 = [*LLAMA[:1], "model.layers.0.pre_feedforward_layernorm", *LLAMA[2:]]
H = [f"transformer.h.0.{part}" for part in ("ln_1", "ln_2", "attn.c_attn", "attn", "mlp.c_fc", "mlp")]
NEOX = [f"gpt_neox.layers.0.{p}" for p in (*PRE, "attention.query_key_value", "attention", "mlp.dense_h_to_4h", "mlp")]
BLOOM = [
    f"transformer.h.0.{p}"
    for p in (*PRE, "self_attention.query_key_value", "self_attention", "mlp.dense_h_to_4h", "mlp")
]
BERT = [
    f"encoder.layer.0.{p}"
    for p in ("attention.output.LayerNorm", "attention.self.query", "attention", "intermediate.dense", "output")
]

MODELS = {
    "Llama": ("Llama", WIDE, {}, LLAMA + ENDS),
    "Mistral": ("Mistral", WIDE, {"sliding_window": None}, LLAMA + ENDS),
    "Mistral, sliding window": ("Mistral", WIDE, {"sliding_window": 5}, LLAMA + ENDS),
    "Qwen2": ("Qwen2", GROUPED, {}, LLAMA + ENDS),
    "Qwen3": ("Qwen3", WIDE, {}, LLAMA + ENDS),
    "Phi-3": (
        "Phi3", GROUPED, {},
        [s.replace("q_proj", "qkv_proj").replace("gate_proj", "gate_up_proj") for s in LLAMA] + ENDS,
    ),
    "Gemma": ("Gemma", WIDE, {}, LLAMA + ENDS),
    "Gemma 2": ("Gemma2", WIDE, {"query_pre_attn_scalar": 8}, GEMMA2 + ENDS),
    "SmolLM3": ("SmolLM3", GROUPED, {}, LLAMA + ENDS),
    "Granite": ("Granite", GROUPED, {}, LLAMA + ENDS),
    "OLMo 2": ("Olmo2", GROUPED, {}, ["", "", *LLAMA[2:], *ENDS]),
    "StableLM": ("StableLm", GROUPED, {}, LLAMA + ENDS),
    "GPT-2": ("GPT2", GPT2, {}, [*H, "transformer.h.0", "transformer.wte", "transformer.ln_f", "lm_head"]),
    "GPT-NeoX": (
        "GPTNeoX", SIZES, {"bos_token_id": 1, "eos_token_id": 2},
        [*NEOX, "gpt_neox.layers.0", "gpt_neox.embed_in", "gpt_neox.final_layer_norm", "lm_head"],
    ),
    "OPT": (
        "OPT", {k: v for k, v in SIZES.items() if k != "intermediate_size"} | OPT, {},
        [
            f"model.decoder.{p}"
            for p in ("layers.0.self_attn_layer_norm", "layers.0.final_layer_norm", "layers.0.self_attn.q_proj",
                      "layers.0.self_attn", "layers.0.fc1", "layers.0.fc2", "layers.0", "embed_tokens",
                      "final_layer_norm")
        ] + ["lm_head"],
    ),
    "BLOOM": (
        "Bloom", {"vocab_size": 64, "hidden_size": 16, "n_layer": 2, "n_head": 2}, {},
        [*BLOOM, "transformer.h.0", "transformer.word_embeddings", "transformer.ln_f", "lm_head"],
    ),
    "BERT": ("Bert", SIZES, {}, ["", *BERT, "encoder.layer.0", "embeddings.word_embeddings", "", ""]),
}  # fmt: skip


def make(name: str) -> torch.nn.Module:
    """The tiny random model of a row."""
    family, sizes, extra, _ = MODELS[name]
    config = getattr(hf, f"{family}Config")(**sizes | extra)
    kinds = (f"{family}ForCausalLM", f"{family}LMHeadModel") if family != "Bert" else ("BertModel",)
    kind = next(getattr(hf, kind) for kind in kinds if hasattr(hf, kind))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
        with torch.no_grad():  # scales that are not 1, biases that are not 0
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def random_map(model: torch.nn.Module, names: list[str], seed: int = 0, size: float = 0.1) -> lineas.Steering:
    """A map at these sites: weights around 1, biases around 0."""
    draw, hidden = np.random.default_rng(seed), 16
    units = [site.units or hidden for site in lineas.find_sites(model, names)]
    return lineas.Steering(
        {n: (1 + size * draw.normal(size=d), size * draw.normal(size=d)) for n, d in zip(names, units, strict=True)}
    )


def reloaded(model: torch.nn.Module) -> torch.nn.Module:
    """Through a folder, by the Auto class that a user calls."""
    auto = hf.AutoModel if isinstance(model, hf.BertModel) else hf.AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return auto.from_pretrained(folder).eval()


def difference(steering: lineas.Steering, model: torch.nn.Module, merged: torch.nn.Module) -> float:
    """Of the outputs, relative to the largest entry, on tokens that the merge did not see."""
    ids = torch.randint(3, 60, (2, 21), generator=torch.Generator().manual_seed(7))
    with torch.no_grad(), steering.apply(model):
        expected = model(ids)[0]
    with torch.no_grad():
        return float((merged(ids)[0] - expected).abs().max() / expected.abs().max())


def cell(model: torch.nn.Module, site: str) -> str:
    """What becomes of a random map at a site."""
    steering = random_map(model, [site])
    plan = steering.merge_plan(model)
    if not plan.exact:
        return "refused"
    error = difference(steering, model, reloaded(steering.merge(model)))
    if not error < 1e-4:
        raise AssertionError(f"{type(model).__name__}, {site}: the merged model, loaded again, is off by {error}")
    if plan.target == plan.model_class:
        return "exact" + (", untied" if plan.unties else "")
    return re.sub(r"(ForCausalLM)? with ", " + ", plan.target.replace(" and ", " + ")) + (
        ", untied" if plan.unties else ""
    )


def table() -> str:
    lines = [f"| | {' | '.join(ROLES)} |", "|---" * (len(ROLES) + 1) + "|"]
    for name, (*_, names) in MODELS.items():
        model = make(name)
        lines.append(f"| {name} | {' | '.join(cell(model, site) if site else '' for site in names)} |")
    return "\n".join(line.replace("|  |", "| |").replace("|  |", "| |") for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/merge.md")
    write = parser.parse_args().write
    hf.utils.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    made = table()
    print(made)
    if write:
        text = PAGE.read_text(encoding="utf-8")
        head, rest = text.split(START)
        PAGE.write_text(f"{head}{START}\n\n{made}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
