"""Exact search: every inner product, in blocks that fit the cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.retrieval_base import Arrays, Found, checked_queries, checked_vectors, ranked

ITEMS, QUERIES = 1 << 16, 128  # a block: 32 MiB of products


class ExactIndex:
    """Holds the vectors and nothing else: 4 F bytes an item. O(I · F) a query. Stands in where faiss is missing."""

    kind = "exact"

    def __init__(self, vectors_IF: np.ndarray):
        self.vectors_IF = vectors_IF
        self.num_items, self.dim = vectors_IF.shape

    @classmethod
    def build(cls, vectors_IF: np.ndarray) -> ExactIndex:
        return cls(checked_vectors(vectors_IF))

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: Arrays) -> ExactIndex:
        return cls.build(arrays["vectors"])

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {}, {"vectors": self.vectors_IF}

    @property
    def bytes_per_item(self) -> float:
        return self.vectors_IF.nbytes / self.num_items

    def search(self, queries_QF: np.ndarray, k: int) -> Found:
        queries_QF = checked_queries(queries_QF, self.dim, k)
        parts = [self._best(queries_QF[first : first + QUERIES], k) for first in range(0, len(queries_QF), QUERIES)]
        if not parts:
            return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
        items, scores = zip(*parts, strict=True)
        return np.concatenate(items), np.concatenate(scores)

    def _best(self, queries_QF: np.ndarray, k: int) -> Found:
        """The best k so far goes into the ranking of the next block, so memory does not grow with the items."""
        items_QK, scores_QK = np.empty((len(queries_QF), 0), np.int64), np.empty((len(queries_QF), 0), np.float32)
        for first in range(0, self.num_items, ITEMS):
            scores_QB = queries_QF @ self.vectors_IF[first : first + ITEMS].T
            places_QC = largest(scores_QB, k)
            chosen_QC = np.take_along_axis(scores_QB, places_QC, 1)
            items_QC = np.concatenate([items_QK, places_QC + first], axis=1)
            items_QK, scores_QK = ranked(items_QC, np.concatenate([scores_QK, chosen_QC], axis=1), k)
        return items_QK, scores_QK


def largest(scores_QB: np.ndarray, k: int) -> np.ndarray:
    """Places [Q, min(k, B)] of each row's k largest, in any order; of equal scores at the border, the first."""
    width = scores_QB.shape[1]
    if k >= width:
        return np.broadcast_to(np.arange(width), scores_QB.shape)
    places_QK = np.argpartition(scores_QB, width - k, axis=1)[:, width - k :]
    border_Q = np.take_along_axis(scores_QB, places_QK, 1).min(1)
    for row in np.flatnonzero((scores_QB >= border_Q[:, None]).sum(1) > k):
        above = np.flatnonzero(scores_QB[row] > border_Q[row])
        places_QK[row] = np.concatenate([above, np.flatnonzero(scores_QB[row] == border_Q[row])[: k - len(above)]])
    return places_QK
