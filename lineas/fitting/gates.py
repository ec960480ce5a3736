"""fit_gate: what tells where a steering shall act, from the inputs that it was made for and others."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.arrays import Floats
from ..core.text import warn
from ..directions import Separation, separation
from ..evaluation.calibration import TOKENS, writes_texts
from ..evaluation.language import own_tokens
from ..maps.gate import POOLINGS, Gate
from ..network.blocks import LISTS
from ..network.calls import call
from ..network.inputs import Inputs
from ..network.links import named_modules, trail
from ..network.pipelines import is_pipeline
from ..network.sites import Site, find_sites
from ..network.state import device_of, eager, frozen, seeded
from ..network.texts import as_texts, find_tokenizer
from ..responses.collect import responses_to
from ..responses.tokens import token_responses
from ..steering import Steering

__all__ = ["fit_gate"]

AUTO = "auto"
OWN = 64  # texts that a model writes where no neutral ones are given
MOST_CANDIDATES, MOST_TOKENS = 8, 8  # sites that are tried; of a text, where tokens are told apart
SPARED = 0.05  # of neutral inputs, on which it may act
WANTED = 0.8  # of the source; less, and a warning
OPEN, SHUT = 0.95, 0.02  # how far it is open for the source's median, and for what is neutral


def fit_gate(
    steering: Steering, model: Any, src: Any, tgt: Any, neutral: Any = None, *, site: str | Site | None = None,
    pooling: str | None = None, tokenizer: Any = None, batch_size: int | None = None, max_length: int | None = None,
    seed: int = 0,
) -> Gate:  # fmt: skip
    """Find out where a steering shall act: a linear probe that opens on inputs like the source, and on few others.

    Parameters
    ----------
    steering : Steering
        Whose maps shall be gated: `steering.gated(gate)` makes one that is.
    model : nn.Module
        What it was fitted on; left as it was.
    src, tgt : as in `lineas.fit`
        Inputs that call for the maps, and such as do not, at least 2 of each. Others than those of the fit say more.
    neutral : as src, optional
        Inputs that shall be left alone: at most 5% of inputs like these are to open the gate. If not given, what a
        causal language model writes itself, from nothing, where `src` is text, which is like no other; else `tgt`.
    site : str, optional
        Where the gate reads; no later than the first map. If not given, the one that tells the sets apart best: the
        first map's own, or the output of one of the blocks before it. The later, the more a site knows, so fit with
        `sites` that begin in the middle, or with `fit(..., gate=)`, which leaves earlier ones out.
    pooling : {"running", "token", "all"}, optional
        As `lineas.Gate` takes it: "running" if not given, "all" for a network that writes no text.
    tokenizer, batch_size, max_length, seed : as in `lineas.fit`

    Returns
    -------
    Gate
        Its `acts_on` has the shares of the three sets on which it acts, each sample judged by a probe that was fitted
        without it.

    Raises
    ------
    TypeError, ValueError, LookupError
        On inputs that cannot work, as in `lineas.fit`; a site that runs after a map; a pipeline.

    Warns
    -----
    UserWarning
        It acts on less than 80% of the source: the sets are too much alike at this site.

    Notes
    -----
    Ridge regression of the source against both others, of standardised units, its strength chosen by what was left out
    in turn (`lineas.directions.separation`). The threshold is the score that at most 5% of neutral samples exceed, the
    ends counted so that it holds for new samples, the slope such that the source's median opens the gate to 0.95 and
    that of the neutral ones to 0.02. With "token" up to eight tokens of each text are told apart, and shares are of
    tokens. Two passes over each set, or one where there is one candidate.

    Examples
    --------
    >>> import torch, lineas
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    >>> src, tgt = torch.randn(40, 4) + 3, torch.randn(40, 4) - 3
    >>> steering = lineas.fit(net, src, tgt, sites="0", progress=False)
    >>> gate = lineas.fit_gate(steering, net, src, tgt)
    >>> gate.acts_on["source"] > 0.9 > 0.1 > gate.acts_on["target"]
    True
    """
    if not isinstance(steering, Steering):
        raise TypeError(f"steering: expected a Steering, got {type(steering).__name__}")
    if is_pipeline(model) or not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a network, got a {type(model).__name__}, whose passes a gate cannot follow")
    if pooling is not None and pooling not in POOLINGS:
        raise ValueError(f"pooling: expected one of {', '.join(map(repr, POOLINGS))}, got {pooling!r:.60}")
    pooling = pooling or ("running" if writes_texts(model) else "all")
    how = {"tokenizer": tokenizer, "batch_size": batch_size, "max_length": max_length, "seed": seed}
    sets = {"source": src, "target": tgt}
    if neutral is not None:
        sets["neutral"] = neutral
    elif writes_texts(model) and as_texts(src, "src") is not None:
        sets["neutral"] = _written(model, tokenizer, seed)
    names = _candidates(model, steering.sites[0]) if site is None else [_name(site)]
    site_name, found, groups = _best(model, sets, names, pooling, how)
    gate = _calibrated(site_name, found, groups, pooling)
    _try(steering.gated(gate), model, src, how)
    if (share := gate.acts_on["source"]) < WANTED:
        warn(
            f"the gate at {site_name!r} acts on {share:.0%} of the source (each sample judged without it), expected at "
            f"least {WANTED:.0%} while it leaves {1 - SPARED:.0%} of neutral inputs alone; a later site, or more "
            "samples, may tell them apart"
        )
    return gate


def check_gate(gate: Any, neutral: Any, model: Any) -> None:
    """TypeError or ValueError, before any work, where `fit` is asked for a gate that there cannot be."""
    if gate is None or gate is False:
        if neutral is not None:
            raise ValueError("neutral: expected gate=, which is what leaves these inputs alone; got none")
        return
    if gate is not True and not isinstance(gate, (str, Site)):
        raise TypeError(f"gate: expected True, {AUTO!r} or the name of a site, got {type(gate).__name__}")
    if is_pipeline(model):
        raise ValueError(f"gate: expected a network, got a {type(model).__name__}, whose passes a gate cannot follow")


def site_of(gate: Any) -> str | None:
    """The site that `fit(gate=)` names; None where it names none."""
    return None if gate in (None, False, True, AUTO) else _name(gate)


def gated(steering: Steering, model: Any, src: Any, tgt: Any, gate: Any, neutral: Any, **how: Any) -> Steering:
    """With the gate that `fit(gate=)` asked for; with a warning as it is, where there can be none: what was fitted
    shall not be lost."""
    try:
        return steering.gated(fit_gate(steering, model, src, tgt, neutral, site=site_of(gate), **how))
    except (ValueError, TypeError, LookupError, RuntimeError, ArithmeticError) as error:
        warn(f"gate: the steering has none, and always acts: {error}")
        return steering


def _name(site: str | Site) -> str:
    return site.name if isinstance(site, Site) else site


def _written(model: nn.Module, tokenizer: Any, seed: int) -> list[str]:
    """Texts that the model writes from nothing, without the token that they begin with, which no other text has."""
    tokenizer = find_tokenizer(model, "neutral", tokenizer)
    tokens = own_tokens(model, tokenizer, OWN, TOKENS, seed)
    rows = [ids[mask != 0][1:] for ids, mask in zip(tokens["input_ids"], tokens["attention_mask"], strict=True)]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [text for text in texts if text.strip()]


def _candidates(model: nn.Module, first: str) -> list[str]:
    """The first map's site, and the outputs of blocks before its own, some of them where there are many."""
    names = {module: name for name, module in named_modules(model).items()}
    earlier: list[str] = []
    for module, child in pairwise(trail(model, first.partition(":")[0])):
        if isinstance(module, LISTS):
            blocks = list(module.children())
            earlier += [names[block] for block in blocks[: blocks.index(child)] if block in names]
    chosen = np.linspace(0, len(earlier) - 1, min(MOST_CANDIDATES - 1, len(earlier))).round().astype(int)
    return [*(earlier[k] for k in chosen), first]


