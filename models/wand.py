"""The first level of Weak AND retrieval: an inverted index over weighted tokens and the exact top n by token score.

    score(q, i) = sum over tokens t of both of  query_weight(q, t) · item_weight(i, t)

Weights are whole numbers, so sums are exact and bounds need no slack: WAND returns the very list that a scan of all
postings returns. Order: score descending, then item ascending; items that share no token with the query are left out.

Sources: Broder, Carmel, Herscovici, Soffer and Zien 2003, "Efficient query evaluation using a two-level retrieval
process" (pivot and list bounds); Ding and Suel 2011, "Faster top-k document retrieval using block-max indexes".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numba
import numpy as np

from fedquilt.errors import DataError

BLOCK = 16  # postings that share one upper bound
MAX_WEIGHT = 255
_END = np.int64(1) << 40  # beyond every item


@dataclass(frozen=True, eq=False)
class Postings:
    """The lists of T tokens, each by item ascending.

    indptr int64 [T + 1], items int32 [P], weights uint8 [P] (1 ... 255). Bounds: list_max uint8 [T]; token t's blocks,
    block_indptr[t] ... block_indptr[t + 1], have block_last int32 (the last item in the block) and block_max uint8.
    """

    num_items: int
    indptr: np.ndarray
    items: np.ndarray
    weights: np.ndarray
    list_max: np.ndarray
    block_indptr: np.ndarray
    block_last: np.ndarray
    block_max: np.ndarray

    @property
    def num_tokens(self) -> int:
        return len(self.list_max)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    def row(self, token: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(self.indptr[token], self.indptr[token + 1])
        return self.items[part], self.weights[part]


@dataclass(frozen=True, eq=False)
class FirstLevel:
    """The best n items of Q queries, -1 padded, and what finding them cost, each [Q].

    ``postings_read``: postings on which a cursor came to rest, of the ``postings_total`` that a full scan reads.
    ``items_scored``: items whose score was summed in full.
    """

    items_QN: np.ndarray
    scores_QN: np.ndarray
    postings_read_Q: np.ndarray
    postings_total_Q: np.ndarray
    items_scored_Q: np.ndarray

    @property
    def share_skipped(self) -> float:
        """1 - read / total, over all queries together."""
        return 1 - float(self.postings_read_Q.sum()) / max(float(self.postings_total_Q.sum()), 1.0)


def build_postings(
    items_P: np.ndarray, tokens_P: np.ndarray, weights_P: np.ndarray, num_items: int, num_tokens: int
) -> Postings:
    """From (item, token, weight) triples in any order; of a token given twice to an item the larger weight counts.

    Errors: DataError for an item, token or weight out of range. Time O(P log P).
    """
    for name, values, low, high in (
        ("item", items_P, 0, num_items - 1),
        ("token", tokens_P, 0, num_tokens - 1),
        ("weight", weights_P, 1, MAX_WEIGHT),
    ):
        if len(values) and not (low <= values.min() and values.max() <= high):
            raise DataError(f"postings: {name} {values.min()} ... {values.max()} is outside {low} ... {high}")
    keys_P = tokens_P.astype(np.int64) * num_items + items_P
    order = np.lexsort((-weights_P.astype(np.int16), keys_P))
    order = order[np.diff(keys_P[order], prepend=-1) != 0]
    tokens_P, items_P, weights_P = tokens_P[order], items_P[order].astype(np.int32), weights_P[order].astype(np.uint8)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(tokens_P, minlength=num_tokens))]).astype(np.int64)
    return _with_bounds(num_items, indptr, items_P, weights_P)


def _with_bounds(num_items: int, indptr: np.ndarray, items_P: np.ndarray, weights_P: np.ndarray) -> Postings:
    lengths_T = np.diff(indptr)
    blocks_T = -(-lengths_T // BLOCK)
    block_indptr = np.concatenate([[0], np.cumsum(blocks_T)]).astype(np.int64)
    owners = np.repeat(np.arange(len(lengths_T)), blocks_T)
    starts = indptr[owners] + BLOCK * (np.arange(len(owners)) - block_indptr[owners])
    ends = np.minimum(starts + BLOCK, indptr[owners + 1])
    none = np.zeros(0, np.uint8)
    block_max = np.maximum.reduceat(weights_P, starts) if len(starts) else none
    list_max = np.zeros(len(lengths_T), np.uint8)
    np.maximum.at(list_max, owners, block_max)
    return Postings(num_items, indptr, items_P, weights_P, list_max, block_indptr, items_P[ends - 1], block_max)


def checked_postings(num_items: int, arrays: Mapping[str, np.ndarray]) -> Postings:
    """Postings as read from a file, bounds made anew. DataError where the compiled search could leave an array."""
    indptr, items_P, weights_P = arrays["indptr"], arrays["items"], arrays["weights"]
    fits = len(indptr) and indptr[0] == 0 and indptr[-1] == len(items_P) == len(weights_P)
    if (
        not fits
        or (np.diff(indptr) < 0).any()
        or (len(items_P) and not 0 <= items_P.min() <= items_P.max() < num_items)
    ):
        raise DataError("postings: lists and items do not fit each other")
    made = _with_bounds(num_items, indptr.astype(np.int64), items_P.astype(np.int32), weights_P.astype(np.uint8))
    rises = np.diff(made.items.astype(np.int64)) > 0
    firsts = made.indptr[1:-1][(made.indptr[1:-1] > 0) & (made.indptr[1:-1] < len(items_P))]
    rises[firsts - 1] = True
    if not rises.all():
        raise DataError("postings: a list is not sorted by item")
    return made


def scan(postings: Postings, tokens: np.ndarray, weights: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The same answer by reading every posting of the query's tokens: items and scores, at most ``top``."""
    scores_I = np.zeros(postings.num_items, np.int64)
    for token, weight in zip(tokens, weights, strict=True):
        items, item_weights = postings.row(token)
        scores_I[items] += int(weight) * item_weights.astype(np.int64)
    found = np.flatnonzero(scores_I)
    order = found[np.argsort(-scores_I[found], kind="stable")][:top]
    return order, scores_I[order]


