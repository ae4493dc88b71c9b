"""Any log of user, item, timestamp[, domain][, rating] as CSV, TSV or Parquet.

``data.path`` is the file; ``data.columns`` maps our names to the file's where they differ, for example
``columns = {user = "visitor_id", timestamp = "clicked_at"}``. Times are seconds or milliseconds since 1970, or ISO 8601
dates. In a Parquet file the "line" of an error is the row.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from fedquilt.config import DataConfig
from fedquilt.errors import DataError
from fedquilt.graphs import tables
from fedquilt.graphs.assemble import assemble
from fedquilt.graphs.datasets import LOADERS
from fedquilt.graphs.log import InteractionLog

_NEEDED = ("user", "item", "timestamp")
_OPTIONAL = ("domain", "rating")
_EXPECTED = "a CSV, TSV or Parquet file with columns user, item, timestamp and, if you like, domain and rating"


@LOADERS.register("generic")
def load(config: DataConfig) -> InteractionLog:
    path = _file(config.path)
    table, first_line = _read(path)
    table = tables.rename_columns(table, _columns(config), (*_NEEDED, *config.columns), path)
    where = (path, first_line)
    times, notes = tables.timestamps(table, "timestamp", *where)
    domain_names, domains = _domains(table, *where)
    log = assemble(
        path.stem,
        users=tables.ids(table, "user", *where),
        items=tables.ids(table, "item", *where),
        times=times,
        ratings=tables.numbers(table, "rating", *where) if "rating" in table.columns else None,
        domains=domains,
        notes=notes,
    )
    return replace(log, domain_names=domain_names)


def _file(text: str) -> Path:
    path = Path(text)
    if not text or path.is_dir():
        raise DataError(f"generic: data.path is {text!r}, not a file; set it to {_EXPECTED}")
    return tables.require_file(path, _EXPECTED)


def _read(path: Path) -> tuple[pl.DataFrame, int]:
    """The table and the line of its first row."""
    if path.suffix.lower() not in (".parquet", ".pq"):
        with path.open(encoding="utf-8", errors="replace") as lines:
            separator = "\t" if "\t" in lines.readline() else ","
        return tables.read_delimited(path, separator, quote='"'), 2
    try:
        table = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from None
    if table.height == 0:
        raise DataError(f"{path}, line 1: no rows; expected one row a click")
    return table, 1


def _columns(config: DataConfig) -> dict[str, str]:
    known = _NEEDED + _OPTIONAL
    for name in config.columns:
        if name not in known:
            raise DataError(f"data.columns.{name}: no such column here; known: {', '.join(known)}")
    return {name: config.columns.get(name, name) for name in known}


def _domains(table: pl.DataFrame, path: Path, first_line: int) -> tuple[tuple[str, ...], np.ndarray | None]:
    if "domain" not in table.columns:
        return (), None
    names, domains = np.unique(tables.ids(table, "domain", path, first_line).astype(str), return_inverse=True)
    return tuple(map(str, names)), domains
