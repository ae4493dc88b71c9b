"""Clipping one row per user to an L2 norm: x · min(1, C / ||x||)."""

from __future__ import annotations

import numpy as np

_BLOCK = 1024  # columns per float32 dot product; blocks are summed in float64
_MARGIN = 2.0**-17  # relative; above the rounding error of a block and of the scaled row
_EXTREME = 1e-30  # factors below this are applied in float64: they would lose digits in float32
_FAINT = 1e-12  # below such bounds norms are measured in float64: squares of coordinates vanish in float32


def row_norms(rows_KP: np.ndarray) -> np.ndarray:
    """L2 norm of every row, float64 [K], to a relative 2^-17; NaN or inf for a row that is not finite.

    One pass over the data. A row's norm depends on that row only, not on the rows beside it.
    """
    rows_KP = np.asarray(rows_KP, np.float32)
    whole = rows_KP.shape[1] // _BLOCK
    blocks = rows_KP[:, : whole * _BLOCK].reshape(len(rows_KP), whole, _BLOCK)
    tail = rows_KP[:, whole * _BLOCK :]
    with np.errstate(over="ignore", invalid="ignore"):
        squares_K = np.vecdot(blocks, blocks).sum(axis=1, dtype=np.float64) + np.vecdot(tail, tail)
        huge = np.flatnonzero(~np.isfinite(squares_K))  # not finite, or finite with squares beyond float32
        squares_K[huge] = np.square(rows_KP[huge], dtype=np.float64).sum(axis=1)
    return np.sqrt(squares_K)


def clip_rows(updates_KP: np.ndarray, clipping_norm: float, in_place: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """float32 [K, P] -> (rows with norm <= clipping_norm, the norms [K] they had).

    Float32 rounding included: the true norm of a returned row never exceeds ``clipping_norm``, for which rows within a
    relative 2^-17 of the bound shrink by as much. Other rows inside the bound keep their bits; an infinite bound keeps
    all of them. A row that is not finite comes back as zeros, and its norm says so. Returns the input itself where
    nothing changes, or where ``in_place`` allows to overwrite it.
    """
    faint = clipping_norm < _FAINT
    norms_K = np.linalg.norm(updates_KP.astype(np.float64), axis=1) if faint else row_norms(updates_KP)
    bad_K = ~np.isfinite(norms_K)
    long_K = ~bad_K & (norms_K * (1 + _MARGIN) > clipping_norm)
    if not (bad_K.any() or long_K.any()):
        return updates_KP, norms_K
    scale_K = np.ones(len(norms_K))
    scale_K[long_K] = clipping_norm / (1 + 2 * _MARGIN) / norms_K[long_K]
    extreme = np.flatnonzero(long_K & (scale_K < _EXTREME))
    exact = updates_KP[extreme] * scale_K[extreme, None]
    clipped_KP = updates_KP if in_place else np.empty_like(updates_KP)
    with np.errstate(invalid="ignore"):
        np.multiply(updates_KP, scale_K.astype(np.float32)[:, None], out=clipped_KP)
    clipped_KP[extreme] = exact
    clipped_KP[bad_K] = 0
    return clipped_KP, norms_K
