"""Held-out clicks by user, and their rank counts given scores."""

from __future__ import annotations

import numpy as np

from fedquilt.graphs.splits import HeldOut
from fedquilt.metrics import rank_counts, rank_counts_sampled

TOP = 20  # items of a user's list that are reported, for coverage and Gini
_FAR = np.float32(-np.inf)


class HeldOutClicks:
    """A split's held-out clicks, looked up by user. Rows are padded to the user with most clicks, whoever is asked."""

    def __init__(self, held_out: HeldOut, num_users: int):
        order = np.argsort(held_out.users_H, kind="stable")
        self._order = order
        self._offsets = np.searchsorted(held_out.users_H[order], np.arange(num_users + 1))
        self._width = int(np.diff(self._offsets).max(initial=0))
        self._held_out = held_out

    def _places(self, ids_K: np.ndarray) -> np.ndarray:
        """int64 [K, M]: rows of the held-out arrays, -1 for padding."""
        ahead_M = np.arange(max(self._width, 1))
        starts, ends = self._offsets[ids_K][:, None], self._offsets[ids_K + 1][:, None]
        inside = starts + ahead_M < ends
        if not len(self._order):
            return np.full(inside.shape, -1)
        return np.where(inside, self._order[np.minimum(starts + ahead_M, len(self._order) - 1)], -1)

    def items(self, ids_K: np.ndarray) -> np.ndarray:
        """int64 [K, M], -1 padded."""
        places_KM = self._places(ids_K)
        if not len(self._order):
            return places_KM
        return np.where(places_KM >= 0, self._held_out.items_H[places_KM], -1)

    def counts(
        self, variant: str, scores_KI: np.ndarray, ids_K: np.ndarray, seen_KI: np.ndarray
    ) -> dict[str, np.ndarray]:
        """``greater_``, ``ties_`` [K, M] (0 where padded) and ``top_<variant>`` [K, TOP] item lists."""
        places_KM = self._places(ids_K)
        rows_H, columns_H = np.nonzero(places_KM >= 0)
        greater_KM, ties_KM = np.zeros_like(places_KM), np.zeros_like(places_KM)
        places_H = places_KM[rows_H, columns_H]
        targets_H = self._held_out.items_H[places_H]
        if self._held_out.negatives_HM is None:
            counts = rank_counts(scores_KI, targets_H, rows_H, seen_KI)
        else:
            negatives_HM = self._held_out.negatives_HM[places_H]
            counts = rank_counts_sampled(scores_KI[rows_H, targets_H], scores_KI[rows_H[:, None], negatives_HM])
        greater_KM[rows_H, columns_H], ties_KM[rows_H, columns_H] = counts
        return {
            f"greater_{variant}": greater_KM,
            f"ties_{variant}": ties_KM,
            f"top_{variant}": _top(np.where(seen_KI, _FAR, scores_KI)),
        }


def _top(scores_KI: np.ndarray) -> np.ndarray:
    """int32 [K, TOP]: best first."""
    width = min(TOP, scores_KI.shape[1])
    best = np.argpartition(-scores_KI, width - 1, axis=1)[:, :width]
    order = np.argsort(-np.take_along_axis(scores_KI, best, 1), axis=1, kind="stable")
    return np.take_along_axis(best, order, 1).astype(np.int32)
