"""A steering as a control vector of llama.cpp: what is constant in the moves of blocks, and how much is lost."""

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from .._storage.saving import replace_file
from ..attaching.attach import attach
from ..core.arrays import Floats
from ..core.checks import real
from ..core.text import warn
from ..maps.gate import refuse_gated
from ..maps.maps import Maps
from ..merge.merging import ready
from ..merge.probing import Probe, outputs
from ..network.state import eager

# Of a decoder, and not of what may stand beside it: an encoder, or a tower for pictures.
BLOCK = re.compile(
    r"(?:(?:model|transformer|gpt_neox|language_model\.model|model\.language_model)\.)?(?:layers|h)\.(\d+)(?::0)?"
)
EXACT = 1e-6  # of the moves: what rounding explains


@dataclass(frozen=True)
class Vector:
    """What a site becomes: a direction, (units,), what is lost of its moves' mean square, and that mean square."""

    direction: Floats
    lost: float
    moves: float


def to_gguf(
    steering: Maps, file: str | os.PathLike, *, responses: Mapping[str, ArrayLike] | None = None,
    partial: bool = False, model: nn.Module | None = None, probe: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the constant part of a steering's moves as a control vector, which llama.cpp adds to blocks' outputs.

    Parameters
    ----------
    steering : Steering
        Of blocks' outputs, such as `model.layers.7`.
    file : path
        A GGUF file with a tensor `direction.7`, float32 (units,), for the output of block 7.
    responses : dict of str -> (samples, units) array, optional
        What the unsteered model's units do at each site (`lineas.evaluation.responses`). The direction is then the
        mean move of these, (weight - 1) z + bias; without them the bias alone.
    partial : bool
        Leave out sites that no control vector reaches, instead of refusing.
    model, probe : optional
        To measure what is lost on the model's outputs; the probe as for `Steering.merge`.

    Returns
    -------
    dict
        `lost`, the share of the moves, root mean square over all sites, that is not in the file: 0 is all there, 1 is
        nothing; over `responses`, or over activations of mean 0 and deviation 1. `sites`, the share of each;
        `left_out`, the reasons. With a model, `lost_on_outputs`, the number to go by: how far its outputs with the
        control vector are from the steered ones, as a part of what steering moves them by; above 1, those without any
        steering are nearer.

    Raises
    ------
    ValueError
        A site is no block's output, or the first block's, which llama.cpp has no direction for; all are named.
    ImportError
        `gguf` is missing: `pip install 'lineas[gguf]'`.

    Warns
    -----
    UserWarning
        Something is lost: weights other than 1, sites left out. It says how much.

    Notes
    -----
    Only blocks' outputs with weights of 1 are exact. At strength s the bias counts s times: give llama.cpp the strength
    with `--control-vector-scaled file:0.5`. Source: `llama_adapter_cvec` of llama.cpp, and the loader in its
    `common.cpp`; `tests/serving/test_llama_cpp.py` runs it there.
    """
    try:
        import gguf
    except ImportError as error:
        raise ImportError("a control vector needs gguf: pip install 'lineas[gguf]'") from error
    refuse_gated("a control vector", steering.gate)
    vectors, left_out = _vectors(steering, responses or {})
    _refuse(steering, left_out, partial)
    moves = sum(vector.moves for vector in vectors.values())
    lost = sum(vector.lost for vector in vectors.values())
    record: dict[str, Any] = {
        "directions": sorted(_number(site) for site in vectors if site not in left_out),
        "lost": (lost / moves) ** 0.5 if moves else 0.0,
        "sites": {site: (v.lost / v.moves) ** 0.5 if v.moves else 0.0 for site, v in vectors.items()},
        "left_out": left_out,
    }
    kept = {site: vector.direction for site, vector in vectors.items() if site not in left_out}
    if model is not None:
        record["lost_on_outputs"] = _on_outputs(steering, kept, model, probe)
    config: Any = getattr(model, "config", None)
    _write(gguf, Path(file), {_number(site): value for site, value in kept.items()}, getattr(config, "model_type", ""))
    _tell(record, steering, responses)
    return record


def _number(site: str) -> int:
    found = BLOCK.fullmatch(site)
    return int(found[1]) if found else -1


def _vectors(maps: Maps, responses: Mapping[str, ArrayLike]) -> tuple[dict[str, Vector], dict[str, str]]:
    """What each site becomes, and which ones cannot be in the file, with the reason."""
    vectors, why = {}, {}
    for site in maps.sites:
        values = _of_site(maps, site, responses) if site in responses else None
        constant = values is not None or not maps.kind(site).not_merged
        if _number(site) < 0:
            why[site] = "it is no block's output of a language model, to which alone llama.cpp adds"
        elif _number(site) == 0:
            why[site] = "llama.cpp has no direction for the output of the first block"
        elif not constant:
            why[site] = "its map holds within a range only; pass responses= for its mean move"
        vectors[site] = _vector(maps, site, values, site in why)
    return vectors, why


def _of_site(maps: Maps, site: str, responses: Mapping[str, ArrayLike]) -> Floats:
    values, units = real(responses[site], f"responses[{site!r}]").astype(np.float64), len(maps.weight(site))
    if values.ndim != 2 or values.shape[1] != units or not len(values):
        raise ValueError(f"responses[{site!r}]: expected (samples, {units}), got {values.shape}")
    return values


def _vector(maps: Maps, site: str, values: Floats | None, is_left_out: bool) -> Vector:
    weight, bias = (part.astype(np.float64) for part in (maps.weight(site), maps.bias(site)))
    if values is None:
        direction, stretched = bias, float(((weight - 1) ** 2).sum())  # of z with mean 0 and deviation 1
        moves = stretched + float((bias**2).sum())
        return Vector(direction, moves if is_left_out else stretched, moves)
    each = maps.kind(site).moves(values, weight, bias)
    direction = each.mean(0)
    moves = float((each**2).sum(1).mean())
    return Vector(direction, moves if is_left_out else float(((each - direction) ** 2).sum(1).mean()), moves)


def _refuse(maps: Maps, left_out: Mapping[str, str], partial: bool) -> None:
    if left_out and (not partial or len(left_out) == len(maps.sites)):
        lines = "\n".join(f"  {site}: {why}" for site, why in left_out.items())
        rest = "" if len(left_out) == len(maps.sites) else "\npartial=True leaves them out"
        raise ValueError(
            f"{len(left_out)} of {len(maps.sites)} sites cannot be in a control vector:\n{lines}{rest}\n"
            "a merged checkpoint (steering.merge), converted to GGUF, has them"
        )


def _on_outputs(maps: Maps, kept: Mapping[str, Floats], model: nn.Module, probe: Any) -> float:
    """The same in this process: a control vector is a steering with weights of 1."""
    constant = Maps({site: (np.ones(len(value)), value) for site, value in kept.items()})
    network = ready(model, maps, 1.0)
    with eager():
        batch = Probe(network, probe)
        base = outputs(batch(network))
        with attach(network, [maps], 0, strict=False):
            steered = outputs(batch(network))
        with attach(network, [constant], 0, strict=False):
            got = outputs(batch(network))
    effect = sum(float(((a - b) ** 2).sum()) for a, b in zip(steered, base, strict=True))
    error = sum(float(((a - b) ** 2).sum()) for a, b in zip(steered, got, strict=True))
    return (error / effect) ** 0.5 if effect else 0.0


def _write(gguf: Any, file: Path, directions: Mapping[int, Floats], model_type: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary, "directions.gguf")
        writer = gguf.GGUFWriter(made, "controlvector")
        writer.add_string("controlvector.model_hint", model_type)
        writer.add_uint32("controlvector.layer_count", len(directions))
        for layer, value in sorted(directions.items()):
            writer.add_tensor(f"direction.{layer}", value.astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        replace_file(file, made.read_bytes())


def _tell(record: Mapping[str, Any], maps: Maps, responses: Any) -> None:
    stretched = [site for site, share in record["sites"].items() if share > EXACT and site not in record["left_out"]]
    if not stretched and not record["left_out"]:
        return
    over = "the responses" if responses else "activations of mean 0 and deviation 1, which blocks' are not"
    parts = [f"the weights of {len(stretched)} sites"] if stretched else []
    parts += [f"{len(record['left_out'])} whole sites"] if record["left_out"] else []
    measured = "; pass model= to measure what that does to outputs"
    if "lost_on_outputs" in record:
        measured = f"; of what steering does to outputs, {record['lost_on_outputs']:.0%}"
    warn(
        f"the control vector is not the steering: {' and '.join(parts)} of {len(maps.sites)} are lost, "
        f"{record['lost']:.0%} of the moves (root mean square over {over}){measured}. Its dial and its measured "
        "strengths do not hold for the file"
    )
