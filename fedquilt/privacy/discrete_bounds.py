"""Proven bounds for noise on integers: the symmetric Skellam, and sums of discrete Gaussians."""

from __future__ import annotations

import math

import numpy as np

from fedquilt.errors import PrivacyError


def skellam_rdp(orders: np.ndarray, variance: float, l2: float, l1: float) -> np.ndarray:
    """RDP of Skellam noise of that variance on an integer vector (Agarwal, Kairouz and Liu 2021, arXiv:2110.04995).

    ε(α) <= α l2²/(2μ) + min(((2α − 1) l2² + 6 l1)/(4μ²), 3 l1/(2μ)) for integer α >= 2; others are rounded up, as a
    Rényi divergence grows with its order. Sums of Skellams are Skellam, so any number of shares may make the noise.
    """
    alpha = np.maximum(np.ceil(orders), 2.0)
    excess = np.minimum(((2 * alpha - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
    return alpha * l2**2 / (2 * variance) + excess


def sum_of_discrete_gaussians_rho(variance: float, shares: int, l2: float, dimension: int) -> float:
    """zCDP of the sum of ``shares`` discrete Gaussians of total ``variance`` (Kairouz, Liu and Steinke 2021,
    arXiv:2102.06387, theorem 1, with Δ1 <= sqrt(d) Δ2).

    ρ = ε²/2, ε = min(sqrt(l2²/σ² + τ d/2), l2/σ + τ sqrt(d)), τ = 10 Σ_{k<n} exp(−2π² σ1² k/(k+1)), σ1² = σ²/n.
    """
    each = variance / shares
    if shares > 1 and each < 0.25:
        raise PrivacyError(
            f"a share's variance is {each:g} grid cells², below the 1/4 that the bound needs: take a finer granularity"
        )
    tau = 10 * sum(math.exp(-2 * math.pi**2 * each * k / (k + 1)) for k in range(1, min(shares, 10_000)))
    tau += 10 * max(shares - 10_000, 0) * math.exp(-2 * math.pi**2 * each * 10_000 / 10_001)
    first = math.sqrt(l2**2 / variance + tau * dimension / 2)
    second = l2 / math.sqrt(variance) + tau * math.sqrt(dimension)
    return min(first, second) ** 2 / 2
