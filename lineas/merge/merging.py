"""Merge: maps into weights, so that the model needs no hooks. Where they go is seen, and the result measured."""

import copy
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ..attaching.attach import attach
from ..attaching.base_model import MERGED, check_base, merged_into
from ..core.checks import number
from ..core.text import warn
from ..maps import algebra
from ..maps.info import maps_digest
from ..maps.maps import Maps
from ..network.hooks import Hook
from ..network.links import is_adapted, unwrapped, within
from ..network.sharding import holders, is_partitioned, is_sharded, is_spread, kind_of, refuse_others, reshard
from ..network.state import dtype_of, eager
from ..network.weights import Weights
from .layers import Journal
from .planning import MergePlan, folded_pairs, make_plan
from .probing import TOLERANCE, Probe

__all__ = ["merge", "merge_plan", "unmerge"]


def merge_plan(maps: Maps, model: nn.Module, strength: float = 1.0, *, probe: Any = None) -> MergePlan:
    """See `Steering.merge_plan`."""
    model = ready(model, maps, strength, anywhere=True)
    weights = Weights(model)
    with eager():
        if probe is None and not hasattr(model, "main_input_name"):
            return make_plan(maps, model, strength, None, weights=weights)  # what needs no look can still be said
        return make_plan(maps, model, strength, _batch(maps, model, strength, probe), weights=weights)


def merge(
    maps: Maps, model: nn.Module, strength: float = 1.0, *, inplace: bool = False, partial: bool = False,
    probe: Any = None, tolerance: float | None = None,
) -> nn.Module:  # fmt: skip
    """See `Steering.merge`."""
    model = ready(model, maps, strength, tolerance, anywhere=True)
    _refuse_copy(model, inplace)
    with eager():
        batch = _batch(maps, model, strength, probe)
        plan = make_plan(maps, model, strength, batch, weights=Weights(model))
        _refuse(plan, partial, inplace, batch.group is not None)
        base = batch(model)
        with attach(model, [maps], 0, strength, strict=False):  # what strict says, was said
            wanted = batch(model)
        possible = wanted
        if plan.refused:
            with attach(model, [algebra.restricted(maps, plan.folded)], 0, strength, strict=False):
                possible = batch(model)
        bound = tolerated(model, tolerance, batch.difference(base, possible))
        got: list[Any] = []

        def check(new: nn.Module) -> None:
            got.append(batch(new))
            _check(batch.difference(possible, got[0]), bound)

        merged = _carried_out(plan, model, inplace, check)
        error, effect = batch.difference(wanted, got[0]), batch.difference(base, wanted)
    if plan.refused:
        warnings.warn(
            f"merged {len(plan.folded)} of {len(plan.sites)} sites; on the probe, outputs are {error:.2g} from those "
            f"of the steered model (relative; steering itself moves them by {effect:.2g}). Left out: "
            + "; ".join(f"{entry.site}: {entry.text}" for entry in plan.refused),
            stacklevel=3,
        )
    record = {
        "strength": float(strength), "error": error, "effect": effect, "tolerance": bound,
        "class": kind_of(merged).__name__, "sites": {entry.site: entry.text for entry in plan.sites},
        "left_out": [entry.site for entry in plan.refused], "maps": [*merged_into(model), maps_digest(maps)],
    }  # fmt: skip
    setattr(merged, MERGED, record)  # plain values: the merged model can go where there is no lineas
    return merged


def unmerge(
    maps: Maps, model: nn.Module, strength: float = 1.0, *, inplace: bool = False, probe: Any = None,
    tolerance: float | None = None,
) -> nn.Module:  # fmt: skip
    """See `Steering.unmerge`."""
    known, digest = merged_into(unwrapped(model)), maps_digest(maps)
    if known and digest not in known:
        warn("expected a steering that was merged into this model, got another one; what is left may be neither")
    check_base(maps.info, unwrapped(model))
    model = ready(model, maps, strength, tolerance, strict=False, anywhere=True)
    _refuse_copy(model, inplace)
    _require_invertible(maps, strength)
    with eager():
        batch = _batch(maps, model, strength, probe)
        plan = make_plan(maps, model, strength, batch, weights=Weights(model))
        if unfit := [entry for entry in plan.sites if entry.status in ("refused", "class")]:
            raise ValueError(
                "expected a model into which this whole steering was merged, got one that cannot hold it: "
                + "; ".join(f"{entry.site}: {entry.text}" for entry in unfit)
            )
        wanted = batch(model)

        def check(new: nn.Module) -> None:
            base = batch(new)
            with attach(new, [maps], 0, strength, strict=False):
                _check(batch.difference(wanted, batch(new)), tolerated(new, tolerance, batch.difference(base, wanted)))

        plain = _carried_out(plan, model, inplace, check, undo=True)
    if hasattr(plain, MERGED):
        left = [other for other in known if other != digest]
        if left:
            setattr(plain, MERGED, {**getattr(plain, MERGED), "maps": left})
        else:
            delattr(plain, MERGED)
    return plain