def weak_and(postings: Postings, tokens_QS: np.ndarray, weights_QS: np.ndarray, top: int) -> FirstLevel:
    """The ``top`` items of every query by token score; padding in ``tokens_QS`` is -1, and a row's tokens are distinct.

    Time: what WAND cannot skip. Memory O(Q · top).
    """
    queries = len(tokens_QS)
    items_QN = np.full((queries, top), -1, np.int64)
    scores_QN = np.zeros((queries, top), np.int64)
    costs_Q3 = np.zeros((queries, 3), np.int64)
    lists = (postings.indptr, postings.items, postings.weights, postings.list_max)
    blocks = (postings.block_indptr, postings.block_last, postings.block_max)
    _search_all(*lists, *blocks, tokens_QS.astype(np.int64), weights_QS.astype(np.int64), items_QN, scores_QN, costs_Q3)
    return FirstLevel(items_QN, scores_QN, *costs_Q3.T)


@numba.njit(cache=True)
def _search_all(
    indptr,
    items,
    weights,
    list_max,
    block_indptr,
    block_last,
    block_max,
    tokens_QS,
    weights_QS,
    items_QN,
    scores_QN,
    costs,
):
    for q in range(len(tokens_QS)):
        terms = tokens_QS[q][(tokens_QS[q] >= 0) & (weights_QS[q] > 0)]
        query_weights = weights_QS[q][(tokens_QS[q] >= 0) & (weights_QS[q] > 0)]
        _search(
            indptr, items, weights, list_max, block_indptr, block_last, block_max,
            terms, query_weights, items_QN[q], scores_QN[q], costs[q],
        )  # fmt: skip


