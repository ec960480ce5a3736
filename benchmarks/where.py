"""Where models live: what of lineas works in which place, found by running it.

    python benchmarks/where.py [--only PLACES] [--json FILE] [--write docs/where-models-live.md]

A tiny language model, made here, as a library has it: loaded, offloaded, wrapped, quantised, or spread over 2 or 4
processes on this machine. In each place maps are fitted, a steering is put on, and one is merged; each result is
compared with that of the plain model in one process, and told as the largest difference, of the largest move of a map
or of an output. A minute on two cores. What a package that is not installed would make is left out, by name.
"""

import argparse
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import _records
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers as hf
from torch import nn

import lineas

Place = Callable[[nn.Module], nn.Module]
IDS = torch.randint(2, 60, (24, 9), generator=torch.Generator().manual_seed(0))
SOURCE, TARGET = IDS[:12], IDS[8:] // 2 + 2
LAYERS = 3


def plain() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = hf.LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64,
        )  # fmt: skip
        model = hf.LlamaForCausalLM(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.2 * torch.randn_like(weight))
    return model.eval()


# -- places --


def offloaded(model: nn.Module) -> nn.Module:
    from accelerate import cpu_offload

    return cpu_offload(model, execution_device=torch.device("cpu"))


def on_disk(model: nn.Module) -> nn.Module:
    from accelerate import disk_offload

    folder = tempfile.TemporaryDirectory(prefix="offloaded-")
    found = disk_offload(model, folder.name, execution_device=torch.device("cpu"))
    vars(found)["folder"] = folder  # it goes with the model
    return found


def with_adapters(model: nn.Module) -> nn.Module:
    import peft

    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2))


def dynamic(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


def quanto(model: nn.Module, bits: str) -> nn.Module:
    import optimum.quanto as oq

    oq.quantize(model, weights=getattr(oq, bits))
    oq.freeze(model)
    return model


def torchao(model: nn.Module) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())
    return model


def mesh(*sizes: int) -> Any:
    return dist.device_mesh.init_device_mesh("cpu", sizes, mesh_dim_names=("parts", "slices")[: len(sizes)])


def sharded(model: nn.Module, where: Any = None) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    where = where or mesh(dist.get_world_size())
    for layer in model.model.layers:  # type: ignore[union-attr]
        fully_shard(layer, mesh=where)
    return fully_shard(model, mesh=where)


def split(model: nn.Module, where: Any = None) -> nn.Module:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan = {}
    for k in range(LAYERS):
        for name, style in (("gate", ColwiseParallel), ("up", ColwiseParallel), ("down", RowwiseParallel)):
            plan[f"model.layers.{k}.mlp.{name}_proj"] = style()
    return parallelize_module(model, where or mesh(dist.get_world_size()), plan)


def both(model: nn.Module) -> nn.Module:
    where = mesh(2, 2)
    return sharded(split(model, where["slices"]), where["parts"])


