"""What a forward hook does at one site: the maps of whatever is attached there, for all rows alike or for each."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core import ops
from ..core.threads import SMALL
from ..maps.gate import Gate
from ..maps.kinds import Affine, common, neutral_parts
from ..maps.maps import Maps
from ..network.hooks import channel_dim
from ..network.sites import Site
from .coverage import Count
from .denoising import Denoising
from .gating import openness
from .positions import Tokens
from .recomputed import Recomputed
from .rows import Choice, Spread

ALIKE = Spread()
Gates = tuple[tuple[Gate, Tensor | None], ...]  # each with the rows (rows,) that it is for; None: all


class SiteMap:
    """A site's maps, on whatever device and in whatever dtype the activations come.

    Attributes
    ----------
    steerings : list of Maps
        All that are attached together; `attach` knows its own hooks by this.
    kind : type of Affine
        That can stand for all their maps here.
    """

    def __init__(self, site: Site, steerings: Sequence[Maps], tokens: Tokens | Denoising):
        self.name, self.tokens, self.steerings = site.name, tokens, steerings
        at_this_site = [maps for maps in steerings if site.name in maps.sites]
        self.units = len(at_this_site[0].weight(site.name))
        self.kind = common((maps.kind(site.name) for maps in at_this_site), f"site {site.name!r}")
        self.positions = tokens if isinstance(tokens, Tokens) and tokens.tells_tokens else None
        self.count = Count()
        self.handle: Any = None  # of whoever attached this
        self.has_run, self.recomputed = False, Recomputed()  # neither counts compiled code

    def __deepcopy__(self, memo: dict[int, Any]) -> "SiteMap":
        return copy_but(self, memo, "steerings")

    def set(self, choice: Choice) -> None:
        """From now on the maps of this choice."""
        self.chosen = self._chosen(choice)  # at once: another thread may be in a pass

    @torch.inference_mode(False)  # or no later pass could save them for its backward
    def _chosen(self, choice: Choice) -> "Chosen":
        pairs = [(maps if maps and self.name in maps.sites else None, s) for maps, s in choice.pairs]
        # One entry a pair: scale and shift, and whatever else the kind of map has.
        table = tuple(torch.stack(parts) for parts in zip(*(self._tensors(*pair) for pair in pairs), strict=True))
        gates = [maps.gate if maps else None for maps, _ in pairs]
        return Chosen(choice, table, [maps is not None for maps, _ in pairs], self.kind, gates)

    def _at_factor(self, factor: float) -> "Chosen":
        """The maps at so many times the strengths that were chosen."""
        chosen = self.chosen
        if factor not in chosen.at_factor:
            chosen.at_factor[factor] = self._chosen(chosen.choice.times(factor))
        return chosen.at_factor[factor]

    def _tensors(self, maps: Maps | None, strength: float) -> list[Tensor]:
        if maps is None:
            arrays: tuple[NDArray, ...] = np.ones(self.units), np.zeros(self.units)
            arrays = *arrays, *neutral_parts(self.kind, self.units)
        else:
            arrays = maps.at_strength(self.name, strength)
            if len(arrays) == 2:  # a plain map, perhaps beside others
                arrays = *arrays, *neutral_parts(self.kind, self.units)
        return [torch.from_numpy(array.astype(np.float32)) for array in arrays]

    def __call__(self, module: nn.Module, h: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.has_run = True
            self.recomputed.note(module)
        if h.ndim == 2 and (shape := self.tokens.folded(self.name, module, h)) is not None:
            return self.steered(module, h.unflatten(0, shape)).flatten(0, 1)
        return self.steered(module, h)

    def steered(self, module: nn.Module, h: Tensor) -> Tensor:
        chosen = self.chosen if self.tokens.factor == 1 else self._at_factor(self.tokens.factor)
        spread, rows = ALIKE, None
        if chosen.by_row is not None or self.tokens.tells_rows:
            rows = len(h) if chosen.by_row is None else len(chosen.by_row)
            spread = self.tokens.spread_at(self.name, h, rows, chosen.argument)
        key = h.device, h.ndim, rows, spread
        if key not in chosen.ready:
            chosen.ready[key] = chosen.prepared(channel_dim(module, h), *key)
        dim, maps, active, gates = chosen.ready[key]
        if h.shape[dim] != self.units:
            raise ValueError(
                f"site {self.name!r}: the steering has weight ({self.units},), the model produced {tuple(h.shape)}"
            )
        if self.positions is None:
            return h if chosen.is_identity else self._mapped(chosen, h, dim, maps, gates)
        now = self.positions.at(self.name, h, dim)
        if self.positions.counting:
            self.count.add(*now.counts(active), h.device)
        if chosen.is_identity or now.steer is False:
            return h
        mapped = self._mapped(chosen, h, dim, maps, gates)
        return mapped if now.steer is True else torch.where(now.mask(h.device), mapped, h)

    def _mapped(self, chosen: "Chosen", h: Tensor, dim: int, maps: tuple[Tensor, ...], gates: Gates) -> Tensor:
        mapped = chosen.mapped(h, dim, maps)
        if not gates:
            return mapped
        assert isinstance(self.tokens, Tokens)  # `attach` refuses gates in pipelines
        reading, opened = self.tokens.reading, None
        for gate, rows in gates:
            one = openness(self.name, h, dim, gate, reading)
            if rows is not None:  # others are open all the way
                others = 1.0 if opened is None else opened
                one = torch.where(rows.view(-1, *[1] * (h.ndim - 1)), one, others)
            opened = one
        return torch.lerp(h, mapped, opened.to(h.dtype))  # type: ignore[union-attr]


class Chosen:
    """A site's maps at the strengths that are chosen now: one that all rows share, or a table and which each row takes.

    Another choice makes another of these; it is not changed itself, but for what it has made ready.
    """

    def __init__(
        self, choice: Choice, table: tuple[Tensor, ...], active: list[bool], kind: type[Affine],
        gates: list[Gate | None],
    ):  # fmt: skip
        self.choice, self.by_row, self.argument = choice, choice.by_row, choice.argument
        self.table, self.active, self.kind, self.gates = table, active, kind, gates
        scale, shift = table[:2]
        self.is_identity = bool((scale == 1).all() and (shift == 0).all())
        self.is_one = len(active) == 1
        self.support = ((scale[0] != 1) | (shift[0] != 0)).nonzero().flatten()
        self.sparse = self.support, scale[0, self.support], shift[0, self.support]
        self.is_sparse = self.is_one and kind is Affine and 4 * len(self.support) <= scale.shape[1]
        # By device, number of dimensions and how rows lie: the channels' dimension, the maps as they broadcast, which
        # rows are steered, and their gates. A token is so little work that looking things up would cost more.
        self.ready: dict[Any, tuple[int, tuple[Tensor, ...], bool | Tensor, Gates]] = {}
        self.at_factor: dict[float, Chosen] = {}

    def prepared(
        self, dim: int, device: torch.device, ndim: int, given: int | None, spread: Spread
    ) -> tuple[int, tuple[Tensor, ...], bool | Tensor, Gates]:
        """The maps as they broadcast over activations, and gates: of all rows alike, or of each row."""
        rows = self._rows(given, spread)
        shape = [1] * ndim
        shape[0], shape[dim] = 1 if rows is None else len(rows), self.table[0].shape[1]
        with torch.inference_mode(False):  # or no later pass could save them for its backward
            table, active = self.table, [*self.active, False]
            if rows is not None:  # and what a row has that is not steered
                table = tuple(
                    torch.cat([part, torch.from_numpy(np.asarray(plain, np.float32))[None]])
                    for part, plain in zip(table, self._identity(), strict=True)
                )
            maps = tuple((part[0] if rows is None else part[rows]).to(device).view(shape) for part in table)
            steered = self.active[0] if rows is None else torch.tensor(active, device="cpu")[rows].to(device)
            gates: Gates = tuple(
                (
                    gate,
                    None if rows is None else torch.tensor([g == gate for g in (*self.gates, None)])[rows].to(device),
                )
                for gate in dict.fromkeys(filter(None, self.gates))
            )
            return dim, maps, steered, gates

    def _rows(self, given: int | None, spread: Spread) -> Tensor | None:
        """Which entry of the table each row of a pass gets, the one behind the last for the identity; None where all
        get the only one."""
        if spread.only is None and (self.by_row is None or self.is_one):
            return None
        by_row = self.by_row
        if by_row is None:
            assert given is not None
            by_row = torch.zeros(given // spread.parts, dtype=torch.int64, device="cpu")
        rows = by_row.repeat_interleave(spread.times).repeat(spread.parts, 1)
        if spread.only is not None:
            others = torch.arange(spread.parts, device="cpu") != spread.only
            rows = torch.where(others[:, None], len(self.active), rows)
        return rows.flatten()

    def _uses(self, gate: Gate) -> Tensor:
        """Which entries of the table, and what lies behind the last, have this gate."""
        return torch.tensor([one == gate for one in (*self.gates, None)], device="cpu")

    def _identity(self) -> tuple[NDArray, ...]:
        units = self.table[0].shape[1]
        return np.ones(units), np.zeros(units), *neutral_parts(self.kind, units)

    def mapped(self, h: Tensor, dim: int, maps: tuple[Tensor, ...]) -> Tensor:
        if self.is_sparse and maps[0].shape[0] == 1 and _is_worth_it(h):
            return ops.affine_sparse_(h.clone(), *self.sparse, channel_dim=dim)
        return self.kind.apply(h, *maps)


def copy_but(original: Any, memo: dict[int, Any], shared: str) -> Any:
    """A deep copy with one attribute shared: a copied model is steered by the same steerings, and known to be."""
    new = object.__new__(type(original))
    memo[id(original)] = new
    for name, value in vars(original).items():
        setattr(new, name, value if name == shared else deepcopy(value, memo))
    return new


def _is_worth_it(h: Tensor) -> bool:
    """To touch few channels only: of many numbers, and with no autograd to record it. The result is the same."""
    return h.numel() >= SMALL and not torch.is_grad_enabled() and h.is_contiguous() and ops.runs_in_c(h)
