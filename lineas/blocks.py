"""Run a model's repeated blocks otherwise, for a while: not again where nothing has changed, or again in backward."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
        for module, own in before.items():
            if own is None:
                vars(module).pop("forward", None)
            else:  # somebody else's wrapper
                module.forward = own


def checkpointed(model: nn.Module, last: Site) -> Forwards:
    """Checkpointed forwards of the blocks whose own checkpointing is on, but for the one that holds the last site.

    Hugging Face models checkpoint in training mode only; this works in evaluation mode. Theirs may be reentrant, which
    loses the gradient of what hooks take out of a block; this one is not. The last block, inside which the forward pass
    ends, keeps its activations.
    """

    def run(forward: Callable, *args, **kwargs):
        return checkpoint(partial(forward, **kwargs), *args, use_reentrant=False)

    return {
        block: partial(run, block.forward)
        for path, container in model.named_modules()
        if isinstance(container, LISTS)
        for name, block in container.named_children()
        if getattr(block, "gradient_checkpointing", False) and not f"{last.path}.".startswith(f"{path}.{name}.")
    }


def neighbours(model: nn.Module, site: Site) -> list[list[nn.Module]]:
    """For every list of modules on the site's path: its other modules, of which some may run before the site."""
    found, module = [], model
    for name in site.path.split("."):
        child = getattr(module, name)
        if isinstance(module, LISTS) and (others := [block for block in module.children() if block is not child]):
            found.append(others)
        module = child
    return found


class Record:
    """What ran before the first mapped site, and so does not depend on the maps: for one batch.

    `forwards` first take notes, of which blocks run before `close` is called and of what the last of each list returns,
    the only thing that the next block looks at. Once closed, these blocks return it without running.
    """

    def __init__(self, lists: list[list[nn.Module]]):
        self.lists, self.open = lists, True
        self.ran: dict[nn.Module, int] = {}
        self.outputs: dict[int, Any] = {}
        self.responses: dict[Site, Tensor] = {}  # of sites before the first mapped one
        self._versions: list[int] = []

    def close(self, responses: Mapping[Site, Tensor]) -> None:
        self.open, self.responses = False, dict(responses)
        self._versions = [tensor._version for tensor in self._tensors()]

    @property
    def usable(self) -> bool:
        """Whether it spares anything, and nobody has written into what it keeps."""
        return not self.open and bool(self.ran) and self._versions == [t._version for t in self._tensors()]

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())

    def forwards(self) -> Forwards:
        if self.open:
            return {block: self._noting(k, block) for k, blocks in enumerate(self.lists) for block in blocks}
        return {block: self._returning(self.outputs[k]) for block, k in self.ran.items()}

    def _noting(self, k: int, block: nn.Module) -> Callable:
        forward = block.forward

        def run(*args, **kwargs):
            output = forward(*args, **kwargs)
            if self.open:
                self.ran[block], self.outputs[k] = k, output
            return output

        return run

    @staticmethod
    def _returning(output: Any) -> Callable:
        return lambda *args, **kwargs: output

    def _tensors(self) -> list[Tensor]:
        return [*_tensors_in(self.outputs), *self.responses.values()]


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors_in(item)
