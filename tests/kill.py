"""Run fits and saves that are killed by SIGKILL again and again, and print what became of them. A program of its own:

    python tests/kill.py        # from lines CASE, ROUNDS, SEED, with tabs between them, to a line of JSON for each

Cases are those of fits (`CASES`), "saves of X" and "savers of X" (`saves.KINDS`). For 600 kills of a loop that saves:

    printf 'saves of steerings\\t600\\t0\\n' | python tests/kill.py

Each part of a fit is a fork of this process, which itself computes nothing, so that a fork is safe. Half the parts
kill themselves at an event drawn at random: in a forward pass, before, within or after the writing of a checkpoint. The
others are killed from here, after a time drawn at random. Loops that save die at every step of a save, one after the
other, and by the clock; savers save to one folder at once, while others read there, and one of them dies.
"""

import json
import multiprocessing.synchronize  # noqa: F401 -- this and the others so marked are imported late, else in every fork
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.ma
import numpy.random
import safetensors.numpy  # noqa: F401
import saves
import torch
import torch.fx.experimental.symbolic_shapes
from conftest import SOURCE, TARGET, Mlp

import lineas
from lineas._storage import saving
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


EVENTS = 32  # a life ends at one of so many, unless the clock ends it


def kill_at(event: int, diary: Path) -> Callable[[str], None]:
    """A system that kills this process at the so many-th event, with a note of where it was. Called, it is an event."""
    count = iter(range(1, 10**9))

    def happens(where: str) -> None:
        if next(count) == event:
            with open(diary, "a") as file:
                file.write(f"{where}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def around(function, where):
        def call(*args, **options):
            happens(f"before {where}")
            result = function(*args, **options)
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

    saving.open = HalfWritten  # the module's own name hides the builtin
    for name in ("fsync", "replace"):
        setattr(os, name, around(getattr(os, name), name))
    return happens


def part(case: str, folder: Path, result: Path, event: int | None) -> None:
    """One life of the fit."""
    torch.set_num_threads(1)
    checkpoint.SHARE = 1e9  # write after every step
    options = {}
    if event is not None:
        happens, model = kill_at(event, folder.with_name("diary")), Mlp()
        model.second.register_forward_hook(lambda *args: happens("forward"))
        options = {"model": model, "checkpoint_dir": folder, "resume_from": folder}
    result.write_text(json.dumps(bits(fit(case, **options))))


def fork(function, *args) -> int:
    """A child that calls a function and ends."""
    if (pid := os.fork()) == 0:
        try:
            function(*args)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return pid


def end(pid: int, seconds: float | None = None) -> int:
    """The exit status of a child, after so many seconds at most; minus the signal that ended it."""
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)  # of no effect where it has ended
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_in(home: Path, case: str, rounds: int, draw: random.Random) -> dict:
    """What became of one fit. Rounds go on until each kind of kill has ended half as many lives: no clock decides."""
    whole, resumed = home / "whole", home / "resumed"
    started = time.perf_counter()
    assert end(fork(part, case, home, whole, None)) == 0
    longest = time.perf_counter() - started  # of a life that nobody cuts short: others must be able to get on
    same, kills = True, {"at an event": 0, "by the clock": 0}
    for k in range(4 * rounds):
        if k >= rounds and min(kills.values()) >= rounds // 2:
            break
        folder = home / f"{k}" / "checkpoints"
        folder.parent.mkdir()
        for life in range(LIVES):
            timed = life > 0 and (k >= rounds or draw.random() < 0.6)
            event, seconds = (-1, draw.uniform(0, longest)) if timed else (draw.randint(1, EVENTS), None)
            if life == 0:  # whatever the clock does, the first lives end all over a fit
                event = 1 + (EVENTS * (k % rounds) + draw.randrange(EVENTS)) // rounds
            if life == LIVES - 1:  # or a slow machine might never come to an end
                event, seconds = -1, None
            if (status := end(fork(part, case, folder, resumed, event), seconds)) != -signal.SIGKILL:
                break
            kills["by the clock" if timed else "at an event"] += 1
        assert status == 0, status
        same &= resumed.read_text() == whole.read_text()
        assert [file.name for file in folder.iterdir()] == [checkpoint.FILE], "nothing but the last one is left"
    diaries = home.glob("*/diary")
    where = sorted({line for path in diaries for line in path.read_text().splitlines()})
    return {"same": same, "kills": kills, "where": where}


