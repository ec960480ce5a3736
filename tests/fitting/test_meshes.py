"""Four processes, two by two: pairs compute passes together, by tensor parallelism, and share weights and samples."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import NEGATIVE, POSITIVE, WordTokenizer, flat, small_tokenizer, tiny
from merge_cases import merges
from processes import PATIENCE, play, played, refused, told
from test_sharded_weights import LAYERS, UNEVEN, assert_in_parts, by_block, looked_at, same_as_whole, split

import lineas

pytestmark = [
    pytest.mark.slow,  # four processes, and once for all: what is slow stays together
    pytest.mark.process,
    pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch < 2.6 has no fully_shard"),
]
RECIPE = Path(__file__).parents[2] / "examples" / "many_processes.py"
LONG = {"recipe": "published", "steps": 16}


def grid():
    return dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("parts", "slices"))


def both(model):
    mesh = grid()
    return by_block(split(model, mesh["slices"]), mesh["parts"])


def sliced_logits(model):
    from torch.distributed.tensor.parallel import ColwiseParallel

    mesh = grid()
    return by_block(split(model, mesh["slices"], lm_head=ColwiseParallel()), mesh["parts"])


def replicated(model):
    """Tensor parallelism alone, in two pairs that have the same weights."""
    return split(model, grid()["slices"])


def all_in_teams(model):
    """No weight is left that only fully_shard spreads, and so nothing tells which dimension is whose."""
    from torch.distributed.fsdp import fully_shard

    mesh = grid()
    mlp = split(model, mesh["slices"]).model.layers[0].mlp
    fully_shard(mlp, mesh=mesh["parts"])
    return model


def fit(rank=None, *, spread=both, **options):
    """Each pair on its part of the samples; without a rank, all of them in one process."""
    model, sides = tiny("llama"), [NEGATIVE, POSITIVE]
    if rank is not None:
        model, options["distributed"] = spread(model), True
        sides = [side[cut:] if rank // 2 else side[:cut] for side, cut in zip(sides, UNEVEN, strict=True)]
    steering = lineas.fit(model, *sides, tokenizer=WordTokenizer(), progress=False, **options)
    if rank is not None:
        assert_in_parts(model, spread is both)
    return steering


EQUAL = {
    "both": {"steps": 4},
    "both, unequal batches": {"batch_size": 2, "steps": 1},
    "both, linear_act": {"method": "linear_act"},
    "pairs": {"spread": replicated, "steps": 4},
}


def others_in_a_pair(rank):
    lineas.fit(
        both(tiny("llama")), NEGATIVE[rank:], POSITIVE, tokenizer=WordTokenizer(), progress=False, distributed=True
    )


SPLIT = "ValueError: {}: expected all units in every process, got another part"
REFUSED = {
    "columns": (lambda rank: fit(rank, sites=r".*up_proj"), SPLIT.format("site 'model.layers.0.mlp.up_proj'")),
    "parts of words": (lambda rank: fit(rank, spread=sliced_logits), SPLIT.format("the model's output")),
    "others in a pair": (others_in_a_pair, "ValueError: src, tgt: expected the same samples in .* a pass together"),
    "whose dimension": (
        lambda rank: fit(rank, spread=all_in_teams),
        "ValueError: model: expected weights that fully_shard spreads, .* at least one weight that only fully_shard",
    ),
}


def resumed(folder, rank):
    """A fit that fails in one process, and goes on; with the states of callbacks that only one process has."""
    options = {"steps": 4, "checkpoint_dir": folder / "run", "resume_from": folder / "run"}
    heard = []

    def fails(entry):
        heard.append(entry.evaluations)
        if rank == 3 and len(heard) == 3:
            raise ZeroDivisionError("in a callback")

    class Counts:
        count = 0

        def __call__(self, entry):
            self.count += 1

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    with pytest.raises((ZeroDivisionError, RuntimeError)):
        fit(rank, callbacks=[Counts() if rank == 1 else len, fails], **options)
    counts = Counts()
    steering = fit(rank, callbacks=[counts if rank == 1 else len], **options)
    if rank == 1:
        (folder / "heard").write_text(str(counts.count))
    return steering


def as_in_the_recipe(folder, rank):
    """Not interrupted."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.distributed import DistributedConfig

    spread = DistributedConfig(tp_size=2, fsdp_size=2)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", distributed_config=spread)
    sides = [side[len(side) // 2 :] if rank // 2 else side[: len(side) // 2] for side in (NEGATIVE, POSITIVE)]
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    return lineas.fit(model, *sides, tokenizer=tokenizer, progress=False, distributed=True, **LONG)


def worker(rank: int, folder: Path) -> None:
    scenes = {name: lambda rank, options=options: fit(rank, **options) for name, options in EQUAL.items()}
    scenes |= {name: refused(run) for name, (run, _) in REFUSED.items()}
    scenes["looked at"] = same_as_whole(looked_at, both)
    scenes["merged"] = merges(both, folder, apart=1e-5)
    scenes |= {run.__name__: lambda rank, run=run: run(folder, rank) for run in (resumed, as_in_the_recipe)}
    play(scenes, folder, rank, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the four processes left."""
    import transformers

    folder = tmp_path_factory.mktemp("meshes")
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=len(LAYERS), num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=24, max_position_embeddings=64, pad_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
    assert played(worker, folder, 4) == [0] * 4
    return folder


def maps_of(folder, name):
    found = [np.load(folder / f"{name}.{rank}.npy") for rank in range(4)]
    assert all(np.array_equal(found[0], other) for other in found[1:])
    return found[0]


@pytest.mark.parametrize("name", EQUAL)
def test_the_maps_are_those_of_one_process_with_the_whole_model(folder, name):
    got, alone = maps_of(folder, name), fit(**{key: value for key, value in EQUAL[name].items() if key != "spread"})
    moved = np.abs(flat(alone) - np.repeat([1, 0], len(got) // 2)).max()
    assert np.abs(got - flat(alone)).max() < 1e-5 * moved
    info = told(folder, name, 3)["info"]
    for key in ("samples", "weights", "evaluations", "stopped"):
        assert info[key] == alone.info[key], key


def test_a_model_on_a_mesh_does_what_the_whole_one_does(folder):
    for name in ("looked at", "merged"):
        assert [told(folder, name, rank) for rank in range(4)] == ["as expected"] * 4


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_mesh_cannot_do_is_refused_by_all(folder, name):
    for rank in range(4):
        assert re.match(REFUSED[name][1], message := told(folder, name, rank)), message


def test_a_fit_that_failed_goes_on_to_the_same_bits_in_all_processes(folder):
    assert np.array_equal(maps_of(folder, "resumed"), maps_of(folder, "both"))
    there, here = (told(folder, name, 2)["history"] for name in ("both", "resumed"))
    assert there == here
    assert int((folder / "heard").read_text()) == len(here["loss"]), "by a callback of one process, before and after"


@pytest.fixture
def machines(folder):
    """Starts the recipe, two processes on each of two machines; what they print. None is left behind."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    started = []
    for name, texts in (("from.txt", NEGATIVE), ("to.txt", POSITIVE)):
        (folder / name).write_text("\n".join(texts))

    def start():
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        both = []
        for k in range(2):
            line = f"-m torch.distributed.run --nnodes 2 --nproc-per-node 2 --node-rank {k} --master-addr localhost"
            line += f" --master-port {port} {RECIPE} model --src from.txt --tgt to.txt --out steering --slices 2"
            line += f" --recipe {LONG['recipe']} --steps {LONG['steps']}"
            log = folder / f"log {k} {len(started)}"
            with log.open("w") as to:
                process = subprocess.Popen(
                    [sys.executable, *line.split()], cwd=folder, env=environment, stdout=to,
                    stderr=subprocess.STDOUT,
                )  # fmt: skip
            both.append((process, log))
        started.extend(both)
        return both

    yield start
    for process, _ in started:
        kill(process)


def kill(torchrun):
    """With its workers, which have sessions of their own."""
    rows = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [map(int, row.split()) for row in rows.splitlines()]
    for pid in [torchrun.pid, *(pid for pid, parent in pairs if parent == torchrun.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    torchrun.wait()


def test_one_of_the_recipes_machines_is_killed_and_it_goes_on_to_the_same_bits(folder, machines):
    (first, log), (second, _) = machines()
    until = time.monotonic() + 200
    while not re.search(rf"[3-9]/{LONG['steps']} ", log.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    kill(second)
    assert first.wait(timeout=PATIENCE), log.read_text()
    reached = len(lineas.checkpoint.read(folder / "steering.checkpoint").history["loss"])
    assert 2 <= reached < LONG["steps"], log.read_text()
    assert not (folder / "steering").exists()
    (first, log), (second, _) = machines()
    assert (first.wait(timeout=200), second.wait(timeout=200)) == (0, 0), log.read_text()
    steering = lineas.Steering.from_pretrained(folder / "steering")
    assert np.array_equal(flat(steering), maps_of(folder, "as_in_the_recipe"))