@numba.njit(cache=True)
def _search(
    indptr, items, weights, list_max, block_indptr, block_last, block_max, terms, query_weights, best, scores, cost
):
    """One query. ``order``: cursors by current item; ``heap``: the best so far, worst first; ``bar``: its score."""
    count, top = len(terms), len(best)
    place, current = np.empty(count, np.int64), np.empty(count, np.int64)
    block, bound = np.empty(count, np.int64), np.empty(count, np.int64)
    order = np.arange(count)
    heap = np.empty(top, np.int64)
    size, bar = 0, np.int64(0)
    for s in range(count):
        term = terms[s]
        place[s], block[s] = indptr[term], block_indptr[term]
        bound[s] = query_weights[s] * list_max[term]
        current[s] = items[place[s]] if indptr[term + 1] > indptr[term] else _END
        cost[0] += current[s] < _END
        cost[1] += indptr[term + 1] - indptr[term]
    while True:
        _sort(order, current)
        total, pivot = np.int64(0), -1
        for at in range(count):
            total += bound[order[at]]
            if total > bar:
                pivot = at
                break
        if pivot < 0 or current[order[pivot]] == _END:
            break
        item = current[order[pivot]]
        while pivot + 1 < count and current[order[pivot + 1]] == item:
            pivot += 1
        total, edge = np.int64(0), _END  # what the blocks around the item allow, and where these blocks end
        for at in range(pivot + 1):
            s = order[at]
            last = block_indptr[terms[s] + 1]
            while block[s] < last and block_last[block[s]] < item:
                block[s] += 1
            if block[s] < last:
                total += query_weights[s] * block_max[block[s]]
                edge = min(edge, block_last[block[s]] + 1)
        if total <= bar:
            target = edge if pivot + 1 == count else min(edge, current[order[pivot + 1]])
            for at in range(pivot + 1):
                s = order[at]
                if current[s] < target:
                    current[s] = _move(s, target, indptr, items, block_indptr, block_last, terms, place, block)
                    cost[0] += current[s] < _END
        elif current[order[0]] == item:
            score = np.int64(0)
            for at in range(pivot + 1):
                s = order[at]
                score += query_weights[s] * weights[place[s]]
                place[s] += 1
                current[s] = items[place[s]] if place[s] < indptr[terms[s] + 1] else _END
                cost[0] += current[s] < _END
            cost[2] += 1
            if score > bar:
                size = _push(heap, size, (score << 32) | (0xFFFFFFFF - item))
                bar = heap[0] >> 32 if size == top else np.int64(0)
        else:
            widest = 0
            for at in range(1, pivot + 1):
                if current[order[at]] < item and bound[order[at]] > bound[order[widest]]:
                    widest = at
            s = order[widest]
            current[s] = _move(s, item, indptr, items, block_indptr, block_last, terms, place, block)
            cost[0] += current[s] < _END
    ranked = np.sort(heap[:size])[::-1]
    for rank in range(size):
        best[rank] = 0xFFFFFFFF - (ranked[rank] & 0xFFFFFFFF)
        scores[rank] = ranked[rank] >> 32


@numba.njit(cache=True)
def _move(s, item, indptr, items, block_indptr, block_last, terms, place, block):
    """Cursor ``s`` to its first posting at or beyond ``item``: block by block, then by halves inside."""
    first, last = block_indptr[terms[s]], block_indptr[terms[s] + 1]
    at = block[s]
    while at < last and block_last[at] < item:
        at += 1
    block[s] = at
    if at == last:
        place[s] = indptr[terms[s] + 1]
        return _END
    low = max(place[s], indptr[terms[s]] + BLOCK * (at - first))
    high = min(indptr[terms[s]] + BLOCK * (at - first + 1), indptr[terms[s] + 1])
    while low < high:
        middle = (low + high) >> 1
        if items[middle] < item:
            low = middle + 1
        else:
            high = middle
    place[s] = low
    return np.int64(items[low])


@numba.njit(cache=True)
def _sort(order, current):
    """By insertion: nearly sorted already."""
    for at in range(1, len(order)):
        s, to = order[at], at
        while to > 0 and current[order[to - 1]] > current[s]:
            order[to] = order[to - 1]
            to -= 1
        order[to] = s


@numba.njit(cache=True)
def _push(heap, size, key):
    """Into a min-heap of fixed room; when it is full, the least key gives way. Returns the new size."""
    if size < len(heap):
        at = size
        while at > 0 and heap[(at - 1) >> 1] > key:
            heap[at] = heap[(at - 1) >> 1]
            at = (at - 1) >> 1
        heap[at] = key
        return size + 1
    at = 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = key
    return size
