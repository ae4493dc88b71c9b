"""Do recorded cohorts look as the sampler that is claimed would draw them? Each check gives a p-value.

Power: fixed-size cohorts claimed as Poisson fall out by their sizes, which vary too little; shuffled epochs and always
the same users by how often a user is in; blocks that travel together by the overlap of cohorts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from scipy.stats import chi2, gamma, norm

from fedquilt.privacy import events as ev

ALARM = 1e-7  # two-sided p-value below which honest sampling is not believed


def complaints(sampler: ev.Sampler, population_U: np.ndarray, cohorts: Mapping[int, np.ndarray]) -> list[str]:
    """What speaks against the claim, in words; empty where nothing does."""
    found = [*_impossible(sampler, population_U, cohorts), *_out_of_turn(sampler, cohorts)]
    if found or sampler.rate == 1 or not cohorts:
        return found
    rounds = list(cohorts.values())
    tests = {"how often each user takes part": frequency_p(rounds, population_U, sampler.rate)}
    if isinstance(sampler, ev.Poisson):
        tests["the sizes of cohorts"] = size_p([len(ids_K) for ids_K in rounds], len(population_U), sampler.rate)
    if len(rounds) > 1:
        tests["the overlap of successive cohorts"] = overlap_p(rounds, len(population_U), sampler.rate)
    return [
        f"{what}: as in {p:.1e} of honest runs with {sampler.kind} sampling at {sampler.rate:g}"
        for what, p in tests.items()
        if p < ALARM
    ]


def _impossible(sampler: ev.Sampler, population_U: np.ndarray, cohorts: Mapping[int, np.ndarray]) -> list[str]:
    found = []
    for round_, ids_K in cohorts.items():
        if len(np.unique(ids_K)) != len(ids_K):
            found.append(f"round {round_}: a user is in the cohort twice")
        if not np.isin(ids_K, population_U).all():
            found.append(f"round {round_}: the cohort holds users outside the population")
        if isinstance(sampler, ev.FixedSize) and len(ids_K) != sampler.size:
            found.append(f"round {round_}: {len(ids_K)} users where fixed size {sampler.size} is claimed")
    return found


def _out_of_turn(sampler: ev.Sampler, cohorts: Mapping[int, np.ndarray]) -> Iterator[str]:
    """In a fixed order, rounds of one turn have one cohort, and those of different turns share nobody."""
    if not isinstance(sampler, ev.FixedOrder):
        return
    turns: dict[int, np.ndarray] = {}
    for round_, ids_K in cohorts.items():
        if not np.array_equal(turns.setdefault(round_ % sampler.groups, ids_K), ids_K):
            yield f"round {round_}: not the users whose turn it was {sampler.groups} rounds before"
    members = np.concatenate(list(turns.values())) if turns else np.empty(0, np.int64)
    if len(np.unique(members)) != len(members):
        yield f"users take part in more than one of the {sampler.groups} turns"


def size_p(sizes: Sequence[int], population: int, rate: float) -> float:
    """Two-sided p of the sizes' spread about N q: Σ (K − Nq)² / Nq(1−q) is chi-squared with T degrees."""
    mean, variance = population * rate, population * rate * (1 - rate)
    away = np.maximum(np.abs(np.array(sizes) - mean), 0.5)  # a count cannot come nearer than that for certain
    spread = float(np.square(away).sum() / variance)
    return _two_sided(float(chi2.cdf(spread, len(sizes))), float(chi2.sf(spread, len(sizes))))


def frequency_p(rounds: Sequence[np.ndarray], population_U: np.ndarray, rate: float) -> float:
    """Two-sided p of Σ_u (n_u − Tq)² / Tq(1−q), by the gamma of its mean U and its variance."""
    n_U = np.zeros(len(population_U))
    for ids_K in rounds:
        n_U[np.searchsorted(population_U, ids_K)] += 1
    t, variance = len(rounds), len(rounds) * rate * (1 - rate)
    spread = float((np.square(n_U - t * rate) / variance).sum())
    one = 2 + (1 - 6 * rate * (1 - rate)) / variance  # variance of one user's term: the binomial's fourth moment
    if one < 1e-9:  # one round at a rate of 1/2 says nothing
        return 1.0
    fitted = gamma(a=len(population_U) / one, scale=one)
    return _two_sided(float(fitted.cdf(spread)), float(fitted.sf(spread)))


def overlap_p(rounds: Sequence[np.ndarray], population: int, rate: float) -> float:
    """Two-sided p of Σ |S_t ∩ S_{t+1}| against hypergeometric draws, given the sizes."""
    seen = mean = variance = 0.0
    for before_K, after_K in pairwise(rounds):
        a, b = len(before_K), len(after_K)
        seen += len(np.intersect1d(before_K, after_K, assume_unique=True))
        mean += a * b / population
        if population > 1:
            variance += a * b * (population - a) * (population - b) / (population**2 * (population - 1))
    if variance == 0:
        return 1.0
    z = (abs(seen - mean) - 0.5) / np.sqrt(variance)
    return min(2 * float(norm.sf(max(z, 0.0))), 1.0)


def _two_sided(below: float, above: float) -> float:
    return min(1.0, 2 * min(below, above))
