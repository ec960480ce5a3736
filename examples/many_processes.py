"""A steering of a model that is spread over GPUs, of one machine or of several; without GPUs, over processes.

    torchrun --nproc-per-node 8 examples/many_processes.py MODEL --src from.txt --tgt to.txt --out steering

Every process runs this script. transformers (5.20 or newer) loads of each weight what a process keeps: its slice where
`--slices` processes compute a pass together (tensor parallelism: those of one machine, whose GPUs are close), and of
that its part, since the teams that these make share each weight (FSDP2), and the samples too. Started again after it
was killed, it goes on from its last checkpoint to the same bits.
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.distributed import DistributedConfig

import lineas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or a name on the hub, of a causal language model")
    parser.add_argument("--src", type=Path, required=True, help="source texts, one a line")
    parser.add_argument("--tgt", type=Path, required=True, help="target texts, one a line")
    parser.add_argument("--out", type=Path, required=True, help="the steering's folder; checkpoints lie beside it")
    parser.add_argument("--slices", type=int, default=1, help="processes that compute each pass together")
    parser.add_argument("--batch-size", type=int, help="samples that a team passes at a time; all if not given")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--steps", type=int)
    asked = parser.parse_args()
    # Weights and activations go from GPU to GPU; responses and gradients of maps, which are small, by the CPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.cuda.set_device(dist.get_node_local_rank())
    team, teams = dist.get_rank() // asked.slices, dist.get_world_size() // asked.slices
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    spread = DistributedConfig(tp_size=asked.slices, fsdp_size=teams)
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype="auto", distributed_config=spread)
    model.activation_checkpointing_enable()
    source, target = (share(path.read_text().splitlines(), team, teams) for path in (asked.src, asked.tgt))
    checkpoints = asked.out.with_name(f"{asked.out.name}.checkpoint")
    steering = lineas.fit(
        model, source, target, tokenizer=tokenizer, distributed=True, recipe=asked.recipe, steps=asked.steps,
        batch_size=asked.batch_size, checkpoint_dir=checkpoints, resume_from=checkpoints,
    )  # fmt: skip
    if dist.get_rank() == 0:
        steering.save_pretrained(asked.out)
        print(steering)
    dist.barrier()
    dist.destroy_process_group()


def share(texts: list[str], team: int, teams: int) -> list[str]:
    """A team's part of the texts: as many as the others have, or one more."""
    return texts[team * len(texts) // teams : (team + 1) * len(texts) // teams]


if __name__ == "__main__":
    main()