def _best(
    model: nn.Module, sets: dict[str, Any], names: list[str], pooling: str, how: dict[str, Any]
) -> tuple[str, Separation, dict[str, slice]]:
    """The site that tells the source from the rest with the least error, how it does, and whose scores are where."""
    pooled = {key: responses_to(key, model, inputs, names, **how) for key, inputs in sets.items()}
    found = {name: separation(*_against({key: values[name] for key, values in pooled.items()})) for name in names}
    name = min(names, key=lambda one: found[one].error)
    best, counts = found[name], {key: len(values[name]) for key, values in pooled.items()}
    if pooling == "token":
        (site,), tokens = find_sites(model, [name]), {}
        for key, inputs in sets.items():
            tokens[key] = token_responses(model, site, _batches(model, key, inputs, how), MOST_TOKENS)
        counts = {key: len(values) for key, (values, _) in tokens.items()}
        ends = np.cumsum([0, *(int(of.max()) + 1 for _, of in tokens.values())])
        numbered = [of + start for (_, of), start in zip(tokens.values(), ends, strict=False)]
        values = {key: values for key, (values, _) in tokens.items()}
        best = separation(*_against(values), numbered[0], np.concatenate(numbered[1:]))
    rest = list(counts)[1:]
    ends = np.cumsum([0, *(counts[key] for key in rest)]).tolist()
    return name, best, {key: slice(*ends[k : k + 2]) for k, key in enumerate(rest)}


def _against(values: dict[str, Any]) -> tuple[Floats, Floats]:
    source, *rest = values.values()
    return source, np.concatenate(rest)


def _calibrated(site: str, found: Separation, rest: dict[str, slice], pooling: str) -> Gate:
    scores = {"source": found.first, **{key: found.second[where] for key, where in rest.items()}}
    spared = np.sort(scores.get("neutral", scores["target"]))
    # Of n + 1 samples, the new one among them, at most the share lies above; where n is too small, none of these does.
    place = min(int(np.ceil((1 - SPARED) * (len(spared) + 1))), len(spared))
    threshold, shut = float(spared[place - 1]), float(np.median(spared))
    slopes = [_logit(1 - SHUT) / max(threshold - shut, 1e-6)]
    if (above := float(np.median(scores["source"])) - threshold) > 0:
        slopes.append(_logit(OPEN) / max(above, 1e-6))
    slope = max(slopes)
    facts = {
        "acts_on": {key: round(float((of_set > threshold).mean()), 4) for key, of_set in scores.items()},
        "samples": {key: len(of_set) for key, of_set in scores.items()}, "error": round(found.error, 4),
    }  # fmt: skip
    return Gate(site, slope * found.normal, -slope * float(found.normal @ found.middle + threshold), pooling, facts)


def _logit(share: float) -> float:
    return float(np.log(share / (1 - share)))


def _batches(model: nn.Module, name: str, inputs: Any, how: dict[str, Any]) -> Sequence[Any]:
    (batches,) = Inputs(model).batches({name: inputs}, how["tokenizer"], how["batch_size"], how["max_length"])
    return [batch.to(device_of(model)) for batch in batches]


def _try(steering: Steering, model: nn.Module, src: Any, how: dict[str, Any]) -> None:
    """One sample through the gated network: ValueError where the gate does not read before the first map."""
    sample = _batches(model, "src", src, how)[0].rows(0, 1)
    with seeded(how["seed"], device_of(model)), frozen(model), eager(), torch.no_grad(), steering.apply(model):
        call(model, sample)
