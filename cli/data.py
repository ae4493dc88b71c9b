"""``fedquilt data``: what is in a log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from cli.options import ConfigFile, Json, Overrides, new_table, number, print_json, print_table


def data(
    dataset: Annotated[str | None, typer.Argument(help="Name of a loader; default: data.dataset.")] = None,
    path: Annotated[str | None, typer.Option(help="Folder or file of the log; default: data.path.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Describe a log: size, popularity, activity, time, what reading it found."""
    from cli.progress import progress
    from fedquilt.config import load
    from fedquilt.graphs.datasets import load_log
    from fedquilt.graphs.describe import describe

    chosen = [f"data.{key}={value!r}" for key, value in (("dataset", dataset), ("path", path)) if value is not None]
    wanted = load(config, [*(overrides or ()), *chosen]).data
    with progress(as_json) as report:
        report("reading the log", 0, 2)
        log = load_log(wanted)
        report("reading the log", 1, 2, "describing")
        facts = describe(log)
        report("reading the log", 2, 2)
    if as_json:
        print_json(facts)
        return
    table = new_table(f"log {log.name}", "", "")
    for name, value in flat(facts):
        table.add_row(name, value)
    print_table(table)


def flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as rows of text."""
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        label = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            rows += flat(value, f"{label}: ")
        elif isinstance(value, list | tuple):
            rows.append((label, ", ".join(_cell(item) for item in value) or "–"))
        else:
            rows.append((label, _cell(value)))
    return rows


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if value is None or isinstance(value, int | float) else str(value)
