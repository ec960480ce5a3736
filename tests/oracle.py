"""What the tests of the C core share: comparison with an oracle in value and gradient, inputs, and subprocesses."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

GOLDEN = Path(__file__).parent / "data" / "golden"
THREADS = (1, 2, 3, 8, 16)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# The same examples at every run: a test that fails, fails for everybody.
bounded = settings(deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def assert_matches(
    function: Callable, oracle: Callable, inputs: dict[str, torch.Tensor], *, use=None, rtol=1e-5, atol=1e-6
) -> None:
    """function(**inputs) equals oracle(**inputs) in every output, and in the gradients for every input.

    The oracle gets float64 copies, so that the tolerance measures `function` alone. The gradients are those of a random
    weighted sum of the outputs whose positions are in `use` (all, by default), so that no entry of theirs is left out.
    """
    given = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    exact = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    outputs, expected = _tuple(function(**given)), _tuple(oracle(**exact))
    assert len(outputs) == len(expected)
    for out, right in zip(outputs, expected, strict=True):
        torch.testing.assert_close(out.double(), right, rtol=rtol, atol=atol)
    use = range(len(outputs)) if use is None else use
    generator = torch.Generator().manual_seed(1)
    factors = {k: torch.randn(expected[k].shape, generator=generator) for k in use}
    sum((outputs[k] * factors[k]).sum() for k in use).backward()
    sum((expected[k] * factors[k].double()).sum() for k in use).backward()
    for name, x in given.items():
        assert x.grad is not None, f"no gradient for {name}"
        assert x.grad.dtype == x.dtype
        torch.testing.assert_close(
            x.grad.double(),
            exact[name].grad,
            rtol=rtol,
            atol=atol * len(x),
            msg=lambda text, n=name: f"d/d {n}: {text}",
        )


def _tuple(x) -> tuple:
    return x if isinstance(x, tuple) else (x,)


def assert_same_bits(a, b) -> None:
    """Arrays, numbers, None, or tuples of them, equal to the last bit (so that -0 is not +0)."""
    if isinstance(a, tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same_bits(one, other)
        return
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert a.tobytes() == b.tobytes()


def same_tensor(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the last bit, except that a NaN is a NaN, whichever."""
    numbers = ~(a.isnan() & b.isnan())
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.view(kind)[numbers], b.view(kind)[numbers])


def make_mask(kind: str, batch: int, tokens: int) -> torch.Tensor:
    """1 for tokens that count; every sample has at least one."""
    generator = torch.Generator().manual_seed(batch + tokens)
    lengths = torch.randint(1, tokens + 1, (batch, 1), generator=generator)
    at = torch.arange(tokens)
    mask = {
        "none": torch.ones(batch, tokens),
        "left": (at >= tokens - lengths).float(),
        "right": (at < lengths).float(),
        "arbitrary": (torch.rand(batch, tokens, generator=generator) < 0.5).float(),
    }[kind]
    mask[:, tokens // 2] = 1 if kind == "arbitrary" else mask[:, tokens // 2]
    return mask


def finite_difference(function: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences of a function of a float64 array, entry by entry."""
    gradient = np.empty_like(x)
    for at in np.ndindex(x.shape):
        shifted = np.zeros_like(x)
        shifted[at] = step
        gradient[at] = (function(x + shifted) - function(x - shifted)) / (2 * step)
    return gradient


def import_pot():
    """POT, or the test is skipped. `ot` alone could be a folder of tests."""
    pytest.importorskip("ot.lp")
    return sys.modules["ot"]


def run_python(code: str, timeout: float = 120, **environment: str) -> str:
    """What a fresh interpreter prints; fails the test if it fails or hangs. It finds the same lineas as this one."""
    import lineas

    home = Path(lineas.__file__).parents[1]  # also as the working folder, which comes first on its path
    paths = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, check=False, cwd=home,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )  # fmt: skip
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
