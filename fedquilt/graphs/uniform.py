"""Uniform neighbourhoods, as in GraphSAGE (Hamilton et al. 2017, arXiv:1706.02216), here without replacement."""

from __future__ import annotations

import numpy as np
from numba import njit

from fedquilt.errors import ConfigError
from fedquilt.graphs.coclick import CoClickGraph
from fedquilt.graphs.importance import Neighbourhoods, checked_seeds
from fedquilt.graphs.walks import GOLDEN, mix


def uniform_neighbours(
    graph: CoClickGraph, seeds_S: np.ndarray, top: int, generator: np.random.Generator
) -> Neighbourhoods:
    """``top`` different neighbours of every seed, each set of them equally likely; all where there are no more.

    Weights 1 / n for n neighbours, by item id; edge weights play no part. One number is drawn from the generator, a
    key; a seed's row depends on the key, the seed and ``top`` only. O(S · top), whatever the degrees.
    """
    if top < 1:
        raise ConfigError(f"graph: need top >= 1; got {top}")
    seeds_S = checked_seeds(graph, seeds_S)
    items_ST = np.full((len(seeds_S), top), -1, np.int32)
    widest = int(np.diff(graph.indptr).max(initial=0))
    key = generator.integers(1 << 64, dtype=np.uint64)
    _sample(graph.indptr, graph.indices, seeds_S, key, np.full(widest, -1, np.int64), items_ST)
    counts_S = (items_ST >= 0).sum(axis=1, keepdims=True)
    return Neighbourhoods(items_ST, np.where(items_ST >= 0, 1 / np.maximum(counts_S, 1), 0).astype(np.float32))


@njit(cache=True, nogil=True)
def _sample(indptr, indices, seeds_S, key, taken_by, items_ST):
    """Floyd's method (Bentley and Floyd 1987): a draw below j + 1 that was had before gives j instead."""
    top = items_ST.shape[1]
    for row in range(len(seeds_S)):
        first = indptr[seeds_S[row]]
        degree = indptr[seeds_S[row] + 1] - first
        if degree <= top:
            items_ST[row, :degree] = np.sort(indices[first : first + degree])
            continue
        stream = mix(key + np.uint64(seeds_S[row] + 1) * GOLDEN)
        for place in range(top):
            last = degree - top + place
            draw = mix(stream + np.uint64(place + 1) * GOLDEN)
            chosen = np.int64(((draw >> np.uint64(32)) * np.uint64(last + 1)) >> np.uint64(32))
            if taken_by[chosen] == row:
                chosen = last
            taken_by[chosen] = row
            items_ST[row, place] = indices[first + chosen]
        items_ST[row].sort()
