"""ItemKNN (Sarwar et al. 2001; for implicit clicks Deshpande and Karypis 2004)."""

from __future__ import annotations

import numpy as np

from experiments.peers.interface import Fitted, Validate, click_matrix
from fedquilt.graphs.log import InteractionLog


def fit(train: InteractionLog, validate: Validate, seed: int, neighbours: int = 50, side: str = "candidate") -> Fitted:
    """score[u, i] = sum of sim(i, j) over the user's items j that are neighbours.

    Of whom: with ``side="candidate"`` j is among i's nearest (a candidate is judged by the clicks most like it), with
    ``side="history"`` i is among j's nearest (each click recommends the items most like it).
    """
    clicks_UI = click_matrix(train)
    nearest_II = nearest(cosine(clicks_UI), neighbours)
    return Fitted(clicks_UI @ (nearest_II.T if side == "candidate" else nearest_II))


def cosine(clicks_UI: np.ndarray) -> np.ndarray:
    """sim(i, j) = |U_i ∩ U_j| / sqrt(|U_i| |U_j|); zero on the diagonal and for items without clicks."""
    together_II = clicks_UI.T @ clicks_UI
    norm_I = np.sqrt(np.diag(together_II))
    scale_II = np.outer(norm_I, norm_I)
    similarity_II = np.divide(together_II, scale_II, out=np.zeros_like(together_II), where=scale_II > 0)
    np.fill_diagonal(similarity_II, 0)
    return similarity_II


def nearest(similarity_II: np.ndarray, neighbours: int) -> np.ndarray:
    """Each row keeps its ``neighbours`` largest entries; the others become zero."""
    if neighbours >= len(similarity_II):
        return similarity_II
    kept_IK = np.argpartition(-similarity_II, neighbours - 1, axis=1)[:, :neighbours]
    pruned_II = np.zeros_like(similarity_II)
    np.put_along_axis(pruned_II, kept_IK, np.take_along_axis(similarity_II, kept_IK, axis=1), axis=1)
    return pruned_II
