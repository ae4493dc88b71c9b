"""What one device adds to the table of co-click pairs: a row of bounded length, whatever its clicks are.

**Sensitivity.** Let r_u(clicks) be the row of user u over the cells, and C the clipping norm. ``pair_rows`` divides
every row that is not zero by its own L2 norm *in the cells*, after pairs have been chosen, hashed and summed where they
collide, and multiplies it by C (less a margin for rounding). So ||r_u|| <= C for every input, hostile ones included. A
row is a function of that user's clicks and of public constants (the hash, the window, the number of pairs), not of
other users or of how many there are. Adding or removing user u moves S = Σ_v r_v by exactly r_u, at most C in L2;
replacing u moves it by at most 2C. S + N(0, (z C)² I) is therefore one Gaussian release with mu = 1/z (2/z), which is
what a ``graph-release`` is charged as. What is made of the noised table afterwards, estimates, thresholds, a graph,
reads nothing else of any user and costs nothing.

The number of pairs of a user is bounded too (``max_pairs``): it bounds what a device sends and, where cells are rounded
to a grid, by how much rounding can lengthen a row: sqrt(cells touched) / 2 grid cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedquilt.errors import PrivacyError
from fedquilt.privacy.pair_table import PairTable, key_of
from fedquilt.seeds import bits_at

_MARGIN = 2.0**-30  # relative: above the rounding error of a float64 sum of squares


@dataclass(frozen=True)
class PairRows:
    """Rows of several users, sparse: value ``values_Z[z]`` of user ``users_Z[z]`` in cell ``cells_Z[z]``, each once."""

    users_Z: np.ndarray
    cells_Z: np.ndarray
    values_Z: np.ndarray

    def sum(self, cells: int) -> np.ndarray:
        """float64 [cells]."""
        return np.bincount(self.cells_Z, self.values_Z, minlength=cells).astype(np.float64)  # integers, of no rows


def pair_rows(
    table: PairTable, users_C: np.ndarray, items_C: np.ndarray, window: int, max_pairs: int, clipping_norm: float
) -> PairRows:
    """Rows of the users whose clicks these are, each of norm ``clipping_norm``; users without a pair have none.

    ``users_C``: client ids, equal ones together; ``items_C`` in the order of their clicks. A pair up to ``window``
    clicks apart weighs 1 / distance, summed, as in the co-click graph. The ``max_pairs`` heaviest are kept, ties broken
    by a hash of pair and user.
    """
    if window < 1 or max_pairs < 1 or not 0 < clipping_norm < np.inf:
        raise PrivacyError(
            f"pair rows need window, max_pairs >= 1 and a finite clipping norm > 0; got {window}, {max_pairs},"
            f" {clipping_norm}"
        )
    _require_items(items_C, table.num_items)
    ids_U, user_C = np.unique(users_C, return_inverse=True)
    user_M, keys_M, weights_M = _kept(ids_U, *_pairs(user_C, items_C, window), max_pairs)
    cells_MR, signs_MR = table.places(keys_M)
    user_Z = np.repeat(user_M, cells_MR.shape[1])
    user_Z, cells_Z, values_Z = _summed(user_Z, cells_MR.reshape(-1), (signs_MR * weights_M[:, None]).reshape(-1))
    norms_U = np.sqrt(np.bincount(user_Z, values_Z**2, minlength=len(ids_U)))
    scale_U = np.divide(clipping_norm * (1 - _MARGIN), norms_U, out=np.zeros_like(norms_U), where=norms_U > 0)
    return PairRows(ids_U[user_Z], cells_Z, values_Z * scale_U[user_Z])


def most_cells(table: PairTable, max_pairs: int) -> int:
    """Cells that a user's row can be other than zero in."""
    return min(max_pairs * table.copies, table.cells)


def _require_items(items_C: np.ndarray, num_items: int) -> None:
    if len(items_C) and (items_C.min() < 0 or items_C.max() >= num_items):
        raise PrivacyError(f"clicks name items {items_C.min()} .. {items_C.max()}, the table has {num_items:,}")


def _pairs(user_C: np.ndarray, items_C: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(user, key of the pair, weight), each pair of a user once, by user, then key."""
    users, keys, weights = [], [], []
    for distance in range(1, min(window, max(len(items_C) - 1, 0)) + 1):
        near_C, far_C = items_C[:-distance].astype(np.int64), items_C[distance:].astype(np.int64)
        same = (user_C[:-distance] == user_C[distance:]) & (near_C != far_C)
        users.append(user_C[:-distance][same])
        keys.append(key_of(np.minimum(near_C, far_C)[same], np.maximum(near_C, far_C)[same]))
        weights.append(np.full(int(same.sum()), 1.0 / distance))
    if not users:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    return _summed(np.concatenate(users), np.concatenate(keys), np.concatenate(weights))


def _summed(users_M: np.ndarray, keys_M: np.ndarray, values_M: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Equal (user, key) become one with the sum of their values; sorted by user, then key."""
    order = np.lexsort((keys_M, users_M))
    users_M, keys_M = users_M[order], keys_M[order]
    new_M = np.ones(len(order), bool)
    new_M[1:] = (users_M[1:] != users_M[:-1]) | (keys_M[1:] != keys_M[:-1])
    starts = np.flatnonzero(new_M)
    sums = np.add.reduceat(values_M[order], starts) if len(starts) else np.empty(0)
    return users_M[starts], keys_M[starts], sums


def _kept(
    ids_U: np.ndarray, user_M: np.ndarray, keys_M: np.ndarray, weights_M: np.ndarray, max_pairs: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    counts_U = np.bincount(user_M, minlength=len(ids_U))
    if counts_U.max(initial=0) <= max_pairs:
        return user_M, keys_M, weights_M
    ties_M = bits_at(0, 0, ids_U[user_M], keys_M, "privacy/kept-pairs")
    order = np.lexsort((ties_M, -weights_M, user_M))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts_U) - counts_U, counts_U)
    kept = np.sort(order[rank < max_pairs])
    return user_M[kept], keys_M[kept], weights_M[kept]
