"""What the benchmarks of quality share: rows in a file, a line each, and a table in a page, between its marks."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read(file: Path) -> list[Row]:
    """The rows that a file has; none where there is no file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def keep(file: Path, row: Row) -> None:
    """At once, so that nothing is lost where a later row fails."""
    with file.open("a") as opened:
        opened.write(json.dumps(row) + "\n")


def rewrite(file: Path, rows: Iterable[Row]) -> None:
    """All of them, in the place of what the file has."""
    new = file.with_name(f"{file.name}.tmp")
    new.write_text("".join(json.dumps(row) + "\n" for row in rows))
    new.replace(file)


def write(page: Path, name: str, lines: Iterable[str]) -> None:
    """Put a table into a page, in the place of what stands between the marks of this name.

    SystemExit where the page does not have both marks, once each and in this order.
    """
    text, (start, end) = page.read_text(encoding="utf-8"), (f"<!-- {name} -->", f"<!-- end of {name} -->")
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise SystemExit(f"{page}: expected {start} and then {end}, once each")
    table = "\n".join(lines)
    page.write_text(f"{text.split(start)[0]}{start}\n{table}\n{end}{text.split(end)[1]}", encoding="utf-8")
