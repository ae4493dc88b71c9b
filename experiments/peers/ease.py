"""EASE, Embarrassingly Shallow Autoencoders for Sparse Data (Steck 2019, arXiv:1905.03375)."""

from __future__ import annotations

import numpy as np

from experiments.peers.interface import Fitted, Validate, click_matrix
from fedquilt.graphs.log import InteractionLog


def fit(train: InteractionLog, validate: Validate, seed: int, penalty: float = 400.0) -> Fitted:
    """score = X B, with the weights of ``item_weights``. Closed form, so nothing is random."""
    clicks_UI = click_matrix(train)
    return Fitted((clicks_UI @ item_weights(clicks_UI, penalty)).astype(np.float32))


def item_weights(clicks_UI: np.ndarray, penalty: float) -> np.ndarray:
    """argmin_B ||X - X B||² + penalty ||B||² with diag(B) = 0:  P = (XᵀX + penalty I)⁻¹,  B_ij = -P_ij / P_jj."""
    gram_II = clicks_UI.T.astype(np.float64) @ clicks_UI
    gram_II[np.diag_indices_from(gram_II)] += penalty
    inverse_II = np.linalg.inv(gram_II)
    weights_II = -inverse_II / np.diag(inverse_II)
    np.fill_diagonal(weights_II, 0)
    return weights_II
