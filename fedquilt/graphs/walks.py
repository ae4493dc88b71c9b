"""Random walks with restart, counted: how often walks from a seed visit each other item, and the T most visited.

P(i -> j) = weight(i, j) / sum_k weight(i, k). Before each hop a walker returns to its seed with probability
``restart``; from an item without neighbours it goes on as from its seed. Every arrival counts, except at the seed.

Compiled (numba), one thread, and fast on a graph that no cache holds for two reasons. A thousand walkers take each step
together, so that the processor waits for many memory reads at once. And a hop is one read: a cell of the alias table
(Walker 1977; Vose 1991) holds, instead of an item, the place of that item's own row (see ``WalkTables``).

Every draw is SplitMix64 (Steele, Lea and Flood 2014) of (key, seed item, walk, step). So a seed's row depends on the
key, the seed item and the settings, and not on the other seeds, their order or number, or the machine; and the first
walks and steps of a larger setting are those of the smaller one.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numba import njit

from fedquilt.errors import DataError
from fedquilt.graphs.coclick import CoClickGraph

_WALKERS = 1024  # in step with each other: enough to hide memory latency, few enough for the first cache
_VISITS = 1 << 17  # kept at a time before they are counted: 512 KiB
_MIN_WALKERS = 64
_BUCKET_BITS = 4

_MAX_DEGREE = (1 << 20) - 1
_MAX_CELLS = (1 << 32) - 1
_SHARE = 1 << 24

_0, _1, _6, _8 = np.uint64(0), np.uint64(1), np.uint64(6), np.uint64(8)
_12, _16, _24, _32, _40 = (np.uint64(bits) for bits in (12, 16, 24, 32, 40))
_LOW_12, _LOW_20, _LOW_24, _LOW_32 = (np.uint64((1 << bits) - 1) for bits in (12, 20, 24, 32))
_27, _30, _31 = np.uint64(27), np.uint64(30), np.uint64(31)
GOLDEN, _MIX_1, _MIX_2 = (np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True, eq=False)
class WalkTables:
    """A graph laid out for walking.

    places_I uint64: an item's first cell << 32 | its degree << 12. An item without neighbours has one empty cell, so
    that a first cell names its item. cells_EC uint64, alias cells: with probability share / 2^24 the hop ends at the
    first place of the cell, else at the second; the share lies in the low 12 bits of both. Where all weights are equal
    there is only the first place (C = 1), 8 bytes an edge; otherwise C = 2, 16 bytes an edge. first_item_B int32: the
    first item whose cells begin at or after cell 16 · b.
    """

    places_I: np.ndarray
    cells_EC: np.ndarray
    first_item_B: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes beyond the graph's own."""
        return self.places_I.nbytes + self.cells_EC.nbytes + self.first_item_B.nbytes


_tables: WeakKeyDictionary[CoClickGraph, WalkTables] = WeakKeyDictionary()


def walk_tables(graph: CoClickGraph) -> WalkTables:
    """The tables of a graph, made once and kept as long as it lives. Time O(I + E).

    Errors: ``DataError`` for more than 2^20 - 1 neighbours of one item, more than 2^32 - 1 edges, or a weight that is
    not positive and finite.
    """
    if graph not in _tables:
        _tables[graph] = _build_tables(graph)
    return _tables[graph]


