"""fit_jointly(): several concepts, fitted so that they go together."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import optim
from ..core.arrays import Floats
from ..core.errors import NonFiniteError
from ..core.text import first_few, nearest, warn
from ..network.batch import Batch
from ..responses.runner import Runner, blame
from ..steering import Steering
from .checkpoint import Checkpoint
from .contrast import contrast
from .distributed import Alone
from .fit import fitted
from .log import Log
from .option_table import BY_NAME, DEFAULT
from .options import Options
from .problem import predicted_kl, problem_of, ridge_of
from .walls import Walled

__all__ = ["fit_jointly"]

NOT_OURS = ("recipe", "method", "optimizer", "learning_rate", "schedule", "within_range", "checkpoint_dir",
            "resume_from", "distributed", "gate", "neutral")  # fmt: skip
OPPOSED = -0.5  # cosine of two contrasts from which on one is the other's undoing


def fit_jointly(model: Any, concepts: Mapping[str, Sequence[Any]], **options: Any) -> dict[str, Steering]:
    """Fit one steering a concept, each held back from what undoes another, as far as their texts tell.

    Parameters
    ----------
    model : as in `lineas.fit`
    concepts : dict of name -> (src, tgt)
        Two unpaired sets each, of what `lineas.fit` takes.
    **options
        Those of `lineas.fit`, for each concept alike: tokenizer, sites, loss_sites, units, loss, loss_weights, ridge,
        penalty, steps, max_evaluations, batch_size, max_length, compute_dtype, pooling, position, budget (of each one),
        component, call, at, memory (of each one), graphs, seed, progress, callbacks (the fits run one after the other,
        the last concept's first).

    Returns
    -------
    dict of name -> Steering
        In the order of the concepts; each may be applied alone, scaled and saved. `a + b` is both.

    Raises
    ------
    TypeError, ValueError, LookupError
        As in `lineas.fit`, with the name of the concept; an option that does not go with several concepts.

    Warns
    -----
    UserWarning
        Two concepts are opposed: no maps can have both. And as `lineas.fit` does, with the name of the concept.

    Notes
    -----
    Each concept c minimises what `lineas.fit` minimises plus, for every other concept q, a wall

        STIFF / 2 * min(0, g_q . m_c)^2 / (g_q . H^-1 g_q)

    where m_c = (weight - 1, bias) are its moves, H its units' own curvature, and g_q the gradient at the identity of
    q's contrast: of a causal language model how much likelier a token of q's targets is than one of its sources, of
    other networks minus q's loss. So c may help q, and may not hurt it. g_q . m_c is, to first order, what c does to
    q's effect; of steerings fitted apart that is what tells how much of an effect is lost while both are on
    (`lineas.conflict`). Distances of responses do not tell it: on one draw of a language model civil comments left 0.21
    of the effect of questions behind a wall of their loss, 0.24 without one, and 1.11 behind that of their likelihood.
    What it does for other networks was looked at in small ones alone.

    A wall is a half-space with the identity on its face: neither scaling a steering nor leaving one out brings another
    to the wrong side, and so `budget` scales each by its own dial. Given the contrasts, the sum of all problems falls
    into one for each concept; they are minimised one after the other. One concept alone is `lineas.fit`, bit for bit.

    A contrast costs a forward and a backward pass through all of the model over both sets: of the time of a fit a tenth
    to a third. Maps are held to the contrasts of the texts that they are fitted on: what is chance in these, held-out
    texts do not have, and of 32 + 32 texts that is much (`docs/strength.md`). Give many. `info["beside"]` names the
    other concepts, and the history counts walls as `ridge`.
    Source of the fit: LinEAS, Rodriguez et al., NeurIPS 2025, arXiv 2503.10679.

    Examples
    --------
    >>> import torch, lineas
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> source, up, wide = torch.randn(32, 4), torch.randn(40, 4) + 1, 2 * torch.randn(40, 4)
    >>> sets = {"up": (source, up), "wide": (source, wide)}
    >>> found = lineas.fit_jointly(net, sets, sites="0", progress=False)
    >>> both = found["up"] + found["wide"]
    """
    if taken := [name for name in options if name in NOT_OURS]:
        raise TypeError(
            f"{', '.join(taken)}: not for several concepts, which are fitted by the fast recipe, in one process, and "
            "without gates, as these cannot be added"
        )
    if unknown := [name for name in options if name not in BY_NAME]:
        raise TypeError(f"expected options of fit, got {', '.join(unknown)}; {nearest(unknown[0], BY_NAME)}")
    fits = _Fits({**vars(DEFAULT), **options, "model": model}, _checked(concepts))
    try:
        return fits.all()
    except (TypeError, ValueError, LookupError, NonFiniteError) as error:
        if type(error) not in (TypeError, ValueError, LookupError, NonFiniteError) or len(concepts) < 2:
            raise  # of a kind that a text alone does not make
        raise type(error)(f"{fits.now}: {error}") from error


def _checked(concepts: Any) -> dict[str, tuple[Any, Any]]:
    if not isinstance(concepts, Mapping):
        raise TypeError(f"concepts: expected a dict of name -> (src, tgt), got {type(concepts).__name__}")
    if not concepts:
        raise ValueError("concepts: expected at least one, got none")
    for name, pair in concepts.items():
        if not isinstance(name, str):
            raise TypeError(f"concepts: expected names (str), got {type(name).__name__} {name!r:.60}")
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            got = f"{len(pair)} of them" if isinstance(pair, (tuple, list)) else type(pair).__name__
            raise TypeError(f"concepts: expected a pair (src, tgt) for {name!r}, got {got}")
    return {name: (src, tgt) for name, (src, tgt) in concepts.items()}


class _Fits:
    """The fits of all concepts. Each is prepared inside the one before, up to where it must know all contrasts; then
    they are minimised from the last to the first.

    Attributes
    ----------
    now : str
        The concept that is at work.
    """

    def __init__(self, given: dict[str, Any], concepts: dict[str, tuple[Any, Any]]):
        self.given, self.concepts, self.names = given, concepts, list(concepts)
        self.now = self.names[0]
        self.sites: dict[str, int] = {}
        self.contrasts: dict[str, Floats] = {}
        self.found: dict[str, Steering] = {}

    def all(self) -> dict[str, Steering]:
        self._fit(0)
        return {name: self.found[name] for name in self.names}

    def _fit(self, k: int) -> None:
        name = self.now = self.names[k]
        src, tgt = self.concepts[name]
        label = name if len(self.names) > 1 else ""
        (found,) = fitted({**self.given, "src": src, "tgt": tgt}, partial(self._minimise, k), label)
        if len(self.names) > 1:
            seconds = found.info["seconds"] - sum(one.info["seconds"] for one in self.found.values())  # inside this one
            found.info |= {"beside": [other for other in self.names if other != name], "seconds": round(seconds, 3)}
        self.found[name] = found

    def _minimise(
        self, k: int, runner: Runner, sources: list[Batch], targets: list[Batch], free: NDArray[np.bool_] | None,
        options: Options, log: Log, world: Alone,
    ) -> list[Checkpoint]:  # fmt: skip
        name = self.names[k]
        with log:
            problem = problem_of(runner, sources, targets, free, options, world)
            walls: list[Floats] = []
            if len(self.names) > 1:
                self.contrasts[name] = contrast(problem, sources, targets)
                self._check_sites(runner)
                if k + 1 < len(self.names):
                    self._fit(k + 1)
                    self.now = name
                walls = [self.contrasts[other] for other in self.names if other != name]
            log.begins()
            with blame("src"):
                walled = Walled(problem, walls)
                self._tell_opposed(k, walled)
                x, why = optim.fast(
                    walled, log.past.maps, options.penalty, log, steps=options.steps, tolerance=options.tolerance
                )  # fmt: skip
            return [log.finish(x, why, ridge_of(problem, options), predicted_kl(problem, x))]

    def _check_sites(self, runner: Runner) -> None:
        """Default sites are those that the inputs reach, which need not be the same for all."""
        first, sizes = self.names[0], {s.name: n for s, n in zip(runner.mapped.sites, runner.mapped.sizes, strict=True)}
        self.sites = self.sites or sizes
        if sizes != self.sites:
            raise ValueError(f"expected the sites of {first!r}, {first_few([*self.sites])}, got {first_few([*sizes])}")

    def _tell_opposed(self, k: int, walled: Walled) -> None:
        """Each pair once, as the earlier one sees it."""
        for other in self.names[k + 1 :]:
            own, g = self.contrasts[self.names[k]], self.contrasts[other]
            lengths = walled.length(own) * walled.length(g)
            alike = float(np.einsum("i,i,i", own, walled.mobility, g) / lengths) if lengths else 0.0
            if alike < OPPOSED:
                warn(
                    f"{self.names[k]}, {other}: what brings the one's targets nearer takes the other's away (cosine "
                    f"{alike:.2f}); each is fitted to what it can do without that"
                )