def ready(
    model: nn.Module, maps: Maps, strength: float, tolerance: float | None = None, strict: bool = True,
    anywhere: bool = False,
) -> nn.Module:  # fmt: skip
    """The network itself; refused where it is already steered, in pieces, or not the steering's.

    With `anywhere`, pieces of weights in several processes are as good as whole ones.
    """
    model = unwrapped(model)
    number(strength, "strength")
    if tolerance is not None and number(tolerance, "tolerance") < 0:
        raise ValueError(f"tolerance: expected at least 0, got {tolerance}")
    for path, module in model.named_modules():
        spread = is_sharded(module) or any(map(is_spread, module.parameters(recurse=False)))
        unknown = is_sharded(module) and not hasattr(module, "reshard")  # the older FSDP
        if (spread and not anywhere) or unknown or any(map(is_partitioned, module.parameters(recurse=False))):
            raise ValueError(f"model: {path or 'it'} is sharded over processes; merge first, then shard")
        if is_adapted(module):
            raise ValueError(
                f"model: {path or 'it'} has adapters of PEFT; expected their weights in the model's own: merge the "
                "steering into what merge_and_unload() returns"
            )
        if within(module) is not None:
            raise ValueError(f"model: a part of it, {path}, is compiled or wrapped; expected to merge before that")
        if any(isinstance(hook, Hook) for hook in module._forward_hooks.values()):
            raise RuntimeError(f"a steering is on this model, at {path}; remove its handle before merging")
    attach(model, [maps], 0, strength, strict=strict).remove()  # every complaint about sites, units and strength, once
    return model


def _batch(maps: Maps, model: nn.Module, strength: float, probe: Any) -> Probe:
    """The probe; ValueError where processes that share the weights do not all ask for the same."""
    batch = Probe(model, probe)
    refuse_others(model, "steering, strength, probe", lambda: f"{maps_digest(maps)} {strength} {batch.digest()}")
    return batch


def _refuse_copy(model: nn.Module, inplace: bool) -> None:
    if not inplace and holders(model):
        raise ValueError(
            "inplace: expected True for a model that is spread over processes, which has no copies, got False; "
            "unmerge gives it back"
        )


def _refuse(plan: MergePlan, partial: bool, inplace: bool, spread: bool) -> None:
    if plan.refused and not partial:
        lines = [f"  {entry.site}: {entry.text}" for entry in plan.refused]
        raise ValueError(
            f"{len(plan.refused)} of {len(plan.sites)} sites cannot be merged exactly into a plain "
            f"{plan.model_class}:\n" + "\n".join(lines) + "\npartial=True leaves them out, and measures the error"
        )
    if plan.refused and not plan.folded:
        first = plan.refused[0]
        raise ValueError(f"not one of {len(plan.sites)} sites can be merged; {first.site}: {first.text}")
    if inplace and plan.host and not plan.host.is_own:
        raise ValueError(
            f"inplace: only {plan.host.label} can hold the merged {plan.model_class}, and an object cannot change its "
            f"class; expected {'a model in one process, offloaded if it is large' if spread else 'inplace=False'}"
        )


@torch.inference_mode(False)  # or nobody could train the merged weights
def _carried_out(
    plan: MergePlan, model: nn.Module, inplace: bool, check: Callable[[nn.Module], None], undo: bool = False
) -> nn.Module:
    """The model, or a copy, with the plan in its weights and the check passed; else all is as it was."""
    target: Any = model if inplace else _copied(model)
    reshard(target)
    journal, shared = Journal(Weights(target)), _shared_parameters(target)
    try:
        (plan.undo if undo else plan.apply)(target, journal)
        if plan.unties:
            journal.set(target.config, "tie_word_embeddings", False)
        if plan.host and plan.host.is_own:
            plan.host.adopt(target, journal)
        elif plan.host:
            target = plan.host.build(target)
        check(target)
    except BaseException:
        journal.restore()
        raise
    journal.keep(shared)
    return target


def _copied(model: nn.Module) -> Any:
    """A copy; what weights are loaded from, and never written to, is shared with it."""
    target = copy.deepcopy(model, {id(one): one for one in Weights(model).lasting()})
    _forget_decoded_file(target)
    return target


def _forget_decoded_file(model: Any) -> None:
    """What transformers read from a GGUF file has ordinary weights, but for the file's sake it would not be saved."""
    method = getattr(model, "quantization_method", None)
    if getattr(method, "value", method) == "gguf":
        for name in ("hf_quantizer", "quantization_method", "is_quantized"):
            vars(model).pop(name, None)
        vars(model.config).pop("quantization_config", None)


def _shared_parameters(model: nn.Module) -> frozenset[int]:
    """Parameters that are in several places."""
    counts = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    return frozenset(key for key, count in counts.items() if count > 1)


def tolerated(model: nn.Module, tolerance: float | None, effect: float) -> float:
    """What rounding may explain; no more than a tenth of what steering does, or a merge of nothing could pass."""
    if tolerance is not None:
        return tolerance
    dtype = dtype_of(model)
    wide = TOLERANCE.get(dtype, 1e-4)
    return wide if dtype in (torch.float16, torch.bfloat16) else min(wide, max(effect / 10, 1e-5))


def _check(error: float, bound: float) -> None:
    if not error <= bound:
        raise RuntimeError(
            f"the model with the maps in its weights is not the steered one: on the probe, outputs differ by "
            f"{error:.2g} (relative), expected at most {bound:.2g}; nothing was changed. A wider tolerance= accepts it"
        )


def _require_invertible(maps: Maps, strength: float) -> None:
    lost = {name: np.flatnonzero(scale.numpy() == 0) for name, (scale, _) in folded_pairs(maps, strength).items()}
    if named := {name: units.tolist() for name, units in lost.items() if len(units)}:
        raise ValueError(f"expected maps with an inverse, but at strength {strength} these units have scale 0: {named}")
