"""Items that a pair is told apart from: random ones, shared by a batch, and hard ones, a little related to the query.

Hard negatives of a query are drawn from a window of its personalised PageRank: ranks 2,000 to 5,000 among billions in
PinSage (Ying et al. 2018, section 3.3), a share of the catalogue here.
"""

from __future__ import annotations

import numpy as np

from fedquilt.config import GraphModelConfig
from fedquilt.errors import ConfigError
from fedquilt.graphs.coclick import CoClickGraph
from fedquilt.graphs.ppr_ranks import ppr_window, window_of
from fedquilt.seeds import bits_for, generator_for

POOL = 128  # candidates kept per query: 512 bytes an item, whatever the window
_AT_ONCE = 2048
# Push tolerance times the window's end: a smaller one comes closer to the exact window and takes longer.
_REACH = 0.02


def hard_pool(graph: CoClickGraph, config: GraphModelConfig, seed: int) -> np.ndarray:
    """int32 [I, R], R <= 128: for every query items of its window, drawn evenly if the window is wider; -1 padded.

    An item whose walks do not reach as far as the window has a row of -1. Errors: ConfigError for an empty window.
    """
    if config.hard_first >= config.hard_last:
        raise ConfigError(
            f"graph_model: hard_first = {config.hard_first} must be below hard_last = {config.hard_last}; "
            "or set graph_model.hard_negatives=false"
        )
    first, last = window_of(graph.num_items, config.hard_first, config.hard_last)
    parts = []
    for start in range(0, graph.num_items, _AT_ONCE):
        seeds = np.arange(start, min(start + _AT_ONCE, graph.num_items))
        window_SR = ppr_window(graph, seeds, first, last, config.hard_alpha, _REACH / config.hard_last)
        parts.append(_thinned(window_SR, bits_for(seed, 0, seeds, "graph-hard-pool", window_SR.shape[1])))
    return np.concatenate(parts)


def _thinned(window_SR: np.ndarray, keys_SR: np.ndarray) -> np.ndarray:
    """At most ``POOL`` of each row, those with the smallest keys; the rest of a row, -1, comes last."""
    keys_SR = np.where(window_SR >= 0, keys_SR >> np.uint64(1), np.uint64(2**64 - 1))
    order_SR = np.argsort(keys_SR, axis=1)[:, :POOL]
    return np.take_along_axis(window_SR, order_SR, axis=1).astype(np.int32)


def draw_hard(pool_IR: np.ndarray, queries_B: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """int64 [B, count]: drawn with replacement from each query's pool; -1 where it is empty, or the query is -1."""
    rows_BR = np.where(queries_B[:, None] >= 0, pool_IR[queries_B], -1)
    sizes_B = (rows_BR >= 0).sum(1)
    places_BH = (generator.random((len(queries_B), count)) * sizes_B[:, None]).astype(np.int64)
    return np.take_along_axis(rows_BR, places_BH, axis=1).astype(np.int64)


def shared_distribution(popularity_I: np.ndarray, power: float) -> np.ndarray:
    """Cumulative float64 [I]: P(item) proportional to clicks^power, evenly over all clicked items at power 0.

    An item without a click is never a negative: nothing says that it does not belong.
    """
    weight_I = np.where(popularity_I > 0, popularity_I.astype(np.float64) ** power, 0)
    return np.cumsum(weight_I / weight_I.sum())


def draw_shared(cumulative_I: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """int64 [M]: with replacement; the last item takes what rounding leaves."""
    return np.minimum(np.searchsorted(cumulative_I, generator.random(count), side="right"), len(cumulative_I) - 1)


def batch_generator(seed: int, epoch: int, batch: int) -> np.random.Generator:
    """All draws of one batch: whoever makes it, and whenever, they are the same."""
    return generator_for(seed, epoch, batch, use="graph-batch")
