"""Order statistics of every coordinate over users: exact selection without sorting, and without a copy of [K, P].

A block of columns is held as integers that order as the floats do. Bisection of their range counts, row by row and for
all columns of the block at once, how many lie below the middle; it stops at the wanted rank. Counting has no branches,
so that the compiler turns it into vector instructions, and a block stays in the second-level cache. About 15 passes
over a block, at most 32, where sorting needs log K.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit

_BLOCK_KEYS = 1 << 17  # 512 KiB of keys: a quarter of a usual second-level cache
_MAX_WIDTH = 512
_LOW_31 = np.int32(0x7FFFFFFF)


def column_median(updates_KP: torch.Tensor) -> torch.Tensor:
    """[P], the middle value of each coordinate, or the mean of the middle two where K is even."""
    if updates_KP.dtype != torch.float32:
        return _sorted_columns(updates_KP, lambda sorted_KB: _middle(sorted_KB))
    return _by_columns(_median, updates_KP, 0)


def column_trimmed_mean(updates_KP: torch.Tensor, trim: int) -> torch.Tensor:
    """[P], the mean of each coordinate without its ``trim`` smallest and ``trim`` largest values; K > 2 · trim."""
    if updates_KP.dtype != torch.float32:
        return _sorted_columns(updates_KP, lambda sorted_KB: sorted_KB[trim : len(sorted_KB) - trim].mean(dim=0))
    return _by_columns(_trimmed_mean, updates_KP, trim)


def column_mean_near_median(updates_KP: torch.Tensor, keep: int) -> torch.Tensor:
    """[P], the mean of the ``keep`` values of each coordinate that are nearest to its median.

    Where several values are equally far and only some of them are kept, their mean counts for each of these.
    """
    if updates_KP.dtype != torch.float32:
        return _sorted_columns(updates_KP, lambda sorted_KB: _near_middle(sorted_KB, keep))
    return _by_columns(_mean_near_median, updates_KP, keep)


def _by_columns(kernel: Callable[..., None], updates_KP: torch.Tensor, parameter: int) -> torch.Tensor:
    """Threads share the columns; each writes its own part of the result."""
    rows_KP = updates_KP.detach().contiguous().numpy()
    out_P = np.empty(rows_KP.shape[1], np.float32)
    width = int(min(max(_BLOCK_KEYS // max(len(rows_KP), 1) // 16 * 16, 16), _MAX_WIDTH))
    num_threads = max(min(torch.get_num_threads(), len(out_P) // (4 * width)), 1)
    edges = np.linspace(0, len(out_P), num_threads + 1).astype(np.int64)
    if num_threads == 1:
        kernel(rows_KP, parameter, width, 0, len(out_P), out_P)
        return torch.from_numpy(out_P)
    with ThreadPoolExecutor(num_threads) as pool:
        jobs = [
            pool.submit(kernel, rows_KP, parameter, width, edges[t], edges[t + 1], out_P) for t in range(num_threads)
        ]
        for job in jobs:
            job.result()
    return torch.from_numpy(out_P)


def _sorted_columns(updates_KP: torch.Tensor, of_sorted: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Other precisions than float32: rare, and sorted block by block."""
    out_P = torch.empty(updates_KP.shape[1], dtype=updates_KP.dtype)
    for start in range(0, len(out_P), 1024):
        columns = slice(start, start + 1024)
        out_P[columns] = of_sorted(updates_KP[:, columns].sort(dim=0).values)
    return out_P


