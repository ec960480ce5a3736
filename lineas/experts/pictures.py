"""What a unit of a pipeline's network sees: the pictures on which it is most active, and least."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..attaching.handle import what_is_on
from ..core.checks import whole
from ..core.text import warn
from ..maps.info import fitted_component, pipeline_facts
from ..network.pipelines import is_pipeline, network_of
from ..network.pipelines.pictures import pictures_of_rows
from ..network.pipelines.rows import columns_of, images_of_a_prompt, plain_arguments
from .ranking import Ranking

if TYPE_CHECKING:
    from PIL.Image import Image

GAP = 2  # pixels between pictures; between those of most and of least activity three times as many
WHITE = "white"


def strip(
    pipe: Any, ranking: Ranking, site: str, unit: int, positive: Any, negative: Any, *, most: int = 4, least: int = 4,
    call: Mapping[str, Any] | None = None,
) -> "Image":  # fmt: skip
    """The pictures on which a unit is most active, and those on which it is least, side by side.

    Parameters
    ----------
    pipe : pipeline
        The one whose units were ranked; left as it was. It makes the pictures anew, from the noise that they had then.
    ranking : Ranking
        Of this pipeline, by `rank`.
    site : str
    unit : int
        `ranking.experts` has the best ones.
    positive, negative, call : as in `rank`
        The ones that the ranking is of.
    most, least : int
        How many pictures: to the left the most active first, to the right the least active last. Where the unit's sign
        is -1, most is least.

    Returns
    -------
    PIL.Image.Image

    Raises
    ------
    TypeError
        No pipeline, or one that makes no pictures.
    ValueError
        A ranking of a network, or one that was saved without its responses; other inputs, or another call.
    LookupError
        A site that was not ranked; a unit that it does not have.

    Notes
    -----
    A unit is looked at in the middle of what makes the picture, which shows what came of it.
    """
    seed, units = _checked(pipe, ranking, call), len(ranking.score(site))
    if whole(unit, "unit", least=0) >= units:
        raise LookupError(f"site {site!r}: expected one of its {units} units, got {unit}")
    columns = {True: columns_of(positive, "positive", pipe), False: columns_of(negative, "negative", pipe)}
    order = _pictures_in_order(ranking, site, unit, columns, images_of_a_prompt(call))
    left = order[: whole(most, "most", least=0)]
    right = order[max(len(left), len(order) - whole(least, "least", least=0)) :]
    if not left and not right:
        raise ValueError("most, least: expected at least one picture, got none")
    made: dict[tuple[bool, int], list[Any]] = {}
    for is_positive, given in columns.items():
        wanted = sorted({row for is_of, row, _ in (*left, *right) if is_of == is_positive})
        found = pictures_of_rows(pipe, given, wanted, call=call, seed=seed) if wanted else []
        made |= {(is_positive, row): pictures for row, pictures in zip(wanted, found, strict=True)}
    return _side_by_side(*([made[is_of, row][k] for is_of, row, k in side] for side in (left, right)))


def _checked(pipe: Any, ranking: Ranking, call: Mapping[str, Any] | None) -> int:
    """The seed of the ranking, which must be of this pipeline and call."""
    if not is_pipeline(pipe):
        raise TypeError(f"pipe: expected a pipeline, which makes pictures, got a {type(pipe).__name__}")
    known = pipeline_facts(ranking.info)
    if not isinstance(known.get("seed"), int):
        raise ValueError("ranking: expected one of a pipeline's units, made by lineas.experts.rank, got another")
    plain = plain_arguments(call or {})
    if known.get("call") != plain:
        raise ValueError(f"call: expected that of the ranking, {known.get('call')!r:.200}, got {plain!r:.200}")
    network = network_of(pipe, fitted_component(ranking.info) or None)
    if ranking.info.get("attached") != what_is_on(network).get("attached"):
        warn("expected what was on the pipeline when its units were ranked, got other steerings on it, or none")
    return known["seed"]


def _pictures_in_order(
    ranking: Ranking, site: str, unit: int, columns: Mapping[bool, Mapping[str, list]], images: int
) -> list[tuple[bool, int, int]]:
    """Set, row and number among the row's pictures, the most active first; of several steps the first in this order."""
    counts = dict(zip((True, False), ranking.counts, strict=True))
    rows = {side: len(next(iter(given.values()))) for side, given in columns.items()}
    for side, count in counts.items():
        if not rows[side] or count % (rows[side] * images):
            name = "positive" if side else "negative"
            raise ValueError(f"{name}: expected the inputs of the ranking, with {count} responses, got {rows[side]}")
    found: dict[tuple[bool, int, int], None] = {}
    for one in ranking.examples(site, unit, sum(counts.values())):
        row, k = divmod(one.number % (rows[one.positive] * images), images)
        given = columns[one.positive].get("prompt")
        if one.input is not None and (given is None or given[row] != one.input):
            raise ValueError(f"expected the inputs of the ranking, such as {one.input!r:.60}, got others")
        found[one.positive, row, k] = None
    return list(found)


def _side_by_side(left: list[Any], right: list[Any]) -> "Image":
    from PIL import Image

    pictures = [*left, *right]
    gaps = [0, *(GAP * (3 if k == len(left) else 1) for k in range(1, len(pictures)))]
    width, height = sum(gaps) + sum(one.width for one in pictures), max(one.height for one in pictures)
    whole_strip, place = Image.new("RGB", (width, height), WHITE), 0
    for gap, picture in zip(gaps, pictures, strict=True):
        whole_strip.paste(picture.convert("RGB"), (place + gap, 0))
        place += gap + picture.width
    return whole_strip