def top_visited(
    graph: CoClickGraph, seeds_S: np.ndarray, num_walks: int, walk_length: int, key: int, top: int, restart: float
) -> tuple[np.ndarray, np.ndarray]:
    """The ``top`` most visited items of every seed and how often: items_ST int32 (-1 padded), counts_ST int64.

    Equal counts: the smaller item. ``restart`` has a resolution of 2^-24, an edge's probability one of 2^-24 over the
    degree. Time O(S · num_walks · walk_length); memory beyond the result and the tables: under 1 MiB (from 2,048 hops
    on, 256 bytes a hop), and at most 80 bytes for each different item that a seed can visit.
    """
    tables = walk_tables(graph)
    items_ST = np.full((len(seeds_S), top), -1, np.int32)
    counts_ST = np.zeros((len(seeds_S), top), np.int64)
    walkers = max(_MIN_WALKERS, min(_WALKERS, _VISITS // walk_length))
    most = min(num_walks * walk_length, graph.num_items)  # different items that a seed can visit
    bits = max(4, int(4 * most - 1).bit_length())
    _walk_and_count(
        tables.places_I, tables.cells_EC, tables.first_item_B, np.ascontiguousarray(seeds_S, np.int64), num_walks,
        walk_length, np.uint64(key), np.uint64(round(restart * _SHARE)), walkers, bits, items_ST, counts_ST,
    )  # fmt: skip
    return items_ST, counts_ST


def _build_tables(graph: CoClickGraph) -> WalkTables:
    degrees_I, weights = np.diff(graph.indptr), graph.weights
    if degrees_I.max(initial=0) > _MAX_DEGREE:
        item = int(degrees_I.argmax())
        raise DataError(f"graph: item {item} has {degrees_I[item]} neighbours, over {_MAX_DEGREE}; prune its edges")
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        edge = int(np.argmin(np.isfinite(weights) & (weights > 0)))
        item = int(np.searchsorted(graph.indptr, edge, side="right")) - 1
        raise DataError(f"graph: an edge of item {item} has weight {weights[edge]}; walks need finite positive weights")
    ends_I = np.cumsum(np.maximum(degrees_I, 1))
    num_cells = int(ends_I[-1]) if len(ends_I) else 0
    if num_cells > _MAX_CELLS:
        raise DataError(f"graph: {num_cells} edges, over {_MAX_CELLS}; prune them")
    firsts_I = ends_I - np.maximum(degrees_I, 1)
    places_I = (firsts_I.astype(np.uint64) << _32) | (degrees_I.astype(np.uint64) << _12)
    equal = bool(len(weights) == 0 or weights.min() == weights.max())
    cells_EC = np.zeros((num_cells, 1 if equal else 2), np.uint64)
    _fill_cells(graph.indptr, graph.indices, weights, places_I, cells_EC, int(degrees_I.max(initial=0)))
    buckets = np.arange((num_cells >> _BUCKET_BITS) + 1, dtype=np.int64) << _BUCKET_BITS
    return WalkTables(places_I, cells_EC, np.searchsorted(firsts_I, buckets).astype(np.int32))


@njit(cache=True, nogil=True)
def _fill_cells(indptr, indices, weights, places_I, cells_EC, max_degree):
    """Vose's method, row by row: large cells fill up what small cells leave."""
    scaled = np.empty(max_degree, np.float64)
    others = np.empty(max_degree, np.int64)
    queue = np.empty(max_degree, np.int64)  # small cells from the left, large ones from the right
    for item in range(len(indptr) - 1):
        edges = indptr[item]
        degree = indptr[item + 1] - edges
        cells = np.int64(places_I[item] >> _32)
        if cells_EC.shape[1] == 1:
            for e in range(degree):
                cells_EC[cells + e, 0] = places_I[indices[edges + e]]
            continue
        _alias_row(weights[edges : edges + degree], scaled, others, queue)
        for e in range(degree):
            share = np.uint64(scaled[e] * (_SHARE - 1) + 0.5)
            cells_EC[cells + e, 0] = places_I[indices[edges + e]] | (share >> _12)
            cells_EC[cells + e, 1] = places_I[indices[edges + others[e]]] | (share & _LOW_12)


@njit(cache=True, nogil=True)
def _alias_row(weights, scaled, others, queue):
    """scaled[e]: the share of cell e that is its own; others[e]: whose the rest is."""
    degree, total = len(weights), 0.0
    for e in range(degree):
        total += weights[e]
    small, large = 0, degree
    for e in range(degree):
        scaled[e] = weights[e] * degree / total
        others[e] = e
        if scaled[e] < 1.0:
            queue[small] = e
            small += 1
        else:
            large -= 1
            queue[large] = e
    while small > 0 and large < degree:
        small -= 1
        poor, rich = queue[small], queue[large]
        others[poor] = rich
        scaled[rich] -= 1.0 - scaled[poor]
        if scaled[rich] < 1.0:
            large += 1
            queue[small] = rich
            small += 1
    for e in range(small):  # rounding leaves cells that should be full
        scaled[queue[e]] = 1.0
    for e in range(large, degree):
        scaled[queue[e]] = 1.0


@njit(cache=True, nogil=True, inline="always")
def mix(x):
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    return x ^ (x >> _31)


@njit(cache=True, nogil=True)
def _walk_and_count(
    places_I, cells_EC, first_item_B, seeds_S, num_walks, walk_length, key, restart, walkers, bits, items_ST, counts_ST
):
    """Walkers are numbered seed by seed; a chunk of them walks, then each seed's part of the chunk is counted."""
    home, at = np.empty(walkers, np.uint64), np.empty(walkers, np.uint64)
    draws, cells, shares = np.empty(walkers, np.uint64), np.empty(walkers, np.uint64), np.empty(walkers, np.uint64)
    visits = np.empty((walk_length, walkers), np.uint32)
    table = np.zeros(1 << bits, np.uint64)
    used = np.empty((1 << bits) + 1, np.uint64)
    ranks, buckets = np.empty((1 << bits) + 1, np.uint64), np.zeros(9 << 6, np.int64)
    cell_shift = _0
    while np.uint64(len(cells_EC)) >> cell_shift >= np.uint64(64):
        cell_shift += _1
    num_used, top = np.int64(0), items_ST.shape[1]
    total = len(seeds_S) * num_walks
    for first in range(0, total, walkers):
        count = min(walkers, total - first)
        for i in range(count):
            seed, walk = (first + i) // num_walks, (first + i) % num_walks
            home[i] = places_I[seeds_S[seed]]
            stream = mix(key + np.uint64(seeds_S[seed] + 1) * GOLDEN)
            draws[i] = stream + ((np.uint64(walk) << _32) + _1) * GOLDEN
            at[i] = home[i]
        for step in range(walk_length):
            _choose(home[:count], at, draws, restart, cells, shares)
            _hop(cells_EC, cells, shares, at[:count], visits[step])
        begin = 0
        while begin < count:
            seed = (first + begin) // num_walks
            end = min(count, (seed + 1) * num_walks - first)
            if (home[begin] >> _12) & _LOW_20 > _0:
                num_used = _count(visits, begin, end, table, used, num_used, bits)
            if first + end == (seed + 1) * num_walks:
                kept = _most_visited(table, used, num_used, home[begin] >> _32, cell_shift, ranks, buckets, top)
                _write(ranks, kept, places_I, first_item_B, items_ST[seed], counts_ST[seed])
                num_used = np.int64(0)
            begin = end


@njit(cache=True, nogil=True)
def _choose(home, at, draws, restart, cells, shares):
    """Which cell every walker reads next, and where in it its draw lies; without branches, all in the first cache."""
    for i in range(len(home)):
        draw = mix(draws[i])
        draws[i] += GOLDEN
        stuck = np.uint64((at[i] >> _12) & _LOW_20 == _0)
        go_home = _0 - (stuck | np.uint64((draw & _LOW_24) < restart))
        place = at[i] ^ ((at[i] ^ home[i]) & go_home)
        target = (draw >> _24) * ((place >> _12) & _LOW_20)
        cells[i] = (place >> _32) + (target >> _40)
        shares[i] = (target >> _16) & _LOW_24


@njit(cache=True, nogil=True)
def _hop(cells_EC, cells, shares, at, visited):
    """The one read of a hop; without branches, so that many are under way at once."""
    if cells_EC.shape[1] == 1:
        for i in range(len(at)):
            at[i] = cells_EC[cells[i], _0]
    else:
        for i in range(len(at)):
            own, other = cells_EC[cells[i], _0], cells_EC[cells[i], _1]
            share = ((own & _LOW_12) << _12) | (other & _LOW_12)
            take_own = _0 - np.uint64(shares[i] < share)
            at[i] = other ^ ((own ^ other) & take_own)
    for i in range(len(at)):
        visited[i] = np.uint32(at[i] >> _32)


@njit(cache=True, nogil=True)
def _count(visits, begin, end, table, used, num_used, bits):
    """Adds the visits of one seed's walkers to an open-addressing table of first cell << 32 | count."""
    shift, wrap, number = np.uint64(64 - bits), np.uint64(len(table) - 1), np.uint64(num_used)
    for step in range(len(visits)):
        for i in range(begin, end):
            visited = np.uint64(visits[step, i])
            slot = (visited * GOLDEN) >> shift
            entry = table[slot]
            while entry != _0 and entry >> _32 != visited:
                slot = (slot + _1) & wrap
                entry = table[slot]
            table[slot] = (visited << _32) | ((entry & _LOW_32) + _1)
            used[number] = slot
            number += np.uint64(entry == _0)
    return np.int64(number)


@njit(cache=True, nogil=True)
def _most_visited(table, used, num_used, seed_cell, cell_shift, ranks, buckets, top):
    """Empties the table; the first of ``ranks`` become ~count << 32 | cell of the most visited, best first.

    Returns how many these are: the ``top`` of them, the seed left out. Equal counts: the smaller cell.
    """
    number = _0
    for place in range(num_used):
        entry = table[used[place]]
        table[used[place]] = _0
        ranks[number] = ((_LOW_32 - (entry & _LOW_32)) << _32) | (entry >> _32)
        number += np.uint64(entry >> _32 != seed_cell)
    if number > np.uint64(top):
        number = _keep_best_buckets(ranks, number, cell_shift, buckets, top)
    return _sort_smallest(ranks, np.int64(number), min(top, np.int64(number)))


@njit(cache=True, nogil=True)
def _keep_best_buckets(ranks, number, cell_shift, buckets, top):
    """Moves to the front a few more than the ``top`` smallest ranks: whole buckets of like count and near cells."""
    buckets[:] = 0
    for place in range(number):
        buckets[_bucket(ranks[place], cell_shift)] += 1
    last, within = _0, buckets[0]
    while within < top:
        last += _1
        within += buckets[last]
    kept = _0
    for place in range(number):
        rank = ranks[place]
        ranks[kept] = rank
        kept += np.uint64(_bucket(rank, cell_shift) <= last)
    return kept


@njit(cache=True, nogil=True)
def _bucket(rank, cell_shift):
    """Ordered as ranks are; counts from 8 upwards share the first 64 buckets."""
    group = _8 - min(_8, _LOW_32 - (rank >> _32))
    return np.uint64(_0 if group == _0 else (group << _6) | ((rank & _LOW_32) >> cell_shift))


@njit(cache=True, nogil=True)
def _sort_smallest(ranks, number, top):
    """The ``top`` smallest of the first ``number`` ranks come first, in order: a heap of the best so far."""
    for place in range(top // 2 - 1, -1, -1):
        _sift(ranks, top, place, ranks[place])
    for place in range(top, number):
        if ranks[place] < ranks[0]:
            _sift(ranks, top, 0, ranks[place])
    for last in range(top - 1, 0, -1):
        rank = ranks[last]
        ranks[last] = ranks[0]
        _sift(ranks, last, 0, rank)
    return top


@njit(cache=True, nogil=True)
def _sift(heap, size, hole, rank):
    """Puts ``rank`` into the heap (largest first) of which ``hole`` is the place to fill."""
    child = 2 * hole + 1
    while child < size:
        if child + 1 < size and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= rank:
            break
        heap[hole] = heap[child]
        hole, child = child, 2 * child + 1
    heap[hole] = rank


@njit(cache=True, nogil=True)
def _write(ranks, kept, places_I, first_item_B, items_T, counts_T):
    for place in range(kept):
        cell = ranks[place] & _LOW_32
        item = np.int64(first_item_B[cell >> np.uint64(_BUCKET_BITS)])
        while places_I[item] >> _32 != cell:
            item += 1
        items_T[place] = item
        counts_T[place] = np.int64(_LOW_32 - (ranks[place] >> _32))
