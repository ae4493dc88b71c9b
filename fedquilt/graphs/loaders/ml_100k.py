"""MovieLens 100K, as GroupLens ships it (``u.data``) or as RecBole does (``ml-100k.inter``).

415 of 943 users have a tied latest timestamp, so leave-one-out depends on the row order. Beside a frozen split lies
``ratings.pfedrec.dat``, the same log in the row order that the split was made from: among equal times its *first* row
is the later click (the split ranks times downwards, first row first). Where that file is present it is the log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from fedquilt.config import DataConfig
from fedquilt.errors import DataError
from fedquilt.graphs import tables
from fedquilt.graphs.assemble import assemble, multi_hot, standardised
from fedquilt.graphs.datasets import LOADERS
from fedquilt.graphs.log import InteractionLog

_COLUMNS = ["user", "item", "rating", "timestamp"]
_HEADER = {"user": "user_id:token", "item": "item_id:token", "rating": "rating:float", "timestamp": "timestamp:float"}
_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


@dataclass(frozen=True)
class _Clicks:
    """Rows of a log file; ``backwards`` where the first of two equal times is the later click."""

    table: pl.DataFrame
    path: Path
    first_line: int
    backwards: bool = False


@LOADERS.register("ml-100k")
def load(config: DataConfig) -> InteractionLog:
    folder = tables.require_folder(config.path, "ml-100k", "u.data or ml-100k.inter")
    clicks = _clicks(folder)
    where = (clicks.path, clicks.first_line)
    times, notes = tables.timestamps(clicks.table, "timestamp", *where)
    rows = slice(None, None, -1 if clicks.backwards else 1)
    log = assemble(
        "ml-100k",
        users=tables.ids(clicks.table, "user", *where)[rows],
        items=tables.ids(clicks.table, "item", *where)[rows],
        times=times[rows],
        ratings=tables.numbers(clicks.table, "rating", *where)[rows],
        notes=(f"read from {clicks.path.name}", *notes),
    )
    return replace(_with_features(log, folder), source=folder)


def _clicks(folder: Path) -> _Clicks:
    frozen, inter, raw = (folder / name for name in ("ratings.pfedrec.dat", "ml-100k.inter", "u.data"))
    if frozen.is_file():
        table = tables.read_delimited(tables.require_file(frozen, "one click a line"), ",", _COLUMNS)
        return _Clicks(table, frozen, 1, backwards=True)
    if inter.is_file():
        table = tables.read_delimited(tables.require_file(inter, "a header and one click a line"), "\t")
        return _Clicks(tables.rename_columns(table, _HEADER, tuple(_HEADER), inter), inter, 2)
    if raw.is_file():
        return _Clicks(tables.read_delimited(tables.require_file(raw, "one click a line"), "\t", _COLUMNS), raw, 1)
    raise DataError(f"ml-100k: neither u.data nor ml-100k.inter in {folder}; set data.path to the folder with either")


def _with_features(log: InteractionLog, folder: Path) -> InteractionLog:
    if (folder / "ml-100k.item").is_file():
        described = _from_item_file(folder / "ml-100k.item")
    elif (folder / "u.item").is_file():
        described = _from_raw_items(folder / "u.item")
    else:
        return log
    nothing: tuple[str, float, list[str]] = ("", np.nan, [])
    rows = [described.get(int(item), nothing) for item in np.asarray(log.item_ids)]
    genres_IG, names = multi_hot([genres for _, _, genres in rows])
    years_I1 = standardised(np.array([year for _, year, _ in rows], np.float64))
    return replace(
        log,
        item_titles=tuple(title for title, _, _ in rows),
        item_features_IF=np.hstack([genres_IG, years_I1]),
        feature_names=(*names, "year"),
    )


def _from_item_file(path: Path) -> dict[int, tuple[str, float, list[str]]]:
    table = tables.read_delimited(path, "\t")
    items = tables.ids(table, "item_id:token", path, 2)
    columns = (table[name].fill_null("").to_list() for name in ("movie_title:token_seq", "release_year:token"))
    genres = table["class:token_seq"].fill_null("").to_list()
    return {
        int(item): (title, _year(year), own.split())
        for item, title, year, own in zip(items, *columns, genres, strict=True)
    }


def _from_raw_items(path: Path) -> dict[int, tuple[str, float, list[str]]]:
    described = {}
    for fields in tables.split_lines(path, "|", 24, "id, title, dates, link and 19 genre flags"):
        title, year = split_title(fields[1])
        flags = fields[5:24]
        described[int(fields[0])] = (title, year, [g for g, flag in zip(_GENRES, flags, strict=True) if flag == "1"])
    return described


def split_title(text: str) -> tuple[str, float]:
    """``"Toy Story (1995)"`` -> title and year; nan where there is none."""
    match = re.match(r"(.*?)\s*\((\d{4})\)\s*$", text)
    return (match[1], float(match[2])) if match else (text, np.nan)


def _year(text: str) -> float:
    return float(text) if re.fullmatch(r"\d{4}", text) else np.nan
