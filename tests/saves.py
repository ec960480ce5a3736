"""What lineas saves, in versions that can be told from each other and from any mixture of two."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lineas import Steering
from lineas.evaluation import Report
from lineas.experts import Ranking
from lineas.fitting import checkpoint
from lineas.fitting.checkpoint import Checkpoint


class Kind(NamedTuple):
    """Put a version into a folder; get the version that is there, or an error where there is no whole one."""

    put: Callable[[Path, int], None]
    get: Callable[[Path], int]
    files: frozenset[str]


def units(version: int) -> int:
    """Two versions that follow each other have one shape or two."""
    return 2 + version // 2 % 2


def the_one(values, version: int) -> int:
    assert set(np.ravel(values).tolist()) == {version}, f"expected version {version} only, got {values}"
    assert len(values) == units(version)
    return version


def put_steering(folder: Path, version: int) -> None:
    maps = np.full(units(version), version)
    Steering({"a": (maps, maps)}, info={"version": version}).save_pretrained(folder)


def get_steering(folder: Path) -> int:
    got = Steering.from_pretrained(folder)
    return the_one(got.weight("a") * (got.bias("a") == got.weight("a")), got.info["version"])


def put_ranking(folder: Path, version: int) -> None:
    scores = np.full(units(version), float(version))
    Ranking(
        {"a": units(version)}, scores, np.ones(units(version), np.int8), metric="auroc", either_way=False,
        samples=None, info={"version": version},
    ).save_pretrained(folder)  # fmt: skip


def get_ranking(folder: Path) -> int:
    got = Ranking.from_pretrained(folder)
    return the_one(got.score("a"), got.info["version"])


def put_report(folder: Path, version: int) -> None:
    Report({}, (), settings=({"version": version},) * units(version)).to_json(folder / "report.json")


def get_report(folder: Path) -> int:
    settings = Report.from_json(folder / "report.json").settings
    return the_one([one["version"] for one in settings], settings[0]["version"])


def put_checkpoint(folder: Path, version: int) -> None:
    maps = np.full(units(version), version, np.float32)
    checkpoint.write(folder / checkpoint.FILE, Checkpoint({"version": version}, maps))


def get_checkpoint(folder: Path) -> int:
    got = checkpoint.read(folder)
    return the_one(got.maps, got.problem["version"])


KINDS = {
    "steerings": Kind(
        put_steering, get_steering, frozenset({"steering_config.json", "steering.safetensors", "README.md"})
    ),
    "rankings": Kind(put_ranking, get_ranking, frozenset({"ranking_config.json", "ranking.safetensors"})),
    "reports": Kind(put_report, get_report, frozenset({"report.json"})),
    "checkpoints": Kind(put_checkpoint, get_checkpoint, frozenset({checkpoint.FILE})),
}


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))
