"""Sums that several attacks share. Rows in, rows out; float64 inside where a sum of many rows needs it."""

from __future__ import annotations

import numpy as np

_TINY = 1e-12


def mean(rows_KP: np.ndarray) -> np.ndarray:
    return rows_KP.mean(axis=0, dtype=np.float64)


def std(rows_KP: np.ndarray) -> np.ndarray:
    """Population standard deviation by column; 0 for one row."""
    return rows_KP.std(axis=0, dtype=np.float64)


def unit(x_P: np.ndarray) -> np.ndarray:
    return x_P / max(float(np.linalg.norm(x_P)), _TINY)


def of_norm(x_P: np.ndarray, norm: float) -> np.ndarray:
    """x scaled to this norm; as it is where the norm is infinite or x is zero."""
    return unit(x_P) * norm if np.isfinite(norm) else x_P


def alike(x_P: np.ndarray, count: int) -> np.ndarray:
    """float32 [count, P]: all colluders send x."""
    return np.repeat(np.asarray(x_P, np.float32)[None], count, axis=0)


def squared_distances(rows_KP: np.ndarray) -> np.ndarray:
    """float64 [K, K], by the Gram matrix: no K x K x P."""
    rows = np.asarray(rows_KP, np.float64)
    squares_K = np.einsum("kp,kp->k", rows, rows)
    return np.maximum(squares_K[:, None] + squares_K[None] - 2 * rows @ rows.T, 0)


def largest_step(fits: object, start: float = 10.0, halvings: int = 20) -> float:
    """The largest gamma >= 0 for which ``fits(gamma)`` holds, for a condition that holds up to a point.

    Doubles while it holds, then bisects: Algorithm 1 of Shejwalkar and Houmansadr 2021.
    """
    assert callable(fits)
    low, high = 0.0, start
    while fits(high) and high < 1e6:
        low, high = high, 2 * high
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
