"""The process around the core: one OpenMP runtime, forks, denormals; an interpreter for each order of imports."""

import json
import os
from pathlib import Path

import pytest
import torch
from oracle import run_python

from lineas.core import _core

pytestmark = pytest.mark.process
ORDERS = ("import lineas, torch", "import torch, lineas", "import lineas.core._core, lineas, torch")
RUNTIME = r"/lib(gomp|omp|iomp)[^/]*$"

CHECKS = """
import json, os, re, signal, sys, threading
{order}
import lineas.core.ops
import numpy as np

x, y = np.random.default_rng(0).normal(size=(2, 33, 1 + lineas.core.threads.SMALL // 33))  # enough for two threads
h, pool = torch.arange(4 * 9 * 33.0).view(4, 9, 33), torch.full((4, 9), 1 / 9)


def work(threads=None):
    scale, shift = torch.full((33,), 2.0, requires_grad=True), torch.ones(33, requires_grad=True)
    out, pooled = lineas.core.ops.affine_pool(h, scale, shift, pool, threads=threads)
    (out.sum() + pooled.sum()).backward()
    cost, gradient = lineas.ot.wasserstein_1d_grad(x, y)
    pull = lineas.ot.sliced_wasserstein_grad(x, y)[1]
    own = (x.numpy().tobytes() for x in (pooled.detach(), scale.grad, shift.grad))
    return [cost.tobytes(), gradient.tobytes(), pull.tobytes(), *own]


def denormals():
    tiny = np.full(64, 1e-40, np.float32)
    half = (tiny * np.float32(1) != 0).all() and (tiny * np.float32(0.5) != 0).all()
    alive.append(bool(half and (np.full(64, 1e-310) * 0.5 != 0).all()))


torch.set_num_threads(2)
expected, found = work(2), {{}}

torch.randn(300, 300) @ torch.randn(300, 300)
if os.path.exists("/proc/self/maps"):
    maps = {{line.split()[-1] for line in open("/proc/self/maps")}}
    found["runtimes"] = sorted(name for name in maps if re.search({runtime!r}, name))

alive = []
denormals()
thread = threading.Thread(target=denormals); thread.start(); thread.join()
found["denormals"] = alive

if hasattr(os, "fork"):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a hang ends the child
        os._exit(0 if work(8) == work() == work(2) == expected else 3)
    found["child"] = os.waitpid(child, 0)[1]
    found["parent"] = work(2) == expected
print(json.dumps(found))
"""


@pytest.fixture(scope="module", params=ORDERS)
def found(request):
    """What one interpreter says of all three."""
    return json.loads(run_python(CHECKS.format(order=request.param, runtime=RUNTIME)))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.skipif(not _core.HAS_OPENMP, reason="a build without OpenMP")
def test_torch_and_the_extension_share_one_openmp_runtime(found):
    """Where torch's wheel has a libgomp, it is that one."""
    assert len(found["runtimes"]) == 1, found["runtimes"]
    bundled = {str(path) for path in (Path(torch.__file__).parent / "lib").glob("libgomp*")}
    assert bundled in (set(), set(found["runtimes"]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_may_ask_for_many_threads_after_its_parent_did(found):
    assert found["child"] == 0, "the status of the child"
    assert found["parent"], "and the parent goes on as before"


def test_denormals_survive_the_import_and_the_kernels(found):
    assert found["denormals"] == [True, True], "in this thread, and in a new one"
