"""From releases to guesses: the likelihood ratio of each canary, and how many of them are worth a guess.

How many, and above which scores, is settled on rehearsed scores of the claimed mechanism, before any real score is
seen; so a bound keeps its confidence without a correction for having looked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedquilt.privacy.audit.one_run import epsilon_gdp_interval, epsilon_one_run, epsilon_one_run_gdp

_REHEARSED = 20_000  # canaries
_CHUNK = 2_000_000  # floats held at once in a rehearsal
_SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5)  # of the canaries that are guessed in, and out
_THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98)  # quantiles of rehearsed scores


@dataclass(frozen=True)
class Channel:
    """What one release tells of a canary: N(loud, std²) where it was drawn (at ``rate``), N(0, std²) where not.

    ``loud_in`` and ``loud_out``: length of the canary's row along its direction (out: 0, or − ``loud_in``).
    """

    rate: float
    std: float
    loud_in: float
    loud_out: float

    def log_ratio(self, x_M: np.ndarray) -> np.ndarray:
        """log p(x | in) − log p(x | out), elementwise."""
        return self._log_density(x_M, self.loud_in) - self._log_density(x_M, self.loud_out)

    def _log_density(self, x_M: np.ndarray, loud: float) -> np.ndarray:
        """Up to what both cases share: log(1 − q + q exp((2 x loud − loud²) / 2 std²))."""
        if loud == 0:
            return np.zeros_like(x_M)
        exponent_M = (2 * x_M * loud - loud * loud) / (2 * max(self.std, 1e-12) ** 2)
        if self.rate >= 1:
            return exponent_M
        return np.logaddexp(np.log1p(-self.rate), np.log(self.rate) + exponent_M)


def score(channels: Sequence[Channel], x_TM: np.ndarray) -> np.ndarray:
    """Σ over releases of the log-likelihood ratio, [M]: the best test there is, if the claim holds. NaN: not in it."""
    return np.nansum([channel.log_ratio(x_M) for channel, x_M in zip(channels, x_TM, strict=True)], axis=0)


def rehearse(channels: Sequence[Channel], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Scores [R] of canaries that are in and that are out, as the claimed mechanism would give."""
    count = int(np.clip(_CHUNK // max(len(channels), 1), 500, _REHEARSED))
    both = []
    for inside in (True, False):
        total_R = np.zeros(count)
        for channel in channels:
            drawn_R = generator.random(count) < channel.rate
            loud_R = drawn_R * (channel.loud_in if inside else channel.loud_out)
            total_R += channel.log_ratio(loud_R + channel.std * generator.standard_normal(count))
        both.append(total_R)
    return both[0], both[1]


@dataclass(frozen=True)
class Rule:
    """Settled beforehand: guess the ``top`` highest scores in, the ``bottom`` lowest out; ``thresholds`` of scores."""

    top: int
    bottom: int
    thresholds: tuple[float, ...]


def settle(rehearsed_in_R: np.ndarray, rehearsed_out_R: np.ndarray, m: int, delta: float) -> Rule:
    """The numbers of guesses with the highest bound on rehearsed scores."""
    scores = np.concatenate([rehearsed_in_R, rehearsed_out_R])
    in_sorted = (np.arange(len(scores)) < len(rehearsed_in_R))[np.argsort(scores, kind="stable")]
    best, chosen = -1.0, (m // 2, m - m // 2)
    for top_share in (0.0, *_SHARES):
        for bottom_share in (0.0, *_SHARES):
            top, bottom = round(top_share * m), round(bottom_share * m)
            if not 0 < top + bottom <= m:
                continue
            correct = round(top * _mean(in_sorted[len(scores) - round(top_share * len(scores)) :]))
            correct += round(bottom * (1 - _mean(in_sorted[: round(bottom_share * len(scores))])))
            bound = epsilon_one_run(m, top + bottom, min(correct, top + bottom), delta, tolerance=1e-2)
            if bound > best:
                best, chosen = bound, (top, bottom)
    thresholds = tuple(float(t) for t in np.unique(np.quantile(scores, _THRESHOLDS)))
    return Rule(*chosen, thresholds)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


@dataclass(frozen=True)
class Guessed:
    guesses: int
    correct: int


def guess(rule: Rule, scores_M: np.ndarray, in_M: np.ndarray) -> Guessed:
    """Ties are broken by place, which no coin depends on."""
    order = np.argsort(scores_M, kind="stable")
    top, bottom = order[len(order) - rule.top :], order[: rule.bottom]
    return Guessed(rule.top + rule.bottom, int(in_M[top].sum() + (~in_M[bottom]).sum()))


def bounds(
    rule: Rule, scores_M: np.ndarray, in_M: np.ndarray, delta: float, confidence: float, gaussian: bool
) -> dict[str, float]:
    """Method → lower bound on epsilon. ``gaussian``: the mechanism, sampling included, is mu-Gaussian if it is
    private at all; else the two methods that need it are left out."""
    found = guess(rule, scores_M, in_M)
    counts = (len(scores_M), found.guesses, found.correct, delta, confidence)
    lower = {"one-run": epsilon_one_run(*counts)}
    if gaussian:
        lower["one-run f-DP"] = epsilon_one_run_gdp(*counts)
        lower["gdp interval"] = epsilon_gdp_interval(scores_M, in_M, rule.thresholds, delta, confidence)
    return lower
