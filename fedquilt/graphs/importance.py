"""Which neighbours matter: random-walk visit counts and personalised PageRank on the co-click graph.

Both give, for S seeds, the T most important other items with weights that sum to 1: the table behind importance
pooling (PinSage, Ying et al. 2018, arXiv:1806.01973) and behind local subgraphs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from fedquilt.errors import ConfigError, DataError
from fedquilt.graphs.coclick import CoClickGraph, heaviest_per_row
from fedquilt.graphs.walks import top_visited

_PPR_SEEDS = 1024  # at a time


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """items_ST int32, most important first (equal: smaller id), -1 where there are fewer than T; weights_ST float32.

    A row's weights sum to 1, or to 0 for a seed that reaches nothing. The seed itself is never in its row.
    """

    items_ST: np.ndarray
    weights_ST: np.ndarray

    @property
    def mask_ST(self) -> np.ndarray:
        return self.items_ST >= 0

    def __len__(self) -> int:
        return len(self.items_ST)


def visit_counts(
    graph: CoClickGraph,
    seeds_S: np.ndarray,
    num_walks: int,
    walk_length: int,
    generator: np.random.Generator,
    top: int,
    restart: float = 0.0,
) -> Neighbourhoods:
    """How often ``num_walks`` walks of ``walk_length`` hops from each seed visit each other item, the ``top`` most.

    P(i -> j) = weight(i, j) / sum_k weight(i, k); before each hop a walker returns to its seed with probability
    ``restart``. Every arrival counts, except at the seed. One number is drawn from the generator, a key; a seed's row
    depends on the key, the seed and the settings, and not on the other seeds, their order or number.
    """
    if num_walks < 1 or walk_length < 1 or top < 1 or not 0 <= restart < 1:
        raise ConfigError(
            f"graph: need num_walks, walk_length, top >= 1 and 0 <= restart < 1; "
            f"got {num_walks}, {walk_length}, {top}, {restart}"
        )
    seeds_S = checked_seeds(graph, seeds_S)
    key = int(generator.integers(1 << 64, dtype=np.uint64))
    items_ST, counts_ST = top_visited(graph, seeds_S, num_walks, walk_length, key, top, restart)
    totals_S = np.maximum(counts_ST.sum(axis=1), 1)
    return Neighbourhoods(items_ST, (counts_ST / totals_S[:, None]).astype(np.float32))


def ppr(graph: CoClickGraph, seeds_S: np.ndarray, alpha: float, top: int, num_hops: int = 2) -> Neighbourhoods:
    """Personalised PageRank within ``num_hops``: pi = alpha · sum_{k <= num_hops} (1 - alpha)^k · e_seed P^k.

    ``alpha`` is the probability of stopping before each hop. Power iteration on sparse rows, all seeds of a chunk in
    one product a hop; what lies beyond ``num_hops`` has mass (1 - alpha)^(num_hops + 1), so that many hops give the
    untruncated vector. Source: Page et al. 1999, with the restart of Haveliwala 2002.
    """
    if not 0 < alpha < 1 or top < 1 or num_hops < 1:
        raise ConfigError(f"graph: need 0 < alpha < 1, top >= 1, num_hops >= 1; got {alpha}, {top}, {num_hops}")
    transitions = _transitions(graph)

    def spread(seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reached = transitions[seeds] * (1 - alpha)
        total = reached
        for _ in range(num_hops - 1):
            reached = (reached @ transitions) * (1 - alpha)
            total = total + reached
        total.sort_indices()
        rows = np.repeat(np.arange(len(seeds)), np.diff(total.indptr))
        others = total.indices != seeds[rows]
        return rows[others], total.indices[others], alpha * total.data[others]

    return _top_in_chunks(graph, seeds_S, spread, _PPR_SEEDS, top)


def checked_seeds(graph: CoClickGraph, seeds_S: np.ndarray) -> np.ndarray:
    """Seeds as int64. Errors: ``DataError`` for an item that the graph does not have."""
    seeds_S = np.asarray(seeds_S, np.int64)
    if seeds_S.size and not 0 <= seeds_S.min() <= seeds_S.max() < graph.num_items:
        raise DataError(f"seeds {seeds_S.min()} .. {seeds_S.max()} in a graph of {graph.num_items} items")
    return seeds_S


def _transitions(graph: CoClickGraph) -> sparse.csr_array:
    """Row-stochastic P, float64; the row of an isolated item is empty."""
    matrix = graph.to_scipy().astype(np.float64)
    totals_I = matrix.sum(axis=1)
    matrix.data /= np.repeat(totals_I, np.diff(matrix.indptr))
    return matrix


def _top_in_chunks(
    graph: CoClickGraph,
    seeds_S: np.ndarray,
    scores: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]],
    chunk: int,
    top: int,
) -> Neighbourhoods:
    """``scores`` maps seeds to (row, item, score) sorted by row, then item; the largest are kept and normalised."""
    seeds_S = checked_seeds(graph, seeds_S)
    items_ST = np.full((len(seeds_S), top), -1, np.int32)
    weights_ST = np.zeros((len(seeds_S), top), np.float32)
    for start in range(0, len(seeds_S), chunk):
        rows, items, values = scores(seeds_S[start : start + chunk])
        rows, items, values = heaviest_per_row(rows, items, values.astype(np.float32), top)
        ranks = np.arange(len(rows)) - np.searchsorted(rows, rows)
        totals = np.bincount(rows, values)
        items_ST[start + rows, ranks] = items
        weights_ST[start + rows, ranks] = values / totals[rows]
    return Neighbourhoods(items_ST, weights_ST)
