"""Rows of which only the largest entries travel: float16 values at increasing places, and back to float32 rows.

Top-k sparsification (Aji and Heafield 2017, arXiv:1704.05021) without error feedback: what is not sent is forgotten,
since a device may not be asked again for a long time. An entry costs 4 bytes up to 65,536 parameters, 6 beyond.
"""

from __future__ import annotations

import numpy as np

_SHRINK = np.float32(1 - 2.0**-10)  # rounding to float16 adds at most 2^-11 of a value: no norm grows on the way


def place_dtype(num_parameters: int) -> type[np.unsignedinteger]:
    return np.uint16 if num_parameters <= 1 << 16 else np.uint32


def halved(values_KS: np.ndarray) -> np.ndarray:
    """float16, each row's norm no larger than it was (entries under 6e-8 vanish)."""
    return (values_KS * _SHRINK).astype(np.float16)


def dense_rows(places_KS: np.ndarray, values_KS: np.ndarray, num_parameters: int) -> np.ndarray:
    """float32 [K, P]. ValueError for places that do not increase along a row or lie beyond P."""
    places_KS = places_KS.astype(np.int64)
    if places_KS.size and (places_KS[:, -1].max() >= num_parameters or (np.diff(places_KS, axis=1) <= 0).any()):
        raise ValueError(f"places of a sparse update must increase along a row and stay under {num_parameters}")
    rows_KP = np.zeros((len(places_KS), num_parameters), np.float32)
    np.put_along_axis(rows_KP, places_KS, values_KS.astype(np.float32), axis=1)
    return rows_KP
