"""What the benchmarks of models share: options, tables by name, a table printed, and all of them written down."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import _timing
import torch

Row = dict[str, Any]


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", metavar="TABLES", help="some of the tables, separated by commas")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--rounds", type=int, default=rounds)
    options.add_argument("--quick", action="store_true", help="a tiny random model, few rounds: does it run at all?")
    options.add_argument("--json", metavar="FILE", help="write all figures, and what the machine is")
    return options


def chosen(only: str | None, tables: Mapping[str, Any]) -> list[str]:
    names = only.split(",") if only else list(tables)
    if unknown := set(names) - set(tables):
        raise SystemExit(f"--only: expected some of {', '.join(tables)}; got {', '.join(sorted(unknown))}")
    return names


def make(asked: argparse.Namespace, tables: Mapping[str, Callable[[Any], list[Row]]], plan: Any) -> dict[str, Any]:
    """Each table that was asked for, printed under its function's docstring; all of them, and the machine."""
    torch.set_num_threads(asked.threads)
    facts = _timing.machine(asked.threads)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    made = {}
    for name in chosen(asked.only, tables):
        made[name] = tables[name](plan)
        show(name, (tables[name].__doc__ or "").strip(), made[name])
    figures = {"machine": facts, "tables": made}
    if asked.json:
        Path(asked.json).write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def show(name: str, title: str, rows: list[Row]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    width = max(len(str(row.get(columns[0], ""))) for row in rows)
    print(f"\n{name}: {title}")
    print(f"  {columns[0]:<{max(width, 8)}}" + "".join(f"{column:>12}" for column in columns[1:]))
    for row in rows:
        cells = (f"{row[c]:12.4g}" if c in row else " " * 12 for c in columns[1:])
        print(f"  {row[columns[0]]!s:<{max(width, 8)}}" + "".join(cells), flush=True)
