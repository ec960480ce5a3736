"""A layer's own weights: what a map of its output, or input, does to them. In float64, rounded once at the end."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..network.sharding import is_spread, kind_of
from ..network.weights import Undo, Weights

ROWS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # dimension 0 of the weight is the output's channel
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (
    nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d,
    nn.InstanceNorm3d, *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []),
)  # fmt: skip
EXACTLY = 1e-5  # in float32: a layer that scales its output by its weight does so to rounding


class CannotFoldError(Exception):
    """Why a layer cannot take a map; the plan has it in words."""


@dataclass
class Journal:
    """What a merge puts in the place of what, so that a failed one can be taken back."""

    weights: Weights = field(default_factory=Weights)
    entries: list[tuple[nn.Module, str, nn.Parameter | None]] = field(default_factory=list)
    settings: list[tuple[Any, str, Any]] = field(default_factory=list)
    undone_by: list[Undo] = field(default_factory=list)  # of what is not simply a tensor in memory

    def set(self, config: Any, name: str, value: Any) -> None:
        """A new value of an attribute."""
        self.settings.append((config, name, getattr(config, name)))
        setattr(config, name, value)

    def put(self, module: nn.Module, name: str, value: Tensor, like: Tensor) -> None:
        """A new parameter in the dtype, and where, another one is; finite or ValueError."""
        elsewhere = self.weights.are_elsewhere(module, name, like)
        rounded = value.to(device=None if elsewhere else like.device, dtype=like.dtype)
        if not rounded.isfinite().all():
            raise ValueError(f"{kind_of(module).__name__}.{name}: the merged values overflow {like.dtype}")
        if elsewhere:
            self.undone_by.append(self.weights.put(module, name, rounded, like))
            return
        old = module._parameters.get(name)
        self.entries.append((module, name, old))
        module._parameters[name] = self.weights.new(rounded, like)

    def exact(self, module: nn.Module, name: str) -> Tensor | None:
        """A module's parameter as it is now, whole and in float64; None where it has none."""
        found = self.weights.whole(module, name)
        return None if found is None else found.double()

    def restore(self) -> None:
        """All as it was: the same parameters, with the same values."""
        for module, name, old in reversed(self.entries):
            module._parameters[name] = old
        for undo in reversed(self.undone_by):
            undo()
        for config, name, value in reversed(self.settings):
            setattr(config, name, value)

    def keep(self, untied: frozenset[int]) -> None:
        """Let the old parameters have the new values, so that who holds one (an optimiser) still does.

        Not those of `untied`: others hold them too, and must not change.
        """
        for module, name, old in reversed(self.entries):
            if old is not None and id(old) not in untied:
                with torch.no_grad():
                    old.data = module._parameters[name].data  # type: ignore[union-attr]
                module._parameters[name] = old


