"""The direction in which weighted rows vary most, from products with the rows: no [P, P]."""

from __future__ import annotations

import torch

_TOLERANCE = 1e-4


def top_direction(
    rows_KP: torch.Tensor, weights_K: torch.Tensor, start_P: torch.Tensor, num_steps: int
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """(largest eigenvalue of Σ w (x - m)(x - m)^T / Σ w, its unit vector [P], (x - m)·vector [K]); m the weighted mean.

    Power steps from ``start_P`` until the eigenvalue settles, two readings of the rows each.
    """
    share_K = weights_K / weights_K.sum()
    mean_P = share_K @ rows_KP
    vector_P, value = start_P / start_P.norm(), -1.0
    for _ in range(max(num_steps, 1)):
        along_K = rows_KP @ vector_P - mean_P @ vector_P
        pushed_K = share_K * along_K
        next_P = pushed_K @ rows_KP - pushed_K.sum() * mean_P
        length = float(next_P.norm())
        if length == 0:
            return 0.0, vector_P, torch.zeros_like(along_K)
        vector_P = next_P / length
        if abs(length - value) <= _TOLERANCE * length:
            break
        value = length
    return length, vector_P, rows_KP @ vector_P - mean_P @ vector_P
