"""Which tokens a model can take: as many as its table of positions has, where there is one, and those that it knows."""

from collections.abc import Iterator
from typing import Any

from torch import nn

MORE = 2  # rows that a table may have beside those of the config


def most_tokens(model: nn.Module | None) -> int | None:
    """So many tokens a sample may have; None where there is no such limit, or none that can be told.

    A config's `max_position_embeddings` alone does not tell: rotary, relative and other computed positions go on beyond
    it. It is a limit where the model has a table of that many rows, one for each position. Some leave its first rows
    to padding.
    """
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    said = getattr(config, "max_position_embeddings", None)
    computed = getattr(config, "position_embedding_type", None) not in (None, "absolute")  # its table is not used
    if model is None or not isinstance(said, int) or computed:
        return None
    rooms = [said - first if rows == said else said for rows, first in _tables(model) if 0 <= rows - said <= MORE]
    return min(rooms, default=None)


def _tables(model: nn.Module) -> Iterator[tuple[int, int]]:
    """Rows of each table of positions, and of which row the first token is."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and _names_positions(path) and not hasattr(module, "make_weight"):  # grows
            yield module.num_embeddings, _first_row(module)
    for path, buffer in model.named_buffers():
        if buffer.ndim == 2 and buffer.is_floating_point() and _names_positions(path):
            yield len(buffer), 0


def _names_positions(path: str) -> bool:
    last = path.rpartition(".")[2]
    return "pos" in last or last == "wpe"


def _first_row(table: nn.Embedding) -> int:
    return 0 if table.padding_idx is None else table.padding_idx + 1  # RoBERTa's


def vocabulary(model: nn.Module | None) -> int | None:
    """How many tokens a model of transformers has embeddings for; None for others."""
    try:
        table = model.get_input_embeddings()  # type: ignore[union-attr, operator]
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return table.num_embeddings if isinstance(table, nn.Embedding) else None
