"""What embedding without repetition is measured against: every item on its own, its blocks built and computed alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedquilt.graphs.blocks import build_blocks, table_sampler
from fedquilt.graphs.importance import Neighbourhoods
from models.graph_model import GraphModel, TorchBlock

_SOURCES = 1 << 21  # ids held at a time while counting


@dataclass(frozen=True)
class Projections:
    """Rows sent through ``project`` for the vectors of all items, both ways.

    ``naive`` is exact if ``counted`` is the number of items; else it was counted for so many, evenly spread over the
    ids, and scaled.
    """

    needed: int
    naive: int
    counted: int

    @property
    def repeated(self) -> int:
        return self.naive - self.needed


def naive_vectors(
    model: GraphModel, features_IF: np.ndarray, neighbours: Neighbourhoods, items_S: np.ndarray
) -> np.ndarray:
    """[S, dim]: one forward pass an item, over blocks of its own."""
    sample, vectors = table_sampler(neighbours), []
    model.eval()
    with torch.inference_mode():
        for item in np.asarray(items_S):
            blocks = build_blocks(np.array([item]), sample, len(model.layers)) if len(model.layers) else []
            sources_N = blocks[0].sources_N if blocks else np.array([item])
            features_NF = torch.from_numpy(features_IF[sources_N].astype(np.float32))
            vectors.append(model(features_NF, [TorchBlock.of(block) for block in blocks])[0].numpy())
    return np.stack(vectors)


def count_projections(neighbours: Neighbourhoods, num_layers: int, most: int = 100_000) -> Projections:
    """``most``: items to count for; a catalogue of more is sampled."""
    num_items = len(neighbours)
    counted_S = np.unique(np.linspace(0, num_items - 1, min(num_items, most)).round().astype(np.int64))
    sources = num_sources(neighbours.items_ST, counted_S, num_layers)
    return Projections(num_layers * num_items, round(sources * num_items / len(counted_S)), len(counted_S))


def num_sources(items_IT: np.ndarray, items_S: np.ndarray, num_layers: int) -> int:
    """Sum over items and layers of the sources of the layer's block, each of which it projects."""
    at_once, total = max(1, _SOURCES // (items_IT.shape[1] + 1) ** num_layers), 0
    for first in range(0, len(items_S), at_once):
        reached_SN = np.asarray(items_S[first : first + at_once], items_IT.dtype)[:, None]
        for _ in range(num_layers):
            reached_SN = _with_neighbours(items_IT, reached_SN)
            total += int((reached_SN >= 0).sum())
    return total


def _with_neighbours(items_IT: np.ndarray, reached_SN: np.ndarray) -> np.ndarray:
    """Each row's items and their neighbours, each once; -1 elsewhere."""
    next_SNT = np.where(reached_SN[..., None] >= 0, items_IT[np.maximum(reached_SN, 0)], -1)
    all_SN = np.sort(np.concatenate([reached_SN, next_SNT.reshape(len(reached_SN), -1)], axis=1), axis=1)
    all_SN[:, 1:][all_SN[:, 1:] == all_SN[:, :-1]] = -1
    return all_SN
