"""A steering as an adapter of PEFT: what a merge would change in a model's weights, kept beside them in a file."""

import copy
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .._storage.saving import replace_file
from ..attaching.attach import attach
from ..maps.maps import Maps
from ..merge.folds import Fold
from ..merge.layers import Journal
from ..merge.merging import ready, tolerated
from ..merge.planning import MergePlan, make_plan
from ..merge.probing import Probe, relative_difference
from ..network.state import device_of, eager, seeded

FILES = ("adapter_model.safetensors", "adapter_config.json")  # in the order in which they are put in place
PREFIX = "base_model.model."  # of all names in PEFT's files
Tensors = dict[str, Tensor]


def to_peft(
    steering: Maps, model: nn.Module, folder: str | os.PathLike, strength: float = 1.0, *, probe: Any = None,
    tolerance: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write a steering as an adapter that `peft.PeftModel.from_pretrained(model, folder)` loads.

    Parameters
    ----------
    steering : Steering
    model : nn.Module
        The network it is for, without adapters; left as it is.
    folder : path
        Gets `adapter_config.json` and `adapter_model.safetensors`; made if need be.
    strength : float
        As for `attach`, fixed in the file.
    probe, tolerance : optional
        As for `Steering.merge`: a batch to check the adapter with, and how far outputs may be from the steered model's.

    Returns
    -------
    dict
        `kind`, PEFT's name of the adapter; `error`, by how much the loaded adapter's outputs differ from the steered
        model's on the probe, and `effect`, what steering itself does, as parts of the largest output; `bytes`; `sites`,
        what became of each.

    Raises
    ------
    ValueError
        A site is in no weight or bias, with the reason; nothing to write, where all maps are the identity.
    RuntimeError
        The adapter is not within the tolerance (nothing is written then).
    ImportError
        PEFT is missing: `pip install 'lineas[peft]'`.

    Notes
    -----
    The places are those of `Steering.merge`, but any linear layer may get a bias. A steering that only scales what
    linear layers put out is an `IA3` (a number a unit); one that needs norms and embeddings alone an `LN_TUNING`, which
    has them whole; any other a `LORA` with `lora_bias`, exact with the rank that the scales need: as many as there are
    units whose scale is not 1. A copy of the model is made for the check.

    Examples
    --------
    >>> import torch, lineas, tempfile
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False), torch.nn.Tanh())
    >>> shift = lineas.Steering({"0": ([1, 1, 1], [0.1, 0.2, 0.3])})
    >>> lineas.serving.to_peft(shift, net, tempfile.mkdtemp(), probe=torch.ones(2, 4))["kind"]
    'LORA'
    """
    peft = _peft()
    model = ready(model, steering, strength, tolerance)
    with eager():
        batch = Probe(model, probe)
        plan = make_plan(steering, model, strength, batch, grows=True)
        _refuse(plan)
        adapter = _scales_only(plan) or _adapter(_changes(plan, model))
        base = batch(model)
        with attach(model, [steering], 0, strength, strict=False):  # what strict says, was said
            wanted = batch(model)
        bound = tolerated(model, tolerance, relative_difference(base, wanted))
        with tempfile.TemporaryDirectory() as temporary:
            _write(adapter, peft, model, temporary)
            error = relative_difference(wanted, batch(_loaded(peft, model, temporary)))
            if not error <= bound:
                raise RuntimeError(
                    f"the model with the adapter is not the steered one: on the probe, outputs differ by {error:.2g} "
                    f"(relative), expected at most {bound:.2g}; nothing was written. A wider tolerance= accepts it"
                )
            size = _put_in_place(Path(temporary), Path(folder))
    return {
        "kind": adapter.kind, "strength": float(strength), "error": error,
        "effect": relative_difference(base, wanted), "bytes": size,
        "sites": {entry.site: entry.text for entry in plan.sites},
    }  # fmt: skip


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("an adapter needs PEFT: pip install 'lineas[peft]'") from error
    return peft


def _refuse(plan: MergePlan) -> None:
    if plan.refused:
        lines = "\n".join(f"  {entry.site}: {entry.text}" for entry in plan.refused)
        raise ValueError(
            f"{len(plan.refused)} of {len(plan.sites)} sites are in no weight or bias, so that no adapter holds them:\n"
            f"{lines}\nsteering.restricted(sites) leaves sites out"
        )
    if not plan.folds:
        raise ValueError("expected a map that changes something at this strength, got none")


@dataclass
class Adapter:
    """What goes into the two files.

    Attributes
    ----------
    kind : {"IA3", "LN_TUNING", "LORA"}
    tensors : dict of str -> Tensor
    options : dict
        Of PEFT's config.
    """

    kind: str
    tensors: Tensors = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def _scales_only(plan: MergePlan) -> Adapter | None:
    """Where all maps scale what linear layers put out, bias and all: PEFT's IA3 does."""
    scales: Tensors = {}
    for fold in plan.folds:
        maker = fold.maker
        if type(fold) is not Fold or maker is None or fold.consumers or fold.shift is not None:
            return None
        if not _is_linear(maker.module) or fold.scale is None:
            return None
        scales[maker.path] = scales.get(maker.path, 1.0) * fold.scale
    columns = {fold.maker.form == "columns" for fold in plan.folds if fold.maker}
    if len(columns) > 1:
        return None
    tensors = {f"{PREFIX}{path}.ia3_l": scale.float()[:, None] for path, scale in scales.items()}
    return Adapter("IA3", tensors, {
        "target_modules": list(scales), "feedforward_modules": [], "fan_in_fan_out": columns == {True},
    })  # fmt: skip


