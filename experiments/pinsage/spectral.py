"""Spectral vectors of the training co-clicks: features out of the graph, which a new item gets from its edges.

S = D^-1/2 W D^-1/2 over items, S = V Λ Vᵀ; an item's vector is its row of V Λ^1/2. W is the windowed co-click graph, or
NᵀN, N = D_u^-1/2 R D_i^-1/2, for all pairs of a user's clicks, R the clicks. An item that S did not hold gets
v = Σ_j s_j V_j Λ^-1 from its own entries s (Nyström 1930; Bengio et al. 2004), and so needs no new decomposition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import eigsh, svds

from fedquilt.graphs.coclick import build_coclick
from fedquilt.graphs.log import InteractionLog

WINDOW, EDGES = 20, 200  # of the windowed graph


@dataclass(frozen=True, eq=False)
class Spectrum:
    """vectors_ID: rows of V Λ^1/2; values_D: the eigenvalues."""

    vectors_ID: np.ndarray
    values_D: np.ndarray


def spectrum(log: InteractionLog, dim: int, windowed: bool) -> Spectrum:
    """The ``dim`` leading eigenvectors of the items' co-clicks; an item without a click has a row of zeros."""
    if windowed:
        values_D, axes_ID = eigsh(similarity(log, True), k=dim, which="LA", v0=np.ones(log.num_items))
    else:
        _, singular_D, axes_DI = svds(_normalised_clicks(log), k=dim, v0=np.ones(min(log.num_users, log.num_items)))
        values_D, axes_ID = singular_D**2, axes_DI.T
    order = np.argsort(-values_D)
    values_D, axes_ID = np.maximum(values_D[order], 1e-6), axes_ID[:, order]
    return Spectrum(axes_ID * np.sqrt(values_D), values_D)


def extended(old: Spectrum, log: InteractionLog, windowed: bool, new_I: np.ndarray) -> np.ndarray:
    """[I, D]: the old vectors, and for ``new_I`` (bool) what their entries of S, now known from ``log``, make of these.

    Σ_j s_j (V Λ^1/2)_j Λ^-1 = the new row of V Λ^1/2.
    """
    rows = similarity(log, windowed)[np.flatnonzero(new_I)]
    vectors_ID = np.where(new_I[:, None], 0.0, old.vectors_ID)
    vectors_ID[new_I] = (rows @ vectors_ID) / old.values_D
    return vectors_ID


def similarity(log: InteractionLog, windowed: bool) -> sparse.csr_array:
    """S, float64 [I, I]."""
    if not windowed:
        clicks_UI = _normalised_clicks(log)
        return sparse.csr_array(clicks_UI.T @ clicks_UI)
    weights_II = build_coclick(log, WINDOW, EDGES).to_scipy().astype(np.float64)
    scale = sparse.diags_array(_inverse_root(weights_II.sum(axis=1)))
    return sparse.csr_array(scale @ weights_II @ scale)


def _normalised_clicks(log: InteractionLog) -> sparse.csr_array:
    """N, float64 [U, I]."""
    shape = (log.num_users, log.num_items)
    clicks_UI = sparse.csr_array((np.ones(len(log)), (log.users_C, log.items_C)), shape=shape)
    users, items = (sparse.diags_array(_inverse_root(clicks_UI.sum(axis=axis))) for axis in (1, 0))
    return sparse.csr_array(users @ clicks_UI @ items)


def _inverse_root(degrees: np.ndarray) -> np.ndarray:
    degrees = np.asarray(degrees).ravel()
    return np.where(degrees > 0, 1 / np.sqrt(np.maximum(degrees, 1e-12)), 0)