def _middle(sorted_KB: torch.Tensor) -> torch.Tensor:
    k = len(sorted_KB)
    return (sorted_KB[(k - 1) // 2] + sorted_KB[k // 2]) / 2


def _near_middle(sorted_KB: torch.Tensor, keep: int) -> torch.Tensor:
    far_KB = (sorted_KB - _middle(sorted_KB)).abs()
    edge_B = far_KB.sort(dim=0).values[keep - 1]
    inside_KB, edge_KB = far_KB < edge_B, far_KB == edge_B
    at_edge_B = (sorted_KB * edge_KB).sum(dim=0) / edge_KB.sum(dim=0)
    return ((sorted_KB * inside_KB).sum(dim=0) + (keep - inside_KB.sum(dim=0)) * at_edge_B) / keep


@njit(nogil=True, cache=True)
def _load(rows_KP, bits_KP, start, width, keys_KB):
    """Keys of a block of columns: integers that order as the floats do."""
    for k in range(len(rows_KP)):
        for b in range(width):
            bits = bits_KP[k, start + b]
            keys_KB[k, b] = bits ^ ((bits >> np.int32(31)) & _LOW_31)


@njit(nogil=True, cache=True)
def _value(key):
    """The float of a key."""
    one = np.empty(1, np.int32)
    one[0] = key ^ ((key >> np.int32(31)) & _LOW_31)
    return one.view(np.float32)[0]


@njit(nogil=True, cache=True)
def _select(keys_KB, rank, width, low_B, high_B, middle_B, count_B):
    """high_B: a bound between the keys of rank ``rank`` (from 0; at most the bound) and the next larger key."""
    k_users = len(keys_KB)
    for b in range(width):
        low_B[b] = keys_KB[0, b]
        high_B[b] = keys_KB[0, b]
    for k in range(1, k_users):
        for b in range(width):
            low_B[b] = min(low_B[b], keys_KB[k, b])
            high_B[b] = max(high_B[b], keys_KB[k, b])
    wanted = np.int32(rank + 1)
    while True:
        open_columns = 0
        for b in range(width):
            middle_B[b] = (low_B[b] & high_B[b]) + ((low_B[b] ^ high_B[b]) >> np.int32(1))
            open_columns += low_B[b] < high_B[b]
            count_B[b] = 0
        if open_columns == 0:
            return
        for k in range(k_users):
            for b in range(width):
                count_B[b] += np.int32(keys_KB[k, b] <= middle_B[b])
        for b in range(width):
            if low_B[b] < high_B[b]:
                if count_B[b] == wanted:
                    low_B[b] = middle_B[b]
                    high_B[b] = middle_B[b]
                elif count_B[b] > wanted:
                    high_B[b] = middle_B[b]
                else:
                    low_B[b] = middle_B[b] + np.int32(1)


@njit(nogil=True, cache=True)
def _around(keys_KB, width, bound_B, below_B, above_B, count_B):
    """The largest key up to the bound, how many keys that are, and the smallest key beyond it."""
    for b in range(width):
        below_B[b] = np.int32(-2147483648)
        above_B[b] = _LOW_31
        count_B[b] = 0
    for k in range(len(keys_KB)):
        for b in range(width):
            key = keys_KB[k, b]
            inside = key <= bound_B[b]
            count_B[b] += np.int32(inside)
            below_B[b] = max(below_B[b], key) if inside else below_B[b]
            above_B[b] = above_B[b] if inside else min(above_B[b], key)


@njit(nogil=True, cache=True)
def _middle_of_block(keys_KB, width, scratch, out_B):
    """Medians of the columns of a block of keys."""
    k_users = len(keys_KB)
    low_B, high_B, middle_B, count_B, below_B, above_B = scratch
    rank = (k_users - 1) // 2
    _select(keys_KB, rank, width, low_B, high_B, middle_B, count_B)
    _around(keys_KB, width, high_B, below_B, above_B, count_B)
    for b in range(width):
        first = _value(below_B[b])
        second = first
        if k_users % 2 == 0 and count_B[b] < rank + 2:
            second = _value(above_B[b])
        out_B[b] = first if first == second else np.float32(0.5) * first + np.float32(0.5) * second


@njit(nogil=True, cache=True)
def _scratch(width):
    return (
        np.empty(width, np.int32),
        np.empty(width, np.int32),
        np.empty(width, np.int32),
        np.empty(width, np.int32),
        np.empty(width, np.int32),
        np.empty(width, np.int32),
    )


@njit(nogil=True, cache=True)
def _median(rows_KP, unused, block, first, last, out_P):
    keys_KB, scratch = np.empty((len(rows_KP), block), np.int32), _scratch(block)
    bits_KP = rows_KP.view(np.int32)
    for start in range(first, last, block):
        width = min(block, last - start)
        _load(rows_KP, bits_KP, start, width, keys_KB)
        _middle_of_block(keys_KB, width, scratch, out_P[start : start + width])


@njit(nogil=True, cache=True)
def _trimmed_mean(rows_KP, trim, block, first, last, out_P):
    keys_KB, scratch = np.empty((len(rows_KP), block), np.int32), _scratch(block)
    low_B, high_B, middle_B, count_B, below_B, above_B = scratch
    least_B, most_B = np.empty(block, np.float32), np.empty(block, np.float32)
    bits_KP, k_users = rows_KP.view(np.int32), len(rows_KP)
    for start in range(first, last, block):
        width = min(block, last - start)
        _load(rows_KP, bits_KP, start, width, keys_KB)
        for least in (True, False):
            edge_B = least_B if least else most_B
            _select(keys_KB, trim if least else k_users - trim - 1, width, low_B, high_B, middle_B, count_B)
            _around(keys_KB, width, high_B, below_B, above_B, count_B)
            for b in range(width):
                edge_B[b] = _value(below_B[b])
        _mean_between(rows_KP, trim, start, width, least_B, most_B, out_P)


@njit(nogil=True, cache=True)
def _mean_between(rows_KP, trim, start, width, least_B, most_B, out_P):
    """Mean of the values between two order statistics; of values equal to one, as many count as are not trimmed."""
    k_users = len(rows_KP)
    total_B, below_B, above_B = np.zeros(width), np.zeros(width, np.int32), np.zeros(width, np.int32)
    for k in range(k_users):
        for b in range(width):
            x = rows_KP[k, start + b]
            under, over = x <= least_B[b], x >= most_B[b]
            below_B[b] += np.int32(under)
            above_B[b] += np.int32(over)
            total_B[b] += 0.0 if under or over else np.float64(x)
    for b in range(width):
        if least_B[b] == most_B[b]:
            out_P[start + b] = least_B[b]
        else:
            edges = least_B[b] * np.float64(below_B[b] - trim) + most_B[b] * np.float64(above_B[b] - trim)
            out_P[start + b] = (total_B[b] + edges) / (k_users - 2 * trim)


@njit(nogil=True, cache=True)
def _mean_near_median(rows_KP, keep, block, first, last, out_P):
    keys_KB, scratch = np.empty((len(rows_KP), block), np.int32), _scratch(block)
    low_B, high_B, middle_B, count_B, below_B, above_B = scratch
    far_KB = np.empty((len(rows_KP), block), np.float32)
    far_keys_KB = far_KB.view(np.int32)
    middle_value_B = np.empty(block, np.float32)
    bits_KP = rows_KP.view(np.int32)
    for start in range(first, last, block):
        width = min(block, last - start)
        _load(rows_KP, bits_KP, start, width, keys_KB)
        _middle_of_block(keys_KB, width, scratch, middle_value_B)
        for k in range(len(rows_KP)):
            for b in range(width):
                far_KB[k, b] = abs(rows_KP[k, start + b] - middle_value_B[b])
        _select(far_keys_KB, keep - 1, width, low_B, high_B, middle_B, count_B)
        _around(far_keys_KB, width, high_B, below_B, above_B, count_B)
        _mean_within(rows_KP, far_KB, keep, start, width, below_B, out_P)


@njit(nogil=True, cache=True)
def _mean_within(rows_KP, far_KB, keep, start, width, edge_B, out_P):
    """Mean of the ``keep`` nearest values; those exactly at the edge share the places that are left."""
    inside_B, edge_sum_B = np.zeros(width), np.zeros(width)
    num_inside_B, num_edge_B = np.zeros(width, np.int32), np.zeros(width, np.int32)
    far_keys_KB = far_KB.view(np.int32)
    for k in range(len(rows_KP)):
        for b in range(width):
            x = np.float64(rows_KP[k, start + b])
            inside, edge = far_keys_KB[k, b] < edge_B[b], far_keys_KB[k, b] == edge_B[b]
            num_inside_B[b] += np.int32(inside)
            num_edge_B[b] += np.int32(edge)
            inside_B[b] += x if inside else 0.0
            edge_sum_B[b] += x if edge else 0.0
    for b in range(width):
        share = np.float64(keep - num_inside_B[b]) / num_edge_B[b]
        out_P[start + b] = (inside_B[b] + share * edge_sum_B[b]) / keep
