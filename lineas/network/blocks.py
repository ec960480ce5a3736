"""Run a model's repeated blocks otherwise, for a while: not again where nothing has changed, or again in backward."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .links import trail
from .sites import Site

LISTS = (nn.ModuleList, nn.Sequential)
Forwards = dict[nn.Module, Callable]


@contextmanager
def replaced(forwards: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """While open, these modules run other functions as their `forward`; their hooks stay as they are."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, before_it in before.items():
            if before_it is None:
                vars(module).pop("forward", None)
            else:  # somebody else's wrapper
                module.forward = before_it


def checkpointing(model: nn.Module, last: Site) -> list[nn.Module]:
    """The blocks whose checkpointing is on, their own or that of what holds their list, but for those that hold the
    last site: the forward pass ends in it. None is inside another.

    Models of transformers checkpoint in training mode only, and perhaps in the reentrant way, which loses the gradient
    of what hooks take out of a block; those of diffusers do always, and miss hooks when they run a block again.
    `checkpointed` does neither.
    """
    found: dict[nn.Module, None] = {}
    inside: set[nn.Module] = set(trail(model, last.path))
    for module in model.modules():
        for container in module.children():
            if isinstance(container, LISTS):
                flagged = [block for block in container.children() if _checkpoints(module) or _checkpoints(block)]
                found |= dict.fromkeys(block for block in flagged if block not in inside)
                inside.update(part for block in flagged if block in found for part in block.modules())
    return list(found)


def _checkpoints(module: nn.Module) -> bool:
    return getattr(module, "gradient_checkpointing", False) is True


@contextmanager
def checkpointing_off(model: nn.Module) -> Iterator[None]:
    """While open, no module checkpoints by itself."""
    flagged = [module for module in model.modules() if _checkpoints(module)]
    try:
        for module in flagged:
            module.gradient_checkpointing = False  # type: ignore[assignment]
        yield
    finally:
        for module in flagged:
            module.gradient_checkpointing = True  # type: ignore[assignment]


def checkpointed(block: nn.Module, hooks: Callable[[], AbstractContextManager]) -> Callable:
    """The block's forward, run again in the backward pass; then too under the hooks, which will be off by that time,
    and without checkpointing inside, which will be on again."""
    forward = block.forward

    def run(*args, **kwargs):
        in_backward = False

        def compute(*args):
            nonlocal in_backward
            with ExitStack() as stack:
                if in_backward:
                    stack.enter_context(hooks())
                    stack.enter_context(checkpointing_off(block))
                in_backward = True
                return forward(*args, **kwargs)

        return checkpoint(compute, *args, use_reentrant=False)

    return run


def neighbours(model: nn.Module, site: Site) -> list[list[nn.Module]]:
    """For every list of modules on the site's path: its other modules, of which some may run before the site.

    Empty where the site is inside something compiled, whose blocks are not called one by one.
    """
    found: list[list[nn.Module]] = []
    for module, child in pairwise(trail(model, site.path)):
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            return []
        if isinstance(module, LISTS) and (others := [block for block in module.children() if block is not child]):
            found.append(others)
    return found


class PrefixRecord:
    """What ran before the first mapped site, and so does not depend on the maps: for one batch.

    `forwards` first take notes, of which blocks run before `close` is called and of what the last of each list returns,
    the only thing that the next block looks at. Once closed, these blocks return it without running.
    """

    def __init__(self, lists: list[list[nn.Module]]):
        self.lists, self.open = lists, True
        self.ran: dict[nn.Module, int] = {}
        self.outputs: dict[int, Any] = {}
        self.responses: dict[Site, Tensor] = {}  # of sites before the first mapped one
        self._versions: dict[int, list[int]] = {}

    def close(self, responses: Mapping[Site, Tensor]) -> None:
        self.open, self.responses = False, dict(responses)

    @property
    def usable(self) -> bool:
        """Whether it spares anything, and nobody has written into what the blocks returned."""
        untouched = all(_versions(output) == self._versions[k] for k, output in self.outputs.items())
        return not self.open and bool(self.ran) and untouched

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in _tensors_in([self.outputs, self.responses]))

    def forwards(self) -> Forwards:
        if self.open:
            return {block: self._noting(k, block) for k, blocks in enumerate(self.lists) for block in blocks}
        return {block: self._returning(self.outputs[k]) for block, k in self.ran.items()}

    def _noting(self, k: int, block: nn.Module) -> Callable:
        forward = block.forward

        def run(*args, **kwargs):
            output = forward(*args, **kwargs)
            if self.open:
                self.ran[block], self.outputs[k], self._versions[k] = k, output, _versions(output)
            return output

        return run

    @staticmethod
    def _returning(output: Any) -> Callable:
        return lambda *args, **kwargs: output


def _versions(value: Any) -> list[int]:
    """These change when a tensor is written into."""
    return [tensor._version for tensor in _tensors_in(value)]


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors_in(item)
