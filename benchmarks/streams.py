"""A fit on a stream of short texts, on several processes: the most memory that each has, with a bound and without.

    python benchmarks/streams.py [--samples 100000] [--processes 2] [--memory "600 MB" "1 TB"] [--json FILE]
                                 [--write docs/where-models-live.md]

A generator makes the texts, 4 words each, so that nobody has them all; each process has its part of both sets. The
network is small, 512 units at one site, so that what grows is the fit's own. A row is a run of 2 evaluations, in fresh
processes: the peak of each one's resident memory, and by how much it grew during the fit.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _records
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

import lineas

JSON = Path(__file__).parent / "data" / "streams.jsonl"
NO_BOUND = "1 TB"
WORDS, LENGTH, BATCH, EVALUATIONS = 64, 4, 512, 2
UNITS = 512
MEGABYTE = 1e6


class Numbers:
    """A tokenizer of words that are numbers."""

    pad_token_id = 0

    def __call__(self, text: str, **how: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


def texts(count: int, seed: int, low: int, high: int) -> Iterator[str]:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield " ".join(map(str, torch.randint(low, high, (LENGTH,), generator=draw).tolist()))


class Reader(nn.Module):
    """Of each word, how likely the others are to follow."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.wide, self.out = nn.Embedding(WORDS, 32), nn.Linear(32, UNITS), nn.Linear(UNITS, WORDS)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.wide(self.words(input_ids))))


def peak() -> float:
    """MB of resident memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MEGABYTE


def work(rank: int, count: int, samples: int, memory: str, meeting: str, told: Any) -> None:
    torch.set_num_threads(1)
    if count > 1:
        dist.init_process_group("gloo", f"file://{meeting}/group", world_size=count, rank=rank)
    own = samples // count
    sides = texts(own, 2 * rank, 0, 40), texts(own, 2 * rank + 1, 24, WORDS)
    net, before, start = Reader(), peak(), time.perf_counter()
    how = {"batch_size": BATCH, "max_evaluations": EVALUATIONS, "memory": memory, "distributed": count > 1}
    steering = lineas.fit(net, *sides, tokenizer=Numbers(), sites="wide", **how)
    seconds = time.perf_counter() - start
    units = sum(len(steering.weight(site)) for site in steering.sites)
    told.put({
        "rank": rank, "units": units, "peak": peak(), "grown": peak() - before, "seconds": seconds,
        "loss": steering.history["loss"],
    })  # fmt: skip
    if count > 1:
        dist.barrier()


def run(samples: int, processes: int, memory: str) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as meeting:
        told = context.Queue()
        started = [
            context.Process(target=work, args=(rank, processes, samples, memory, meeting, told))
            for rank in range(processes)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join()
        if failed := [process.exitcode for process in started if process.exitcode]:
            raise SystemExit(f"expected processes that end well, got exit codes {failed}")
        found = sorted((told.get() for _ in started), key=lambda one: one["rank"])
    return {
        "samples": samples, "processes": processes, "memory": memory, "units": found[0]["units"],
        "peak": [round(one["peak"]) for one in found], "grown": [round(one["grown"]) for one in found],
        "seconds": round(found[0]["seconds"]), "loss": found[0]["loss"],
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| samples of each set | processes | `memory=` | peak of each process, MB | of that the fit's, MB |"
    yield "|---|---|---|---|---|"
    for row in rows:
        bound = "none" if row["memory"] == NO_BOUND else f'`"{row["memory"]}"`'
        each = (", ".join(f"{value:,}" for value in row[key]) for key in ("peak", "grown"))
        yield f"| {row['samples']:,} | {row['processes']} | {bound} | {' | '.join(each)} |"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--samples", type=int, default=100_000, help="of each set, in all processes")
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--memory", nargs="*", default=["600 MB", NO_BOUND], help=f"bounds; {NO_BOUND!r} for none")
    options.add_argument("--json", type=Path, default=JSON)
    options.add_argument("--write", type=Path, metavar="PAGE", help="put the table of all rows into a page")
    asked = options.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    for memory in asked.memory:
        row = run(asked.samples, asked.processes, memory)
        print(row, flush=True)
        _records.keep(asked.json, row)
    if asked.write:
        _records.write(asked.write, "streams", table(_records.read(asked.json)))


if __name__ == "__main__":
    main()
