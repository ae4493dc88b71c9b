"""citeulike-t (Wang, Chen and Li 2013): researchers' libraries of articles, no time, abstracts as bags of words.

Item features are the abstracts' TF-IDF matrix reduced to 64 dimensions by truncated SVD, scaled to unit mean square.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import sparse

from fedquilt.config import DataConfig
from fedquilt.errors import DataError
from fedquilt.graphs import tables
from fedquilt.graphs.assemble import assemble
from fedquilt.graphs.datasets import LOADERS
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.text import text_features

_DIM = 64
_USER_LINE = "how many items, then the items of one user"
_WORDS_LINE = "how many words, then word:count pairs"


@LOADERS.register("citeulike-t")
def load(config: DataConfig) -> InteractionLog:
    folder = tables.require_folder(config.path, "citeulike-t", "users.dat")
    path = folder / "users.dat"
    rows = tables.read_integer_lists(path, _USER_LINE)
    for line, row in enumerate(rows, start=1):
        if not row or row[0] != len(row) - 1:
            raise DataError(f"{path}, line {line}: count and items disagree, expected {_USER_LINE}")
    users, items = tables.flatten([row[1:] for row in rows])
    words = folder / "mult.dat"
    features = _abstracts(words) if words.is_file() else None
    num_items = max(int(items.max(initial=-1)) + 1, 0 if features is None else len(features))
    log = assemble("citeulike-t", users, items, user_ids=np.arange(len(rows)), item_ids=np.arange(num_items))
    if features is None or len(features) < num_items:
        return replace(log, source=folder)
    names = tuple(f"abstract-{axis}" for axis in range(features.shape[1]))
    return replace(log, source=folder, item_features_IF=features, feature_names=names)


def _abstracts(path: Path) -> np.ndarray:
    """float32 [I, 64]; fewer columns where there are fewer articles or words."""
    counts_IW = abstract_counts(path)
    return text_features(counts_IW, min(_DIM, min(counts_IW.shape) - 1))


def abstract_counts(path: Path) -> sparse.csr_matrix:
    """Word counts per article from ``mult.dat``, float64 [I, words]."""
    rows = []
    with tables.require_file(path, _WORDS_LINE).open() as lines:
        for number, line in enumerate(lines, start=1):
            try:
                numbers = list(map(int, line.replace(":", " ").split()))
            except ValueError:
                numbers = []
            if not numbers or len(numbers) != 1 + 2 * numbers[0]:
                raise DataError(f"{path}, line {number}: {line.strip()[:60]!r}, expected {_WORDS_LINE}")
            rows.append(numbers[1:])
    of_row, values = tables.flatten(rows)
    return sparse.csr_matrix((values[1::2].astype(np.float64), (of_row[::2], values[::2])))
