"""How good item vectors are at naming a user's next click: the score an epoch is chosen by.

A user's vector is a weighted mean of the vectors of the user's latest clicks; with one click this is item-to-item
recommendation. Items are scored by dot product, all but those that the user has clicked.
"""

from __future__ import annotations

import numpy as np

from fedquilt.config import GraphModelConfig
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.splits import HeldOut
from fedquilt.metrics import ragged, rank_counts, ranking_metrics

K = 10
_AT_ONCE = 512
_MOST_JUDGED = 20_000  # held-out clicks: the standard error of a mean is then below 0.004


def recency_weights(config: GraphModelConfig) -> np.ndarray:
    """[A]: the weight of the latest click, 1, of the one before it, and so on, of ``user_clicks``."""
    decay = config.user_decay if config.user_pooling == "decay" else 1.0
    return decay ** np.arange(config.user_clicks)


def user_vectors(
    vectors_IF: np.ndarray,
    log: InteractionLog,
    users_B: np.ndarray,
    config: GraphModelConfig,
    map_FF: np.ndarray | None = None,
) -> np.ndarray:
    """[B, F]: sum_a w_a x_a over the ``user_clicks`` latest clicks, a = 0 the latest; zeros without a click.

    w_a is proportional to ``user_decay``^a (``user_pooling`` decay) or constant (mean), and sums to 1. ``judge`` item:
    the latest click alone. ``map_FF``: the model's user map, unless ``judge`` is item.
    """
    weight_A = recency_weights(config)[: 1 if config.judge == "item" else None]
    clicks = len(weight_A)
    place_BA = log.offsets[users_B + 1][:, None] - 1 - np.arange(clicks)
    real_BA = place_BA >= log.offsets[users_B][:, None]
    weight_BA = np.where(real_BA, weight_A, 0.0)
    weight_BA /= np.maximum(weight_BA.sum(1, keepdims=True), 1e-12)
    items_BA = log.items_C[np.where(real_BA, place_BA, 0)] if len(log) else np.zeros(place_BA.shape, np.int64)
    mean_BF = np.einsum("ba,baf->bf", weight_BA.astype(vectors_IF.dtype), vectors_IF[items_BA])
    return mean_BF if map_FF is None or config.judge == "item" else mean_BF @ map_FF


def ranks(
    vectors_IF: np.ndarray,
    log: InteractionLog,
    held: HeldOut,
    config: GraphModelConfig,
    map_FF: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(greater_H, ties_H) of every held-out click among all items that its user has not clicked in ``log``."""
    parts = []
    for start in range(0, len(held), _AT_ONCE):
        users_B, targets_B = held.users_H[start : start + _AT_ONCE], held.items_H[start : start + _AT_ONCE]
        scores_BI = user_vectors(vectors_IF, log, users_B, config, map_FF) @ vectors_IF.T
        seen_BI = np.zeros(scores_BI.shape, bool)
        seen_BI[ragged(log.offsets, log.items_C, users_B)] = True
        parts.append(rank_counts(scores_BI, targets_B, None, seen_BI))
    greater, ties = zip(*parts, strict=True) if parts else ([np.zeros(0, np.int64)],) * 2
    return np.concatenate(greater), np.concatenate(ties)


def validation_ndcg(
    vectors_IF: np.ndarray,
    log: InteractionLog,
    held: HeldOut,
    config: GraphModelConfig,
    map_FF: np.ndarray | None = None,
) -> float:
    """Mean NDCG@10 over held-out clicks, at most 20,000 of them, evenly spaced."""
    if len(held) > _MOST_JUDGED:
        kept_H = np.zeros(len(held), bool)
        kept_H[np.linspace(0, len(held) - 1, _MOST_JUDGED).astype(np.int64)] = True
        held = held.where(kept_H)
    return float(ranking_metrics(*ranks(vectors_IF, log, held, config, map_FF), (K,))[f"NDCG@{K}"].mean())
