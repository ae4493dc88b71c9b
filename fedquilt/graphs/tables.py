"""Reading tables of clicks so that a bad row costs one clear error: file, line, what was expected.

Every field is read as text first; a cast that fails then knows its line. Lines are counted from 1, headers included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl

from fedquilt.errors import DataError

# Above this a number of seconds is past the year 5000: the column is in milliseconds.
_MILLISECONDS = 1e11


def require_folder(path: str | Path, dataset: str, expected: str) -> Path:
    """The folder that holds a dataset's files. Errors: DataError that says how to name one."""
    folder = Path(path)
    if not str(path) or not folder.is_dir():
        raise DataError(f"{dataset}: no folder {str(path)!r}; set data.path to the folder that holds {expected}")
    return folder


def require_file(path: Path, expected: str) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected {expected}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: empty file; expected {expected}")
    return path


def read_delimited(
    path: Path, separator: str, names: list[str] | None = None, quote: str | None = None
) -> pl.DataFrame:
    """A text table with every column as text. ``names``: the columns of a file without a header line."""
    try:
        table = pl.read_csv(
            path,
            separator=separator,
            has_header=names is None,
            new_columns=names,
            infer_schema=False,
            quote_char=quote,
            encoding="utf8-lossy",
        )
    except pl.exceptions.PolarsError as error:
        reason = _bad_line(path, separator, quote) or f"{path}: not a delimited table: {str(error).splitlines()[0]}"
        raise DataError(reason) from None
    if names is not None and table.width < len(names):
        raise DataError(f"{path}, line 1: {table.width} columns, expected {len(names)}: {', '.join(names)}")
    if table.height == 0:
        raise DataError(f"{path}, line 2: no rows after the header; expected one row a click")
    return table


def _bad_line(path: Path, separator: str, quote: str | None) -> str:
    """What the first line that fits neither the quotes nor the number of columns of line 1 has wrong, or nothing."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        expected = 0
        for number, line in enumerate(lines, start=1):
            if quote and line.count(quote) % 2:
                return f"{path}, line {number}: a quote {quote} is not closed, expected one on each side of a field"
            count = line.count(separator) + 1
            expected = expected or count
            if count != expected and not (quote and quote in line):
                return f"{path}, line {number}: {count} columns, expected {expected} as in line 1"
    return ""


def rename_columns(
    table: pl.DataFrame, columns: Mapping[str, str], needed: tuple[str, ...], path: Path
) -> pl.DataFrame:
    """Only the columns in ``columns`` (our name -> the file's), under our names; ``needed`` ones must be there."""
    for ours, theirs in columns.items():
        if ours in needed and theirs not in table.columns:
            raise DataError(
                f"{path}, line 1: no column {theirs!r} for {ours!r}; found {', '.join(table.columns)}"
                f"; name it with data.columns.{ours}"
            )
    return table.select(pl.col(theirs).alias(ours) for ours, theirs in columns.items() if theirs in table.columns)


def ids(table: pl.DataFrame, name: str, path: Path, first_line: int) -> np.ndarray:
    """Ids of the source: int64 where every one is a whole number, else text."""
    column = table[name]
    _require_no_null(column, name, "an id", path, first_line)
    if column.dtype.is_integer():
        return column.cast(pl.Int64).to_numpy()
    whole = column.cast(pl.String).str.strip_chars().cast(pl.Int64, strict=False)
    return column.cast(pl.String).to_numpy() if whole.null_count() else whole.to_numpy()


def whole_numbers(table: pl.DataFrame, name: str, path: Path, first_line: int) -> np.ndarray:
    """int64. Errors: DataError with the line of the first field that is no whole number of at least 0."""
    parsed = table[name].cast(pl.String).str.strip_chars().cast(pl.Int64, strict=False)
    bad = parsed.is_null() | (parsed < 0).fill_null(True)
    if bad.any():
        _refuse(table[name], int(bad.arg_max() or 0), name, "a whole number of at least 0", path, first_line)
    return parsed.to_numpy()


def numbers(table: pl.DataFrame, name: str, path: Path, first_line: int) -> np.ndarray:
    """float64. Errors: DataError with the line of the first field that is no finite number."""
    column = table[name]
    text = column.cast(pl.String).str.strip_chars() if column.dtype == pl.String else column
    parsed = text.cast(pl.Float64, strict=False)
    bad = parsed.is_null() | ~parsed.fill_null(0.0).is_finite()
    if bad.any():
        _refuse(column, int(bad.arg_max() or 0), name, "a number", path, first_line)
    return parsed.to_numpy()


def timestamps(table: pl.DataFrame, name: str, path: Path, first_line: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Seconds since 1970 from numbers (seconds or milliseconds) or dates; and notes on what was converted."""
    column = table[name]
    _require_no_null(column, name, "a time", path, first_line)
    if column.dtype == pl.String and column.str.strip_chars().cast(pl.Float64, strict=False)[0] is None:
        dates = column.str.to_datetime(strict=False, time_zone="UTC")
        if dates.is_null().any():
            expected = "seconds since 1970 or an ISO 8601 date"
            _refuse(column, int(dates.is_null().arg_max() or 0), name, expected, path, first_line)
        column = dates
    if column.dtype.is_temporal():
        seconds = column.cast(pl.Datetime("us")).dt.epoch("us").to_numpy() / 1e6
    else:
        seconds = numbers(table, name, path, first_line)
    if (seconds < 0).any():
        _refuse(table[name], int(np.argmax(seconds < 0)), name, "a time of at least 0", path, first_line)
    if np.median(seconds) > _MILLISECONDS:
        return seconds / 1e3, ("times were in milliseconds",)
    return seconds, ()


def _require_no_null(column: pl.Series, name: str, expected: str, path: Path, first_line: int) -> None:
    if column.null_count():
        _refuse(column, int(column.is_null().arg_max() or 0), name, expected, path, first_line)


def _refuse(column: pl.Series, row: int, name: str, expected: str, path: Path, first_line: int) -> None:
    found = "missing" if column[row] is None else repr(column[row])
    raise DataError(f"{path}, line {row + first_line}: {name} is {found}, expected {expected}")


def read_integer_lists(path: Path, expected: str) -> list[list[int]]:
    """One list of whole numbers a line, separated by blanks."""
    rows = []
    with require_file(path, expected).open() as lines:
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(list(map(int, line.split())))
            except ValueError:
                raise DataError(f"{path}, line {number}: {line.strip()[:60]!r}, expected {expected}") from None
            if rows[-1] and min(rows[-1]) < 0:
                raise DataError(f"{path}, line {number}: negative number {min(rows[-1])}, expected {expected}")
    return rows


def flatten(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Lists -> (row number, value), both int64."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    values = np.fromiter(chain.from_iterable(rows), np.int64, int(lengths.sum()))
    return np.repeat(np.arange(len(rows)), lengths), values


def split_lines(path: Path, separator: str, num_fields: int, expected: str) -> Iterator[list[str]]:
    """Fields of each line of a small file whose separator has several characters (MovieLens ``::``), Latin-1."""
    with require_file(path, expected).open(encoding="latin-1") as lines:
        for number, line in enumerate(lines, start=1):
            fields = line.rstrip("\n").split(separator)
            if len(fields) < num_fields:
                raise DataError(f"{path}, line {number}: {len(fields)} fields, expected {num_fields}: {expected}")
            yield fields
