"""Subsets of points that lie close together, from their distances [K, K]."""

from __future__ import annotations

import numpy as np


def smallest_ball(distances_KK: np.ndarray, leave_out: int) -> np.ndarray:
    """The point whose farthest of K - ``leave_out`` nearest (itself among them) is nearest, and these, sorted."""
    keep = len(distances_KK) - leave_out
    radius_K = np.array([np.partition(row_K, keep - 1)[keep - 1] for row_K in distances_KK])
    return np.sort(np.argsort(distances_KK[radius_K.argmin()], kind="stable")[:keep])


def smallest_diameter(distances_KK: np.ndarray, leave_out: int) -> np.ndarray:
    """At least K - ``leave_out`` points of the least diameter, sorted, exactly.

    A diameter d is possible where ``leave_out`` points cover all pairs farther apart than d: a vertex cover. Bisection
    over the distances that occur, from half of what a ball gives (no subset has less) to that.
    """
    ball = smallest_ball(distances_KK, leave_out)
    best, most = ball, distances_KK[np.ix_(ball, ball)].max()
    upper_KK = distances_KK[np.triu_indices(len(distances_KK), 1)]
    candidates = np.unique(upper_KK[(upper_KK >= most / 4 * (1 - 1e-6)) & (upper_KK < most)])  # squared: a quarter
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high) // 2
        cover = vertex_cover(distances_KK > candidates[middle], leave_out)
        if cover is None:
            low = middle + 1
        else:
            best, high = np.setdiff1d(np.arange(len(distances_KK)), sorted(cover)), middle
    return best


def vertex_cover(edges_KK: np.ndarray, size: int) -> set[int] | None:
    """At most ``size`` vertices that touch every edge, or None where there are none such."""
    neighbours = {int(i): set(np.flatnonzero(row_K).tolist()) for i, row_K in enumerate(edges_KK) if row_K.any()}
    return _cover(neighbours, size)


def _cover(neighbours: dict[int, set[int]], size: int) -> set[int] | None:
    """Branch on the vertex with most edges: it is in the cover, or all its neighbours are."""
    if not neighbours:
        return set()
    vertex = max(neighbours, key=lambda v: (len(neighbours[v]), -v))
    degree, edges = len(neighbours[vertex]), sum(map(len, neighbours.values())) // 2
    if size == 0 or edges > size * degree:
        return None
    options = [{vertex}] if degree > size else [{vertex}, neighbours[vertex]]
    for taken in options if degree > 1 else options[:1]:
        rest = _cover(_without(neighbours, taken), size - len(taken))
        if rest is not None:
            return rest | taken
    return None


def _without(neighbours: dict[int, set[int]], taken: set[int]) -> dict[int, set[int]]:
    left = {vertex: others - taken for vertex, others in neighbours.items() if vertex not in taken}
    return {vertex: others for vertex, others in left.items() if others}
