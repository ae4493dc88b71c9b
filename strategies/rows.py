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
_WORTH_A_THREAD = 1 << 20  # numbers
_COLUMNS = 8192  # of a sum that stays in the first-level cache
FAST = {"reassoc", "nsz", "contract"}  # sums in any order; NaN and infinity keep their meaning
_WEISZFELD, _CLIP = 0, 1


def distances_to(updates_KP: torch.Tensor, point_P: torch.Tensor) -> torch.Tensor:
    """||x_k - point||, float64 [K]. A point without coordinates is the origin."""
    rows_KP, point = arrays(updates_KP, point_P)
    out_K = np.empty(len(rows_KP))
    in_threads(lambda first, last: _distances(rows_KP, point, first, last, out_K), *rows_KP.shape)
    return torch.from_numpy(out_K)


def norms(updates_KP: torch.Tensor) -> torch.Tensor:
    """||x_k||, float64 [K]."""
    return distances_to(updates_KP, updates_KP[0, :0] if len(updates_KP) else updates_KP.flatten())


def mean_row(updates_KP: torch.Tensor) -> torch.Tensor:
    """(1/K) Σ x_k, [P], in the precision of the rows; eight at a time, so its error is below that of a plain sum."""
    rows_KP = updates_KP.detach().contiguous().numpy()
    out_P = np.empty(rows_KP.shape[1], rows_KP.dtype)
    if rows_KP.size < _WORTH_A_THREAD:
        _mean(rows_KP, 0, len(out_P), out_P)
    else:
        in_threads(lambda first, last: _mean(rows_KP, first, last, out_P), len(out_P), len(rows_KP))
    return torch.from_numpy(out_P)