@dataclass(frozen=True)
class Layer:
    """A module whose output, per channel, is linear in parameters of its own.

    Attributes
    ----------
    path : str
    module : nn.Module
    form : str
        "rows", "columns" (the linear layer of GPT-2, stored transposed), "transposed" (convolutions), "table"
        (embeddings), "scale" (norms) or "1 + scale" (norms of Gemma).
    """

    path: str
    module: nn.Module
    form: str

    @property
    def kind(self) -> str:
        return kind_of(self.module).__name__

    @property
    def weight(self) -> Tensor:
        return self.module._parameters["weight"]  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return self.module._parameters.get("bias")

    @property
    def outputs(self) -> int:
        """Channels of its output."""
        module: Any = self.module
        if self.form == "transposed":
            return int(self.weight.shape[1] * module.groups)
        return self.weight.shape[0 if self.form == "rows" else -1]

    @property
    def is_norm(self) -> bool:
        return "scale" in self.form

    @property
    def has_room(self) -> bool:
        """Whether a bias needs no new parameter."""
        return self.form == "table" or self.bias is not None

    @property
    def may_grow(self) -> bool:
        """Whether the module would use a bias if it had one."""
        return "bias" in self.module._parameters

    def map_output(self, journal: Journal, scale: Tensor | None, shift: Tensor | None) -> None:
        """The output z becomes scale * z + shift, both (units,) float64; None leaves that part out."""
        weight: Tensor = journal.exact(self.module, "weight")  # type: ignore[assignment]
        scale, shift = (None if part is None else part.to(weight.device) for part in (scale, shift))
        if self.form == "table":
            scaled = weight if scale is None else weight * scale
            journal.put(self.module, "weight", scaled if shift is None else scaled + shift, self.weight)
            return
        bias = journal.exact(self.module, "bias")
        if scale is not None:
            journal.put(self.module, "weight", self._scaled(weight, scale), self.weight)
            bias = None if bias is None else bias * scale
        if shift is not None:
            bias = shift.clone() if bias is None else bias + shift
        if bias is not None:
            journal.put(self.module, "bias", bias, self.weight if self.bias is None else self.bias)

    def _scaled(self, weight: Tensor, scale: Tensor) -> Tensor:
        if self.form == "1 + scale":
            return (1 + weight) * scale - 1
        if self.form == "rows":
            return weight * scale.view([-1] + [1] * (weight.ndim - 1))
        if self.form == "transposed":  # (in, out / groups, ...): each group of inputs makes its own outputs
            groups: Any = self.module.groups
            by_input = scale.view(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1)
            return weight * by_input.reshape(list(weight.shape[:2]) + [1] * (weight.ndim - 2))
        return weight * scale  # the last dimension: columns, norms

    def unmap_output(self, journal: Journal, scale: Tensor | None, shift: Tensor | None) -> None:
        """Undo `map_output`."""
        back = None if shift is None else -shift
        if scale is None or back is None:
            self.map_output(journal, None if scale is None else 1 / scale, back)
        else:
            self.map_output(journal, 1 / scale, back / scale)

    def shift_input(self, journal: Journal, shift: Tensor, sign: int = 1) -> None:
        """The bias of a layer whose input x becomes x + shift: it gains W shift."""
        weight: Tensor = journal.exact(self.module, "weight")  # type: ignore[assignment]
        shift = shift.to(weight.device)
        if self.form == "columns":
            gained = shift @ weight
        else:  # a convolution's window covers nothing but the input: there is no padding
            gained = weight.flatten(2).sum(2) @ shift if weight.ndim > 2 else weight @ shift
        self.map_output(journal, None, sign * gained)

    def scale_input(self, journal: Journal, scale: Tensor) -> None:
        """The weight of a layer whose input x becomes scale * x."""
        weight: Tensor = journal.exact(self.module, "weight")  # type: ignore[assignment]
        scale = scale.to(weight.device)
        by_input = scale[:, None] if self.form == "columns" else scale.view([-1] + [1] * (weight.ndim - 2))
        journal.put(self.module, "weight", weight * by_input, self.weight)

    def takes(self, units: int, channel_dim: int, ndim: int) -> bool:
        """Whether its input's channels are these units, and a shift of them is a bias."""
        if self.form == "columns":
            return self.weight.shape[0] == units and channel_dim in (-1, ndim - 1)
        if self.form != "rows" or self.weight.shape[1] != units:
            return False
        if isinstance(self.module, nn.Linear):
            return channel_dim in (-1, ndim - 1)
        conv: Any = self.module
        padded = conv.padding != "valid" and (isinstance(conv.padding, str) or any(conv.padding))
        return channel_dim == 1 and conv.groups == 1 and not padded

    def reads(self, tensor: Tensor, units: int) -> bool:
        """Whether these units are the input's channels where this layer looks for them."""
        return tensor.shape[1 if self.weight.ndim > 2 else -1] == units


def layer(path: str, module: nn.Module, units: int | None, weights: Weights | None = None) -> Layer:
    """The module as a layer that can take a map of `units` channels; CannotFoldError says why where it cannot."""
    weights = weights or Weights()
    kind, weight = kind_of(module).__name__, module._parameters.get("weight")
    if weight is None:
        raise CannotFoldError(_no_weight(module))
    known: Any = weight.data
    plain = known.to_local() if is_spread(weight) else known
    if not weight.is_floating_point() or type(plain) is not Tensor:
        raise CannotFoldError(f"the weights of this {kind} are quantised ({type(plain).__name__}, {weight.dtype})")
    for name, parameter in module._parameters.items():
        if parameter is not None and not weights.are_here(module, name):
            raise CannotFoldError(f"{name} of this {kind} is not in memory (offloaded, on the meta device)")
    form = _form(module, weight, units, weights)
    if form is None:
        raise CannotFoldError(f"{kind} has a forward of its own, which is not known to be linear in its weight")
    return Layer(path, module, form)


