"""Squared distances between users, [K, K], without a [K, K, P] and without a copy of [K, P].

||x - y||^2 = ||x||^2 + ||y||^2 - 2 x·y loses its digits where the rows share a large offset; then each block of columns
is taken relative to a robust centre, a median of a few rows. Only what lies on or above the diagonal is multiplied, and
a little below it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numba import njit

_BLOCK = 1 << 17  # numbers of a block of columns: it stays in the second-level cache where K is small
_MIN_COLUMNS, _MAX_COLUMNS = 1024, 8192
_PARTS = 8
_MIN_TILE, _MAX_TILE = 52, 1024  # users: a band of the matrix
_EVEN = 4  # a band is a multiple of it, which products are faster for
_CENTRE_ROWS = 15
_CENTRE_COLUMNS = 512
_SQUARE = 64  # of the matrix, and its mirror image, in the first-level cache
_OFFSET = 0.2  # of a row's squared length
_OFFSET_COLUMNS = 1024
_FAST = {"reassoc", "nsz", "contract"}  # sums in any order; NaN and infinity keep their meaning


def squared_distances(updates_KP: torch.Tensor) -> torch.Tensor:
    """[K, K], symmetric, zero on the diagonal, never negative. O(K² P) time, K² + 1024 K numbers of memory."""
    gram_KK = _upper_gram(updates_KP, _centre(updates_KP))
    _mirror(gram_KK.numpy(), True)
    return gram_KK


def inner_products(updates_KP: torch.Tensor) -> torch.Tensor:
    """updates_KP @ updates_KP.T, [K, K]."""
    return _mirrored(_upper_gram(updates_KP, None))


def centred_products(updates_KP: torch.Tensor) -> torch.Tensor:
    """(x - c)·(y - c), [K, K], relative to a robust centre c."""
    return _mirrored(_upper_gram(updates_KP, _centre(updates_KP)))


def cosines(updates_KP: torch.Tensor) -> torch.Tensor:
    """Cosine similarity [K, K], 1 on the diagonal; 0 beside a row of zeros."""
    gram_KK = inner_products(updates_KP)
    norms_K = gram_KK.diagonal().clamp(min=0).sqrt()
    inverse_K = torch.where(norms_K > 0, 1 / norms_K, torch.zeros_like(norms_K))
    return gram_KK.mul_(inverse_K).mul_(inverse_K[:, None]).clamp_(-1, 1).fill_diagonal_(1)


def sums_of_nearest(distances_KK: torch.Tensor, count: int) -> torch.Tensor:
    """[K], the sum of the ``count`` smallest distances of each row to others, float64."""
    sums_K = np.empty(len(distances_KK))
    for rows in _tiles(len(distances_KK)):
        nearest = np.partition(distances_KK[rows].numpy(), count, axis=1)[:, : count + 1]
        sums_K[rows] = nearest.sum(axis=1, dtype=np.float64)  # its own distance, 0, is among them
    return torch.from_numpy(sums_K)


def nearest(distances_KK: torch.Tensor, count: int) -> np.ndarray:
    """[K, count] indices of the nearest rows of each row, itself among them, in no order."""
    found = np.empty((len(distances_KK), count), np.int64)
    for rows in _tiles(len(distances_KK)):
        found[rows] = np.argpartition(distances_KK[rows].numpy(), count - 1, axis=1)[:, :count]
    return found


def nearest_mixing(distances_KK: torch.Tensor, count: int) -> torch.Tensor:
    """[K, K], 1 / count at the ``count`` nearest of each row, itself among them. Overwrites ``distances_KK``."""
    for rows in _tiles(len(distances_KK)):
        tile = distances_KK[rows]
        chosen = torch.from_numpy(np.argpartition(tile.numpy(), count - 1, axis=1)[:, :count])
        tile.zero_().scatter_(1, chosen, 1 / count)
    return distances_KK


def _upper_gram(updates_KP: torch.Tensor, centre_P: torch.Tensor | None) -> torch.Tensor:
    """(x - c)·(y - c) on and above the diagonal, [K, K]: a band of users at a time, with all from its first on."""
    k, p = updates_KP.shape
    gram_KK = torch.zeros(k, k, dtype=updates_KP.dtype)
    columns = max(p, 1) if centre_P is None else min(max(_BLOCK // max(k, 1), _MIN_COLUMNS), _MAX_COLUMNS)
    shifted = None if centre_P is None else torch.empty(k * min(columns, p), dtype=updates_KP.dtype)
    for start in range(0, p, columns):
        block_KB = updates_KP[:, start : start + columns]
        if shifted is not None and centre_P is not None:
            room_KB = shifted[: block_KB.numel()].view(block_KB.shape)
            block_KB = torch.sub(block_KB, centre_P[start : start + columns], out=room_KB)
        for band in _tiles(k):
            gram_KK[band, band.start :].addmm_(block_KB[band], block_KB[band.start :].T)
    return gram_KK


def _mirrored(upper_KK: torch.Tensor) -> torch.Tensor:
    _mirror(upper_KK.numpy(), False)
    return upper_KK


@njit(nogil=True, cache=True)
def _mirror(upper_KK, to_distances):
    """What is above the diagonal to below it, in place; as products, or as ||x||² + ||y||² - 2 x·y, at least 0."""
    k_users, zero = len(upper_KK), upper_KK.dtype.type(0)
    squares_K = np.diag(upper_KK).copy()
    for top in range(0, k_users, _SQUARE):
        for left in range(top, k_users, _SQUARE):
            for i in range(top, min(top + _SQUARE, k_users)):
                for j in range(max(left, i + 1), min(left + _SQUARE, k_users)):
                    value = upper_KK[i, j]
                    if to_distances:
                        value = max(squares_K[i] + squares_K[j] - value - value, zero)
                        upper_KK[i, j] = value
                    upper_KK[j, i] = value
    if to_distances:
        for i in range(k_users):
            upper_KK[i, i] = zero


def _centre(updates_KP: torch.Tensor) -> torch.Tensor | None:
    """In every coordinate the middle of at most 15 rows, which few colluders cannot move far.

    None where the rows share no offset, as no digits are lost then: of every second of these rows three quarters of
    the pairs have a product that is small beside a row's square. Where most rows are honest, enough of the pairs are.
    """
    rows_KP = updates_KP.detach().contiguous().numpy()
    rows = np.linspace(0, len(rows_KP) - 1, min(_CENTRE_ROWS, len(rows_KP))).round().astype(np.int64)
    if not _have_offset(rows_KP, rows[:: 2 if len(rows) == _CENTRE_ROWS else 1]):
        return None
    out_P = np.empty(rows_KP.shape[1], rows_KP.dtype)
    _middle_of_few(rows_KP, rows, out_P)
    return torch.from_numpy(out_P)


@njit(nogil=True, cache=True)
def _have_offset(rows_KP, rows):
    """A block of columns of all these rows is in the first-level cache while its products are taken."""
    count = len(rows)
    squares_T, products = np.zeros(count), np.zeros(count * (count - 1) // 2)
    for start in range(0, rows_KP.shape[1], _OFFSET_COLUMNS):
        at = 0
        for t in range(count):
            row_B = rows_KP[rows[t], start : start + _OFFSET_COLUMNS]
            squares_T[t] += np.float64(_product(row_B, row_B))
            for other in range(t):
                products[at] += np.float64(_product(row_B, rows_KP[rows[other], start : start + _OFFSET_COLUMNS]))
                at += 1
    if len(products) == 0:
        return False
    return np.sort(products)[len(products) - 1 - len(products) // 4] > _OFFSET * np.sort(squares_T)[count // 2]


@njit(nogil=True, cache=True, fastmath=_FAST)
def _product(row_P, other_P):
    total = row_P.dtype.type(0)
    for p in range(len(row_P)):
        total += row_P[p] * other_P[p]
    return total


@njit(nogil=True, cache=True)
def _middle_of_few(rows_KP, rows, out_P):
    """Neighbours are swapped until all are in order, for many columns at once: no branches, so vector instructions."""
    count = len(rows)
    few_TB = np.empty((count, _CENTRE_COLUMNS), rows_KP.dtype)
    for start in range(0, len(out_P), _CENTRE_COLUMNS):
        width = min(_CENTRE_COLUMNS, len(out_P) - start)
        for t in range(count):
            few_TB[t, :width] = rows_KP[rows[t], start : start + width]
        for turn in range(count):
            for t in range(turn % 2, count - 1, 2):
                first_B, second_B = few_TB[t], few_TB[t + 1]
                for b in range(width):
                    low, high = min(first_B[b], second_B[b]), max(first_B[b], second_B[b])
                    first_B[b], second_B[b] = low, high
        out_P[start : start + width] = few_TB[(count - 1) // 2, :width]


def _tiles(k: int) -> Iterator[slice]:
    size = min(max(-(-k // (_PARTS * _EVEN)) * _EVEN, _MIN_TILE), _MAX_TILE)
    return (slice(start, min(start + size, k)) for start in range(0, k, size))
