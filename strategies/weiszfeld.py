"""Weiszfeld steps towards the geometric median, in as few readings of [K, P] as the number of users allows.

A step needs all distances to the last point before it can add a row. Of few users a block of columns stays in the
second-level cache with all its rows: there the new point is known once the block is added, and the distances to it are
taken while the cache has the block. So n steps read the rows n + 1 times, in order. Of many users such a block would be
narrow; there a step is a pass over whole rows (``strategies.rows``).
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from strategies.rows import FAST, arrays, in_threads, norms, squared_gap, weiszfeld_step

_FEW = 128  # users
_BLOCK = 1 << 18  # numbers of a block of columns: 1 MiB
_MIN_COLUMNS, _MAX_COLUMNS = 1024, 4096


def weiszfeld(
    updates_KP: torch.Tensor, alphas_K: torch.Tensor, num_steps: int, smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """z <- Σ w x / Σ w, w_k = alpha_k / max(smoothing, ||x_k - z||), ``num_steps`` times from the origin.

    -> (z [P], the last w / Σ w, [K] float64): weights @ updates_KP is z.
    """
    if len(updates_KP) <= _FEW:
        return _by_columns(updates_KP, alphas_K, num_steps, smoothing)
    point_P, weights_K = updates_KP[0, :0], alphas_K
    for _ in range(num_steps):
        point_P, weights_K = weiszfeld_step(updates_KP, alphas_K, point_P, smoothing)
    return point_P, weights_K


def _by_columns(
    updates_KP: torch.Tensor, alphas_K: torch.Tensor, num_steps: int, smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    rows_KP, _ = arrays(updates_KP, updates_KP[0, :0])
    point_P = np.empty(rows_KP.shape[1], rows_KP.dtype)
    alphas, distances_K = alphas_K.numpy().astype(np.float64, copy=False), norms(updates_KP).numpy()
    for step in range(num_steps):
        weights_K = alphas / np.maximum(distances_K, smoothing)
        weights_K /= weights_K.sum()
        distances_K = _step(rows_KP, weights_K.astype(rows_KP.dtype), point_P, step + 1 < num_steps)
    return torch.from_numpy(point_P), torch.from_numpy(weights_K)


def _step(rows_KP: np.ndarray, weights_K: np.ndarray, point_P: np.ndarray, measured: bool) -> np.ndarray:
    """Writes weights @ rows to ``point_P``; -> the distances to it, [K], of use only where ``measured``."""
    k, p = rows_KP.shape
    width = min(max(_BLOCK // k, _MIN_COLUMNS), _MAX_COLUMNS)
    squares: dict[int, np.ndarray] = {}

    def part(first: int, last: int) -> None:
        squares[first] = np.zeros(k)
        _add_then_measure(rows_KP, weights_K, width, first, last, measured, point_P, squares[first])

    in_threads(part, p, k)
    return np.sqrt(sum(squares[first] for first in sorted(squares)))


@njit(nogil=True, cache=True)
def _add_then_measure(rows_KP, weights_K, width, first, last, measured, point_P, squares_K):
    k_users = len(rows_KP)
    for start in range(first, last, width):
        stop = min(start + width, last)
        point_B = point_P[start:stop]
        point_B[:] = 0
        for k in range(0, k_users - k_users % 4, 4):
            _add_four(rows_KP, weights_K, k, start, stop, point_B)
        for k in range(k_users - k_users % 4, k_users):
            factor, row_B = weights_K[k], rows_KP[k, start:stop]
            for b in range(len(point_B)):
                point_B[b] += factor * row_B[b]
        in_fours = k_users - k_users % 4 if measured else 0
        for k in range(0, in_fours, 4):
            _measure_four(rows_KP, k, start, stop, point_B, squares_K)
        for k in range(in_fours, k_users if measured else 0):
            squares_K[k] += np.float64(squared_gap(rows_KP[k, start:stop], point_B))


@njit(nogil=True, cache=True)
def _add_four(rows_KP, weights_K, k, start, stop, point_B):
    """The sum is read and written once for four rows."""
    a_B, b_B, c_B, d_B = (
        rows_KP[k, start:stop],
        rows_KP[k + 1, start:stop],
        rows_KP[k + 2, start:stop],
        rows_KP[k + 3, start:stop],
    )
    a, b, c, d = weights_K[k], weights_K[k + 1], weights_K[k + 2], weights_K[k + 3]
    for i in range(len(point_B)):
        point_B[i] += (a * a_B[i] + b * b_B[i]) + (c * c_B[i] + d * d_B[i])


@njit(nogil=True, cache=True)
def _measure_four(rows_KP, k, start, stop, point_B, squares_K):
    a, b, c, d = _four_gaps(
        rows_KP[k, start:stop],
        rows_KP[k + 1, start:stop],
        rows_KP[k + 2, start:stop],
        rows_KP[k + 3, start:stop],
        point_B,
    )
    squares_K[k] += np.float64(a)
    squares_K[k + 1] += np.float64(b)
    squares_K[k + 2] += np.float64(c)
    squares_K[k + 3] += np.float64(d)


@njit(nogil=True, cache=True, fastmath=FAST)
def _four_gaps(a_B, b_B, c_B, d_B, point_B):
    zero = point_B.dtype.type(0)
    a, b, c, d = zero, zero, zero, zero
    for i in range(len(point_B)):
        point = point_B[i]
        a += (a_B[i] - point) ** 2
        b += (b_B[i] - point) ** 2
        c += (c_B[i] - point) ** 2
        d += (d_B[i] - point) ** 2
    return a, b, c, d
