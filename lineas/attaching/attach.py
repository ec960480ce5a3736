"""Steer a model: forward hooks that map the sites' outputs."""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..core.checks import flag
from ..maps.gate import Gate, refuse_gated
from ..maps.info import component_of_fit
from ..maps.maps import Maps
from ..network.hooks import CHANNELS_FIRST, Hook
from ..network.links import module_at
from ..network.pipelines import is_pipeline, network_of
from ..network.pipelines.components import component_of
from ..network.sites import Site, find_sites
from .base_model import check_base, check_merged, check_others
from .denoising import At, Denoising, check_guided
from .gating import ONLY_WHOLE, Reader
from .handle import Handle
from .positions import ONLY_ALL, Position, Tokens, check_position
from .rows import named
from .site_map import SiteMap

__all__ = ["attach"]

# Keys and values of cross-attention are in the decoder and have the encoder's tokens.
CROSS = r".*(encoder_attn|EncDecAttention|cross_?attn|cross_?attention)(\..*)?\.(k|v|k_proj|v_proj|key|value)"


def attach(
    model: Any, steerings: Mapping[Hashable, Maps] | Sequence[Maps], rows: Any = ...,
    strength: float | Sequence[float] | Tensor = 1.0, *, position: Position = "all", count: bool | None = None,
    strict: bool = True, component: str | None = None, at: At = "all", guided: str = "both",
) -> Handle:  # fmt: skip
    """Steer a model with several steerings at once, each row of a batch with its own, until the handle is removed.

    Parameters
    ----------
    model : nn.Module or pipeline
        The network that the maps were fitted on, or one of the same shape, or a pipeline that holds it. Its weights are
        not touched: forward hooks map the sites' outputs out of place, on their device and in their dtype.
    steerings : dict of id -> Steering, or list
        In a list, their places are their ids. Where a steering lacks a site of another one, it changes nothing there.
    rows : id or None, or a list of them, optional
        Which steering each row of the batch gets, or all of them; None is none. `handle.select` changes it. Unless
        told, a single steering is for all rows, and of several none is: a pass before `select` warns.
    strength : float, or list or tensor (batch,)
        0 is exactly the base model, 1 the fitted maps; between and beyond is linear. One number, or one for each row.
        `handle.set_strength` changes it. In `generate`, rows are those that it is given: beams and returned
        sequences of a row get what the row gets. Rows of a pipeline are its prompts: under guidance both halves, and
        all pictures of a prompt, get what the prompt gets.
    position : {"all", "last", "prompt", "generated"} or callable
        Which tokens are steered: all; the last one of the prompt and every generated one; those of the prompt; the
        generated ones; or those for which a function of their absolute positions, int64 (batch, tokens) counted from
        each row's first real token, -1 for padding, returns True in a bool tensor of the same shape.
        With "all", padding is mapped as well.
    count : bool, optional
        Count tokens for `handle.coverage()`. Unless told, all positions but "all" do, which then costs nothing.
    strict : bool
        Refuse a model of another name than the one that the maps were fitted on, unless its weights are the same. Names
        are compared by their last part; a model that was made in memory has none.
    component : str, optional
        Of a pipeline: the network that is steered. Unless told, the one that the steerings were fitted on; else its
        denoiser.
    at : {"all", "first"}, list or slice of int, or dict of int -> float
        Of a pipeline: at which of its steps, counted from 0, or by step what strengths are multiplied by; others are
        not steered.
    guided : {"both", "prompt"}
        Of a pipeline under guidance: steer the passes with the prompt and without it, or only those with it.

    Returns
    -------
    Handle

    Raises
    ------
    LookupError
        The model lacks a site; an id that is not among the steerings.
    ValueError
        A site has another number of units, with both in the message; a strength that is not finite; not as many ids or
        strengths as rows, in a forward pass or in `generate`; a position at a site without tokens.
    TypeError
        Another kind of argument.
    RuntimeError
        One of the steerings is on this model already.

    Notes
    -----
    The maps of all rows are gathered once for a batch, after which a row's own map costs what one for all rows does.
    `docs/guide.md` says what the prompt is outside of `generate`.

    Examples
    --------
    >>> import torch, lineas
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2))
    >>> up, down = lineas.Steering({"0": ([1, 1], [5, 5])}), lineas.Steering({"0": ([1, 1], [-5, -5])})
    >>> x = torch.randn(3, 2)
    >>> base = net(x)
    >>> with lineas.attach(net, {"up": up, "down": down}, rows=["up", None, "down"]):
    ...     (net(x) - base)[:, 0].round().tolist()
    [5.0, 0.0, -5.0]
    """
    check_position(position)
    flag(strict, "strict")
    by_id = named(steerings)
    distinct = list({id(steering): steering for steering in by_id.values()}.values())
    gates = list(dict.fromkeys(maps.gate for maps in distinct if maps.gate is not None))
    if is_pipeline(model):
        component = component_of(model, component_of_fit([maps.info for maps in distinct], component))
        _refuse_tokens(model, position, count)
        refuse_gated(f"model: a {type(model).__name__}", *gates)
        infos = [maps.info for maps in distinct]
        tokens: Tokens | Denoising = Denoising(model, component, at, guided, infos)
    else:
        _refuse_of_pipelines(at, guided)
        tokens = Tokens(position, position != "all" if count is None else flag(count, "count"), gates)
    model = network_of(model, component)
    for steering in distinct if strict else ():
        check_base(steering.info, model)
        check_others(steering.info, model, distinct)
        check_merged(steering, model)
    names = dict.fromkeys(name for steering in distinct for name in steering.sites)
    found = find_sites(model, list(names))
    for site in found:
        _check_site(model, site, distinct, position)
    readers = _readers(model, gates, tokens)
    site_maps = {site: SiteMap(site, distinct, tokens) for site in found}
    return Handle(model, by_id, site_maps, tokens, rows, strength, readers)


