"""SGLang: forward hooks for its option `--forward-hooks`, a JSON list that names a factory, modules and a config."""

import argparse
import glob
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..core.checks import number
from ..core.text import first_few, warn
from ..maps.gate import refuse_gated
from ..steering import Steering
from .engine_map import EngineMap, unsteered
from .places import by_module, root

__all__ = ["forward_hooks", "hook_factory", "watch_factory"]

Hook = Callable[[nn.Module, Any, Any], Any]


def forward_hooks(folder: str | os.PathLike, strength: float = 1.0) -> list[dict[str, Any]]:
    """What SGLang's `--forward-hooks` takes to serve a model with a steering.

    Parameters
    ----------
    folder : path or str
        Of a saved steering, or its repository on the Hugging Face hub. The server's processes read it when they start.
    strength : float
        As for `attach`; fixed until the server is started anew.

    Returns
    -------
    list of dict
        One entry a module of the engine, for `json.dumps`; the last one watches that all of them run.

    Raises
    ------
    ValueError
        A site is no module's output in SGLang; all are named, with the reasons.

    Notes
    -----
    Start the server with `--disable-cuda-graph`. Source: SGLang's page "Model Hooks", forward_hooks.md in
    docs/advanced_features of its repository. Written against that page and the sources of SGLang 0.5.23, tested with
    stand-ins; never run in SGLang.
    """
    number(strength, "strength")
    where = str(Path(folder).resolve()) if Path(folder).is_dir() else str(folder)
    steering = Steering.from_pretrained(where)
    refuse_gated("an engine's hooks", steering.gate)
    modules = by_module(steering.sites)
    specs: list[dict[str, Any]] = []
    for module, places in modules.items():
        config = {"steering": where, "strength": float(strength), "sites": [place.site for place in places]}
        specs.append(_spec(f"lineas {module}", module, hook_factory, config))
    for top in dict.fromkeys(map(root, modules)):
        mine = [module for module in modules if root(module) == top]
        specs.append(_spec(f"lineas watches {top}", top, watch_factory, {"root": top, "modules": mine}))
    return specs


def _spec(name: str, module: str, factory: Callable, config: Mapping[str, Any]) -> dict[str, Any]:
    where = f"lineas.serving.sglang:{factory.__name__}"  # also where this file runs as a program
    return {"name": name, "target_modules": [glob.escape(module)], "hook_factory": where, "config": dict(config)}


def _read(folder: str) -> Steering:
    """Once for all its modules, unless it was saved anew."""
    files = sorted(file.stat().st_mtime_ns for file in Path(folder).glob("steering*"))
    return _as_it_is(folder, tuple(files))


@lru_cache(maxsize=4)
def _as_it_is(folder: str, saved: tuple[int, ...]) -> Steering:
    return Steering.from_pretrained(folder)


def hook_factory(config: Mapping[str, Any]) -> Hook:
    """A forward hook that maps a module's output, as SGLang asks for one.

    Parameters
    ----------
    config : dict
        `steering`, a folder; `sites`, which of its sites the module has; `strength`, 1 if not given.
    """
    if unknown := config.keys() - {"steering", "sites", "strength"}:
        raise ValueError(f"config: expected steering, sites and strength, got {', '.join(sorted(unknown))}")
    for needed in ("steering", "sites"):
        if needed not in config:
            raise ValueError(f"config: expected {needed!r}, got {', '.join(config) or 'nothing'}")
    modules = by_module(list(config["sites"]))
    if len(modules) != 1:
        raise ValueError(f"config: expected sites of one module, got those of {', '.join(modules) or 'none'}")
    (places,) = modules.values()
    return EngineMap(_read(config["steering"]), places, number(config.get("strength", 1.0), "strength"))


def watch_factory(config: Mapping[str, Any]) -> Hook:
    """A forward hook of the module that holds the blocks: RuntimeError where a hook of `hook_factory` did not run.

    SGLang only logs a name that no module has, and a module that a fused kernel stands for, or whose `forward` is
    called directly, runs no hook: a server that does not steer would look like one that does. So it looks after every
    pass, but for those without tokens, in which SGLang calls no norms.
    """
    _refuse_graphs()
    top, modules = config["root"], list(config["modules"])
    names = [name.removeprefix(top).removeprefix(".") for name in modules]

    def watch(module: nn.Module, args: Any, output: Any) -> None:
        silent = unsteered(module, names)
        is_empty = any(isinstance(given, Tensor) and given.shape[:1] == (0,) for given in args)
        if silent and not is_empty:
            raise RuntimeError(
                f"{len(silent)} of {len(modules)} modules of {top!r} run without their maps: {first_few(silent)}"
            )

    return watch


def _refuse_graphs() -> None:
    """SGLang records its CUDA graphs first and registers hooks then: replays would run without maps, in silence."""
    if "sglang" not in sys.modules:
        return
    for name, getter in (("runtime_context", "get_server_args"), ("server_args", "get_global_server_args")):
        try:  # the newer and the older way to ask
            told = getattr(importlib.import_module(f"sglang.srt.{name}"), getter)()
        except Exception:
            continue
        phases = [getattr(told, f"disable_{phase}_cuda_graph", False) for phase in ("prefill", "decode")]
        if not getattr(told, "disable_cuda_graph", False) and not all(phases):
            raise RuntimeError("expected SGLang without CUDA graphs, in which no hook runs: add --disable-cuda-graph")
        return
    warn("whether this SGLang uses CUDA graphs, in which no hook runs, it does not tell: add --disable-cuda-graph")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what SGLang's option --forward-hooks takes to serve a model with a steering."""
    parser = argparse.ArgumentParser(prog="python -m lineas.serving.sglang", description=main.__doc__)
    parser.add_argument("steering", help="a folder with a saved steering, or a repository of the Hugging Face hub")
    parser.add_argument("--strength", type=float, default=1.0)
    given = parser.parse_args(arguments)
    print(json.dumps(forward_hooks(given.steering, given.strength)))


if __name__ == "__main__":
    main()