def grouped(
    updates_KP: torch.Tensor, weights_K: torch.Tensor, order_K: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(means of the rows, sums of the weights) of each ``size`` users that follow each other in ``order_K``."""
    rows_KP = updates_KP.detach().contiguous().numpy()
    num_groups = -(-len(rows_KP) // size)
    means = np.empty((num_groups, rows_KP.shape[1]), rows_KP.dtype)
    sums = np.zeros(num_groups, weights_K.numpy().dtype)
    told = rows_KP, weights_K.numpy(), order_K.numpy(), size
    in_threads(lambda first, last: _group(*told, first, last, means, sums), num_groups, size * rows_KP.shape[1])
    return torch.from_numpy(means), torch.from_numpy(sums)


def clipped(updates_KP: torch.Tensor, bound: float) -> torch.Tensor:
    """x_k min(1, bound / ||x_k||), a copy: a row is scaled while the cache has it. Rows within keep their bits."""
    rows_KP, out_KP = updates_KP.detach().contiguous().numpy(), room_like(updates_KP)
    out = out_KP.numpy()
    in_threads(lambda first, last: _clip(rows_KP, bound, first, last, out), *rows_KP.shape)
    return out_KP


def clip(updates_KP: torch.Tensor, bound: float) -> None:
    """As ``clipped``, in the rows themselves; rows within are only read."""
    rows_KP = updates_KP.numpy()
    in_threads(lambda first, last: _clip_in_place(rows_KP, bound, first, last), *rows_KP.shape)


def copied(updates_KP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(a copy, ||x_k|| float64 [K]), in one reading."""
    rows_KP, out_KP = updates_KP.detach().contiguous().numpy(), room_like(updates_KP)
    out, norms_K = out_KP.numpy(), np.empty(len(rows_KP))
    in_threads(lambda first, last: _copy(rows_KP, first, last, out, norms_K), *rows_KP.shape)
    return out_KP, torch.from_numpy(norms_K)


def shorten(updates_KP: torch.Tensor, norms_K: torch.Tensor, bound: float) -> None:
    """Rows longer than ``bound`` are scaled to it, in place; the others are not touched."""
    rows_KP, norms = updates_KP.numpy(), norms_K.numpy()
    in_threads(lambda first, last: _shorten(rows_KP, norms, bound, first, last), *rows_KP.shape)


def room_like(updates_KP: torch.Tensor) -> torch.Tensor:
    """[K, P], not filled. numpy asks for large pages of memory, torch does not: half the time of a copy is in them."""
    return torch.from_numpy(np.empty(updates_KP.shape, np.float32 if updates_KP.dtype == torch.float32 else np.float64))


def weiszfeld_step(
    updates_KP: torch.Tensor, alphas_K: torch.Tensor, point_P: torch.Tensor, smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Σ w x / Σ w, w / Σ w), w_k = alpha_k / max(smoothing, ||x_k - point||). A point without coordinates: origin."""
    weights_K, total_P = _pass(_WEISZFELD, updates_KP, alphas_K, point_P, smoothing)
    return (total_P / weights_K.sum()).to(updates_KP.dtype), weights_K / weights_K.sum()


def clipped_sum(
    updates_KP: torch.Tensor, alphas_K: torch.Tensor, point_P: torch.Tensor, radius: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Σ w x, w) with w_k = alpha_k min(1, radius / ||x_k - point||). A point without coordinates is the origin."""
    weights_K, total_P = _pass(_CLIP, updates_KP, alphas_K, point_P, radius)
    return total_P, weights_K


def weighted_sum(weights_K: torch.Tensor, updates_KP: torch.Tensor) -> torch.Tensor:
    """weights_K @ updates_KP; where few rows count, only these are read."""
    chosen_K = torch.nonzero(weights_K).flatten()
    if 2 * len(chosen_K) > len(updates_KP):
        return weights_K.to(updates_KP.dtype) @ updates_KP
    return weights_K[chosen_K].to(updates_KP.dtype) @ updates_KP[chosen_K]


def _pass(
    kind: int, updates_KP: torch.Tensor, alphas_K: torch.Tensor, point_P: torch.Tensor, parameter: float
) -> tuple[torch.Tensor, torch.Tensor]:
    rows_KP, point = arrays(updates_KP, point_P)
    alphas, weights_K = alphas_K.numpy().astype(np.float64, copy=False), np.empty(len(rows_KP))
    totals: dict[int, np.ndarray] = {}

    def part(first: int, last: int) -> None:
        totals[first] = np.zeros(rows_KP.shape[1], rows_KP.dtype)
        _weigh_and_sum(kind, rows_KP, alphas, point, parameter, first, last, weights_K, totals[first])

    in_threads(part, *rows_KP.shape)
    total_P = totals.pop(0)
    for first in sorted(totals):
        total_P += totals[first]
    return torch.from_numpy(weights_K), torch.from_numpy(total_P)


def arrays(updates_KP: torch.Tensor, point_P: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    rows_KP = updates_KP.detach().contiguous().numpy()
    return rows_KP, np.ascontiguousarray(point_P.numpy(), rows_KP.dtype)


def in_threads(part: Callable[[int, int], None], k: int, p: int) -> None:
    """Threads share the first ``k`` of k × p; small work is not worth a thread."""
    most = k * p // _WORTH_A_THREAD
    num_threads = min(torch.get_num_threads(), most) if most > 1 else 1
    if num_threads == 1:
        part(0, k)
        return
    edges = np.linspace(0, k, num_threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(num_threads) as pool:
        for job in [pool.submit(part, edges[t], edges[t + 1]) for t in range(num_threads)]:
            job.result()


@njit(nogil=True, cache=True, fastmath=FAST)
def squared_gap(row_B, point_B):
    """Over whole slices: a first index that is given might be negative for all the compiler knows, and costs 1.7 x."""
    total = row_B.dtype.type(0)
    for b in range(len(row_B)):
        gap = row_B[b] - point_B[b]
        total += gap * gap
    return total


@njit(nogil=True, cache=True, fastmath=FAST)
def _square(row_B):
    total = row_B.dtype.type(0)
    for b in range(len(row_B)):
        total += row_B[b] * row_B[b]
    return total


@njit(nogil=True, cache=True, fastmath=FAST)
def _distance(row_P, point_P):
    """From the origin, where the point has no coordinates: half as much to read."""
    total, zero, end = 0.0, row_P.dtype.type(0), np.uint64(len(row_P))
    for start in range(np.uint64(0), end, np.uint64(_BLOCK)):
        square = zero
        if len(point_P):
            for p in range(start, min(start + np.uint64(_BLOCK), end)):
                gap = row_P[p] - point_P[p]
                square += gap * gap
        else:
            for p in range(start, min(start + np.uint64(_BLOCK), end)):
                square += row_P[p] * row_P[p]
        total += np.float64(square)
    return np.sqrt(total)


@njit(nogil=True, cache=True)
def _distances(rows_KP, point_P, first, last, out_K):
    for k in range(first, last):
        out_K[k] = _distance(rows_KP[k], point_P)


@njit(nogil=True, cache=True)
def _clip(rows_KP, bound, first, last, out_KP):
    for k in range(first, last):
        row_P, out_P = rows_KP[k], out_KP[k]
        norm = _distance(row_P, row_P[:0])
        factor = row_P.dtype.type(bound / norm if norm > bound else 1.0)
        for p in range(len(row_P)):
            out_P[p] = factor * row_P[p]


@njit(nogil=True, cache=True)
def _clip_in_place(rows_KP, bound, first, last):
    for k in range(first, last):
        norm = _distance(rows_KP[k], rows_KP[k, :0])
        if norm > bound:
            _scale(rows_KP[k], rows_KP.dtype.type(bound / norm))


@njit(nogil=True, cache=True)
def _scale(row_P, factor):
    """Of one array alone: where two might overlap the compiler gives up vector instructions."""
    for p in range(len(row_P)):
        row_P[p] *= factor


@njit(nogil=True, cache=True)
def _copy(rows_KP, first, last, out_KP, norms_K):
    for k in range(first, last):
        row_P, total = rows_KP[k], 0.0
        for start in range(0, len(row_P), _BLOCK):
            total += np.float64(_square(row_P[start : start + _BLOCK]))
            out_KP[k, start : start + _BLOCK] = row_P[start : start + _BLOCK]
        norms_K[k] = np.sqrt(total)


@njit(nogil=True, cache=True)
def _shorten(rows_KP, norms_K, bound, first, last):
    for k in range(first, last):
        if norms_K[k] > bound:
            _scale(rows_KP[k], rows_KP.dtype.type(bound / norms_K[k]))


@njit(nogil=True, cache=True)
def _weigh_and_sum(kind, rows_KP, alphas_K, point_P, parameter, first, last, weights_K, total_P):
    """Two rows at a time: while the cache has both, the sum is read and written once for them; meanwhile the two after
    them come from farther away, and are measured. Where there are none, the last two are measured once more."""
    pairs = last - (last - first) % 2
    if first < pairs:
        near, far = _distance(rows_KP[first], point_P), _distance(rows_KP[first + 1], point_P)
    for k in range(first, pairs, 2):
        weights_K[k] = _weight(kind, alphas_K[k], near, parameter)
        weights_K[k + 1] = _weight(kind, alphas_K[k + 1], far, parameter)
        after, weights = min(k + 2, pairs - 2), (weights_K[k], weights_K[k + 1])
        near, far = _add_two(rows_KP[k], rows_KP[k + 1], weights, rows_KP[after], rows_KP[after + 1], point_P, total_P)
    if pairs < last:
        row_P = rows_KP[pairs]
        weights_K[pairs] = _weight(kind, alphas_K[pairs], _distance(row_P, point_P), parameter)
        factor = total_P.dtype.type(weights_K[pairs])
        for p in range(len(total_P)):
            total_P[p] += factor * row_P[p]


@njit(nogil=True, cache=True)
def _weight(kind, alpha, distance, parameter):
    if kind == _WEISZFELD:
        return alpha / max(parameter, distance)
    return alpha * (1.0 if distance <= parameter else parameter / distance)


@njit(nogil=True, cache=True, fastmath=FAST)
def _add_two(row_P, other_P, weights, next_P, after_P, point_P, total_P):
    """Adds the weighted first two rows to the total; -> the distances of the next two to the point."""
    factor, other = total_P.dtype.type(weights[0]), total_P.dtype.type(weights[1])
    near, far, end = 0.0, 0.0, np.uint64(len(total_P))
    for start in range(np.uint64(0), end, np.uint64(_COLUMNS)):
        stop = min(start + np.uint64(_COLUMNS), end)
        near_B, far_B = total_P.dtype.type(0), total_P.dtype.type(0)
        if len(point_P):
            for p in range(start, stop):
                total_P[p] += factor * row_P[p] + other * other_P[p]
                gap = next_P[p] - point_P[p]
                near_B += gap * gap
                gap = after_P[p] - point_P[p]
                far_B += gap * gap
        else:
            for p in range(start, stop):
                total_P[p] += factor * row_P[p] + other * other_P[p]
                near_B += next_P[p] * next_P[p]
                far_B += after_P[p] * after_P[p]
        near += np.float64(near_B)
        far += np.float64(far_B)
    return np.sqrt(near), np.sqrt(far)


@njit(nogil=True, cache=True)
def _mean(rows_KP, first, last, out_P):
    """Eight rows at a time: the sum is read and written an eighth as often."""
    k_users = len(rows_KP)
    share, in_eights = rows_KP.dtype.type(1) / rows_KP.dtype.type(k_users), k_users - k_users % 8
    for start in range(first, last, _COLUMNS):
        stop = min(start + _COLUMNS, last)
        total_B = out_P[start:stop]
        total_B[:] = 0
        for k in range(0, in_eights, 8):
            a_B, b_B, c_B, d_B = (
                rows_KP[k, start:stop],
                rows_KP[k + 1, start:stop],
                rows_KP[k + 2, start:stop],
                rows_KP[k + 3, start:stop],
            )
            e_B, f_B, g_B, h_B = (
                rows_KP[k + 4, start:stop],
                rows_KP[k + 5, start:stop],
                rows_KP[k + 6, start:stop],
                rows_KP[k + 7, start:stop],
            )
            for b in range(len(total_B)):
                left = (a_B[b] + b_B[b]) + (c_B[b] + d_B[b])
                total_B[b] += left + ((e_B[b] + f_B[b]) + (g_B[b] + h_B[b]))
        for k in range(in_eights, k_users):
            row_B = rows_KP[k, start:stop]
            for b in range(len(total_B)):
                total_B[b] += row_B[b]
        for b in range(len(total_B)):
            total_B[b] *= share


@njit(nogil=True, cache=True)
def _group(rows_KP, weights_K, order_K, size, first, last, means_GP, sums_G):
    for group in range(first, last):
        members = order_K[group * size : (group + 1) * size]
        mean_P, row_P = means_GP[group], rows_KP[members[0]]
        share = rows_KP.dtype.type(1) / rows_KP.dtype.type(len(members))
        for p in range(len(mean_P)):
            mean_P[p] = share * row_P[p]
        for member in members[1:]:
            other_P = rows_KP[member]
            for p in range(len(mean_P)):
                mean_P[p] += share * other_P[p]
        for member in members:
            sums_G[group] += weights_K[member]
