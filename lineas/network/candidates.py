"""Which sites are worth a look: normalisations, attention, MLPs, blocks, other layers, and the network's output."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .batch import Batch
from .calls import call
from .default_sites import MODULATION, OF_ATTENTION, default_names
from .hooks import tensor_of
from .links import core, module_at, named_modules
from .outputs import head_of, output_name
from .sites import Site, find_sites, why_never_run

__all__ = ["KINDS", "Candidate", "candidate_sites", "kinds_of", "that_run"]

KINDS = ("norm", "attention", "mlp", "block", "layer", "output")
ATTENTION = re.compile(r"(\w+_)?(attn|attention)\d?(_context)?|(Self|EncDec|Cross)?Attention")
MLP = re.compile(
    r"((shared|audio|txt)_)?(mlp|ffn?|feed_?forward)\d?(_context|_block)?|(block_sparse_)?moe|DenseReluDense|"
    r"fc2|fc_out|lin2|linear2|pwconv2"
)
LISTS = (nn.ModuleList, nn.Sequential)


@dataclass(frozen=True)
class Candidate:
    """A site, which of `KINDS` it is, and how many bytes of activations a sample has there, once it ran."""

    site: Site
    kind: str
    memory: int = 0


def candidate_sites(model: nn.Module) -> list[Candidate]:
    """All that names and classes tell of a network, in the order of its modules; nothing is run.

    Inside a normalisation, an attention or an MLP nothing else is one but default sites. Layers are those in no block.
    """
    everything = named_modules(model)
    modules = {name: module for name, module in everything.items() if name}
    head = head_of(model)  # of a language model, whose output is what this reads
    try:
        kinds = dict.fromkeys(default_names(everything), "norm")
    except LookupError:  # there is no default
        kinds = {}
    for name, module in modules.items():
        above = [kinds[other] for other in _above(name) if other in kinds]
        if name in kinds or module is head or any(kind != "block" for kind in above):
            continue
        if kind := _kind(model, name, module, bool(above)):
            kinds[name] = kind
    names = [name for name in modules if name in kinds]
    return [Candidate(site, kinds[site.name]) for site in (find_sites(model, names) if names else ())]


def kinds_of(model: nn.Module, sites: Sequence[Site]) -> list[Candidate]:
    """Sites that somebody named, each with its kind; what is none of the others is a layer."""
    known = {one.site.path: one.kind for one in candidate_sites(model)}
    return [Candidate(site, known.get(site.path, "layer")) for site in sites]


def that_run(model: nn.Module, candidates: Sequence[Candidate], batch: Batch) -> list[Candidate]:
    """Those that run exactly once and return floats sample by sample, in the order in which they end; of several that
    return the same tensor the first. The last is the network's output, where a module makes it.

    From two passes over two samples. What runs behind the output's module is left out, as the logits of a language
    model are.
    """
    few = batch.rows(0, 2)
    ran: dict[str, list[Tensor | None]] = {}
    by_name = {one.site.name: one for one in candidates}
    output = _output(model, few)
    if output is not None:
        by_name[output.name] = Candidate(output, "output")

    def note(site: Site):
        def see(module: nn.Module, args: object, returned: object) -> None:
            ran.setdefault(site.name, []).append(_floats(site, returned, few.size))

        return see

    hooks = [module_at(model, one.site.path).register_forward_hook(note(one.site)) for one in by_name.values()]
    try:
        with torch.no_grad():
            call(model, few)
    finally:
        for hook in hooks:
            hook.remove()
    found: list[Candidate] = []
    seen: dict[tuple, int] = {}  # tensors stay in `ran`, so that no other takes their place in memory
    for name, tensors in ran.items():
        (tensor,) = tensors if len(tensors) == 1 else (None,)
        if tensor is None:
            continue
        one = replace(by_name[name], memory=tensor.numel() * tensor.element_size() // few.size)
        place = seen.setdefault((tensor.data_ptr(), tensor.shape), len(found))
        if place == len(found):
            found.append(one)
        elif one.kind == "output":
            found[place] = one
        if one.kind == "output":
            break
    return found


def _kind(model: nn.Module, name: str, module: nn.Module, in_block: bool) -> str:
    """Which kind of candidate a module is; empty where it is none."""
    own, inner = name.rpartition(".")[2], core(module)
    if isinstance(inner, (nn.Embedding, nn.Dropout)) or why_never_run(model, name):
        return ""
    if "norm" in type(inner).__name__.lower():
        is_other = MODULATION.fullmatch(type(inner).__name__) or OF_ATTENTION.fullmatch(own)
        return "" if is_other else "norm"
    if ATTENTION.fullmatch(own):
        return "attention"
    if MLP.fullmatch(own):
        return "mlp"
    has_children = next(inner.children(), None) is not None
    if has_children:
        is_listed = isinstance(module_at(model, name.rpartition(".")[0]), LISTS)
        return "block" if is_listed and next(inner.parameters(), None) is not None else ""
    return "" if in_block else "layer"


def _above(name: str) -> Iterator[str]:
    """Names of the modules that this one is in."""
    while name := name.rpartition(".")[0]:
        yield name


def _output(model: nn.Module, batch: Batch) -> Site | None:
    try:
        name = output_name(model, batch)
    except (LookupError, TypeError):  # something is done with it behind all modules, or it is nothing to compare
        return None
    return find_sites(model, [name])[0]


def _floats(site: Site, returned: object, size: int) -> Tensor | None:
    """The site's tensor, where it could be one."""
    try:
        tensor = tensor_of(site, returned)
    except (LookupError, TypeError):
        return None
    return tensor if len(tensor) == size or (tensor.ndim == 2 and len(tensor) % size == 0) else None
