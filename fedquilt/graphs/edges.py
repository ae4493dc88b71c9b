"""Hiding the edges that are being predicted: a model must not read the answer from the neighbourhood it is given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from fedquilt.errors import DataError
from fedquilt.graphs.blocks import Sampler
from fedquilt.graphs.importance import Neighbourhoods
from fedquilt.graphs.log import InteractionLog
from fedquilt.metrics import ragged


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
    ends = np.sort(np.concatenate([heads_B, tails_B]))
    hidden = np.sort(np.concatenate([_edge_keys(heads_B, tails_B), _edge_keys(tails_B, heads_B)]))

    def sample_without(seeds_S: np.ndarray) -> Neighbourhoods:
        rows = sample(seeds_S)
        removed_ST = np.zeros(rows.items_ST.shape, bool)
        touched = np.flatnonzero(_are_in(np.asarray(seeds_S, np.int64), ends))
        keys = _edge_keys(np.asarray(seeds_S, np.int64)[touched, None], rows.items_ST[touched])
        removed_ST[touched] = _are_in(keys, hidden) & rows.mask_ST[touched]
        return _without(rows, removed_ST)

    return sample_without


@dataclass(frozen=True, eq=False)
class Clickers:
    """Who clicked each item of ``log``: users_C ascending within an item; offsets int64 [I + 1]."""

    log: InteractionLog
    offsets: np.ndarray
    users_C: np.ndarray

    @classmethod
    def of(cls, log: InteractionLog) -> Clickers:
        """A user who clicked an item twice stands there twice."""
        order = np.lexsort((log.users_C, log.items_C))
        offsets = np.searchsorted(log.items_C[order], np.arange(log.num_items + 1))
        return cls(log, offsets.astype(np.int64), log.users_C[order].astype(np.int64))

    def bits_of(self, users_B: np.ndarray) -> np.ndarray:
        """uint64 [I, W]: bit b of an item says whether users_B[b] clicked it."""
        rows, items = ragged(self.log.offsets, self.log.items_C, users_B)
        bits_IW = np.zeros((self.log.num_items, -(-len(users_B) // 64)), np.uint64)
        np.bitwise_or.at(bits_IW, (items, rows // 64), np.uint64(1) << (rows % 64).astype(np.uint64))
        return bits_IW


def without_users(sample: Sampler, clickers: Clickers, users_B: np.ndarray) -> Sampler:
    """``sample`` without neighbours that rest on the given users: half or more of who clicked both items are these."""
    bits_IW = clickers.bits_of(np.unique(users_B))

    def sample_without(seeds_S: np.ndarray) -> Neighbourhoods:
        rows = sample(seeds_S)
        resting_ST = _rests_on(
            np.asarray(seeds_S, np.int64), rows.items_ST, clickers.offsets, clickers.users_C, bits_IW
        )
        return _without(rows, resting_ST)

    return sample_without


@njit(cache=True, nogil=True)
def _rests_on(seeds_S, items_ST, offsets, users_C, bits_IW):
    """bool [S, T]: whether at least half of the users of both items are among the given ones; False for nobody.

    The merge of two items' users ends as soon as too many are found.
    """
    found = np.zeros(items_ST.shape, np.bool_)
    for s in range(len(seeds_S)):
        for t in range(items_ST.shape[1]):
            if items_ST[s, t] < 0:
                continue
            given = 0
            for w in range(bits_IW.shape[1]):
                given += _ones(bits_IW[seeds_S[s], w] & bits_IW[items_ST[s, t], w])
            if given == 0:
                continue
            a, last = offsets[seeds_S[s]], offsets[seeds_S[s] + 1]
            b, end = offsets[items_ST[s, t]], offsets[items_ST[s, t] + 1]
            both = 0
            while a < last and b < end and both <= 2 * given:
                user = users_C[a]
                if user < users_C[b]:
                    a += 1
                elif user > users_C[b]:
                    b += 1
                else:
                    both += 1
                    while a < last and users_C[a] == user:
                        a += 1
                    while b < end and users_C[b] == user:
                        b += 1
            found[s, t] = both <= 2 * given
    return found


@njit(inline="always")
def _ones(word):
    """Bits that are set."""
    count = 0
    while word:
        word &= word - np.uint64(1)
        count += 1
    return count


def _edge_keys(heads: np.ndarray, tails: np.ndarray) -> np.ndarray:
    return (heads << 32) | tails.astype(np.int64)


def _are_in(values: np.ndarray, sorted_values: np.ndarray) -> np.ndarray:
    """``np.isin``, whose hash table is slow for keys that share their lower bits, as edges do."""
    if not len(sorted_values):
        return np.zeros(values.shape, bool)
    places = np.searchsorted(sorted_values, values)
    return sorted_values[np.minimum(places, len(sorted_values) - 1)] == values


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
