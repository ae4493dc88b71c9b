"""Rows of which only the largest entries travel: float16 values at increasing places, and back to float32 rows.

Top-k sparsification (Aji and Heafield 2017, arXiv:1704.05021) without error feedback: what is not sent is forgotten,
since a device may not be asked again for a long time. An entry costs 4 bytes up to 65,536 parameters, 6 beyond.
"""

from __future__ import annotations

import numpy as np

_SMALLEST = np.float32(2.0**-14) * np.float32(1 + 2.0**-9)  # below, float16 is denormal and may round up
_SHRINK = np.float32(1 - 2.0**-10)  # rounding to float16 adds at most 2^-11 of a value: no norm grows on the way


def place_dtype(num_parameters: int) -> type[np.unsignedinteger]:
    return np.uint16 if num_parameters <= 1 << 16 else np.uint32


def halved(values_KS: np.ndarray) -> np.ndarray:
    """float16, each entry no larger than it was; what float16 cannot hold precisely (under 6.1e-5) becomes zero."""
    return np.where(np.abs(values_KS) < _SMALLEST, 0, values_KS * _SHRINK).astype(np.float16)


def dense_rows(places_KS: np.ndarray, values_KS: np.ndarray, num_parameters: int) -> np.ndarray:
    """float32 [K, P]. ValueError for places that do not increase along a row or lie beyond P."""
    places_KS = places_KS.astype(np.int64)
    if not places_KS.shape[1]:
        raise ValueError("a sparse update needs at least one entry a row")
    if places_KS.size and (places_KS[:, -1].max() >= num_parameters or (np.diff(places_KS, axis=1) <= 0).any()):
        raise ValueError(f"places of a sparse update must increase along a row and stay under {num_parameters}")
    rows_KP = np.zeros((len(places_KS), num_parameters), np.float32)
    np.put_along_axis(rows_KP, places_KS, values_KS.astype(np.float32), axis=1)
    return rows_KP
