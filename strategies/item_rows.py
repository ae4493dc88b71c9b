"""The part of a patch that has a row per item, and robust values of such rows among the users who touched them."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from fedquilt.types import PatchSpec


def item_tensors(spec: PatchSpec) -> dict[str, tuple[slice, int]]:
    """{name: (its place in P, width of a row)} of ``item_bias`` and ``item_*.factors``, which are [I] or [I, width]."""
    return {
        name: (spec.slices[name], int(np.prod(shape[1:], dtype=int)))
        for name, shape in spec.shapes
        if name.startswith("item_") and not name.endswith(".basis")
    }


def judged_rows(updates_KP: torch.Tensor, place: slice, width: int, trim: float, bound_factor: float) -> torch.Tensor:
    """[I · width]: for every item T/K times a robust mean of its rows, T the users whose row is not zero.

    Rows longer than ``bound_factor`` times the median length of the item's rows are shortened to it; then, in each
    coordinate, the ``trim`` share at either end is dropped.
    """
    rows_KP = updates_KP.detach().numpy()
    out_P = np.zeros(place.stop - place.start, rows_KP.dtype)
    _judge(rows_KP, place.start, width, trim, bound_factor, out_P)
    return torch.from_numpy(out_P)


@njit(nogil=True, cache=True)
def _judge(rows_KP, start, width, trim, bound_factor, out_P):
    k_users, num_items = len(rows_KP), len(out_P) // width
    values_TR, norms_T = np.empty((k_users, width), rows_KP.dtype), np.empty(k_users)
    for item in range(num_items):
        first, touched = start + item * width, 0
        for k in range(k_users):
            square = 0.0
            for r in range(width):
                square += np.float64(rows_KP[k, first + r]) ** 2
            if square == 0.0:
                continue
            norms_T[touched] = np.sqrt(square)
            values_TR[touched] = rows_KP[k, first : first + width]
            touched += 1
        if touched == 0:
            continue
        _shorten(values_TR, norms_T, touched, bound_factor)
        dropped = min(int(np.ceil(trim * touched)), (touched - 1) // 2)
        for r in range(width):
            kept = np.sort(values_TR[:touched, r])[dropped : touched - dropped]
            out_P[item * width + r] = kept.mean() * touched / k_users


@njit(nogil=True, cache=True)
def _shorten(values_TR, norms_T, touched, bound_factor):
    bound = bound_factor * np.median(norms_T[:touched])
    for t in range(touched):
        if norms_T[t] > bound:
            values_TR[t] *= bound / norms_T[t]
