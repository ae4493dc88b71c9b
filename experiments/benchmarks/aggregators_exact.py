"""Rules of coordinates as their definitions say, in float64: which of two results that differ is the nearer one.

Of updates [K, P], by blocks of columns, as float64 takes twice the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

_COLUMNS = 1 << 22  # numbers of a block


def distance_to_exact(rule: str, data: Path, f: int, saved: list[Path]) -> list[float] | None:
    """Of every result its largest difference to the exact one, in units of the exact one's largest value.

    None for a rule that has no definition here.
    """
    if rule not in EXACT:
        return None
    rows_KP = np.load(data, mmap_mode="r")
    width = max(_COLUMNS // len(rows_KP), 1)
    blocks = (rows_KP[:, start : start + width].astype(np.float64) for start in range(0, rows_KP.shape[1], width))
    exact_P = np.concatenate([EXACT[rule](block_KB, f) for block_KB in blocks])
    gaps = [np.abs(np.load(path) - exact_P).max() / np.abs(exact_P).max() for path in saved]
    return [float(f"{gap:.2e}") for gap in gaps]


def _mean(rows_KB: np.ndarray, f: int) -> np.ndarray:
    return rows_KB.mean(axis=0)


def _median(rows_KB: np.ndarray, f: int) -> np.ndarray:
    return np.median(rows_KB, axis=0)


def _trimmed_mean(rows_KB: np.ndarray, f: int) -> np.ndarray:
    return np.sort(rows_KB, axis=0)[f : len(rows_KB) - f].mean(axis=0)


def _mean_of_medians(rows_KB: np.ndarray, f: int) -> np.ndarray:
    """The mean of the K - f values that are nearest to the median."""
    order_KB = np.abs(rows_KB - np.median(rows_KB, axis=0)).argsort(axis=0, kind="stable")
    return np.take_along_axis(rows_KB, order_KB[: len(rows_KB) - f], axis=0).mean(axis=0)


EXACT: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "mean": _mean,
    "median": _median,
    "trimmed-mean": _trimmed_mean,
    "mean-of-medians": _mean_of_medians,
}
