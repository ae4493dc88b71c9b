"""The noise as it was executed: what is left of a release once everything that users sent is taken away.

In an audit everything that users send is known, so what remains must be the noise that the event says: its std, its
shape, and no part of it met twice, within a round, between rounds, or between runs with different seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.stats import chi2, kstest, norm
from scipy.stats import t as student

from fedquilt.privacy.book import Finding

ALARM = 1e-7  # two-sided p-value below which honest noise is not believed
_MOST_SHAPED = 50_000  # entries that the test of shape looks at
_ALIKE = 10.0  # standard errors; at 1,000 entries honest noise is beyond with probability below e^-47 a lag
_FEWEST_FOR_LAGS = 1000


def complaints(left_TP: np.ndarray, std_T: Sequence[float], gaussian: bool = True) -> Iterator[Finding]:
    """``left_TP``: Σ released − Σ sent, one row a release; ``std_T``: what their events say. ``gaussian``: test it."""
    for t, std in enumerate(std_T):
        if std > 0 and not left_TP[t].any():
            yield Finding("noise", f"release {t + 1} has no noise at all; its event says std {std:.4g}")
            return
    if not len(left_TP) or min(std_T) <= 0:
        return
    unit_TP = left_TP / np.asarray(std_T)[:, None]
    if (p := spread_p(unit_TP)) < ALARM:
        yield Finding(
            "noise",
            f"what is left of the releases has {np.sqrt(np.square(unit_TP).mean()):.4g} times the std that the events"
            f" say (p = {p:.1e}): noise of another scale, or users' rows that were not clipped one by one",
        )
    elif gaussian and (p := shape_p(unit_TP)) < ALARM:
        yield Finding("noise", f"what is left of the releases is not normal (p = {p:.1e})")
    yield from _repeated(unit_TP)


def gain_complaints(total_TP: np.ndarray, sent_TP: np.ndarray, std_T: Sequence[float]) -> Iterator[Finding]:
    """Σ released against Σ of the rows that may be in it: clipped one by one, each counts once, no more and no less."""
    gain, p = gain_of(total_TP, sent_TP, std_T)
    if p < ALARM:
        yield Finding(
            "clipping",
            f"users' rows are in the releases {gain:.4g} times, not once (p = {p:.1e}): they were not clipped one by"
            " one, or weighed by what users claim",
        )


def gain_of(total_TP: np.ndarray, sent_TP: np.ndarray, std_T: Sequence[float]) -> tuple[float, float]:
    """(g, two-sided p of g = 1) of total = g sent + N(0, std²), by weighted least squares."""
    weight_T1 = 1 / np.square(np.maximum(np.asarray(std_T), 1e-12))[:, None]
    information = float((weight_T1 * np.square(sent_TP)).sum())
    if information == 0:
        return 1.0, 1.0
    gain = float((weight_T1 * total_TP * sent_TP).sum()) / information
    return gain, 2 * float(norm.sf(abs(gain - 1) * np.sqrt(information)))


def spread_p(unit_TP: np.ndarray) -> float:
    """Two-sided p of Σ x², chi-squared with as many degrees as entries."""
    total, count = float(np.square(unit_TP).sum()), unit_TP.size
    return min(1.0, 2 * min(float(chi2.cdf(total, count)), float(chi2.sf(total, count))))


def shape_p(unit_TP: np.ndarray) -> float:
    """Kolmogorov and Smirnov's, of entries spread over all releases, standardised: the scale is tested apart."""
    entries = unit_TP.ravel()[:: max(1, unit_TP.size // _MOST_SHAPED)]
    return float(kstest(entries, "norm").pvalue)


def multiplier_bounds(unit_TP: np.ndarray, confidence: float) -> tuple[float, float]:
    """(least, most): one-sided bounds, each at ``confidence``, of std as executed / std as claimed."""
    total, count = float(np.square(unit_TP).sum()), unit_TP.size
    low, high = chi2.isf(confidence, count), chi2.isf(1 - confidence, count)
    return float(np.sqrt(total / high)), float(np.sqrt(total / low))


def between(first_TP: np.ndarray, second_TP: np.ndarray) -> Iterator[Finding]:
    """Noise of two runs with different seeds: no release of one is like a release of the other."""
    p, place = likeness_p(first_TP, second_TP)
    if p < ALARM:
        yield Finding(
            "noise",
            f"release {place[0] + 1} of one run and {place[1] + 1} of another with another seed have the same noise"
            f" (p = {p:.1e}): a seed was reused",
        )


def _repeated(unit_TP: np.ndarray) -> Iterator[Finding]:
    p, place = likeness_p(unit_TP)
    if p < ALARM:
        yield Finding(
            "noise",
            f"releases {place[0] + 1} and {place[1] + 1} have the same noise (p = {p:.1e}): their difference is free"
            " of it",
        )
    if unit_TP.size >= _FEWEST_FOR_LAGS and (found := like_itself(unit_TP)):
        yield Finding("noise", f"noise repeats itself within a release, {found} entries on: parts can be subtracted")


def likeness_p(first_TP: np.ndarray, second_TP: np.ndarray | None = None) -> tuple[float, tuple[int, int]]:
    """(p, the pair) of the largest |correlation| over pairs of rows, corrected for the number of pairs.

    For normal rows, sqrt(P − 1) r / sqrt(1 − r²) is Student's t with P − 1 degrees, exactly.
    """
    unit_TP = _unit(first_TP)
    others_TP = unit_TP if second_TP is None else _unit(second_TP)
    r_TT = np.abs(unit_TP @ others_TP.T)
    if second_TP is None:
        r_TT = np.triu(r_TT, 1)
    pairs = len(r_TT) * (len(r_TT) - 1) // 2 if second_TP is None else r_TT.size
    if not pairs or unit_TP.shape[1] < 2:
        return 1.0, (0, 0)
    place = np.unravel_index(int(r_TT.argmax()), r_TT.shape)
    r, degrees = min(float(r_TT[place]), 1.0), unit_TP.shape[1] - 1
    p = 2 * float(student.sf(np.sqrt(degrees) * r / np.sqrt(max(1 - r * r, 1e-300)), degrees))
    return min(1.0, p * pairs), (int(place[0]), int(place[1]))


def _unit(rows_TP: np.ndarray) -> np.ndarray:
    return rows_TP / np.maximum(np.linalg.norm(rows_TP, axis=1, keepdims=True), 1e-300)


def like_itself(unit_TP: np.ndarray) -> int:
    """The lag at which entries are like those before them, the same in every release; 0 for none."""
    p = unit_TP.shape[1]
    spectrum_TP = np.abs(np.fft.rfft(unit_TP, 2 * p, axis=1)) ** 2
    lagged_P = np.fft.irfft(spectrum_TP.sum(axis=0), 2 * p)[1 : p // 2 + 1]  # zero-padded: no wrap-around
    count_P = len(unit_TP) * (p - np.arange(1, p // 2 + 1))
    errors_P = np.abs(lagged_P) / np.sqrt(count_P)
    lag = int(errors_P.argmax()) if len(errors_P) else 0
    return lag + 1 if len(errors_P) and errors_P[lag] > _ALIKE else 0
