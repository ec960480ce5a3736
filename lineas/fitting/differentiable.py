"""Weights and layers through which no gradient passes: a fit would take part of the truth for all of it."""

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ..network.batch import Batch
from ..network.links import core, named_modules
from ..network.sharding import is_spread, kind_of
from ..responses.runner import Runner


def check_differentiable(runner: Runner, batch: Batch) -> None:
    """Refuse weights of inference mode, and quantised linear layers without a backward pass between the sites
    (ValueError).

    Beside a residual stream they go unnoticed: the gradient that remains is not zero, and wrong. Ordinary models are
    not run for this; else one sample is, as far as the last loss site.
    """
    if sealed := next((name for name, weight in runner.model.named_parameters() if weight.is_inference()), None):
        raise ValueError(
            f"model: expected weights that autograd may record, got {sealed} made under torch.inference_mode; fit a "
            "copy of the model, made outside of it: copy.deepcopy(model)"
        )
    unusual = [(name, module) for name, module in named_modules(runner.model).items() if _is_odd_linear(core(module))]
    if not unusual:
        return
    cut: list[str] = []

    def checking(name: str):
        def see(module: nn.Module, args: tuple, output: object) -> None:
            given = args[0] if args else None
            if isinstance(given, Tensor) and given.requires_grad and not _passes(given, output):
                cut.append(f"{name} ({type(core(module)).__name__})")

        return see

    with ExitStack() as stack:
        for name, module in unusual:
            stack.callback(module.register_forward_hook(checking(name)).remove)
        stack.callback(setattr, runner, "checkpointing", runner.checkpointing)
        runner.checkpointing = []  # a gradient cannot be asked for while a block is being run
        runner.run(batch.rows(0, 1), torch.from_numpy(runner.mapped.identity()).requires_grad_())
    if cut:
        raise ValueError(
            "model: expected layers that gradients pass through, got quantised ones without a backward pass on this "
            f"device: {', '.join(cut[:3])}{f' and {len(cut) - 3} more' * (len(cut) > 3)}; fit the model in another form"
        )


def _is_odd_linear(module: nn.Module) -> bool:
    plain = kind_of(module) is nn.Linear and (type(module.weight) is nn.Parameter or is_spread(module.weight))
    return "Linear" in type(module).__name__ and not plain


def _passes(given: Tensor, output: object) -> bool:
    if not isinstance(output, Tensor) or not output.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(output.sum(), given, retain_graph=True, allow_unused=True)
    return gradient is not None and bool(gradient.any())
