"""Options that several verbs share, and how a verb prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file; its keys are those of a run's config.toml.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. federation.rounds=20.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Root = Annotated[Path, typer.Option("--out", help="Folder that holds the runs.")]


def print_json(value: Any) -> None:
    from fedquilt.runs import plain

    typer.echo(json.dumps(value, indent=2, default=plain))


def print_table(table: Table) -> None:
    from rich.console import Console

    Console().print(table)


def new_table(title: str, *columns: str) -> Table:
    """A table whose first column is text and whose other columns are numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=not index)
    return table


def number(value: float | int | None) -> str:
    """Short and readable: 1,682 clicks, 0.0631 of something, 49.3 on average."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:,.1f}"
