"""What every index shares: the interface, what is refused, and how best-of-k lists are ordered and padded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from fedquilt.errors import ConfigError, DataError

Arrays = Mapping[str, np.ndarray]
Found = tuple[np.ndarray, np.ndarray]
SHOWN = 5  # rows that an error names


class Index(Protocol):
    """I vectors of width F, searched by inner product.

    ``search(queries_QF, k)`` -> items_QK int64, scores_QK float32: the best k of every query, score descending, equal
    scores by item. Always K = k columns: where the index holds or finds fewer, the rest is item -1 with score -inf.
    Errors: DataError for queries of another width or not finite; ConfigError for k below 1.
    """

    kind: str
    num_items: int
    dim: int

    def search(self, queries_QF: np.ndarray, k: int) -> Found: ...

    @property
    def bytes_per_item(self) -> float:
        """Everything that a search reads, over the items: codes, lists, links, and vectors where they are kept."""
        ...

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Settings (plain JSON) and arrays: what a file holds."""
        ...


def checked_vectors(vectors_IF: np.ndarray, what: str = "item vectors") -> np.ndarray:
    """float32 [I, F], contiguous. DataError for another shape, no rows, no columns, NaN or infinity."""
    vectors_IF = np.asarray(vectors_IF)
    if vectors_IF.ndim != 2 or 0 in vectors_IF.shape:
        raise DataError(f"{what}: expected a table [items, width] with at least one of each; got {vectors_IF.shape}")
    vectors_IF = np.ascontiguousarray(vectors_IF, np.float32)
    _refuse_not_finite(vectors_IF, what)
    return vectors_IF


def checked_queries(queries_QF: np.ndarray, dim: int, k: int) -> np.ndarray:
    """float32 [Q, F], contiguous; Q may be 0."""
    if k < 1:
        raise ConfigError(f"k must be at least 1; got {k}")
    queries_QF = np.asarray(queries_QF)
    if queries_QF.ndim != 2 or queries_QF.shape[1] != dim:
        raise DataError(f"queries: expected [queries, {dim}], the width of the indexed vectors; got {queries_QF.shape}")
    queries_QF = np.ascontiguousarray(queries_QF, np.float32)
    _refuse_not_finite(queries_QF, "queries")
    return queries_QF


def _refuse_not_finite(values_IF: np.ndarray, what: str) -> None:
    bad = np.flatnonzero(~np.isfinite(values_IF).all(1))
    if len(bad):
        named = ", ".join(map(str, bad[:SHOWN])) + (", ..." if len(bad) > SHOWN else "")
        raise DataError(
            f"{what}: {len(bad)} of {len(values_IF)} rows hold NaN or infinity (rows {named}); mend them first"
        )


def ranked(items_QC: np.ndarray, scores_QC: np.ndarray, k: int) -> Found:
    """Candidates in any order -> the best k, padded. A candidate is missing where its item is -1."""
    scores_QC = np.where(items_QC >= 0, scores_QC, -np.inf)
    order = np.lexsort((items_QC, -scores_QC), axis=1)[:, :k]
    items_QK = np.full((len(items_QC), k), -1, np.int64)
    scores_QK = np.full((len(items_QC), k), -np.inf, np.float32)
    items_QK[:, : order.shape[1]] = np.take_along_axis(items_QC, order, 1)
    scores_QK[:, : order.shape[1]] = np.take_along_axis(scores_QC, order, 1)
    return items_QK, scores_QK


def reranked(vectors_IF: np.ndarray, queries_QF: np.ndarray, items_QC: np.ndarray, k: int) -> Found:
    """The best k of every query's candidates by exact inner product. Candidates are distinct; -1 = none."""
    scores_QC = np.full(items_QC.shape, -np.inf, np.float32)
    for query_F, items_C, scores_C in zip(queries_QF, items_QC, scores_QC, strict=True):
        there = items_C >= 0
        scores_C[there] = vectors_IF[items_C[there]] @ query_F
    return ranked(items_QC, scores_QC, k)
