"""The Gaussian mechanism without sampling, exactly: its privacy curve, and the noise for any epsilon.

Balle and Wang 2018 (arXiv:1805.06530), theorem 8; Dong, Roth and Su 2022 (arXiv:1905.02383): one Gaussian with
mu = sensitivity / std. T of them, adaptively chosen too, are one with mu² = Σ mu_t². Never the central limit form.
"""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr

from fedquilt.errors import PrivacyError


def gaussian_delta(epsilon: float, mu: float) -> float:
    """delta(epsilon) = Φ(mu/2 − epsilon/mu) − e^epsilon Φ(−mu/2 − epsilon/mu)."""
    if mu == 0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    first, second = log_ndtr(mu / 2 - epsilon / mu), epsilon + log_ndtr(-mu / 2 - epsilon / mu)
    return float(math.exp(first) * -math.expm1(min(second - first, 0.0)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon >= 0 with gaussian_delta(epsilon, mu) <= delta; inf for mu = inf."""
    if math.isinf(mu):
        return math.inf
    if mu == 0 or gaussian_delta(0.0, mu) <= delta:
        return 0.0
    high = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1.0  # zCDP's conversion, an upper bound
    return float(brentq(lambda epsilon: gaussian_delta(epsilon, mu) - delta, 0.0, high, xtol=1e-12, rtol=1e-14))


def analytic_noise_multiplier(epsilon: float, delta: float) -> float:
    """Smallest std / sensitivity with which one Gaussian release is (epsilon, delta)-private, for any epsilon > 0."""
    require_epsilon(epsilon)
    if not 0 < delta < 1:
        raise PrivacyError(f"delta must lie in (0, 1); got {delta}")
    low, high = -3.0, 3.0  # log10 of mu
    while gaussian_delta(epsilon, 10**low) > delta:
        low -= 3
    while gaussian_delta(epsilon, 10**high) < delta:
        high += 3
    log_mu = brentq(lambda x: gaussian_delta(epsilon, 10**x) - delta, low, high, xtol=1e-14)
    z = 1 / 10**log_mu
    while gaussian_delta(epsilon, 1 / z) > delta:  # the root's rounding must not fall on the wrong side
        z *= 1 + 1e-14
    return float(z)


def classical_noise_multiplier(epsilon: float, delta: float) -> float:
    """sqrt(2 ln(1.25/delta)) / epsilon (Dwork and Roth 2014, theorem A.1): proven for epsilon < 1 only.

    Kept for comparison: asked for 10 at delta = 1e-5 it gives 10.39, asked for 20 it gives 25.4.
    """
    return math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def require_epsilon(epsilon: float) -> float:
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise PrivacyError(f"epsilon must be finite and positive; got {epsilon}. Without privacy, leave it unset")
    return epsilon


def default_delta(population: int) -> float:
    """N^-1.1 (McMahan et al. 2018, arXiv:1710.06963): below 1/N at every N > 1."""
    if population < 2:
        raise PrivacyError(f"a delta below 1/N needs at least two users; got {population}")
    return float(population**-1.1)


def require_delta(delta: float, population: int) -> float:
    """A delta of 1/N or more allows to publish one user's data whole."""
    if not 0 < delta < 1 / population:
        raise PrivacyError(
            f"delta = {delta:g} is not in (0, 1/N) for N = {population:,} users (1/N = {1 / population:g}): it would"
            f" allow to publish a user whole; take at most N^-1.1 = {default_delta(max(population, 2)):.3g}"
        )
    return delta
