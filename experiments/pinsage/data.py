"""The three logs of the study, split; validation and test clicks are held out of everything that is fitted.

- ``ml-100k``: loo-full, by time.
- ``citeulike-t``: rand-60-20-20, the frozen HetComp files.
- ``ml-1m``: ``test.txt`` as it is shipped; a tenth of each user's ``train.txt`` (rounded down, at least one click of
  those with two) is drawn once for validation.

The last two have no time, and their files list a user's items by index. Their order is shuffled once, keyed by user, so
that neither a window over clicks nor "the last clicks" can mean anything there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from experiments.results import ROOT
from fedquilt.config import DataConfig, SplitConfig
from fedquilt.graphs import tables
from fedquilt.graphs.datasets import load_log
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.splits import HeldOut, split_log
from fedquilt.seeds import generator_for

DATA = ROOT / "../shared/data"
PROTOCOLS = {"ml-100k": "loo-full", "citeulike-t": "rand-60-20-20", "ml-1m": "shipped"}


@dataclass(frozen=True)
class Task:
    """Training clicks, and what is asked. ``ordered``: a user's clicks are in time order."""

    name: str
    protocol: str
    train: InteractionLog
    valid: HeldOut
    test: HeldOut
    ordered: bool
    hash: str


def load_task(name: str, folder: Path = DATA) -> Task:
    """Errors: DataError where the files do not fit."""
    log = load_log(DataConfig(dataset=name, path=str(folder / name)))
    protocol = PROTOCOLS[name]
    if protocol == "shipped":
        return shipped_task(log, shipped_test(log, folder / name))
    split = split_log(log, SplitConfig(protocol=protocol, cloud_share=1.0))
    ordered = log.times_C is not None
    train = split.train if ordered else shuffled(split.train)
    return Task(name, protocol, train, split.valid, split.test, ordered, split.hash)


def shipped_test(log: InteractionLog, folder: Path) -> np.ndarray:
    """bool [C]: the clicks that ``test.txt`` lists."""
    rows = [row for row in tables.read_integer_lists(folder / "test.txt", "a user and that user's items") if row]
    of_row, items = tables.flatten([row[1:] for row in rows])
    users = np.array([row[0] for row in rows], np.int64)[of_row]
    return np.isin(log.users_C * log.num_items + log.items_C, users * log.num_items + items)


def shipped_task(log: InteractionLog, test_C: np.ndarray) -> Task:
    """A tenth of the other clicks of each user is for validation."""
    rest = log.where(~test_C)
    valid_R = _drawn_tenth(rest)
    train = shuffled(rest.where(~valid_R))
    valid, test = (HeldOut(part.users_C, part.items_C) for part in (rest.where(valid_R), log.where(test_C)))
    digest = hashlib.sha256(f"{log.hash}/shipped".encode())
    digest.update(np.packbits(test_C).tobytes() + np.packbits(valid_R).tobytes())
    return Task(log.name, "shipped", train, valid, test, False, digest.hexdigest()[:16])


def _drawn_tenth(log: InteractionLog) -> np.ndarray:
    rank_C = _random_rank(log, "validation-tenth")
    count_U = np.diff(log.offsets)
    tenth_U = np.where(count_U >= 2, np.maximum(count_U // 10, 1), 0)
    return rank_C < tenth_U[log.users_C]


def _random_rank(log: InteractionLog, use: str) -> np.ndarray:
    """int64 [C]: the place of each click in a random order of its user's clicks."""
    keys_C = generator_for(0, use=use).random(len(log))
    rank_C = np.empty(len(log), np.int64)
    rank_C[np.lexsort((keys_C, log.users_C))] = np.arange(len(log)) - log.offsets[log.users_C]
    return rank_C


def shuffled(log: InteractionLog) -> InteractionLog:
    """The same clicks, each user's in a random order that never changes."""
    order = np.lexsort((_random_rank(log, "order"), log.users_C))
    return replace(log, items_C=log.items_C[order], times_C=None, ratings_C=None, domains_C=None)
