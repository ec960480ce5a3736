"""Loss and gradient of all units at once, against the same through torch.sort and against POT, in one run.

    python benchmarks/kernels.py

Times are minima over several calls, the columns in turn, so that a machine that slows down slows all of them. POT gives
no gradient. `copy` is what copying source, target and gradient once would take: the floor for any code.
"""

import time

import numpy as np
import ot as pot
import torch

import lineas

CASES = ((32, 32, 17280), (64, 64, 17280), (256, 256, 17280), (1024, 1024, 4096), (32, 100, 17280))


def with_torch(source: torch.Tensor, target: torch.Tensor) -> None:
    source = source.detach().requires_grad_()
    (source.sort(0).values - target).square().mean(0).sum().backward()


def milliseconds(*functions, calls: int = 15) -> list[float]:
    best = [float("inf")] * len(functions)
    for call in range(calls + 1):
        for k, function in enumerate(functions):
            started = time.perf_counter()
            function()
            if call:  # the first is for warming up
                best[k] = min(best[k], time.perf_counter() - started)
    return [1e3 * seconds for seconds in best]


def main() -> None:
    draw = np.random.default_rng(0)
    print(f"{torch.get_num_threads()} threads; milliseconds, and how many times as long as lineas")
    print(f"{'n':>5} {'m':>5} {'units':>6} {'lineas':>8} {'torch.sort':>16} {'POT':>16} {'copy':>8}")
    for n, m, units in CASES:
        source, target = (draw.normal(size=(k, units)).astype(np.float32) for k in (n, m))
        prepared, ones = lineas.ops.prepare_target(target), np.ones(units)
        x, y = torch.from_numpy(source), torch.from_numpy(prepared.values)
        functions = [
            lambda s=source, p=prepared, c=ones: lineas.ops.loss(s, p, c),
            lambda s=source, t=target: pot.wasserstein_1d(s, t, p=2),
            lambda s=source, t=target: (s.copy(), t.copy(), s.copy()),
        ]
        if n == m:
            functions.append(lambda x=x, y=y: with_torch(x, y))
        ours, theirs, copy, *torchs = milliseconds(*functions, calls=15 if n * units < 10**6 else 5)
        rival = f"{torchs[0]:8.2f} {torchs[0] / ours:6.1f}x" if torchs else f"{'-':>16}"
        print(f"{n:5} {m:5} {units:6} {ours:8.2f} {rival} {theirs:8.1f} {theirs / ours:6.1f}x {copy:8.2f}")


if __name__ == "__main__":
    main()
