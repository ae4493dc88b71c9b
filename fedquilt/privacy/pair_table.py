"""A table that pairs of items are counted in: one cell a pair while they are few, hashed cells where they are many.

A count sketch (Charikar, Chen and Farach-Colton 2002) with a public hash: row r of a level adds s_r(pair) · weight to
cell h_r(pair); the estimate is the median over rows of s_r(pair) · cell. Coarser levels count pairs of *groups* of
2^shift items, from which a decoder finds heavy pairs without looking at all. Nothing about privacy rests on the hash:
who knows it, and how pairs collide, does not enter the bound of ``pair_rows``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedquilt.errors import PrivacyError
from fedquilt.seeds import bits_at

MOST_CELLS = 1 << 26  # half a gigabyte of float64
_MEDIAN = math.sqrt(math.pi / 2)  # std of a median of normals / std of their mean, for many of them


@dataclass(frozen=True)
class PairTable:
    """``width``: cells of a hashed row; ``depth``: rows of a level; ``shifts``: its levels, coarsest first, 0 the last.

    A level whose pairs all fit into depth · width cells has one cell for each instead, and one row.
    """

    num_items: int
    width: int = 1 << 20
    depth: int = 1
    shifts: tuple[int, ...] = (0,)
    hash_seed: int = 0

    def __post_init__(self) -> None:
        if self.num_items < 2 or self.num_items >= 2**31:
            raise PrivacyError(f"pairs need a catalogue of 2 .. 2^31 - 1 items; got {self.num_items}")
        if self.width < 1 or self.depth < 1:
            raise PrivacyError(f"a pair table needs a width and a depth of at least 1; got {self.width}, {self.depth}")
        if self.shifts[-1:] != (0,) or any(a <= b for a, b in zip(self.shifts, self.shifts[1:], strict=False)):
            raise PrivacyError(f"levels go from coarse to single items, shifts falling to 0; got {self.shifts}")
        if self.cells > MOST_CELLS:
            raise PrivacyError(
                f"a table of {self.cells:,} cells is more than {MOST_CELLS:,}: lower its width, depth or levels"
            )

    # --- layout ---

    def pairs(self, level: int) -> int:
        """Unordered pairs of groups, a group with itself among them."""
        groups = -(-self.num_items >> self.shifts[level])
        return groups * (groups + 1) // 2

    def exact(self, level: int) -> bool:
        return self.pairs(level) <= self.depth * self.width

    def rows(self, level: int) -> int:
        return 1 if self.exact(level) else self.depth

    def size(self, level: int) -> int:
        return self.pairs(level) if self.exact(level) else self.depth * self.width

    def first(self, level: int) -> int:
        return sum(self.size(before) for before in range(level))

    @property
    def cells(self) -> int:
        return sum(self.size(level) for level in range(len(self.shifts)))

    @property
    def copies(self) -> int:
        """Cells that one pair is counted in."""
        return sum(self.rows(level) for level in range(len(self.shifts)))

    # --- counting ---

    def places(self, keys_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keys of item pairs -> (cells int64 [M, copies], signs float64 [M, copies])."""
        lows_M, highs_M = items_of(keys_M)
        parts = []
        for level, shift in enumerate(self.shifts):
            parts.append(self._of_level(level, key_of(lows_M >> shift, highs_M >> shift)))
        cells, signs = zip(*parts, strict=True)
        return np.concatenate(cells, axis=1), np.concatenate(signs, axis=1)

    def estimates(self, table_W: np.ndarray, level: int, keys_M: np.ndarray) -> np.ndarray:
        """Weights of pairs of one level, float64 [M], in units of the table's whole rows (all copies together)."""
        cells_MR, signs_MR = self._of_level(level, keys_M)
        read_MR = table_W[cells_MR] * signs_MR
        single = read_MR[:, 0] if read_MR.shape[1] == 1 else np.median(read_MR, axis=1)
        return single * math.sqrt(self.copies)

    def estimate_std(self, level: int, std: float) -> float:
        """Of the noise alone in an estimate, where every cell has noise ``std``."""
        rows = self.rows(level)
        shrunk = 1.0 if rows < 3 else _MEDIAN / math.sqrt(rows)
        return std * math.sqrt(self.copies) * shrunk

    def _of_level(self, level: int, keys_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.exact(level):
            return (self.first(level) + keys_M)[:, None], np.ones((len(keys_M), 1))
        columns = []
        for row in range(self.depth):
            columns.append(bits_at(self.hash_seed, level, keys_M, np.full(len(keys_M), row), "privacy/pairs"))
        bits_MR = np.stack(columns, axis=1)
        signs_MR = 1.0 - 2.0 * (bits_MR & np.uint64(1)).astype(np.float64)
        own_MR = ((bits_MR >> np.uint64(1)) % np.uint64(self.width)).astype(np.int64)
        return self.first(level) + np.arange(self.depth) * self.width + own_MR, signs_MR


def key_of(lows_M: np.ndarray, highs_M: np.ndarray) -> np.ndarray:
    """int64: place of (low, high), low <= high, in the triangle of all pairs."""
    lows_M, highs_M = np.asarray(lows_M, np.int64), np.asarray(highs_M, np.int64)
    return highs_M * (highs_M + 1) // 2 + lows_M


def items_of(keys_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of ``key_of``: (lows, highs)."""
    keys_M = np.asarray(keys_M, np.int64)
    highs_M = ((np.sqrt(8.0 * keys_M + 1) - 1) / 2).astype(np.int64)
    highs_M -= highs_M * (highs_M + 1) // 2 > keys_M  # the root's rounding, either way
    highs_M += (highs_M + 1) * (highs_M + 2) // 2 <= keys_M
    return keys_M - highs_M * (highs_M + 1) // 2, highs_M


def table_for(num_items: int, width: int, depth: int, hash_seed: int = 0, beam: int = 1 << 20) -> PairTable:
    """One level where all pairs are few enough to look at; else levels of four times as many groups each, the coarsest
    with at most ``beam`` pairs of groups."""
    shifts = [0]
    while PairTable(num_items, width, depth, (shifts[-1], 0) if shifts[-1] else (0,)).pairs(0) > max(beam, 1):
        shifts.append(shifts[-1] + 2)
    single = num_items * (num_items + 1) // 2 <= max(depth * width, beam)
    return PairTable(num_items, width, depth, (0,) if single else tuple(reversed(shifts)), hash_seed)
