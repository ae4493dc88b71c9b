"""From columns as they lie in a file to a log: index, order, drop repeated clicks, count what was done.

Rules, the same for every loader:
- clicks are ordered by user, then time, then row; a log without time keeps its row order;
- a user's second click on an item is dropped: what is recommended, and held out, is an item new to the user;
- users with one click are kept and counted: they train, but no split evaluates them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedquilt.graphs.log import InteractionLog, LoadReport


def assemble(
    name: str,
    users: np.ndarray,
    items: np.ndarray,
    times: np.ndarray | None = None,
    ratings: np.ndarray | None = None,
    domains: np.ndarray | None = None,
    user_ids: np.ndarray | None = None,
    item_ids: np.ndarray | None = None,
    notes: tuple[str, ...] = (),
) -> InteractionLog:
    """Ids of the source, one row a click -> log.

    ``user_ids`` and ``item_ids`` (sorted) fix the universe, so that users or items without a click keep their index;
    without them the universe is what was clicked.
    """
    user_ids, users_C = _index(users, user_ids)
    item_ids, items_C = _index(items, item_ids)
    order = np.lexsort((users_C,)) if times is None else np.lexsort((times, users_C))
    kept = order[_first_clicks(users_C[order], items_C[order], len(item_ids))]
    log = InteractionLog(
        name=name,
        users_C=users_C[kept],
        items_C=items_C[kept],
        num_users=len(user_ids),
        num_items=len(item_ids),
        times_C=None if times is None else times[kept].astype(np.float64),
        ratings_C=None if ratings is None else ratings[kept].astype(np.float32),
        domains_C=None if domains is None else domains[kept].astype(np.int64),
        user_ids=user_ids,
        item_ids=item_ids,
    )
    return replace(log, report=_report(log, len(users), notes))


def _index(values: np.ndarray, universe: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if universe is None:
        universe, inverse = np.unique(values, return_inverse=True)
        return universe, inverse.astype(np.int64)
    return universe, np.searchsorted(universe, values).astype(np.int64)


def _first_clicks(users_C: np.ndarray, items_C: np.ndarray, num_items: int) -> np.ndarray:
    """Positions of each (user, item)'s first click, ascending."""
    _, first = np.unique(users_C * num_items + items_C, return_index=True)
    return np.sort(first)


def _report(log: InteractionLog, rows_read: int, notes: tuple[str, ...]) -> LoadReport:
    clicks_U = np.bincount(log.users_C, minlength=log.num_users)
    return LoadReport(
        rows_read=rows_read,
        duplicates_dropped=rows_read - len(log),
        one_item_users=int((clicks_U == 1).sum()),
        notes=notes,
    )


def multi_hot(labels: list[list[str]]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Lists of labels per item -> float32 [I, labels] of 0 and 1, and the labels, sorted."""
    names = sorted({label for row in labels for label in row})
    column = {label: index for index, label in enumerate(names)}
    table = np.zeros((len(labels), len(names)), np.float32)
    for row, own in enumerate(labels):
        table[row, [column[label] for label in own]] = 1
    return table, tuple(names)


def standardised(values: np.ndarray) -> np.ndarray:
    """[I] or [I, F] -> float32 [I, F]: each column with mean 0 and standard deviation 1.

    An unknown value (nan) becomes the mean; a constant column becomes 0.
    """
    table_IF = values.reshape(len(values), -1)
    known_IF = np.isfinite(table_IF)
    counted_IF = known_IF | ~known_IF.any(0)  # of a column without any value: all of it, which gives nan
    mean_F, deviation_F = table_IF.mean(0, where=counted_IF), table_IF.std(0, where=counted_IF)
    scaled_IF = (table_IF - mean_F) / np.where(deviation_F > 0, deviation_F, 1)
    return np.where(known_IF & (deviation_F > 0), scaled_IF, 0).astype(np.float32)
