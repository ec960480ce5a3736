"""Whether default sites feed MLPs in fact: names only say that they should, a forward pass tells."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from .default_sites import MLP, default_names, is_norm
from .links import named_modules


class Ran(NamedTuple):
    """A part of a block that ran: a norm, with what it returned, or another one, with what it was given."""

    path: str
    is_norm: bool
    tensor: Tensor | None  # kept, so that no other takes its memory


class Feeding:
    """What ran in the blocks of a model in one forward pass, in order, by block."""

    def __init__(self, blocks: Mapping[str, str]):
        self.blocks = blocks
        self.ran: dict[str, list[Ran]] = {block: [] for block in blocks.values()}

    def why_not(self, site: str) -> str:
        """Why this default site feeds no MLP; empty where it does, where it did not run, and where nothing tells.

        It does if it is part of the MLP, or the MLP was given what it returned; also if the MLP was the next part to
        run, since there may be a modulation between them (DiT).
        """
        block = self.blocks[site]
        ran, start = self.ran[block], len(block) + 1 if block else 0
        places = [k for k, part in enumerate(ran) if part.path == site]
        mlps = [part for part in ran if not part.is_norm and MLP.fullmatch(part.path[start:])]
        is_inside = MLP.fullmatch(site[start:].partition(".")[0])
        if not places or not mlps or is_inside or any(_same(ran[places[0]].tensor, mlp.tensor) for mlp in mlps):
            return ""
        after = next((part for part in ran[places[0] :] if not part.is_norm), None)
        if after in mlps:
            return ""
        feeds = next((part.path for part in ran if part.is_norm and _same(part.tensor, mlps[0].tensor)), None)
        why = f"{after.path} runs next" if after else f"it runs behind {mlps[-1].path}"
        return f"{why}, and {mlps[0].path} gets what {feeds} returns" if feeds else why


@contextmanager
def watching(model: nn.Module) -> Iterator[Feeding]:
    """While open, notes are taken of what runs in the blocks that have default sites."""
    modules = named_modules(model)
    feeding = Feeding(default_names(modules))
    handles = []
    try:
        for path, module in modules.items():
            block = _block_of(path, feeding)
            if block is None:
                continue
            if is_norm(path, module):
                handles.append(module.register_forward_hook(_noting(feeding.ran[block], path, True), with_kwargs=True))
            elif path.rpartition(".")[0] == block and next(module.parameters(), None) is not None:
                hook = _noting(feeding.ran[block], path, False)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield feeding
    finally:
        for handle in handles:
            handle.remove()


def _block_of(path: str, feeding: Feeding) -> str | None:
    """The innermost block that a module is in."""
    while path:
        path = path.rpartition(".")[0]
        if path in feeding.ran:
            return path
    return None


def _noting(ran: list[Ran], path: str, is_norm: bool) -> Any:
    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any = None) -> None:
        values = (output if isinstance(output, (tuple, list)) else [output]) if is_norm else [*args, *kwargs.values()]
        tensors = (value for value in values if isinstance(value, Tensor) and value.is_floating_point())
        ran.append(Ran(path, is_norm, next(tensors, None)))

    return note


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors are one in memory, or views of one."""
    if a is None or b is None or a.is_nested or b.is_nested:
        return False
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
