"""Activation steering, learned end to end: sparse affine maps from two small unpaired sets of inputs (LinEAS)."""

from importlib.metadata import PackageNotFoundError, version

import torch as _torch  # noqa: F401 -- first: it loads the OpenMP runtime of its wheel, and _core then shares that one

from . import directions, evaluation, experts, ot, penalties, samples, serving, transport
from .attaching.attach import attach
from .attaching.handle import Handle, attached, detach
from .evaluation import calibrate, evaluate
from .fitting import callbacks, checkpoint
from .fitting.conflict import conflict
from .fitting.dry_run import DryRun, dry_run
from .fitting.fit import fit
from .fitting.gates import fit_gate
from .fitting.joint import fit_jointly
from .fitting.path import Path, path
from .fitting.suggest import Suggestion, suggest_sites
from .maps import algebra
from .maps.dial import Dial
from .maps.gate import Gate
from .network.sites import Site, find_sites
from .steering import Steering

try:
    __version__ = version("lineas")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "Dial",
    "DryRun",
    "Gate",
    "Handle",
    "Path",
    "Site",
    "Steering",
    "Suggestion",
    "algebra",
    "attach",
    "attached",
    "calibrate",
    "callbacks",
    "checkpoint",
    "conflict",
    "detach",
    "directions",
    "dry_run",
    "evaluate",
    "evaluation",
    "experts",
    "find_sites",
    "fit",
    "fit_gate",
    "fit_jointly",
    "ot",
    "path",
    "penalties",
    "samples",
    "serving",
    "suggest_sites",
    "transport",
]
