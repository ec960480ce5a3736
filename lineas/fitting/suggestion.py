"""What `lineas.suggest_sites` finds, and the rule by which it recommends: numbers by site, no network."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.text import first_few
from .losses import LEVEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SiteFigures", "Suggestion", "recommended"]

OUTPUT = "output"
FAR = 2.0  # times what the default sites give: what they are given up for
SHARE = 0.75  # of what the best site gives: sites that are taken with it
BLIND = 0.1  # of what the output has: where sites give less, the output is compared


class SiteFigures(NamedTuple):
    """One candidate.

    Attributes
    ----------
    site, kind : str
        Its name; "norm", "attention", "mlp", "block", "layer" or "output".
    units : int
    apart : float
        How far apart source and target are: the units' W_2^2 by their variance within the two sets, beyond what
        relabelling makes of it, mean over units; 0 where chance explains all of it.
    p_value : float
        Share of relabellings whose distance reaches this, the observed one counted with them: at least 0.01.
    price : float
        What it does to the output to bring the source's means to the target's here alone: nats a token where the output
        is logits, else the square of the output's change by that of its length. NaN where nothing comes back to it.
    reach : float
        How far the output goes by that, of how far it goes where its own means are brought there; NaN where that is.
    memory : int
        Bytes that a fit keeps of the source's activations here, to go back through a map.
    """

    site: str
    kind: str
    units: int
    apart: float
    p_value: float
    price: float
    reach: float
    memory: int

    @property
    def gives(self) -> float:
        """What it is recommended by: how far the sets are apart, times how far that reaches; by it where it goes beyond
        the output's own way, as it does where a few samples are far off. Nothing where chance comes as far."""
        if self.p_value > LEVEL:
            return 0.0
        reach = 1.0 if math.isnan(self.reach) else self.reach
        return self.apart * min(reach, 1 / max(reach, 1))


@dataclass(frozen=True)
class Suggestion:
    """What `lineas.suggest_sites` found; print it, plot it, or pass `sites` and `loss_sites` to `lineas.fit`.

    Attributes
    ----------
    candidates : tuple of SiteFigures
        In the order of the forward pass.
    sites : list of str
        Where to put maps.
    loss_sites : "output" or None
        Where to compare: None is at the sites themselves.
    is_default : bool
        Whether that is what `lineas.fit` does without either.
    why : str
    in_nats : bool
        Whether prices are in nats a token.
    default_reach : float or None
        That of all default sites together; None where it is not known, or there are none.
    """

    candidates: tuple[SiteFigures, ...]
    sites: list[str]
    loss_sites: str | None
    is_default: bool
    why: str
    in_nats: bool
    default_reach: float | None

    def rows(self) -> list[dict[str, Any]]:
        """A dict for each candidate: what `SiteFigures` has, "gives", and "chosen"."""
        return [{**one._asdict(), "gives": one.gives, "chosen": one.site in self.sites} for one in self.candidates]

    def __str__(self) -> str:
        """A table, a line a candidate, and what is recommended."""
        price = "nats" if self.in_nats else "price"
        width = max(len("site"), *(len(one.site) for one in self.candidates))
        heads = f"{'units':>6} {'apart':>8} {'p':>5} {price:>9} {'reach':>6} {'MB':>7}"
        lines = [f"  {'site':{width}}  {'kind':9} {heads}"]
        for one in self.candidates:
            figures = f"{one.units:>6} {one.apart:>8.3g} {one.p_value:>5.2f} {one.price:>9.3g} {one.reach:>6.2f}"
            mark = "*" if one.site in self.sites else " "
            lines.append(f"{mark} {one.site:{width}}  {one.kind:9} {figures} {one.memory / 1e6:>7.2f}")
        compared = '"output"' if self.loss_sites else "None, the sites themselves"
        sites = f"the default ones, {len(self.sites)}" if self.is_default else first_few(self.sites)
        return "\n".join([*lines, f"sites: {sites}", f"loss_sites: {compared}", f"why: {self.why}"])

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """What sites give along the forward pass, and how far apart the sets are; what is recommended is filled."""
        from ..plot import plot_sites

        return plot_sites(self.rows(), ax)


def recommended(
    candidates: Sequence[SiteFigures], defaults: Collection[str], differ: bool, default_reach: float | None
) -> tuple[list[str], str | None, str]:  # fmt: skip
    """Sites, loss sites, and why.

    Parameters
    ----------
    candidates : of which at least one
    defaults : the sites there are unless told, none where there are no such
    differ : whether anything but chance tells source from target
    default_reach : of all default sites together, None where it is not known
    """
    mapped = [one for one in candidates if one.kind != OUTPUT] or list(candidates)
    usual = [one for one in mapped if one.site in defaults]
    best = max(mapped, key=lambda one: one.gives)
    if not differ or not best.gives > 0:
        return _names(usual or mapped), None, "source and target differ by no more than chance explains"
    # Each of them goes all the way of what is upstream, too, so that together they may go further than is needed.
    together = max((one.apart for one in usual), default=0.0) * min(1.0 if default_reach is None else default_reach, 1)
    if usual and best.gives <= FAR * together:
        chosen, score = usual, together
        why = f"no other site gives more than {FAR:g} times what the default sites do together"
    else:
        score = best.gives
        chosen = [one for one in mapped if one.gives >= SHARE * score]
        why = f"apart x reach is at least {SHARE:g} of what it is at {best.site}"
        if usual:
            why += f"; the default sites give {together / score:.2g} of that"
    output = next((one for one in candidates if one.kind == OUTPUT), None)
    if output is not None and score < BLIND * output.apart:
        return _names(chosen), OUTPUT, f"{why}; which is less than {BLIND:g} of what the output has"
    return _names(chosen), None, why


def _names(sites: Sequence[SiteFigures]) -> list[str]:
    return [one.site for one in sites]