# -- saves --


def save_on(kind: str, folder: Path, versions: Iterable[int], pipe: int, event: int) -> None:
    """Save one version after the other, and say when each begins and when it is done."""
    kill_at(event, folder.with_name("diary"))
    for version in versions:
        os.write(pipe, b"%d " % version)
        saves.KINDS[kind].put(folder, version)
        os.write(pipe, b"%d " % version)


def saves_killed_in(home: Path, kind: str, rounds: int, draw: random.Random) -> dict:
    """One loop that saves after the other, each killed. Then the last version must be there, or the new one."""
    folder, found, lost = home / "saved", 0, []
    folder.mkdir()
    saves.KINDS[kind].put(folder, found)
    for k in range(rounds):
        event, seconds = (k // 2 + 1, None) if k % 2 else (-1, draw.uniform(0, 0.05))
        reading, writing = os.pipe()
        pid = fork(save_on, kind, folder, range(found + 1, found + 1000), writing, event)  # it never gets so far
        os.close(writing)
        assert end(pid, seconds) == -signal.SIGKILL
        with open(reading) as pipe:
            told = [found, found, *map(int, pipe.read().split())]
        try:
            found = saves.KINDS[kind].get(folder)
            assert found in told[-2:], f"expected one of the versions {told[-2:]}, got {found}"
        except Exception as error:
            lost.append(f"{type(error).__name__}: {error}"[:200])
            found = told[-1]
            saves.KINDS[kind].put(folder, found)
    saves.KINDS[kind].put(folder, found)
    where = set((home / "diary").read_text().splitlines())
    return {"kills": rounds, "lost": lost, "where": sorted(where), "files": sorted(os.listdir(folder))}


def look(kind: str, folder: Path, until: int, other_end: int) -> None:
    """Read again and again until nobody else has the other end of a pipe."""
    os.close(other_end)
    while not select.select([until], [], [], 0)[0]:
        saves.KINDS[kind].get(folder)


def savers_in(home: Path, kind: str, rounds: int, draw: random.Random) -> dict:
    """Processes that save to one folder, one of which dies, while others read."""
    folder = home / "saved"
    folder.mkdir()
    saves.KINDS[kind].put(folder, 0)
    reading, writing = os.pipe()
    readers = [fork(look, kind, folder, reading, writing) for _ in range(2)]
    nobody = os.open(os.devnull, os.O_WRONLY)
    count, dying = 4, rounds * 4  # events until the last one dies, in the middle of its saves
    savers = [
        fork(save_on, kind, folder, range(1000 * k, 1000 * k + rounds), nobody, dying if k == count else -1)
        for k in range(1, count + 1)
    ]
    ends = [end(pid) for pid in savers]
    os.close(writing)
    looked = [end(pid) for pid in readers]
    saves.KINDS[kind].put(folder, 1 + saves.KINDS[kind].get(folder))
    return {"savers": ends, "readers": looked, "files": sorted(os.listdir(folder))}


if __name__ == "__main__":
    WORK = {"saves of ": saves_killed_in, "savers of ": savers_in, "": killed_in}
    for line in sys.stdin:
        case, rounds, seed = line.rstrip("\n").split("\t")
        start = next(start for start in WORK if case.startswith(start))
        with tempfile.TemporaryDirectory(dir=MEMORY) as home:
            told = WORK[start](Path(home), case.removeprefix(start), int(rounds), random.Random(int(seed)))
        print(json.dumps(told), flush=True)