def older(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def data_parallel(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


# The place, what is said of it, processes, and how many of them compute a pass together.
PLACES: dict[str, tuple[Place, int, int]] = {
    "bfloat16": (lambda model: model.to(torch.bfloat16), 1, 1),
    "float16": (lambda model: model.half(), 1, 1),
    "offloaded by accelerate: `cpu_offload`": (offloaded, 1, 1),
    "offloaded by accelerate: `disk_offload`": (on_disk, 1, 1),
    "`torch.compile`": (torch.compile, 1, 1),  # type: ignore[dict-item]
    "`DataParallel`": (nn.DataParallel, 1, 1),
    "adapters of PEFT": (with_adapters, 1, 1),
    "8-bit weights: torchao": (torchao, 1, 1),
    "8-bit weights: optimum-quanto": (lambda model: quanto(model, "qint8"), 1, 1),
    "4-bit weights: optimum-quanto": (lambda model: quanto(model, "qint4"), 1, 1),
    "quantised activations: `torch.ao`, dynamic": (dynamic, 1, 1),
    "2 processes, whole weights in each": (lambda model: model, 2, 1),
    "2 processes, `DistributedDataParallel`": (data_parallel, 2, 1),
    "2 processes, `fully_shard` (FSDP2)": (sharded, 2, 1),
    "4 processes, `fully_shard`": (sharded, 4, 1),
    "2 processes, tensor parallelism": (split, 2, 2),
    "4 processes, tensor parallelism in pairs": (lambda model: split(model, mesh(2, 2)["slices"]), 4, 2),
    "4 processes, `fully_shard` over such pairs": (both, 4, 2),
    "2 processes, `FullyShardedDataParallel`": (older, 2, 1),
}


# -- what is tried --


def fitted(model: nn.Module, rank: int = 0, count: int = 1, slices: int = 1) -> np.ndarray:
    teams, team = count // slices, rank // slices
    sides = [side[team * len(side) // teams : (team + 1) * len(side) // teams] for side in (SOURCE, TARGET)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        steering = lineas.fit(model, *sides, steps=1, progress=False, distributed=teams > 1)
    return np.concatenate([steering.weights - 1, steering.biases])


def steering() -> lineas.Steering:
    rng = np.random.default_rng(0)
    sites = [f"model.layers.{k}.post_attention_layernorm" for k in range(LAYERS)]
    return lineas.Steering({site: (rng.normal(1, 0.2, 16), rng.normal(0, 0.2, 16)) for site in sites})


@torch.no_grad()
def logits(model: nn.Module) -> np.ndarray:
    return model(IDS).logits.float().numpy()


def steered(model: nn.Module, **_: int) -> np.ndarray:
    with steering().apply(model, strict=False):
        return logits(model)


def merged(model: nn.Module, **_: int) -> np.ndarray:
    return logits(steering().merge(model, inplace=True))


TRIED: dict[str, Callable[..., np.ndarray]] = {"fit": fitted, "steering": steered, "merge": merged}


def outcome(place: Place, tried: Callable[..., np.ndarray], known: np.ndarray, **where: int) -> str:
    """A difference, or why there is none."""
    try:
        model = place(plain())
    except ImportError as error:
        return f"not installed: {error.name}"
    try:
        found = tried(model, **where)
    except (ValueError, TypeError) as error:
        return f"refused: {error}"
    except RuntimeError as error:
        return f"fails: {error}"
    off = float(np.abs(found - known).max() / np.abs(known).max())
    return "same bits" if off == 0 else f"to {off:.0e}".replace("e-0", "e-")


def together(rank: int, name: str, count: int, known: dict[str, np.ndarray], folder: str) -> None:
    torch.set_num_threads(1)
    place, _, slices = PLACES[name]
    found = {}
    for key, tried in TRIED.items():
        meeting = f"file://{folder}/{key}"
        dist.init_process_group("gloo", meeting, timedelta(seconds=60), world_size=count, rank=rank)
        where = {"rank": rank, "count": count, "slices": slices} if key == "fit" else {}
        found[key] = outcome(place, tried, known[key], **where)
        dist.barrier()
        dist.destroy_process_group()
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))


def row(name: str, known: dict[str, np.ndarray]) -> dict[str, str]:
    place, count, _ = PLACES[name]
    if count == 1:
        return {"place": name, **{key: outcome(place, tried, known[key]) for key, tried in TRIED.items()}}
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(together, (name, count, known, folder), count)  # type: ignore[attr-defined]
        return {"place": name, **json.loads((Path(folder) / "found.json").read_text())}


def cell(found: str) -> str:
    return found.split(":")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="places whose names have this in them")
    parser.add_argument("--json", type=Path, help="a file to write what was found to, refusals with their reasons")
    parser.add_argument("--write", type=Path, help="the page whose table is to be renewed")
    asked = parser.parse_args()
    known = {key: tried(plain()) for key, tried in TRIED.items()}
    rows = []
    for name in PLACES:
        if asked.only is None or asked.only in name:
            rows.append(row(name, known))
            print(json.dumps(rows[-1]), flush=True)
    if asked.json:
        asked.json.write_text("".join(json.dumps(one) + "\n" for one in rows))
    if asked.write:
        lines = ["| model | fit | steering | merge |", "|---|---|---|---|"]
        lines += [
            f"| {one['place']} | {' | '.join(cell(one[key]) for key in TRIED)} |"
            for one in rows
            if not any(one[key].startswith("not installed") for key in TRIED)
        ]
        _records.write(asked.write, "places", lines)


if __name__ == "__main__":
    main()