def _readers(model: nn.Module, gates: Iterable[Gate], tokens: Tokens | Denoising) -> dict[Site, Reader]:
    at_site: dict[Site, list[Gate]] = {}
    for gate in gates:
        (site,) = find_sites(model, [gate.site])
        if site.units is not None and site.units != len(gate.weight):
            raise ValueError(
                f"site {site.name!r}: the gate has weight ({len(gate.weight)},), the model's {site.kind} has "
                f"({site.units},) units; expected the model it was fitted on"
            )
        if gate.pooling != "all":
            _check_has_tokens(model, site, ONLY_WHOLE)
        at_site.setdefault(site, []).append(gate)
    return {site: Reader(site, several, tokens) for site, several in at_site.items() if isinstance(tokens, Tokens)}


def _refuse_tokens(pipe: Any, position: Position, count: bool | None) -> None:
    if position != "all" or count:
        raise ValueError(f"position, count: expected a language model, got a {type(pipe).__name__}; {ONLY_ALL}")


def _refuse_of_pipelines(at: At, guided: str) -> None:
    if not (isinstance(at, str) and at == "all") or check_guided(guided) != "both":
        raise ValueError("at, guided: for a pipeline only, got a network; pass the pipeline that calls it")


def _check_site(model: nn.Module, site: Site, steerings: list[Maps], position: Position) -> None:
    module, units = module_at(model, site.path), site.units
    for steering in steerings:
        size = len(steering.weight(site.name)) if site.name in steering.sites else units
        if units is not None and size != units:
            whose = "another steering" if site.units is None else f"the model's {site.kind}"
            raise ValueError(
                f"site {site.name!r}: the steering has weight ({size},), {whose} has ({units},) units; "
                "expected the model it was fitted on"
            )
        units = size
        for hook in module._forward_hooks.values():
            on = getattr(hook.function, "steerings", ()) if isinstance(hook, Hook) else ()
            if any(other is steering for other in on):
                raise RuntimeError("this steering is already on this model; remove its handle first")
    if position != "all":
        _check_has_tokens(model, site, ONLY_ALL)


def _check_has_tokens(model: nn.Module, site: Site, only: str) -> None:
    if isinstance(module_at(model, site.path), CHANNELS_FIRST) or re.fullmatch(CROSS, site.path):
        raise ValueError(
            f"site {site.name!r} ({site.kind}): expected a site with the tokens of the model's input, (batch, tokens, "
            f"channels), got one without; {only}"
        )
