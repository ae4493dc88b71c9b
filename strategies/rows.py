"""Passes over whole rows: distances to a point and weighted sums, in one reading of [K, P].

Two readings, one for the distances and one for the sum, would wait for memory twice. A row is summed in blocks, as in
``fedquilt.privacy.clipping``, in vector instructions within a block and in float64 over the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit

_BLOCK = 1024
_FAST = {"reassoc", "nsz", "contract"}  # sums in any order; NaN and infinity keep their meaning
_WEISZFELD, _CLIP = 0, 1


def distances_to(updates_KP: torch.Tensor, point_P: torch.Tensor) -> torch.Tensor:
    """||x_k - point||, float64 [K]."""
    rows_KP, point = _arrays(updates_KP, point_P)
    out_K = np.empty(len(rows_KP))
    _in_threads(lambda first, last: _distances(rows_KP, point, first, last, out_K), *rows_KP.shape)
    return torch.from_numpy(out_K)


def norms(updates_KP: torch.Tensor) -> torch.Tensor:
    """||x_k||, float64 [K]."""
    return distances_to(updates_KP, torch.zeros(updates_KP.shape[1], dtype=updates_KP.dtype))


def clipped(updates_KP: torch.Tensor, bound: float) -> torch.Tensor:
    """x_k min(1, bound / ||x_k||), a copy: a row is scaled while the cache has it. Rows within keep their bits."""
    rows_KP = updates_KP.detach().contiguous().numpy()
    out_KP, zero_P = np.empty_like(rows_KP), np.zeros(rows_KP.shape[1], rows_KP.dtype)
    _in_threads(lambda first, last: _clip(rows_KP, zero_P, bound, first, last, out_KP), *rows_KP.shape)
    return torch.from_numpy(out_KP)


def weiszfeld_step(
    updates_KP: torch.Tensor, alphas_K: torch.Tensor, point_P: torch.Tensor, smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Σ w x / Σ w, w / Σ w) with w_k = alpha_k / max(smoothing, ||x_k - point||)."""
    weights_K, total_P = _pass(_WEISZFELD, updates_KP, alphas_K, point_P, smoothing)
    return (total_P / weights_K.sum()).to(updates_KP.dtype), weights_K / weights_K.sum()


def clipped_sum(
    updates_KP: torch.Tensor, alphas_K: torch.Tensor, point_P: torch.Tensor, radius: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Σ w x, w) with w_k = alpha_k min(1, radius / ||x_k - point||)."""
    weights_K, total_P = _pass(_CLIP, updates_KP, alphas_K, point_P, radius)
    return total_P.to(updates_KP.dtype), weights_K


def weighted_sum(weights_K: torch.Tensor, updates_KP: torch.Tensor) -> torch.Tensor:
    """weights_K @ updates_KP; where few rows count, only these are read."""
    chosen_K = torch.nonzero(weights_K).flatten()
    if 2 * len(chosen_K) > len(updates_KP):
        return weights_K.to(updates_KP.dtype) @ updates_KP
    return weights_K[chosen_K].to(updates_KP.dtype) @ updates_KP[chosen_K]


def _pass(
    kind: int, updates_KP: torch.Tensor, alphas_K: torch.Tensor, point_P: torch.Tensor, parameter: float
) -> tuple[torch.Tensor, torch.Tensor]:
    rows_KP, point = _arrays(updates_KP, point_P)
    alphas = alphas_K.to(torch.float64).numpy()
    weights_K = np.empty(len(rows_KP))
    totals: dict[int, np.ndarray] = {}

    def part(first: int, last: int) -> None:
        total_P = np.zeros_like(point)
        _weigh_and_sum(kind, rows_KP, alphas, point, parameter, first, last, weights_K, total_P)
        totals[first] = total_P

    _in_threads(part, *rows_KP.shape)
    total_P = np.zeros_like(point)
    for first in sorted(totals):
        total_P += totals[first]
    return torch.from_numpy(weights_K), torch.from_numpy(total_P)


def _arrays(updates_KP: torch.Tensor, point_P: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    return updates_KP.detach().contiguous().numpy(), np.ascontiguousarray(point_P.to(updates_KP.dtype).numpy())


def _in_threads(part: Callable[[int, int], None], k: int, p: int) -> None:
    """Threads share the rows; small work is not worth a thread."""
    num_threads = max(min(torch.get_num_threads(), k * p // (1 << 20)), 1)
    edges = np.linspace(0, k, num_threads + 1).astype(int).tolist()
    if num_threads == 1:
        part(0, k)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        for job in [pool.submit(part, edges[t], edges[t + 1]) for t in range(num_threads)]:
            job.result()


@njit(nogil=True, cache=True, fastmath=_FAST)
def _squared_gap(row_B, point_B):
    """Over whole slices: a first index that is given might be negative for all the compiler knows, and costs 1.7 x."""
    total = row_B.dtype.type(0)
    for b in range(len(row_B)):
        gap = row_B[b] - point_B[b]
        total += gap * gap
    return total


@njit(nogil=True, cache=True)
def _distance(row_P, point_P):
    total = 0.0
    for first in range(0, len(row_P), _BLOCK):
        total += np.float64(_squared_gap(row_P[first : first + _BLOCK], point_P[first : first + _BLOCK]))
    return np.sqrt(total)


@njit(nogil=True, cache=True)
def _distances(rows_KP, point_P, first, last, out_K):
    for k in range(first, last):
        out_K[k] = _distance(rows_KP[k], point_P)


@njit(nogil=True, cache=True)
def _clip(rows_KP, zero_P, bound, first, last, out_KP):
    for k in range(first, last):
        row_P, out_P = rows_KP[k], out_KP[k]
        norm = _distance(row_P, zero_P)
        factor = row_P.dtype.type(bound / norm if norm > bound else 1.0)
        for p in range(len(row_P)):
            out_P[p] = factor * row_P[p]


@njit(nogil=True, cache=True)
def _weigh_and_sum(kind, rows_KP, alphas_K, point_P, parameter, first, last, weights_K, total_P):
    for k in range(first, last):
        distance = _distance(rows_KP[k], point_P)
        if kind == _WEISZFELD:
            weight = alphas_K[k] / max(parameter, distance)
        else:
            weight = alphas_K[k] * (1.0 if distance <= parameter else parameter / distance)
        weights_K[k] = weight
        factor, row_P = total_P.dtype.type(weight), rows_KP[k]
        for p in range(len(total_P)):
            total_P[p] += factor * row_P[p]