def _no_weight(module: nn.Module) -> str:
    kind = type(module).__name__
    if hasattr(module, "parametrizations") or "weight_g" in module._parameters or "weight_orig" in module._parameters:
        return f"the weight of this {kind} is computed from other parameters (a parametrisation)"
    if "quant" in kind.lower() or any("qweight" in name for name in (*module._parameters, *module._buffers)):
        return f"the weights of this {kind} are quantised"
    return f"{kind} has no weight of its own"


def _form(module: nn.Module, weight: Tensor, units: int | None, weights: Weights) -> str | None:
    if _runs_as(module, (nn.Embedding,)):
        return "table" if module.max_norm is None else None
    for form, kinds in (("rows", ROWS), ("transposed", TRANSPOSED), ("scale", NORMS)):
        if _runs_as(module, kinds):
            return form
    if kind_of(module).__name__ == "Conv1D" and kind_of(module).__module__.startswith("transformers."):
        return "columns"
    if weight.ndim == 1 and units in (None, len(weight)) and set(module._parameters) <= {"weight", "bias"}:
        return _seen_form(module, weights)
    return None


def _runs_as(module: nn.Module, kinds: tuple[Any, ...]) -> bool:
    """Whether its forward is that of one of these classes: a subclass may have changed it."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)


def _seen_form(module: nn.Module, weights: Weights) -> str | None:
    """How an unknown norm uses its weight: seen by running a copy of it on random numbers, twice."""
    trial = _copied(module, weights).float().eval()
    weight = trial._parameters["weight"].detach()  # type: ignore[union-attr]
    draw, size = torch.Generator().manual_seed(0), (3, 3, len(weight))
    drawn = torch.randn(size, generator=draw, dtype=torch.float32, device="cpu")
    x, scale = drawn[:2].to(weight.device), 1.5 + drawn[2, 0].abs().to(weight.device)
    try:
        with torch.no_grad():
            before = trial(x)
            for form in ("scale", "1 + scale"):
                after = Layer("", copy.deepcopy(trial), form)
                after.map_output(Journal(), scale.double(), None)
                if _relative(after.module(x), scale * before) < EXACTLY:
                    return form if _bias_is_added(trial, x) else None
    except Exception:  # it wants other inputs: not a plain norm, whatever it is
        return None
    return None


def _copied(module: nn.Module, weights: Weights) -> nn.Module:
    """A copy of a module without children, in memory, with whole weights and without hooks."""
    held = {name: value for name, value in module._parameters.items() if value is not None}
    if not any(weights.are_elsewhere(module, name, value) for name, value in held.items()):
        twin = copy.deepcopy(module)
        for hooks in (twin._forward_hooks, twin._forward_pre_hooks):
            hooks.clear()
        return twin
    kind: Any = kind_of(module)
    twin, blank = kind.__new__(kind), vars(nn.Module())
    own = {name: value for name, value in vars(module).items() if name not in blank and "composable" not in name}
    if own.pop("_hf_hook", None) is not None and getattr(own.pop("_old_forward"), "__func__", None) is kind.forward:
        del own["forward"]  # accelerate's, around that of the class
    whole = {name: nn.Parameter(weights.whole(module, name)) for name in held}  # type: ignore[arg-type]
    values = {"_parameters": {**module._parameters, **whole}, "_buffers": module._buffers, "_modules": module._modules}
    vars(twin).update(blank | own | values)
    return copy.deepcopy(twin)


def _bias_is_added(trial: nn.Module, x: Tensor) -> bool:
    if (bias := trial._parameters.get("bias")) is None:
        return True
    before, shift = trial(x), torch.linspace(1, 2, len(bias), device=bias.device, dtype=bias.dtype)
    bias.data += shift
    return _relative(trial(x), before + shift) < EXACTLY


def _relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())
