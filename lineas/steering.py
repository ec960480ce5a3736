"""Steering: maps, and what a user does with them."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike
from torch import Tensor

from .attaching.attach import attach
from .attaching.denoising import At
from .attaching.handle import Application, Handle
from .attaching.positions import Position
from .core.checks import number
from .maps import algebra, files, hub, statedicts, summary
from .maps.dial import Dial, Price
from .maps.maps import Maps
from .merge import in_pipelines, merging
from .network.pipelines import is_pipeline

__all__ = ["Handle", "Steering"]


class Steering(Maps):
    """Maps of a network's units, to apply, look at, combine, merge, save and load.

    `Maps`, which it extends, says what it is made of and how to look at it.

    Parameters
    ----------
    maps : dict of site name -> (weight (d,), bias (d,))
    ranges, kinds, history, info : optional
        As `Maps` takes them.
    """

    __array_ufunc__ = None  # a NumPy number times a steering is this class's affair

    def summary(self) -> str:
        """A table, a line a site: units, support, mean stretch and shift, and the site's loss before and after."""
        return summary.as_text(self)

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        return summary.as_html(self)

    # -- what strengths cost --

    @property
    def dial(self) -> Dial | None:
        """What strengths cost, as it was measured by `fit(..., budget=)` or kept by `with_dial`; None if it was not.

        ValueError where the file that the steering comes from holds something else.
        """
        found = self.info.get("dial")
        return None if found is None else Dial.from_dict(found)

    def with_dial(self, dial: Dial) -> "Steering":
        """The same maps with what `lineas.calibrate` measured, which `strength_for` and files then know."""
        if not isinstance(dial, Dial):
            raise TypeError(f"dial: expected a Dial, got {type(dial).__name__}")
        return self.told({**self.info, "dial": dial.to_dict()}, self.history)

    def strength_for(self, price: "str | float | Price") -> float:
        """The largest strength up to which nothing costs more than a price, such as "+2%" or "0.05 nats".

        Raises
        ------
        LookupError
            Nothing was measured: see `lineas.calibrate`. Or nothing in which the price is.
        ValueError
            No price, or one beyond what was measured.
        """
        if (dial := self.dial) is None:
            raise LookupError(
                f"price: expected a dial, which this steering has none of, to know what {price!r} is; "
                "steering.with_dial(lineas.calibrate(steering, model)) has one"
            )
        return dial.strength_for(price)

    # -- algebra; `lineas.algebra` has what needs two steerings --

    def inverse(self) -> "Steering":
        """The steering that undoes this one: weight 1 / w and bias -b / w.

        Undoes it at the strength at which it was attached: of another strength s, take `scaled(s).inverse()`.

        Raises
        ------
        ValueError
            Some weights are zero, or so small that the result is beyond float32; sites and units are named. Maps hold
            within ranges only.
        """
        return algebra.inverse(self)

    def __matmul__(self, before: "Steering") -> "Steering":
        """`a @ b`: first b, then a, in one steering.

        At sites of both the maps are composed, w_a w_b and w_a b_b + b_a; sites of one of them stay. Attached, it does
        what b and then a do when both are attached. ValueError where a site has two numbers of units, where the two
        map different positions, where the result is beyond float32, and where one of two maps holds within a range.
        """
        return algebra.compose(self, before) if isinstance(before, Steering) else NotImplemented

    def __add__(self, other: "Steering") -> "Steering":
        """`a + b`: the moves of both, side by side: (w_a - 1 + w_b - 1) z + b_a + b_b is added to z.

        The order does not matter, unlike that of `a @ b`, from which it differs by (w_a - 1) (w_b - 1) z and
        (w_a - 1) b_b. `a - b` takes b's moves away. Errors are those of `a @ b`.
        """
        return algebra.added(self, other) if isinstance(other, Steering) else NotImplemented

    def __sub__(self, other: "Steering") -> "Steering":
        return algebra.added(self, other, -1.0) if isinstance(other, Steering) else NotImplemented

    def __mul__(self, strength: float) -> "Steering":
        """`0.5 * s` and `s * 0.5` are `s.scaled(0.5)`."""
        return self.scaled(strength)

    __rmul__ = __mul__

    def __truediv__(self, factor: float) -> "Steering":
        return self.scaled(1 / number(factor, "factor"))

    def __neg__(self) -> "Steering":
        """`-s` is `s.scaled(-1)`, the opposite move, so that `a - a` is the identity; `s.inverse()` undoes s."""
        return self.scaled(-1)

    def scaled(self, strength: float) -> "Steering":
        """This steering at some strength as one to attach at strength 1: 1 + s (w - 1) and s b, the same bits."""
        return algebra.scaled(self, strength)

    def restricted(
        self, sites: str | Sequence[str] | None = None, *, top: int | None = None,
        responses: Mapping[str, ArrayLike] | None = None,
    ) -> "Steering":  # fmt: skip
        """Some of the sites, and of their units those that move most.

        Parameters
        ----------
        sites : str or list of str, optional
            A regular expression that must match whole names, or names; all if not given.
        top : int, optional
            Keep so many units of all these sites together; the others become the identity. How far a unit is moved is
            the root mean square of (w - 1) z + b over `responses`; without them over activations z of mean 0 and
            deviation 1, which makes it the norm of (w - 1, b). Of equals, the first.
        responses : dict of str -> (samples, d) array, optional
            What the unsteered model's units do at each of the sites (`lineas.evaluation.responses`).

        Raises
        ------
        LookupError
            No such site.
        ValueError
            `top` below 1; responses of another shape.
        """
        return algebra.restricted(self, sites, top, responses)

    # -- applying --

    def attach(
        self, model: Any, strength: float | Sequence[float] | Tensor = 1.0, *, position: Position = "all",
        count: bool | None = None, strict: bool = True, component: str | None = None, at: At = "all",
        guided: str = "both", price: "str | float | Price | None" = None,
    ) -> "Handle":  # fmt: skip
        """Steer a model until the handle is removed, kept or not: `lineas.attached(model)` finds it again.

        Parameters
        ----------
        model : nn.Module or pipeline
            The network the maps were fitted on, or one of the same shape, or a pipeline that holds it. Its weights are
            not touched: forward hooks map the sites' outputs out of place, on their device and in their dtype.
        strength : float, or list or tensor (batch,)
            0 is exactly the base model, 1 the fitted maps; between and beyond is linear. One number, or one for each
            row of the batch.
        position : {"all", "last", "prompt", "generated"} or callable
            Which tokens are steered. `lineas.attach`, which takes several steerings at once, says more.
        count : bool, optional
            Count tokens for `handle.coverage()`. Unless told, all positions but "all" do.
        strict : bool
            Refuse a model of another name than the one that the maps were fitted on, unless its weights are the same.
            Names are compared by their last part; a model that was made in memory has none.
        component, at, guided
            Of a pipeline: which network, at which of its steps, and which half under guidance. See `lineas.attach`.
        price : str or float, optional
            The strength is what costs this (`strength_for`), times `strength`.

        Raises
        ------
        LookupError
            The model lacks a site; a price, and no dial.
        ValueError
            A site has another number of units, with both in the message; a strength that is not finite; not as many
            strengths as rows; a model of another name; a position at a site without tokens.
        RuntimeError
            This steering is on this model already.
        """
        strength = strength if price is None else self._priced(price, strength)
        return attach(
            model, [self], 0, strength, position=position, count=count, strict=strict, component=component, at=at,
            guided=guided,
        )  # fmt: skip

    def apply(
        self, model: Any, strength: float | Sequence[float] | Tensor = 1.0, *, position: Position = "all",
        count: bool | None = None, strict: bool = True, component: str | None = None, at: At = "all",
        guided: str = "both", price: "str | float | Price | None" = None,
    ) -> Application:  # fmt: skip
        """Steer a model inside a `with` block; it is restored whatever happens inside. See `attach`.

        By itself the call changes nothing, and warns (RuntimeWarning) where no `with` block came of it.
        """
        return Application(
            partial(
                self.attach, model, strength, position=position, count=count, strict=strict, component=component, at=at,
                guided=guided, price=price,
            )
        )  # fmt: skip

    def _priced(self, price: "str | float | Price", strength: float | Sequence[float] | Tensor) -> Any:
        unit = self.strength_for(price)
        return [unit * s for s in strength] if isinstance(strength, Sequence) else unit * strength

    # -- merging --

    def merge_plan(
        self, model: Any, strength: float = 1.0, *, probe: Any = None, component: str | None = None,
        call: Mapping[str, Any] | None = None,
    ) -> "merging.MergePlan":  # fmt: skip
        """Say site by site how `merge` would fold the maps into weights. Changes nothing; runs the model once.

        Parameters are those of `merge`. Print the plan, or read its `sites`, `exact`, `refused` and `target`.
        """
        if is_pipeline(model):
            return in_pipelines.merge_plan(self, model, strength, probe=probe, component=component, call=call)
        return merging.merge_plan(self, model, strength, probe=probe)

    def merge(
        self, model: Any, strength: float = 1.0, *, inplace: bool = False, partial: bool = False, probe: Any = None,
        tolerance: float | None = None, component: str | None = None, call: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Fold the maps into the weights of a model, which then needs neither hooks nor lineas.

        Parameters
        ----------
        model : nn.Module or pipeline
            Unless `inplace`, it is left as it is. Not steered at the moment; not quantised at the sites. It may be
            offloaded by accelerate, and stays so. `fully_shard` or tensor parallelism may have spread it over
            processes: all of them call this, with `inplace`.
        strength : float
            As for `attach`; it is fixed from then on.
        inplace : bool
            Change the model itself, and return it. Refused where only another class can hold the result. Biases that
            are new beside weights which `fully_shard` spreads are whole in every process, and ask for no gradient.
        partial : bool
            Leave out the sites that no plain class can hold exactly, with a warning that has the measured error,
            instead of refusing.
        probe : tensor, tuple of arguments, or dict of keyword arguments
            A batch to check the result with. By default random tokens, or pixels, for models of transformers. For a
            pipeline prompts, or what its call takes for each row; two plain prompts by default.
        tolerance : float
            Largest difference of an output from the steered model's, as a part of its largest entry. By default 1e-4 in
            float32, 1e-2 in float16, 5e-2 in bfloat16, where weights are rounded.
        component, call : optional
            Of a pipeline: the network, and arguments of the call with the probe; those of the fit if not given.

        Returns
        -------
        nn.Module or pipeline
            Of the same class, a pipeline with all other parts shared; or, where that has no place for a bias, of
            another that computes the same. Its attribute `lineas_merge`, of a pipeline that of its network, is a dict
            with the `error` measured, the `effect` of steering on the same scale, what became of each of the `sites`,
            which were `left_out`, and digests of the `maps` that are in its weights.

        Raises
        ------
        ValueError
            A site cannot be merged exactly, with the reason; no probe, or one that the model does not take.
        RuntimeError
            The result is not within the tolerance (nothing is changed then); a steering is on the model.
        LookupError
            The model lacks a site.
        """
        if is_pipeline(model):
            return in_pipelines.merge(
                self, model, strength, inplace=inplace, partial=partial, probe=probe, tolerance=tolerance,
                component=component, call=call,
            )  # fmt: skip
        return merging.merge(
            self, model, strength, inplace=inplace, partial=partial, probe=probe, tolerance=tolerance
        )  # fmt: skip

    def unmerge(
        self, model: Any, strength: float = 1.0, *, inplace: bool = False, probe: Any = None,
        tolerance: float | None = None, component: str | None = None, call: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Undo `merge`, to rounding: a merged model becomes the one before, in the class that it has now.

        Parameters are those of `merge`, and must be those that it was called with. ValueError where a map has scale 0,
        with the units; RuntimeError where the result, steered, is not the given model.
        """
        if is_pipeline(model):
            return in_pipelines.merge(
                self, model, strength, inplace=inplace, probe=probe, tolerance=tolerance, component=component,
                call=call, undo=True,
            )  # fmt: skip
        return merging.unmerge(self, model, strength, inplace=inplace, probe=probe, tolerance=tolerance)

    # -- keeping --

    def save_pretrained(
        self, folder: str | os.PathLike, *, metrics: Mapping[str, float | str] | None = None,
        base_model: str | None = None, grid: Any = None,
    ) -> None:  # fmt: skip
        """Write `steering_config.json`, `steering.safetensors` and a card, `README.md`, into a folder.

        Parameters
        ----------
        folder : path
            Is made if need be. A README.md there that lineas did not write, or that was edited as it says, stays.
        metrics : dict of str -> number or str, optional
            What was measured, for the card; kept in `info["metrics"]` of what is read back.
        base_model : str, optional
            Name on the Hugging Face hub of the model that the maps are for; kept in `info["base_model"]`. If not given,
            the card names the one that the fit knew from the hub, and none for a folder or a model made in memory.
        grid : PIL image, or path of a PNG file, optional
            What the card shows, pictures at several strengths for instance; saved beside it as `grid.png`. It is not
            part of the steering: whoever saves again passes it again.

        Raises
        ------
        TypeError
            `info`, `history` or `metrics` hold what JSON cannot; `grid` is no picture.
        ValueError
            `base_model` cannot be a name on the hub; `grid` is another file, or of more than 32 MB.
        """
        files.save(self, Path(folder), metrics, base_model, grid)

    @classmethod
    def from_pretrained(
        cls, folder_or_repo: str | os.PathLike, *, revision: str | None = None, token: str | None = None
    ) -> "Steering":
        """Read what `save_pretrained` wrote, from a folder or from a repository of the Hugging Face hub.

        Raises
        ------
        FileNotFoundError
            The folder lacks one of the two files.
        ValueError
            A file is truncated, corrupted, too large, of another format or version, or disagrees with the other.
        """
        folder = Path(folder_or_repo)
        if not folder.is_dir():
            folder = hub.download(str(folder_or_repo), revision, token)
        return cls(**files.read(folder))

    def push_to_hub(
        self, repo: str, *, private: bool | None = None, token: str | None = None,
        metrics: Mapping[str, float | str] | None = None, base_model: str | None = None, grid: Any = None,
    ) -> str:  # fmt: skip
        """Upload to a repository of the Hugging Face hub, made if need be; returns the commit's address.

        A README.md there that somebody has made their own stays as it is. `metrics`, `base_model` and `grid` as in
        `save_pretrained`.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, metrics=metrics, base_model=base_model, grid=grid)
            return hub.upload(folder, repo, private, token)

    @classmethod
    def from_statedicts(cls, folder: str | os.PathLike) -> "Steering":
        """Read the maps that the released implementation of LinEAS left in a folder, one `.statedict` file a module.

        Parameters
        ----------
        folder : path
            With files named after modules, `model.layers.0.mlp.statedict` for instance, that hold `net.w1` and
            `net.b1`, both (1, d), and `dim`. They are opened with `weights_only`, after a look at what is in them.

        Raises
        ------
        FileNotFoundError
            There are none.
        ValueError
            A file holds something else, or is larger than it has any reason to be.
        """
        maps = statedicts.read(folder)
        return cls(maps, info={"made": f"{len(maps)} .statedict files of the released implementation"})
