"""Cohorts: over stable ids, fixed size, without replacement, uniform."""

from __future__ import annotations

import numpy as np
from scipy.stats import chisquare

from strategies.cohort import draw_cohort

POPULATION = np.arange(100, 120)


def test_a_cohort_is_sorted_has_its_size_and_nobody_twice():
    cohort_K, _ = draw_cohort(0, 1, POPULATION, 7)
    assert cohort_K.tolist() == sorted(set(cohort_K.tolist()))
    assert len(cohort_K) == 7
    assert np.isin(cohort_K, POPULATION).all()


def test_a_cohort_depends_on_seed_and_round_and_nothing_else():
    first, again = draw_cohort(0, 1, POPULATION, 7), draw_cohort(0, 1, POPULATION, 7)
    assert first[0].tolist() == again[0].tolist()
    assert first[1] == again[1]
    assert draw_cohort(0, 2, POPULATION, 7)[0].tolist() != first[0].tolist()
    assert draw_cohort(1, 1, POPULATION, 7)[0].tolist() != first[0].tolist()


def test_a_cohort_larger_than_the_population_is_everybody():
    assert draw_cohort(0, 1, POPULATION, 500)[0].tolist() == POPULATION.tolist()


def test_the_digest_tells_cohorts_apart():
    digests = {draw_cohort(0, round_, POPULATION, 7)[1].digest for round_ in range(50)}
    assert len(digests) == 50


def counts(draw) -> np.ndarray:
    drawn = np.concatenate([draw(round_) for round_ in range(4000)])
    return np.bincount(drawn - 100, minlength=20)


def test_everybody_is_drawn_equally_often_and_a_bias_would_be_seen():
    assert chisquare(counts(lambda r: draw_cohort(3, r, POPULATION, 5)[0])).pvalue > 1e-3
    biased = counts(lambda r: np.random.default_rng(r).choice(POPULATION, 5, p=np.r_[[0.06], [0.94 / 19] * 19]))
    assert chisquare(biased).pvalue < 1e-3
