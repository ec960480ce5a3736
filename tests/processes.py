"""Scenes that several processes of one group play together, and what each of them leaves in a folder."""

import json
import multiprocessing
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from conftest import flat

import lineas

PATIENCE = 40  # seconds a collective waits; every failure must be noticed sooner
PRELOADED = "transformers.models.llama.modeling_llama", "transformers.distributed", "torch.distributed.fsdp"


def play(scenes: Mapping[str, Callable], folder: Path, rank: int, count: int = 2) -> None:
    """All scenes, one after another, each with this process's rank: it returns a steering, or what JSON can hold."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", meeting, timedelta(seconds=PATIENCE), world_size=count, rank=rank)
    for name, scene in scenes.items():
        result = scene(rank)
        if isinstance(result, lineas.Steering):
            np.save(folder / f"{name}.{rank}.npy", flat(result))
            result = {"history": result.history, "info": result.info, "sites": result.sites}
        (folder / f"{name}.{rank}.json").write_text(json.dumps(result))
    # Everything is written down. An ordinary end would now and then abort in torch, whose threads still wait for a
    # process that is dead ("terminate called without an active exception").
    os._exit(0)


def played(worker: Callable[[int, Path], None], folder: Path, count: int = 2) -> list[int | None]:
    """Exit codes of processes that have run `worker`, which calls `play`; none is left behind."""
    kind = next(kind for kind in ("forkserver", "spawn") if kind in multiprocessing.get_all_start_methods())
    context = multiprocessing.get_context(kind)
    context.set_forkserver_preload([*PRELOADED, "lineas"])  # once for all
    workers = [context.Process(target=worker, args=(rank, folder)) for rank in range(count)]
    try:
        for process in workers:
            process.start()
        for process in workers:
            process.join(timeout=300)
        return [process.exitcode for process in workers]
    finally:
        for process in workers:
            process.kill()


def refused(run: Callable[[int], object]) -> Callable[[int], str]:
    """A scene: what the error said that `run` ended in."""

    def scene(rank: int) -> str:
        try:
            run(rank)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        raise AssertionError("expected an error")

    return scene


def told(folder: Path, name: str, rank: int):
    return json.loads((folder / f"{name}.{rank}.json").read_text())
