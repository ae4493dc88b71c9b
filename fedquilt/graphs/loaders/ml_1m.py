"""MovieLens 1M as it is shared for graph recommenders: ``train.txt`` and ``test.txt``, one user a line, no time.

A user's order is the row order, ``train.txt`` first; it is no order in time. Titles, genres and year come from
``movies.dat`` through ``item_map.txt`` (id of MovieLens, index here).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fedquilt.config import DataConfig
from fedquilt.errors import DataError
from fedquilt.graphs import tables
from fedquilt.graphs.assemble import assemble, multi_hot, standardised
from fedquilt.graphs.datasets import LOADERS
from fedquilt.graphs.loaders.ml_100k import split_title
from fedquilt.graphs.log import InteractionLog


@LOADERS.register("ml-1m")
def load(config: DataConfig) -> InteractionLog:
    folder = tables.require_folder(config.path, "ml-1m", "train.txt and test.txt")
    parts = [_part(folder / name) for name in ("train.txt", "test.txt")]
    users, items = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    movies = _movie_ids(folder / "item_map.txt") if (folder / "item_map.txt").is_file() else {}
    num_items = max(int(items.max()), *movies, 0) + 1
    log = assemble(
        "ml-1m",
        users,
        items,
        user_ids=np.arange(int(users.max()) + 1),
        item_ids=np.arange(num_items),
        notes=("no time: a user's order is the row order of train.txt, then test.txt",),
    )
    log = replace(log, source=folder)
    return _with_features(log, folder / "movies.dat", movies) if (folder / "movies.dat").is_file() and movies else log


def _part(path: Path) -> tuple[np.ndarray, np.ndarray]:
    rows = [row for row in tables.read_integer_lists(path, "a user and that user's items") if row]
    if not any(len(row) > 1 for row in rows):
        raise DataError(f"{path}, line 1: no items, expected a user and that user's items")
    of_row, items = tables.flatten([row[1:] for row in rows])
    return np.array([row[0] for row in rows], np.int64)[of_row], items


def _movie_ids(path: Path) -> dict[int, int]:
    """Index here -> id in movies.dat."""
    expected = "id of MovieLens and index in train.txt"
    pairs = tables.read_integer_lists(path, expected)
    for number, pair in enumerate(pairs, start=1):
        if len(pair) != 2:
            raise DataError(f"{path}, line {number}: {len(pair)} numbers, expected {expected}")
    return {index: movie for movie, index in pairs}


def _with_features(log: InteractionLog, path: Path, movies: dict[int, int]) -> InteractionLog:
    described = {}
    for number, (movie, title, genres, *_) in enumerate(tables.split_lines(path, "::", 3, "id, title, genres"), 1):
        if not movie.isdigit():
            raise DataError(f"{path}, line {number}: id is {movie!r}, expected a whole number")
        described[int(movie)] = (*split_title(title), genres.split("|"))
    nothing: tuple[str, float, list[str]] = ("", np.nan, [])
    rows = [described.get(movies.get(item, -1), nothing) for item in range(log.num_items)]
    genres_IG, names = multi_hot([genres for _, _, genres in rows])
    return replace(
        log,
        item_titles=tuple(title for title, _, _ in rows),
        item_features_IF=np.hstack([genres_IG, standardised(np.array([year for _, year, _ in rows]))]),
        feature_names=(*names, "year"),
    )
