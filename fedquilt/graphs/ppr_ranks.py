"""Ranks by personalised PageRank: which items stand at rank 2,000 .. 5,000 of an item, the hard negatives of PinSage.

pi = alpha · sum_k (1 - alpha)^k · e_seed P^k, with P(i -> j) = weight(i, j) / sum_k weight(i, k). By forward push
(Andersen, Chung and Lang 2006): of an item's residual mass, part alpha goes to its score, the rest to its neighbours,
until every item v holds a residual of at most tolerance · W(v) / W, with W(v) the sum of its weights, W that of all.
So no more than ``tolerance`` of the mass is left over, and on a symmetric graph a score falls short of the exact one by
at most tolerance · W(v) / W, that share of the item's popularity. Small tolerances are exact; a tolerance of 1 or more
stays near the seed, and its work, at most E / (alpha · tolerance) edges where weights are alike, grows with the mean
degree and not with the number of items if the tolerance grows with it.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from fedquilt.errors import ConfigError, DataError
from fedquilt.graphs.coclick import CoClickGraph
from fedquilt.graphs.importance import checked_seeds

TOLERANCE = 1e-3


def window_of(num_items: int, share_first: float, share_last: float) -> tuple[int, int]:
    """Ranks as shares of the catalogue: the first rank beyond share_first, and the last within share_last.

    At least one rank, and none beyond the num_items - 1 other items. Errors: ``ConfigError`` unless
    0 <= share_first < share_last <= 1, ``DataError`` for a catalogue of one item.
    """
    if not 0 <= share_first < share_last <= 1:
        raise ConfigError(f"PPR window: need 0 <= first < last <= 1 as shares; got {share_first}, {share_last}")
    if num_items < 2:
        raise DataError(f"PPR window: no other items to rank in a catalogue of {num_items}")
    first = min(math.floor(share_first * num_items) + 1, num_items - 1)
    return first, max(first, min(math.floor(share_last * num_items), num_items - 1))


def ppr_window(
    graph: CoClickGraph,
    seeds_S: np.ndarray,
    first_rank: int,
    last_rank: int,
    alpha: float,
    tolerance: float = TOLERANCE,
) -> np.ndarray:
    """items_SR int32: the items of PPR rank first_rank .. last_rank of every seed, in that order, -1 padded.

    Rank 1 is the best item other than the seed; equal scores: the smaller item. Only items that the push reaches have
    a rank: with a small tolerance all of the seed's component, with a large one those near it. Memory beyond the
    result: 48 bytes an item, whatever the number of seeds, and for a moment 16 bytes an edge.
    Errors: ``ConfigError`` for ranks or settings out of range, ``DataError`` for seeds beyond the graph.
    """
    if not 1 <= first_rank <= last_rank:
        raise ConfigError(f"PPR window: need 1 <= first_rank <= last_rank; got {first_rank}, {last_rank}")
    if not 0 < alpha < 1 or not tolerance > 0:
        raise ConfigError(f"PPR window: need 0 < alpha < 1 and tolerance > 0; got {alpha}, {tolerance}")
    seeds_S = checked_seeds(graph, seeds_S)
    items_SR = np.full((len(seeds_S), last_rank - first_rank + 1), -1, np.int32)
    push = _Push(graph, alpha, tolerance)
    for row, seed in enumerate(seeds_S):
        items, scores = push.scores(int(seed))
        items = _ranked(items, scores, last_rank)[first_rank - 1 :]
        items_SR[row, : len(items)] = items
    return items_SR


def ppr_scores(graph: CoClickGraph, seed: int, alpha: float, tolerance: float = TOLERANCE) -> np.ndarray:
    """float64 [I]: the scores that ``ppr_window`` ranks by, the seed's own (not ranked) left out as 0."""
    scores_I = np.zeros(graph.num_items)
    items, scores = _Push(graph, alpha, tolerance).scores(int(checked_seeds(graph, np.array([seed]))[0]))
    scores_I[items] = scores
    return scores_I


class _Push:
    """Scratch space of the size of the catalogue, used again for every seed."""

    def __init__(self, graph: CoClickGraph, alpha: float, tolerance: float):
        self.graph, self.alpha = graph, alpha
        rows_E = np.repeat(np.arange(graph.num_items), np.diff(graph.indptr))
        self.totals_I = np.bincount(rows_E, graph.weights, minlength=graph.num_items).astype(np.float64)
        self.limits_I = self.totals_I * (tolerance / max(self.totals_I.sum(), 1e-300))
        self.scores_I, self.residuals_I = np.zeros(graph.num_items), np.zeros(graph.num_items)
        self.queue = np.empty(graph.num_items + 1, np.int64)
        self.touched = np.empty(graph.num_items, np.int64)

    def scores(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Items other than the seed with a positive score, and the scores."""
        graph = self.graph
        count = _push(
            graph.indptr, graph.indices, graph.weights, self.totals_I, self.limits_I, seed, self.alpha,
            self.scores_I, self.residuals_I, self.queue, self.touched,
        )  # fmt: skip
        touched = self.touched[:count]
        items = touched[(self.scores_I[touched] > 0) & (touched != seed)]
        scores = self.scores_I[items]
        self.scores_I[touched] = self.residuals_I[touched] = 0
        return items, scores


def _ranked(items: np.ndarray, scores: np.ndarray, last_rank: int) -> np.ndarray:
    """The best ``last_rank`` items in order."""
    if len(items) > last_rank:
        worst = np.partition(scores, len(scores) - last_rank)[len(scores) - last_rank]
        items, scores = items[scores >= worst], scores[scores >= worst]
    return items[np.lexsort((items, -scores))][:last_rank]


@njit(cache=True, nogil=True)
def _push(indptr, indices, weights, totals_I, limits_I, seed, alpha, scores_I, residuals_I, queue, touched):
    """First in, first out. An item is in the queue when its residual is above its limit, and only once."""
    queue[0] = touched[0] = seed
    residuals_I[seed] = 1.0
    head, tail, num_touched = 0, 1, 1
    while head != tail:
        item = queue[head]
        head = head + 1 if head + 1 < len(queue) else 0
        residual = residuals_I[item]
        residuals_I[item] = 0.0
        scores_I[item] += alpha * residual
        if totals_I[item] <= 0.0:
            continue
        spread = (1.0 - alpha) * residual / totals_I[item]
        for edge in range(indptr[item], indptr[item + 1]):
            other = indices[edge]
            before = residuals_I[other]
            after = before + spread * weights[edge]
            if before == 0.0 and scores_I[other] == 0.0 and after > 0.0:
                touched[num_touched] = other
                num_touched += 1
            residuals_I[other] = after
            if before <= limits_I[other] < after:
                queue[tail] = other
                tail = tail + 1 if tail + 1 < len(queue) else 0
    return num_touched
