"""Hiding the edges that are being predicted: a model must not read the answer from the neighbourhood it is given."""

from __future__ import annotations

import numpy as np

from fedquilt.errors import DataError
from fedquilt.graphs.blocks import Sampler
from fedquilt.graphs.importance import Neighbourhoods


def without_edges(neighbourhoods: Neighbourhoods, seeds_S: np.ndarray, others_S: np.ndarray) -> Neighbourhoods:
    """Row s, the neighbourhood of seeds_S[s], without the item others_S[s] (-1: nothing to remove).

    What remains moves up, in order, and its weights are scaled to sum to 1; a row of nothing else becomes empty.
    Errors: ``DataError`` where the three lengths differ.
    """
    seeds_S, others_S = np.asarray(seeds_S), np.asarray(others_S)
    if not len(neighbourhoods) == len(seeds_S) == len(others_S):
        raise DataError(f"edges: {len(neighbourhoods)} rows for {len(seeds_S)} seeds and {len(others_S)} others")
    return _without(neighbourhoods, neighbourhoods.mask_ST & (neighbourhoods.items_ST == others_S[:, None]))


def without_pairs(sample: Sampler, heads_B: np.ndarray, tails_B: np.ndarray) -> Sampler:
    """``sample``, where for every pair b neither heads_B[b] sees tails_B[b] nor the other way round, in any layer."""
    heads_B, tails_B = np.asarray(heads_B, np.int64), np.asarray(tails_B, np.int64)
    if len(heads_B) != len(tails_B):
        raise DataError(f"edges: {len(heads_B)} heads for {len(tails_B)} tails")
    ends = np.unique(np.concatenate([heads_B, tails_B]))
    hidden = np.unique(np.concatenate([_edge_keys(heads_B, tails_B), _edge_keys(tails_B, heads_B)]))

    def sample_without(seeds_S: np.ndarray) -> Neighbourhoods:
        rows = sample(seeds_S)
        removed_ST = np.zeros(rows.items_ST.shape, bool)
        touched = np.flatnonzero(np.isin(seeds_S, ends))
        keys = _edge_keys(np.asarray(seeds_S, np.int64)[touched, None], rows.items_ST[touched])
        removed_ST[touched] = np.isin(keys, hidden) & rows.mask_ST[touched]
        return _without(rows, removed_ST)

    return sample_without


def _edge_keys(heads: np.ndarray, tails: np.ndarray) -> np.ndarray:
    return (heads << 32) | tails.astype(np.int64)


def _without(neighbourhoods: Neighbourhoods, removed_ST: np.ndarray) -> Neighbourhoods:
    items_ST, weights_ST = neighbourhoods.items_ST.copy(), neighbourhoods.weights_ST.copy()
    touched = np.flatnonzero(removed_ST.any(axis=1))
    gone = removed_ST[touched]
    order = np.argsort(gone, axis=1, kind="stable")
    items = np.take_along_axis(np.where(gone, -1, items_ST[touched]), order, axis=1)
    weights = np.take_along_axis(np.where(gone, 0, weights_ST[touched]), order, axis=1)
    totals = weights.sum(axis=1, keepdims=True, dtype=np.float64)
    items_ST[touched] = items
    weights_ST[touched] = np.divide(weights, totals, out=np.zeros_like(weights, np.float64), where=totals > 0)
    return Neighbourhoods(items_ST, weights_ST)
