"""Texts out of files: a text a line, a column of a CSV file, a field of JSON lines. Needs nothing but Python."""

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Text = str | list[dict[str, Any]]  # or a chat: messages with role and content

SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
NAME = "text"  # of the column or field, where none is given
CELL = 2**31 - 1  # characters; Python's own limit is shorter than a long text


class Texts(NamedTuple):
    """What a file holds, and how many of its entries were empty and left out."""

    texts: list[Text]
    empty: int


def read(path: str, *, column: str | None = None, field: str | None = None) -> Texts:
    """All texts of a file, in order, as they stand there; those of nothing but white space are left out.

    Parameters
    ----------
    path : str
        `.csv` and `.tsv` have a header and columns, `.jsonl` and `.ndjson` a JSON value a line: a string, or an object
        with the text, or a chat, in a field. Of any other file, and of the standard input (`-`), a column makes it CSV,
        a field JSON lines; with neither it is a text a line. UTF-8, with or without a byte order mark.
    column, field : str, optional
        "text" if not given.

    Raises
    ------
    OSError
        No such file, or it cannot be read.
    ValueError
        Not UTF-8, not such a file, no such column or field, no text at all; with the line, counted from 1.
    """
    name = "standard input" if path == "-" else path
    text, suffix = _decoded(path, name), Path(path).suffix.lower()
    found: list[Text]
    if suffix in JSON_LINES or (field is not None and column is None and suffix not in SEPARATORS):
        found = list(_from_json_lines(text, name, field or NAME))
    elif suffix in SEPARATORS or (column is not None and field is None):
        found = list(_from_table(text, name, column or NAME, SEPARATORS.get(suffix, ",")))
    elif column is None:
        found = [line.rstrip("\n") for line in io.StringIO(text, newline=None)]
    else:
        raise ValueError(f"{name}: a column and a field were given; expected one of them for a file of this name")
    texts = [entry for entry in found if not isinstance(entry, str) or entry.strip()]
    if not texts:
        raise ValueError(f"{name}: expected texts, got {'only empty ones' if found else 'an empty file'}")
    return Texts(texts, len(found) - len(texts))


def _decoded(path: str, name: str) -> str:
    data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{name}, line {line}: expected UTF-8, got the byte 0x{error.object[error.start]:02x}; convert the file "
            "first, for instance with iconv -f latin1 -t utf-8"
        ) from None


def _from_table(text: str, name: str, column: str, separator: str) -> Iterator[str]:
    before = csv.field_size_limit(CELL)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = next(rows, [])
        if column not in header:
            raise ValueError(f"{name}: no column {column!r}; it has {_listed(header)}")
        place = header.index(column)
        for row in rows:
            if row and len(row) != len(header):
                raise ValueError(f"{name}, line {rows.line_num}: expected {len(header)} fields, got {len(row)}")
            if row:
                yield row[place]
    except csv.Error as error:
        raise ValueError(f"{name}, line {rows.line_num}: not CSV: {error}") from None
    finally:
        csv.field_size_limit(before)


def _from_json_lines(text: str, name: str, field: str) -> Iterator[Text]:
    for number, line in enumerate(text.split("\n"), 1):  # in a JSON string, other ends of lines are text
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON: {error.msg} (column {error.colno})") from None
        except RecursionError:
            raise ValueError(f"{where}: expected a text, got JSON that is nested without end") from None
        if isinstance(value, dict):
            if field not in value:
                raise ValueError(f"{where}: no field {field!r}; it has {_listed(list(value))}")
            value = value[field]
        if not isinstance(value, str) and not _is_chat(value):
            raise ValueError(f"{where}: expected a string, or a chat of messages with role, got {value!r:.60}")
        yield value


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, dict) and "role" in x for x in value)


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:20])) + ", ..." * (len(names) > 20) if names else "none"
