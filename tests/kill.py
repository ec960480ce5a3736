"""Run fits that are killed by SIGKILL again and again, and print what became of them. A program of its own:

    python tests/kill.py        # from lines CASE, ROUNDS, SEED, with tabs between them, to a line of JSON for each

Each part of a fit is a fork of this process, which itself computes nothing, so that a fork is safe. Half the parts
kill themselves at an event drawn at random: in a forward pass, before, within or after the writing of a checkpoint. The
others are killed from here, after a time drawn at random.
"""

import json
import multiprocessing.synchronize  # noqa: F401 -- this and the others so marked are imported late, else in every fork
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.ma
import numpy.random
import safetensors.numpy  # noqa: F401
import torch
import torch.fx.experimental.symbolic_shapes
from conftest import SOURCE, TARGET, Mlp

import lineas
from lineas.fitting import checkpoint

CASES = {
    "fast": {},
    "fast with penalty": {"penalty": lineas.penalties.SparseGroupLasso(0.003, 0.003)},
    "fast in batches": {"batch_size": 5},
    "published sgd": {"recipe": "published", "steps": 24},
    "published momentum": {"recipe": "published", "optimizer": "momentum", "steps": 24},
    "published adam": {"recipe": "published", "optimizer": "adam", "steps": 24},
    "published adamw with penalty": {
        "recipe": "published", "optimizer": "adamw", "steps": 24, "penalty": lineas.penalties.L1(0.01),
    },
    "published adam in batches": {"recipe": "published", "optimizer": "adam", "steps": 24, "batch_size": 5},
}  # fmt: skip

LIVES = 25  # of a fit, at most
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # no slow fsync: it is processes that die


def fit(case: str, **options):
    model = options.pop("model", None) or Mlp()
    return lineas.fit(model, SOURCE, TARGET, sites="first|second", progress=False, **CASES[case], **options)


def bits(steering) -> dict:
    """All of a result that must be the same."""
    maps = np.concatenate([part(name) for name in steering.sites for part in (steering.weight, steering.bias)])
    return {"maps": maps.tobytes().hex(), "history": steering.history, "stopped": steering.info["stopped"]}


EVENTS = 24  # a life ends at one of so many, unless the clock ends it


def kill_at(event: int, diary: Path) -> Mlp:
    """A model, and a system, that kill this process at the so many-th event, with a note of where it was."""
    count = iter(range(1, 10**9))

    def happens(where: str) -> None:
        if next(count) == event:
            with open(diary, "a") as file:
                file.write(f"{where}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def around(function, where):
        def call(*args):
            happens(f"before {where}")
            result = function(*args)
            happens(f"after {where}")
            return result

        return call

    class HalfWritten:
        def __init__(self, *args):
            self.file = open(*args)  # noqa: SIM115 -- stands in for open

        def __enter__(self):
            return self.file.__enter__() and self

        def __exit__(self, *exception):
            return self.file.__exit__(*exception)

        def write(self, data):
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            happens("within write")
            self.file.write(data[len(data) // 2 :])

        def __getattr__(self, name):
            return getattr(self.file, name)

    checkpoint.open = HalfWritten  # the module's own name hides the builtin
    os.fsync, os.replace = around(os.fsync, "fsync"), around(os.replace, "replace")
    model = Mlp()
    model.second.register_forward_hook(lambda *args: happens("forward"))
    return model


def part(case: str, folder: Path, result: Path, event: int | None) -> None:
    """One life of the fit."""
    torch.set_num_threads(1)
    checkpoint.SHARE = 1e9  # write after every step
    options = {}
    if event is not None:
        options = {"model": kill_at(event, folder.with_name("diary")), "checkpoint_dir": folder, "resume_from": folder}
    result.write_text(json.dumps(bits(fit(case, **options))))


def live(*args, seconds: float | None = None) -> int:
    """The exit status of a fork that runs a part, for so long; minus the signal that ended it."""
    if (pid := os.fork()) == 0:
        try:
            part(*args)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)  # of no effect where it has ended
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed(case: str, rounds: int, seed: int) -> dict:
    """What became of one fit."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as home:
        return killed_in(Path(home), case, rounds, random.Random(seed))


def killed_in(home: Path, case: str, rounds: int, draw: random.Random) -> dict:
    whole, resumed = home / "whole", home / "resumed"
    started = time.perf_counter()
    assert live(case, home, whole, None) == 0
    longest = time.perf_counter() - started  # of a life that nobody cuts short: others must be able to get on
    same, kills = True, {"at an event": 0, "by the clock": 0}
    for k in range(rounds):
        folder = home / f"{k}" / "checkpoints"
        folder.parent.mkdir()
        for life in range(LIVES):
            timed = life > 0 and draw.random() < 0.6
            event, seconds = (-1, draw.uniform(0, longest)) if timed else (draw.randint(1, EVENTS), None)
            if life == 0:  # whatever the clock does, the first lives end all over a fit
                event = 1 + (EVENTS * k + draw.randrange(EVENTS)) // rounds
            if life == LIVES - 1:  # or a slow machine might never come to an end
                event, seconds = -1, None
            if (status := live(case, folder, resumed, event, seconds=seconds)) != -signal.SIGKILL:
                break
            kills["by the clock" if timed else "at an event"] += 1
        assert status == 0, status
        same &= resumed.read_text() == whole.read_text()
        assert [file.name for file in folder.iterdir()] == [checkpoint.FILE], "nothing but the last one is left"
    diaries = [path for k in range(rounds) if (path := home / f"{k}" / "diary").exists()]
    where = sorted({line for path in diaries for line in path.read_text().splitlines()})
    return {"same": same, "kills": kills, "where": where}


if __name__ == "__main__":
    for line in sys.stdin:
        case, rounds, seed = line.rstrip("\n").split("\t")
        print(json.dumps(killed(case, int(rounds), int(seed))), flush=True)
