"""From a noised pair table to a co-click graph: estimates, a threshold, the heaviest neighbours. All post-processing.

Three ways to look: at every pair (small catalogues), down a tree of groups (large ones), and, where every pair has its
own cell, through the leading eigenvectors of the noised matrix, which hold what many users have in common.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedquilt.errors import PrivacyError
from fedquilt.graphs.coclick import CoClickGraph, graph_from_edges, heaviest_per_row
from fedquilt.privacy.pair_table import PairTable, items_of, key_of

SPECTRAL_ITEMS = 5000  # a dense eigendecomposition: 1 s at 1,000 items, 2 minutes and 0.6 GB at 5,000
_CHUNK = 1 << 20


@dataclass(frozen=True)
class HeavyPairs:
    """Pairs above the threshold, heaviest first: keys int64 [M], estimates float64 [M], and the threshold itself."""

    keys_M: np.ndarray
    estimates_M: np.ndarray
    threshold: float
    rank: int = 0  # eigenvectors that were kept; 0: none were looked for


def heavy_pairs(table: PairTable, table_W: np.ndarray, std: float, threshold: float, beam: int = 1 << 20) -> HeavyPairs:
    """Pairs of different items whose estimate exceeds ``threshold`` stds of the noise in an estimate.

    ``std``: of the noise in every cell; without noise every pair above 0 is kept. On every level at most the ``beam``
    heaviest pairs are followed.
    """
    _require(table, table_W, std, threshold)
    chunks = _all_keys(table.pairs(0))
    last = len(table.shifts) - 1
    for level in range(last):
        limit = threshold * table.estimate_std(level, std)
        groups, _ = _above(table, table_W, level, chunks, limit, beam)
        chunks = _in_chunks(_children(groups, table, level))
    limit = threshold * table.estimate_std(last, std)
    keys, estimates = _above(table, table_W, last, chunks, limit, beam)
    return HeavyPairs(keys, estimates, limit)


def spectral_pairs(table: PairTable, table_W: np.ndarray, std: float, threshold: float) -> HeavyPairs:
    """Heavy pairs of the noised symmetric matrix M [I, I], shrunk towards its leading eigenvectors.

    Eigenvalues within the noise's edge 2 std sqrt(I) (Wigner) are dropped, others become sign(λ) sqrt(λ² - edge²): the
    least squared error for symmetric Gaussian noise (Gavish and Donoho 2017, arXiv:1405.7511, in the Frobenius
    norm). That gives S. What single pairs have beyond it returns with weight c S / (c S + std²), where c, one number,
    fits the residual's variance beyond the noise's to a multiple of S, as it would be for counts. The threshold counts
    stds of the noise that S has on average, std sqrt(2 r / I) with r eigenvectors. Time O(I³).
    """
    _require(table, table_W, std, threshold)
    if not table.exact(len(table.shifts) - 1) or table.num_items > SPECTRAL_ITEMS or table.copies != 1:
        raise PrivacyError(
            f"spectral decoding needs one cell for each pair of at most {SPECTRAL_ITEMS:,} items; this table has"
            f" {table.cells:,} cells in {len(table.shifts)} levels for {table.num_items:,}: decode by threshold alone"
        )
    noisy_II, lows_M, highs_M = _matrix(table.num_items, table_W)
    values, vectors = np.linalg.eigh(noisy_II)
    edge = 2 * std * math.sqrt(table.num_items)
    shrunk = np.sign(values) * np.sqrt(np.maximum(values**2 - edge**2, 0))
    kept = np.flatnonzero(shrunk)
    smooth_M = np.maximum(((vectors[:, kept] * shrunk[kept]) @ vectors[:, kept].T)[lows_M, highs_M], 0)
    estimates_M = smooth_M + _returned(noisy_II[lows_M, highs_M] - smooth_M, smooth_M, std)
    limit = threshold * std * math.sqrt(min(2 * len(kept) / table.num_items, 1.0))
    above = np.flatnonzero(estimates_M > limit)
    return _ordered(key_of(lows_M[above], highs_M[above]), estimates_M[above], limit, len(kept))


def graph_of(pairs: HeavyPairs, num_items: int, top_neighbours: int) -> CoClickGraph:
    """An edge is kept when either end has it among its ``top_neighbours`` heaviest, as in the raw graph."""
    lows_M, highs_M = items_of(pairs.keys_M)
    rows = np.concatenate([lows_M, highs_M])
    columns = np.concatenate([highs_M, lows_M])
    weights = np.concatenate([pairs.estimates_M, pairs.estimates_M]).astype(np.float32)
    order = np.lexsort((columns, rows))
    kept_rows, kept_columns, kept_weights = heaviest_per_row(
        rows[order], columns[order], weights[order], top_neighbours
    )
    keys = key_of(np.minimum(kept_rows, kept_columns), np.maximum(kept_rows, kept_columns))
    unique, first = np.unique(keys, return_index=True)
    lows, highs = items_of(unique)
    return graph_from_edges(lows, highs, kept_weights[first], num_items, symmetric=True)[0]


def _require(table: PairTable, table_W: np.ndarray, std: float, threshold: float) -> None:
    if table_W.shape != (table.cells,):
        raise PrivacyError(f"a table of {table.cells:,} cells is not an array of shape {table_W.shape}")
    if not np.isfinite(table_W).all():
        raise PrivacyError("the pair table is not finite: nothing can be read from it")
    if not (std >= 0 and threshold >= 0 and math.isfinite(std) and math.isfinite(threshold)):
        raise PrivacyError(f"noise and threshold are finite and not negative; got {std}, {threshold}")


def _all_keys(count: int) -> Iterator[np.ndarray]:
    for first in range(0, count, _CHUNK):
        yield np.arange(first, min(first + _CHUNK, count), dtype=np.int64)


def _in_chunks(keys_M: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(keys_M), _CHUNK):
        yield keys_M[first : first + _CHUNK]


def _above(
    table: PairTable, table_W: np.ndarray, level: int, chunks: Iterator[np.ndarray], limit: float, beam: int
) -> tuple[np.ndarray, np.ndarray]:
    keys, estimates = np.empty(0, np.int64), np.empty(0)
    single = table.shifts[level] == 0
    for chunk in chunks:
        read = table.estimates(table_W, level, chunk)
        kept = read > limit
        if single:
            lows, highs = items_of(chunk)
            kept &= lows != highs
        keys, estimates = np.concatenate([keys, chunk[kept]]), np.concatenate([estimates, read[kept]])
        if len(keys) > beam:
            first = np.argpartition(-estimates, beam - 1)[:beam]
            keys, estimates = keys[first], estimates[first]
    order = np.lexsort((keys, -estimates))
    return keys[order], estimates[order]


def _children(keys_M: np.ndarray, table: PairTable, level: int) -> np.ndarray:
    """Sorted keys on the next level of all pairs of groups within these pairs of groups."""
    lows_M, highs_M = items_of(keys_M)
    step = table.shifts[level] - table.shifts[level + 1]
    groups = -(-table.num_items >> table.shifts[level + 1])
    own = np.arange(1 << step)
    lows = ((lows_M[:, None, None] << step) + own[None, :, None]) + np.zeros_like(own)[None, None, :]
    highs = ((highs_M[:, None, None] << step) + own[None, None, :]) + np.zeros_like(own)[None, :, None]
    fits = (lows < groups) & (highs < groups)
    low, high = np.minimum(lows, highs)[fits], np.maximum(lows, highs)[fits]
    return np.unique(key_of(low, high))


def _matrix(num_items: int, table_W: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-> (symmetric [I, I] with a zero diagonal, rows and columns of its pairs)."""
    highs_M, lows_M = np.tril_indices(num_items, -1)
    matrix_II = np.zeros((num_items, num_items))
    matrix_II[lows_M, highs_M] = matrix_II[highs_M, lows_M] = table_W[key_of(lows_M, highs_M)]
    return matrix_II, lows_M, highs_M


def _returned(residual_M: np.ndarray, smooth_M: np.ndarray, std: float) -> np.ndarray:
    if std == 0:
        return residual_M
    beyond = max(float((residual_M**2 - std**2).sum()), 0.0)
    scale = beyond / max(float(smooth_M.sum()), 1e-300)
    spread_M = scale * smooth_M
    return residual_M * (spread_M / (spread_M + std**2))


def _ordered(keys_M: np.ndarray, estimates_M: np.ndarray, limit: float, rank: int) -> HeavyPairs:
    order = np.lexsort((keys_M, -estimates_M))
    return HeavyPairs(keys_M[order], estimates_M[order], limit, rank)
