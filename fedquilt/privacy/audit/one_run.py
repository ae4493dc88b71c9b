"""What guesses about canaries prove: lower bounds on epsilon from one run.

Each of m canaries is in or out by a fair coin of its own. An attacker guesses some coins and abstains on the others.
``epsilon_one_run`` holds for any (epsilon, delta)-private mechanism (Steinke, Nasr and Jagielski 2023,
arXiv:2305.08846, theorem 5.2); ``epsilon_one_run_gdp`` for any mu-Gaussian one (Mahloujifar, Melis and Chaudhuri 2024,
arXiv:2410.22235); ``epsilon_gdp_interval`` needs independent guesses of a mu-Gaussian mechanism as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import expit, ndtr, ndtri
from scipy.stats import beta as beta_distribution
from scipy.stats import binom

from fedquilt.errors import PrivacyError
from fedquilt.privacy.gaussian import gaussian_epsilon

_MOST = 60.0  # epsilons are searched up to here


def p_value(m: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """P[at least ``correct`` of ``guesses``] under (epsilon, delta), at most: β + 2 m δ max_i P[v > B >= v − i] / i.

    B ~ Binomial(guesses, e^ε/(1+e^ε)), v = correct, β = P[B >= v].
    """
    _require_counts(m, guesses, correct)
    accuracy = float(expit(epsilon))
    tail = float(binom.sf(correct - 1, guesses, accuracy))
    if delta == 0 or correct == 0:
        return tail
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, accuracy))
    return float(min(tail + 2 * m * delta * (below / np.arange(1, correct + 1)).max(), 1.0))


def epsilon_one_run(
    m: int, guesses: int, correct: int, delta: float, confidence: float = 0.95, tolerance: float = 1e-6
) -> float:
    """The largest epsilon that the guesses refute at ``confidence``; 0 where they refute none."""
    return _largest_refuted(
        lambda epsilon: p_value(m, guesses, correct, epsilon, delta) < 1 - confidence, tolerance=tolerance
    )


def epsilon_one_run_gdp(m: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """As ``epsilon_one_run`` for mu-Gaussian mechanisms: the largest refuted mu, as epsilon at ``delta``.

    Algorithm of 2410.22235: with h_c = (1−conf)(r−c)/m and r_c = (1−conf) c/m, for i = c−1 … 0
    h_i = max(h_{i+1}, Φ(Φ⁻¹(r_{i+1}) − mu)), r_i = r_{i+1} + i/(guesses−i) (h_i − h_{i+1}); refuted where
    r_0 + h_0 > guesses/m.
    """
    _require_counts(m, guesses, correct)
    significance = 1 - confidence
    return gaussian_epsilon(
        _largest_refuted(lambda mu: _refutes_gdp(m, guesses, correct, mu, significance), most=20.0), delta
    )


def _refutes_gdp(m: int, guesses: int, correct: int, mu: float, significance: float) -> bool:
    right, wrong = significance * correct / m, significance * (guesses - correct) / m
    for i in range(correct - 1, -1, -1):
        more = max(wrong, float(ndtr(ndtri(right) - mu)))
        if more == wrong:
            break  # neither can change any more
        right, wrong = min(right + i / (guesses - i) * (more - wrong), 1.0), more
    return right + wrong > guesses / m


def epsilon_gdp_interval(
    scores_M: np.ndarray, in_M: np.ndarray, thresholds: Sequence[float], delta: float, confidence: float = 0.95
) -> float:
    """mu = Φ⁻¹(1−FPR) − Φ⁻¹(FNR) with Clopper-Pearson bounds at each threshold, the best of them, as epsilon.

    Thresholds are fixed before the scores are seen; the confidence is shared out between them (Bonferroni).
    """
    share = (1 - confidence) / (2 * max(len(thresholds), 1))
    best = 0.0
    for threshold in thresholds:
        guessed_M = scores_M >= threshold
        misses, alarms = int((in_M & ~guessed_M).sum()), int((~in_M & guessed_M).sum())
        fnr = clopper_pearson_upper(misses, int(in_M.sum()), share)
        fpr = clopper_pearson_upper(alarms, int((~in_M).sum()), share)
        if fnr < 1 and fpr < 1:
            best = max(best, float(-ndtri(fpr) - ndtri(fnr)))
    return gaussian_epsilon(best, delta)


def clopper_pearson_upper(successes: int, trials: int, significance: float) -> float:
    """The largest rate that ``successes`` or fewer of ``trials`` does not refute; 1 for no trials."""
    return float(beta_distribution.isf(significance, successes + 1, trials - successes)) if successes < trials else 1.0


def epsilon_of_rates(
    true_positives: int, positives: int, false_positives: int, negatives: int, delta: float, confidence: float = 0.95
) -> float:
    """ln((TPR − δ) / FPR) with Clopper-Pearson bounds on both (Jagielski et al. 2020, arXiv:2006.07709)."""
    share = (1 - confidence) / 2
    tpr = 1 - clopper_pearson_upper(positives - true_positives, positives, share)
    fpr = clopper_pearson_upper(false_positives, negatives, share)
    return max(0.0, math.log((tpr - delta) / fpr)) if tpr > delta else 0.0


def _largest_refuted(refuted: Callable[[float], bool], most: float = _MOST, tolerance: float = 1e-6) -> float:
    """By bisection; ``refuted`` is monotone: what refutes a larger value refutes the smaller ones."""
    if not refuted(0.0):
        return 0.0
    if refuted(most):
        return most
    low = 0.0
    while most - low > tolerance:
        middle = (low + most) / 2
        low, most = (middle, most) if refuted(middle) else (low, middle)
    return low


def _require_counts(m: int, guesses: int, correct: int) -> None:
    if not 0 <= correct <= guesses <= m or not m:
        raise PrivacyError(f"need 0 <= correct <= guesses <= m and m > 0; got {correct}, {guesses}, {m}")
