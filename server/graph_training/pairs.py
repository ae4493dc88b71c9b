"""Positive pairs: which two items belong together, and which of them an epoch's batches hold.

From clicks: two clicks of one user, at most ``pair_window`` places apart in that user's order; the earlier one is the
query (PinSage, Ying et al. 2018, arXiv:1806.01973, learns from consecutive engagement). From walks: an item and one
that walks from it visit, drawn by visit counts (GraphSAGE's co-occurrence, Hamilton et al. 2017, arXiv:1706.02216).
"""

from __future__ import annotations

import numpy as np

from fedquilt.errors import DataError
from fedquilt.graphs.importance import Neighbourhoods
from fedquilt.graphs.log import InteractionLog
from fedquilt.seeds import generator_for


def click_pairs(log: InteractionLog, window: int) -> np.ndarray:
    """int64 [P, 2]: (query, item) for every two clicks of a user up to ``window`` places apart; order by distance.

    A pair stands as often as it was clicked. DataError where no user has two clicks.
    """
    parts = []
    for distance in range(1, window + 1):
        earlier_P = _earlier(log, distance)
        parts.append(np.stack([log.items_C[earlier_P], log.items_C[earlier_P + distance]], axis=1).astype(np.int64))
    pairs_P2 = np.concatenate(parts)
    if not len(pairs_P2):
        raise DataError(
            f"log {log.name}: no user has two clicks on different items, so there is no pair to learn from; "
            "give the cloud more clicks (split.cloud_share)"
        )
    return pairs_P2


def _earlier(log: InteractionLog, distance: int) -> np.ndarray:
    """The first clicks of all pairs ``distance`` places apart."""
    same = (log.users_C[:-distance] == log.users_C[distance:]) & (log.items_C[:-distance] != log.items_C[distance:])
    return np.flatnonzero(same)


def walk_pairs(visited: Neighbourhoods, pairs_per_item: int, generator: np.random.Generator) -> np.ndarray:
    """int64 [P, 2]: every item that walks leave, with ``pairs_per_item`` visited ones, drawn by visit counts."""
    starts = np.flatnonzero(visited.weights_ST.sum(1) > 0)
    if not len(starts):
        raise DataError("the co-click graph has no edges, so walks give no pair; learn from clicks (pairs=clicks)")
    ends_ST = np.cumsum(visited.weights_ST[starts], axis=1, dtype=np.float64)
    drawn = generator.random((len(starts), pairs_per_item, 1)) * ends_ST[:, None, -1:]
    places = (drawn >= ends_ST[:, None, :]).sum(2)
    items = np.take_along_axis(visited.items_ST[starts], places, axis=1)
    return np.stack([np.repeat(starts, pairs_per_item), items.ravel()], axis=1).astype(np.int64)


def epoch_order(num_pairs: int, pairs_per_epoch: int, seed: int, epoch: int) -> np.ndarray:
    """Which pairs an epoch learns from, in its order: int64 [P], a permutation, or its first ``pairs_per_epoch``."""
    order_P = generator_for(seed, epoch, use="graph-order").permutation(num_pairs)
    return order_P[:pairs_per_epoch] if pairs_per_epoch else order_P


def num_batches(num_pairs: int, pairs_per_epoch: int, batch_size: int) -> int:
    """Batches an epoch; they differ by one pair at most, so that no small last one outweighs the others."""
    pairs = min(num_pairs, pairs_per_epoch) if pairs_per_epoch else num_pairs
    return -(-pairs // batch_size)


def batch_of(order_P: np.ndarray, batch: int, batches: int) -> np.ndarray:
    """The part of an epoch's order that batch number ``batch`` of ``batches`` holds."""
    first, last = len(order_P) * batch // batches, len(order_P) * (batch + 1) // batches
    return order_P[first:last]
