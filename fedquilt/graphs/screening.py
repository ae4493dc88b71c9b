"""Screening of local subgraphs on the device: clicks and edges that do not fit what surrounds them are left out.

Against evasion: a fake click or an inserted edge that helps an attacker mostly joins items that are unlike. Similarity
is the cosine of base item vectors, which the cloud deploys and no patch changes. After GCN-Jaccard (Wu et al. 2019,
arXiv:1903.01610), with cosines in place of Jaccard because item vectors are dense.

Shapes: U subgraphs, L clicks of context, N nodes, I items, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedquilt.config import GraphConfig
from fedquilt.device_defences import ScreeningConfig
from fedquilt.errors import DataError
from fedquilt.graphs.subgraph import SubgraphBuilder, Subgraphs

_TINY = 1e-12


def unit_vectors(vectors_IF: np.ndarray) -> np.ndarray:
    """float32 [I, F], rows of length 1; a row of zeros stays one, and is like nothing."""
    vectors_IF = np.asarray(vectors_IF, np.float32)
    if vectors_IF.ndim != 2 or not np.isfinite(vectors_IF).all():
        raise DataError(f"screening needs finite item vectors [I, F]; got shape {vectors_IF.shape}")
    return vectors_IF / np.maximum(np.linalg.norm(vectors_IF, axis=1, keepdims=True), _TINY)


def screened_clicks(
    contexts_UL: np.ndarray, unit_IF: np.ndarray, min_similarity: float, min_support: float
) -> np.ndarray:
    """int32 [U, L]: the contexts, latest first and -1 padded, without clicks that too few others resemble.

    Click i stays where |{j != i: cos(x_i, x_j) >= min_similarity}| >= min_support · (number of other clicks). Of m
    clicks, k fake ones resemble at most k - 1 of each other: they cannot vouch for one another while
    k - 1 < min_support · (m - 1). A click that is alone stays, and so do all of a user whom nothing would be left.
    """
    contexts_UL = np.asarray(contexts_UL, np.int32)
    present_UL = contexts_UL >= 0
    vectors_ULF = unit_IF[np.where(present_UL, contexts_UL, 0)]
    alike_ULL = vectors_ULF @ vectors_ULF.transpose(0, 2, 1) >= min_similarity
    alike_ULL &= present_UL[:, :, None] & present_UL[:, None, :] & ~np.eye(contexts_UL.shape[1], dtype=bool)
    others_U1 = present_UL.sum(axis=1, keepdims=True) - 1
    kept_UL = present_UL & (alike_ULL.sum(axis=2) >= min_support * others_U1)
    kept_UL |= present_UL & ~kept_UL.any(axis=1, keepdims=True)
    order_UL = np.argsort(~kept_UL, axis=1, kind="stable")
    return np.take_along_axis(np.where(kept_UL, contexts_UL, -1), order_UL, axis=1)


def similar_pairs(nodes_UN: np.ndarray, unit_IF: np.ndarray, min_similarity: float) -> np.ndarray:
    """bool [U, N, N]: an edge between these nodes may stay."""
    vectors_UNF = unit_IF[nodes_UN]
    return vectors_UNF @ vectors_UNF.transpose(0, 2, 1) >= min_similarity


def strongest_edges(edges_UNN: np.ndarray, max_degree: int) -> np.ndarray:
    """bool [U, N, N], symmetric: an edge that is among the ``max_degree`` heaviest of *both* its ends.

    So no node keeps more. Equal weights: the node in the earlier place first.
    """
    order_UNN = np.argsort(-edges_UNN, axis=2, kind="stable")
    rank_UNN = np.empty_like(order_UNN)
    np.put_along_axis(rank_UNN, order_UNN, np.arange(edges_UNN.shape[2])[None, None], axis=2)
    among_UNN = (rank_UNN < max_degree) & (edges_UNN > 0)
    return among_UNN & among_UNN.transpose(0, 2, 1)


@dataclass(frozen=True, eq=False)
class Screen:
    """What a device does with its clicks and edges before the kernel sees them; ``config`` says how strictly."""

    unit_IF: np.ndarray
    config: ScreeningConfig

    def clicks(self, contexts_UL: np.ndarray) -> np.ndarray:
        if not self.config.support:
            return contexts_UL
        return screened_clicks(contexts_UL, self.unit_IF, self.config.similarity, self.config.support)

    def stays(self, nodes_UN: np.ndarray, edges_UNN: np.ndarray) -> np.ndarray:
        """bool [U, N, N]: this edge stays; where there is none, this one might. Dissimilar edges go first, then those
        beyond the degree.
        """
        stays_UNN = np.ones(edges_UNN.shape, bool)
        if self.config.similarity > -1:
            stays_UNN &= similar_pairs(nodes_UN, self.unit_IF, self.config.similarity)
        if self.config.degree:
            stays_UNN &= (edges_UNN == 0) | strongest_edges(edges_UNN * stays_UNN, self.config.degree)
        return stays_UNN


@dataclass(frozen=True, eq=False)
class LocalGraphs:
    """contexts_UL -> the subgraphs that a device works with: ``builder``'s, screened where there is a screen."""

    builder: SubgraphBuilder
    screen: Screen | None = None

    def __call__(self, contexts_UL: np.ndarray) -> Subgraphs:
        if self.screen is None:
            return self.builder(contexts_UL)
        made = self.builder(self.screen.clicks(contexts_UL))
        edges_UNN = made.edges_UNN * self.screen.stays(made.nodes_UN, made.edges_UNN)
        return Subgraphs(made.nodes_UN, made.node_mask_UN, made.recency_UN, edges_UNN)


def local_graphs(graph: GraphConfig, screening: ScreeningConfig, base: Mapping[str, np.ndarray]) -> LocalGraphs:
    """From what the cloud deploys: ``neighbour_items``, ``neighbour_weights`` [I, T], ``item_vectors`` [I, F]."""
    builder = SubgraphBuilder(
        base["neighbour_items"], base["neighbour_weights"], graph.num_nodes, graph.num_clicked, graph.window
    )
    if not screening.is_on:
        return LocalGraphs(builder)
    return LocalGraphs(builder, Screen(unit_vectors(base["item_vectors"]), screening))
