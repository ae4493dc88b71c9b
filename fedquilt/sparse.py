"""Rows of which only the largest entries travel, at one to 1.7 bytes an entry, and back to float32 rows.

Top-k sparsification (Aji and Heafield 2017, arXiv:1704.05021) without error feedback: what is not sent is forgotten,
since a device may not be asked again for a long time. Of the rows of a reply, laid end to end, travel

- the gaps between the places of their entries, one byte each (255: skip 255 places), compressed with zlib;
- a byte an entry, compressed with zlib: its sign, and q where |value| = scale · 2^(-q / 8), rounded towards zero, so
  that no norm grows on the way; q = 127 is 0, what is under 1.8e-5 of the row's largest entry;
- a scale a row, its largest magnitude, float32.

Values lose 4 % on average, 8.3 % at most: a common shrinkage, and noise of 2.5 % of a value.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

GAPS, LEVELS, SCALES = "gaps", "levels", "scales"
_SKIP = 255
_ZERO = 127  # the level of what is too small
_PER_OCTAVE = 8
_MAGNITUDES = np.append(np.exp2(-np.arange(_ZERO) / _PER_OCTAVE), 0).astype(np.float32)
_SIGNED = np.concatenate([_MAGNITUDES, -_MAGNITUDES])  # by byte: 128 and more are negative


def encode(places_KS: np.ndarray, values_KS: np.ndarray, num_parameters: int) -> dict[str, np.ndarray]:
    """Finite values at places that increase along a row -> arrays that ``decode`` reads."""
    places_KS = places_KS.astype(np.int64)
    starts_K1 = num_parameters * np.arange(len(places_KS))[:, None]
    scales_K = np.abs(values_KS).max(axis=1, initial=0).astype(np.float32)
    levels_KS = _levels(values_KS.astype(np.float32), scales_K[:, None])
    return {GAPS: _packed(_gaps((starts_K1 + places_KS).ravel())), LEVELS: _packed(levels_KS), SCALES: scales_K}


def decode(arrays: Mapping[str, np.ndarray], num_rows: int, num_parameters: int) -> np.ndarray:
    """float32 [K, P]. ValueError for bytes that ``encode`` cannot have written; a row's scale is believed as it is."""
    size = num_rows * num_parameters
    stream = _unpacked(arrays[GAPS], size + size // _SKIP, GAPS)
    entries = np.flatnonzero(stream != _SKIP)
    places = (np.cumsum(stream, dtype=np.int64) + np.cumsum(stream != _SKIP))[entries] - 1
    levels = _unpacked(arrays[LEVELS], len(entries), LEVELS)
    if len(levels) != len(entries):
        raise ValueError(f"a sparse update has {len(entries)} places and {len(levels)} levels")
    if len(places) and places[-1] >= size:
        raise ValueError(f"a sparse update of {num_rows} rows has a place {places[-1]}, beyond {size} entries")
    flat = np.zeros(size, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        flat[places] = _SIGNED[levels] * arrays[SCALES][places // max(num_parameters, 1)]
    return flat.reshape(num_rows, num_parameters)


def _levels(values_KS: np.ndarray, scales_K1: np.ndarray) -> np.ndarray:
    """uint8 [K, S]; the largest magnitude on the grid that is no larger than the value."""
    magnitudes_KS = np.abs(values_KS)
    with np.errstate(divide="ignore", invalid="ignore"):
        nearest_KS = np.rint(-_PER_OCTAVE * np.log2(magnitudes_KS / scales_K1))
    levels_KS = np.where(nearest_KS < _ZERO, nearest_KS, _ZERO).astype(np.uint8)  # NaN is not smaller
    larger_KS = _MAGNITUDES[levels_KS] * scales_K1 > magnitudes_KS
    return np.minimum(levels_KS + larger_KS, _ZERO).astype(np.uint8) | (np.signbit(values_KS).astype(np.uint8) << 7)


def _gaps(places: np.ndarray) -> np.ndarray:
    """uint8: for each place the number of places skipped since the one before."""
    skipped = np.diff(places, prepend=-1) - 1
    if len(skipped) and skipped.min() < 0:
        raise ValueError("places of a sparse update must increase along a row and lie in it")
    long, rest = np.divmod(skipped, _SKIP)
    stream = np.full(len(places) + int(long.sum()), _SKIP, np.uint8)
    stream[np.cumsum(long + 1) - 1] = rest
    return stream


def _packed(stream: np.ndarray) -> np.ndarray:
    return np.frombuffer(zlib.compress(stream.tobytes(), 6), np.uint8)


def _unpacked(packed: np.ndarray, most: int, name: str) -> np.ndarray:
    """At most ``most`` bytes: a sender cannot make a reader allocate more."""
    engine = zlib.decompressobj()
    try:
        stream = engine.decompress(packed.tobytes(), most + 1)
    except zlib.error as error:
        raise ValueError(f"{name} of a sparse update: {error}") from None
    if len(stream) > most or not engine.eof:
        raise ValueError(f"{name} of a sparse update: not one whole stream of at most {most} bytes")
    return np.frombuffer(stream, np.uint8)
