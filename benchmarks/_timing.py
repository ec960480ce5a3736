"""Rivals timed in turn in one process, and what the machine is."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

PACKAGES = ("lineas", "numpy", "torch", "scipy", "scikit-learn", "POT")
ENOUGH = 1.0  # seconds that a rival is timed for; slow ones take three turns


@dataclass
class Case:
    """The same work done by several; the first is lineas."""

    name: str
    rivals: dict[str, Callable[[], Any]]
    goals: dict[str, float] = field(default_factory=dict)  # rival: how many times as long as lineas it should take
    scale: dict[str, float] = field(default_factory=dict)  # rival: how many times its part of the work is the whole
    agree: tuple[str, ...] = ()  # rivals whose results must be those of lineas
    limit: float = float("inf")  # seconds that lineas may take


def check(case: Case) -> None:
    """That rivals do the same work: results within a hundredth, as halves and tied samples allow."""
    ours, *_ = case.rivals.values()
    for name in case.agree:
        for a, b in zip(ours(), case.rivals[name](), strict=True):
            a, b = (np.asarray(x, np.float64) for x in (a, b))
            if not np.linalg.norm(a - b) <= 0.01 * np.linalg.norm(b):
                raise AssertionError(f"{case.name}: {name} computes something else")


def race(case: Case, rounds: int, seconds: float) -> dict[str, Any]:
    """Minimum and median of every rival, in seconds, and the ratio of its minimum to that of lineas."""
    times: dict[str, list[float]] = {name: [] for name in case.rivals}
    for turn in range(rounds):
        for name, call in case.rivals.items():
            if turn < 3 or sum(times[name]) < ENOUGH:
                times[name] += in_a_row(call, seconds)
    lineas = min(next(iter(times.values())))
    figures = {}
    for name, each in times.items():
        scale, goal = case.scale.get(name, 1.0), case.goals.get(name)
        ratio = min(each) * scale / lineas
        figures[name] = {
            "minimum": min(each) * scale, "median": statistics.median(each) * scale, "calls": len(each),
            "scale": scale, "ratio": ratio, "goal": goal, "met": goal and ratio >= goal,
        }  # fmt: skip
    limit = case.limit if case.limit < float("inf") else None
    return {"case": case.name, "limit": limit, "met": limit and lineas <= limit, "figures": figures}


def in_a_row(call: Callable[[], Any], seconds: float) -> list[float]:
    """Calls until the time is up. The first finds caches full of a rival's data; it counts only where it is alone."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or (time.perf_counter() < end and len(times) < 50):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return times[1:] or times


def machine(threads: int) -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    return {
        "cpu": model, "cores": os.cpu_count(), "threads": threads, "system": platform.platform(terse=True),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES if installed(name)},
    }  # fmt: skip


def installed(name: str) -> bool:
    try:
        return bool(version(name))
    except ModuleNotFoundError:
        return False
