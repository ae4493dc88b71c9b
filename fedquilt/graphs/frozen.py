"""Splits that others have published as files, found beside the log that they belong to."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedquilt.errors import DataError
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.tables import flatten, read_integer_lists

LOO99_FILE = "loo99_pfedrec_seed0.tsv"
HETCOMP_FILES = {part: f"hetcomp_seed0_{part}.txt" for part in ("train", "valid", "test")}
_HETCOMP_MIN_CLICKS = 5
_LOO99_LINE = "user, validation item, test item, 99 validation negatives, 99 test negatives"


def loo99_negatives(
    log: InteractionLog, valid_items_H: np.ndarray, users_H: np.ndarray, test_items_H: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Negatives int64 [H, 99] for validation and for test of the held-out clicks, or None where no file lies there.

    Errors: DataError where the file holds out other clicks than the log's order does.
    """
    if log.source is None or not (log.source / LOO99_FILE).is_file():
        return None
    path = log.source / LOO99_FILE
    rows = _loo99_rows(path)
    users = _index_of(log.user_ids, rows[:, 0], path, "user")
    items = _index_of(log.item_ids, rows[:, 1:], path, "item")
    items = items[np.argsort(users)]
    held_out = np.stack([valid_items_H, test_items_H], axis=1)
    if not np.array_equal(np.sort(users), users_H) or not np.array_equal(items[:, :2], held_out):
        raise DataError(
            f"{path}: holds out other clicks than the last two of each user in {log.name}"
            "; put ratings.pfedrec.dat, whose row order breaks equal times, beside it, or move the file away"
        )
    return items[:, 2:101], items[:, 101:]


def _loo99_rows(path: Path) -> np.ndarray:
    """int64 [H, 201]: user, validation item, test item, 99 and 99 negatives, ids of the source."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.startswith("#"):
            continue
        try:
            rows.append(list(map(int, line.split())))
        except ValueError:
            raise DataError(f"{path}, line {number}: not whole numbers, expected {_LOO99_LINE}") from None
        if len(rows[-1]) != 201:
            raise DataError(f"{path}, line {number}: {len(rows[-1])} numbers, expected 201: {_LOO99_LINE}")
    if not rows:
        raise DataError(f"{path}: no rows, expected {_LOO99_LINE}")
    return np.array(rows, np.int64)


def _index_of(ids: np.ndarray | None, values: np.ndarray, path: Path, kind: str) -> np.ndarray:
    """Index in the log of each id of the source."""
    if ids is None:
        raise DataError(f"{path}: the log has no {kind} ids to match it with")
    index = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
    if (unknown := ids[index] != values).any():
        raise DataError(f"{path}: {kind} {values[unknown].flat[0]} is not in the log that it lies beside")
    return index


def hetcomp_masks(log: InteractionLog) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """bool [C] each, validation, test and training clicks of the HetComp split, or None where no files lie there.

    HetComp renumbers: its users are the log's users with at least 5 clicks, its items those users' items by first
    appearance. The 4,976 clicks that it drops are in no part here either.
    """
    if log.source is None or not (log.source / HETCOMP_FILES["train"]).is_file():
        return None
    users = np.flatnonzero(np.diff(log.offsets) >= _HETCOMP_MIN_CLICKS)
    items, first = np.unique(log.items_C[np.isin(log.users_C, users)], return_index=True)
    items = items[np.argsort(first)]
    valid_C, test_C, train_C = (_hetcomp_part(log, p, users, items) for p in ("valid", "test", "train"))
    return valid_C, test_C, train_C


def _hetcomp_part(log: InteractionLog, part: str, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    path = log.source / HETCOMP_FILES[part] if log.source else Path(HETCOMP_FILES[part])
    rows = read_integer_lists(path, "a user and that user's items")
    of_row, own_items = flatten([row[1:] for row in rows])
    own_users = np.array([row[0] for row in rows if row], np.int64)[of_row]
    if own_users.max(initial=0) >= len(users) or own_items.max(initial=0) >= len(items):
        raise DataError(f"{path}: more users or items than the log beside it has ({len(users)}, {len(items)})")
    wanted = users[own_users] * log.num_items + items[own_items]
    mask_C = np.isin(log.users_C * log.num_items + log.items_C, wanted)
    if mask_C.sum() != len(wanted):
        raise DataError(f"{path}: {len(wanted) - mask_C.sum()} of its {len(wanted)} clicks are not in {log.name}")
    return mask_C