@dataclass(frozen=True)
class Change:
    """A module's parameters, and what a merge makes of some of them, in float64."""

    path: str
    module: nn.Module
    new: Mapping[str, Tensor]

    def moved(self, name: str) -> Tensor:
        """By how much a parameter changes; from zero, where there is none."""
        old = self.module._parameters[name]
        return self.new[name] if old is None else self.new[name] - old.detach().double()

    def whole(self) -> Tensors:
        """All parameters, changed or not, in their own precision."""
        given = {name: value for name, value in self.module._parameters.items() if value is not None}
        return {name: self.new.get(name, value).detach().to(value.dtype) for name, value in given.items()}


class Exact(Journal):
    """Takes what a merge puts into modules without rounding it."""

    def put(self, module: nn.Module, name: str, value: Tensor, like: Tensor) -> None:
        if not value.isfinite().all():
            raise ValueError(f"{type(module).__name__}.{name}: the steered values are not finite")
        self.entries.append((module, name, module._parameters.get(name)))
        module._parameters[name] = nn.Parameter(value.to(like.device), requires_grad=False)


def _changes(plan: MergePlan, model: nn.Module) -> list[Change]:
    """By module, in the order in which they are changed; the model is as it was afterwards."""
    journal, names = Exact(), {id(module): path for path, module in reversed(list(model.named_modules()))}
    try:
        plan.apply(model, journal)
        new: dict[nn.Module, Tensors] = {}
        for module, name, _ in journal.entries:
            new.setdefault(module, {})[name] = module._parameters[name].detach()  # type: ignore[union-attr]
    finally:
        journal.restore()
    return [Change(names[id(module)], module, values) for module, values in new.items()]


def _adapter(changes: list[Change]) -> Adapter:
    whole, low_rank = [change for change in changes if not _is_linear(change.module)], []
    for change in changes:
        if _is_linear(change.module):
            low_rank.append(change)
        elif not isinstance(change.module, nn.Embedding) and any(p.ndim != 1 for p in change.new.values()):
            raise ValueError(f"{change.path}: no adapter of PEFT is known to hold a {type(change.module).__name__}")
    if not low_rank:
        tensors = {
            f"{PREFIX}{change.path}.ln_tuning_layers.{name}": value
            for change in whole for name, value in change.whole().items()
        }  # fmt: skip
        return Adapter("LN_TUNING", tensors, {"target_modules": [change.path for change in whole]})
    tensors, ranks = {}, {}
    for change in whole:
        tensors |= {f"{PREFIX}{change.path}.{name}": value for name, value in change.whole().items()}
    for change in low_rank:
        down, up = _factors(change)
        ranks[change.path] = len(down)
        bias = change.moved("bias") if "bias" in change.new else up.new_zeros(len(up))
        parts = {"lora_A.weight": down, "lora_B.weight": up, "lora_B.bias": bias}
        tensors |= {f"{PREFIX}{change.path}.{name}": value.float() for name, value in parts.items()}
    pattern = {path: rank for path, rank in ranks.items() if rank > 1}
    return Adapter("LORA", tensors, {
        "target_modules": list(ranks), "modules_to_save": [change.path for change in whole] or None,
        "r": 1, "lora_alpha": 1, "rank_pattern": pattern, "alpha_pattern": pattern, "lora_bias": True,
    })  # fmt: skip


def _factors(change: Change) -> tuple[Tensor, Tensor]:
    """Down (rank, inputs) and up (outputs, rank), whose product is by how much the weight changes, exactly."""
    weight = change.module._parameters["weight"]
    assert weight is not None
    moved = change.moved("weight") if "weight" in change.new else torch.zeros_like(weight, dtype=torch.float64)
    moved = moved if isinstance(change.module, nn.Linear) else moved.T  # GPT-2's layers have it the other way round
    rows, columns = moved.any(1).nonzero()[:, 0], moved.any(0).nonzero()[:, 0]
    if not len(rows):  # a rank of 0 is none of PEFT's
        return moved[:1], torch.zeros_like(moved[:, :1])
    chosen = rows if len(rows) <= len(columns) else columns
    ones = torch.eye(moved.shape[0 if chosen is rows else 1], dtype=moved.dtype, device=moved.device)
    return (moved[rows], ones[:, rows]) if chosen is rows else (ones[columns], moved[:, columns])


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _write(adapter: Adapter, peft: Any, model: Any, folder: str) -> None:
    kinds = {"IA3": peft.IA3Config, "LN_TUNING": peft.LNTuningConfig, "LORA": peft.LoraConfig}
    name = type(model).__name__
    config = kinds[adapter.kind](
        base_model_name_or_path=getattr(model, "name_or_path", None) or None, inference_mode=True,
        task_type="CAUSAL_LM" if name.endswith(("ForCausalLM", "LMHeadModel")) else None, **adapter.options,
    )  # fmt: skip
    config.save_pretrained(folder)
    tensors = {name: value.cpu().contiguous().clone() for name, value in adapter.tensors.items()}
    save_file(tensors, Path(folder, FILES[0]), metadata={"format": "pt"})


def _loaded(peft: Any, model: nn.Module, folder: str) -> nn.Module:
    with warnings.catch_warnings(), seeded(0, device_of(model)):  # PEFT draws what the file then replaces
        warnings.simplefilter("ignore")  # that a layer has no bias to merge into, and norms are unusual, we know
        return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder)


def _put_in_place(made: Path, folder: Path) -> int:
    """How many bytes that was."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        replace_file(folder / name, (made / name).read_bytes())
    return sum((folder / name).stat().st_size for name in FILES)
