"""Layers of sampled neighbourhoods, the mini-batch of a graph model: what each layer needs, every item once.

For K layers, the output layer's targets are the batch; the sources of a layer are the targets of the layer below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba import njit

from fedquilt.errors import ConfigError, DataError
from fedquilt.graphs.importance import Neighbourhoods
from fedquilt.graphs.walks import GOLDEN

Sampler = Callable[[np.ndarray], Neighbourhoods]  # item ids [S] -> rows


@dataclass(frozen=True, eq=False)
class Block:
    """One layer of sampled neighbourhoods. The D targets are the first D of the N sources.

    sources_N: int64 item ids, unique. neighbours_DT: int64 places in sources_N (0 where padded).
    weights_DT: float32; a row sums to 1, or to 0 for a target without neighbours; 0 = padding.
    """

    sources_N: np.ndarray
    neighbours_DT: np.ndarray
    weights_DT: np.ndarray

    @property
    def num_targets(self) -> int:
        return len(self.neighbours_DT)


def build_blocks(targets_D: np.ndarray, sample: Sampler, num_layers: int) -> list[Block]:
    """Blocks for ``num_layers`` layers, the input layer first; the last block's targets are ``targets_D``.

    A layer asks ``sample`` once, for all its targets. Sources beyond the targets stand in order of first appearance.
    Errors: ``ConfigError`` for num_layers < 1, ``DataError`` for repeated targets.
    """
    if num_layers < 1:
        raise ConfigError(f"graph_model.num_layers: {num_layers}, need at least 1")
    targets_D = np.ascontiguousarray(targets_D, np.int64)
    if len(np.unique(targets_D)) != len(targets_D):
        raise DataError("blocks: a target occurs twice; pass np.unique(targets) and index its rows")
    blocks: list[Block] = []
    for _ in range(num_layers):
        rows = sample(targets_D)
        sources_N, neighbours_DT = _renumber(targets_D, rows.items_ST)
        blocks.append(Block(sources_N, neighbours_DT, np.where(rows.mask_ST, rows.weights_ST, np.float32(0))))
        targets_D = sources_N
    return blocks[::-1]


def table_sampler(neighbourhoods: Neighbourhoods) -> Sampler:
    """The rows of a precomputed table, row i for item i. Errors: ``DataError`` for an item beyond the table."""

    def sample(seeds_S: np.ndarray) -> Neighbourhoods:
        if len(seeds_S) and not 0 <= seeds_S.min() <= seeds_S.max() < len(neighbourhoods):
            raise DataError(f"items {seeds_S.min()} .. {seeds_S.max()} in a table of {len(neighbourhoods)} items")
        return Neighbourhoods(neighbourhoods.items_ST[seeds_S], neighbourhoods.weights_ST[seeds_S])

    return sample


@njit(cache=True, nogil=True)
def _renumber(targets_D, items_DT):
    """Unique items, targets first, and the place of every item among them; open addressing, one pass."""
    bits = 4
    while (1 << bits) < 2 * (len(targets_D) + items_DT.size):
        bits += 1
    shift, wrap = np.uint64(64 - bits), np.uint64((1 << bits) - 1)
    places = np.full(1 << bits, -1, np.int64)  # in ``sources``
    sources = np.empty(len(targets_D) + items_DT.size, np.int64)
    neighbours_DT = np.zeros(items_DT.shape, np.int64)
    count = 0
    for row in range(-1, len(items_DT)):
        for column in range(len(targets_D) if row < 0 else items_DT.shape[1]):
            item = targets_D[column] if row < 0 else np.int64(items_DT[row, column])
            if item < 0:
                continue
            slot = (np.uint64(item) * GOLDEN) >> shift
            while places[slot] >= 0 and sources[places[slot]] != item:
                slot = (slot + np.uint64(1)) & wrap
            if places[slot] < 0:
                places[slot] = count
                sources[count] = item
                count += 1
            if row >= 0:
                neighbours_DT[row, column] = places[slot]
    return sources[:count].copy(), neighbours_DT
