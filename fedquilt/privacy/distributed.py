"""Noise made by the devices together: each adds a share on a grid of integers, and the sum has the central guarantee.

A device rounds its clipped row to multiples of ``granularity`` γ, adds integer noise and sends integers, which secure
aggregation can sum modulo anything large enough. Rounding to the nearest multiple lengthens a row by at most γ√d/2, and
that is in the sensitivity. Noise is sized for the fewest survivors: with ``dropout_margin`` m of n expected shares each
share carries 1/((1−m) n) of the variance, so up to m n devices may vanish; below that the round must not be opened.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.special import ive

from fedquilt.errors import PrivacyError
from fedquilt.privacy.clipping import clip_rows
from fedquilt.privacy.events import DistributedRelease, NoSampling, ids_hash
from fedquilt.privacy.randomness import Source


@dataclass(frozen=True)
class DistributedNoise:
    """``noise_multiplier``: std of the fewest survivors' sum / clipping_norm. Grid: C / 2^bits_of_clip."""

    noise: Literal["discrete-gaussian", "skellam"]
    noise_multiplier: float
    clipping_norm: float
    expected_shares: int
    dimension: int
    dropout_margin: float = 0.1
    bits_of_clip: int = 12

    def __post_init__(self) -> None:
        if not 0 <= self.dropout_margin < 1:
            raise PrivacyError(f"dropout_margin must lie in [0, 1); got {self.dropout_margin}")
        if self.noise_multiplier <= 0 or self.clipping_norm <= 0 or self.expected_shares < 1:
            raise PrivacyError(
                "distributed noise needs a positive noise multiplier, clipping norm and number of shares"
            )

    @property
    def granularity(self) -> float:
        return self.clipping_norm * 2.0**-self.bits_of_clip

    @property
    def fewest_shares(self) -> int:
        return max(1, math.ceil((1 - self.dropout_margin) * self.expected_shares))

    @property
    def variance(self) -> float:
        """Of the fewest survivors' sum, in grid cells²."""
        return (self.noise_multiplier * self.clipping_norm / self.granularity) ** 2

    @property
    def l2(self) -> float:
        """Bound of a rounded row, in grid cells."""
        return self.clipping_norm / self.granularity + math.sqrt(self.dimension) / 2

    @property
    def l1(self) -> float:
        """Of an integer row: ||x||_1 <= min(sqrt(d) ||x||_2, ||x||_2²)."""
        return min(math.sqrt(self.dimension) * self.l2, self.l2**2)

    def share(self, row_P: np.ndarray, source: Source, context: str) -> np.ndarray:
        """What one device sends: int64 [P], round(clipped row / γ) + its share of the noise."""
        clipped_1P, norms = clip_rows(np.asarray(row_P, np.float32)[None], self.clipping_norm)
        if not np.isfinite(norms[0]):
            raise PrivacyError("the update is not finite; nothing is sent")
        cells_P = np.rint(clipped_1P[0].astype(np.float64) / self.granularity).astype(np.int64)
        return cells_P + integer_noise(self.noise, self.variance / self.fewest_shares, len(cells_P), source, context)

    def require_fit(self, shares: int) -> None:
        """PrivacyError where the sum of that many shares could pass half the modulus, and so come out wrong."""
        noise = 12 * math.sqrt(self.variance * max(shares / self.fewest_shares, 1))
        if shares * self.clipping_norm / self.granularity + noise >= 2.0 ** (MODULUS_BITS - 1):
            raise PrivacyError(
                f"the sum of {shares:,} shares of up to 2^{self.bits_of_clip} cells and their noise does not fit"
                f" {MODULUS_BITS} bits: take smaller cohorts, less noise or fewer bits_of_clip"
            )

    def opened(self, sum_P: np.ndarray, survivors: int, expected_cohort: float) -> np.ndarray:
        """float64 [P]: the mean. PrivacyError below ``fewest_shares``, where the noise falls short of the claim."""
        if survivors < self.fewest_shares:
            raise PrivacyError(
                f"{survivors} of {self.expected_shares} shares arrived; the noise was sized for at least"
                f" {self.fewest_shares} (dropout margin {self.dropout_margin:.0%}): the sum must not be opened"
            )
        return sum_P * self.granularity / expected_cohort

    def event(self, run: str, round_: int, cohort_K: np.ndarray, source: Source) -> DistributedRelease:
        return DistributedRelease(
            run, round_, NoSampling(), self.noise_multiplier, self.clipping_norm, float(self.expected_shares),
            len(cohort_K), ids_hash(cohort_K), randomness=source.kind, noise=self.noise, granularity=self.granularity,
            variance=self.variance, l2=self.l2, l1=self.l1, dimension=self.dimension, shares=self.fewest_shares,
            dropout_margin=self.dropout_margin,
        )  # fmt: skip


MODULUS_BITS = 32  # of sums of shares; a wider one would cost every device more bytes


def centred(sum_P: np.ndarray) -> np.ndarray:
    """int64 [P] in [-2^31, 2^31) from uint32 [P]."""
    return sum_P.astype(np.uint32, copy=False).view(np.int32).astype(np.int64)


_WIDEST = 2e5  # std in cells; a table of 24 times that many numbers


def integer_noise(noise: str, variance: float, count: int, source: Source, context: str) -> np.ndarray:
    """int64 [count] by inverting the distribution's table at 64 bits of the source: no generator in between."""
    first, thresholds = _table(noise, variance)
    return first + np.searchsorted(thresholds, source.bits(count, context), side="right").astype(np.int64)


@lru_cache(maxsize=8)
def _table(noise: str, variance: float) -> tuple[int, np.ndarray]:
    """-> (smallest value, cumulative probabilities as uint64) over ± 12 std, beyond which lies less than 2^-100."""
    std = math.sqrt(variance)
    if std > _WIDEST:
        raise PrivacyError(
            f"a share's noise spans {std:.3g} grid cells; lower bits_of_clip (at most {_WIDEST:g} cells)"
        )
    reach = math.ceil(12 * std) + 24
    weights = _WEIGHTS[noise](np.arange(-reach, reach + 1), variance)
    cumulative = np.cumsum(weights / weights.sum())[:-1]
    return -reach, np.minimum(cumulative * 2.0**64, np.nextafter(2.0**64, 0)).astype(np.uint64)


def _skellam_weights(x: np.ndarray, variance: float) -> np.ndarray:
    """e^-μ I_|x|(μ), difference of two Poissons of mean μ/2."""
    return np.nan_to_num(ive(np.abs(x), variance))


def _discrete_gaussian_weights(x: np.ndarray, variance: float) -> np.ndarray:
    return np.exp(-np.square(x.astype(np.float64)) / (2 * variance))


_WEIGHTS = {"skellam": _skellam_weights, "discrete-gaussian": _discrete_gaussian_weights}
