"""Scores of bare contexts: subgraphs of clicks that belong to no cohort, all under one patch.

Shapes: X contexts, N nodes, I items.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from fedquilt.graphs.subgraph import Subgraphs
from fedquilt.types import Cohort
from models.kernel import Graphs, KernelWeights, all_scores, user_vectors


def graphs_of(made: Subgraphs) -> Graphs:
    """One user a subgraph, G = 1."""
    count = len(made)
    return Graphs.of(
        Cohort(
            client_ids_U=np.zeros(count, np.int64),
            nodes_UGN=made.nodes_UN[:, None],
            node_mask_UGN=made.node_mask_UN[:, None],
            recency_UGN=made.recency_UN[:, None],
            edges_UGNN=made.edges_UNN[:, None],
            targets_UGT=np.full((count, 1, 1), -1, np.int32),
            num_support=0,
            seen=(np.empty(0, np.int64), np.empty(0, np.int64)),
        )
    )


def scores_under(weights: KernelWeights, graphs: Graphs, patch: Mapping[str, Tensor] | None = None) -> Tensor:
    """[X, I]. ``patch`` holds one patch's tensors without a user axis; None: the base model."""
    if patch is not None:
        count = len(graphs.recency)
        patch = {name: tensor.expand(count, *tensor.shape) for name, tensor in patch.items()}
    return all_scores(weights, user_vectors(weights, graphs, patch), patch)[:, 0]
