"""Lower bounds on epsilon from guesses: closed forms, published ceilings, known mechanisms."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from fedquilt.errors import PrivacyError
from fedquilt.privacy.audit import noise
from fedquilt.privacy.audit.canaries import plant
from fedquilt.privacy.audit.local import audit_local
from fedquilt.privacy.audit.membership import auc, facts_of, hits_at, lira, loss_threshold
from fedquilt.privacy.audit.one_run import (
    clopper_pearson_upper,
    epsilon_of_rates,
    epsilon_one_run,
    epsilon_one_run_gdp,
    p_value,
)
from fedquilt.privacy.audit.scores import Channel, Rule, bounds, guess, rehearse, score, settle
from fedquilt.privacy.events import LocalRelease
from fedquilt.privacy.gaussian import analytic_noise_multiplier
from fedquilt.privacy.randomness import Simulated

DELTA = 1e-5


@cache
def settled(epsilon: float, m: int) -> tuple[Channel, Rule]:
    """One Gaussian release that is exactly (epsilon, 1e-5)-private, and the guesses settled for it."""
    channel = Channel(1.0, analytic_noise_multiplier(epsilon, DELTA), 1.0, 0.0)
    return channel, settle(*rehearse([channel], np.random.default_rng(99)), m, DELTA)


def drawn(epsilon: float, m: int, seed: int) -> dict[str, float]:
    """Bounds from one release with orthogonal canaries."""
    channel, rule = settled(epsilon, m)
    generator = np.random.default_rng(seed)
    in_M = generator.random(m) < 0.5
    scores_M = score([channel], (in_M + channel.std * generator.standard_normal(m))[None])
    return bounds(rule, scores_M, in_M, DELTA, 0.95, gaussian=True)


def test_all_guesses_right_without_delta_is_a_closed_form():
    # q^100 = 0.05 at q = e^ε / (1 + e^ε): ε = logit(0.05^(1/100)) = 3.49296
    assert epsilon_one_run(100, 100, 100, 0.0) == pytest.approx(3.49296, abs=1e-4)


def test_the_p_value_is_the_theorem_summed_by_hand():
    m, guesses, correct, epsilon, delta = 50, 20, 17, 0.7, 1e-3
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    tail = sum(binom.pmf(k, guesses, q) for k in range(correct, guesses + 1))
    terms = [sum(binom.pmf(k, guesses, q) for k in range(correct - i, correct)) / i for i in range(1, correct + 1)]
    assert p_value(m, guesses, correct, epsilon, delta) == pytest.approx(tail + 2 * m * delta * max(terms))


def test_bounds_reach_what_is_known_to_be_reachable():
    # jax_privacy 1.0 reaches 1.01 / 1.35 / 2.67 on average at epsilon 4, m = 1,000; it guesses on one side only
    found = np.mean([list(drawn(4.0, 1000, seed).values()) for seed in range(3)], axis=0)
    assert 1.0 < found[0] < 2.0
    assert 1.35 < found[1] < 3.0
    assert 2.0 < found[2] < 4.0


def test_the_bound_for_canaries_at_epsilon_8_is_above_1():
    assert min(drawn(8.0, 1000, seed)["one-run"] for seed in range(3)) > 1


def test_bounds_at_95_percent_exceed_the_truth_at_most_that_often():
    found = np.array([list(drawn(1.0, 200, seed).values()) for seed in range(40)])
    # P[more than 5 of 40 at 5 %] = 0.014, and the seeds are fixed
    assert ((found > 1.0).sum(axis=0) <= 5).all()


def test_guesses_by_chance_prove_nothing():
    assert epsilon_one_run(1000, 500, 250, DELTA) == 0
    assert epsilon_one_run_gdp(1000, 500, 250, DELTA) == 0


@settings(max_examples=25, deadline=None)
@given(guesses=st.integers(1, 200), wrong=st.integers(0, 40), abstained=st.integers(0, 100))
def test_more_right_guesses_never_prove_less(guesses, wrong, abstained):
    correct = max(guesses - wrong, 1)
    m = guesses + abstained
    less, more = (epsilon_one_run(m, guesses, right, DELTA, tolerance=1e-4) for right in (correct - 1, correct))
    assert less <= more + 1e-4


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(PrivacyError, match="0 <= correct"):
        epsilon_one_run(10, 11, 5, DELTA)


def test_clopper_pearson_is_the_rule_of_three_at_no_success():
    assert clopper_pearson_upper(0, 100, 0.05) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert clopper_pearson_upper(5, 5, 0.05) == 1


def test_rates_of_a_perfect_attack_on_100_and_100():
    # both bounds at 1 - 0.025^(1/100) = 0.03622: ln(0.96378 / 0.03622) = 3.2812
    assert epsilon_of_rates(100, 100, 0, 100, 0.0) == pytest.approx(3.2812, abs=1e-3)
    assert epsilon_of_rates(10, 100, 10, 100, 0.0) == 0


# --- canaries and scores ---


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 60), users=st.integers(1, 80), parameters=st.integers(1, 300), opposed=st.booleans())
def test_canaries_are_orthogonal_of_the_asked_norm_and_read_back(count, users, parameters, opposed):
    canaries = plant(count, np.arange(users) * 3, parameters, np.random.default_rng(0), opposed)
    rows_MP = canaries.rows(canaries.ids_M, 0.5)
    out = -0.5 if opposed else 0.0
    expected_M = np.where(canaries.in_M, 0.5, out)
    assert np.allclose(rows_MP @ rows_MP.T, np.diag(np.square(expected_M)), atol=1e-6)
    assert np.allclose(canaries.along(canaries.total(canaries.ids_M, 0.5)), expected_M)
    assert np.allclose(rows_MP.sum(axis=0), canaries.total(canaries.ids_M, 0.5), atol=1e-6)


def test_users_who_are_no_canaries_send_nothing():
    canaries = plant(3, np.arange(10), 9, np.random.default_rng(0))
    others = np.setdiff1d(np.arange(10), canaries.ids_M)
    assert not canaries.sends(others).any()
    assert not canaries.rows(others, 1.0).any()


def test_the_score_is_the_likelihood_ratio_of_a_sampled_release():
    # q = .2, std 1, row 1: log(.8 + .2 exp(x - 1/2)) at x = 2
    found = Channel(0.2, 1.0, 1.0, 0.0).log_ratio(np.array([2.0]))
    assert found[0] == pytest.approx(math.log(0.8 + 0.2 * math.exp(1.5)))


def test_guesses_take_the_ends_of_the_scores():
    found = guess(Rule(2, 1, ()), np.array([0.1, 5.0, -3.0, 4.0]), np.array([True, True, False, False]))
    assert (found.guesses, found.correct) == (3, 2)


# --- noise as executed ---


def noise_findings(left_TP: np.ndarray, std: float = 2.0) -> list[str]:
    return [finding.text for finding in noise.complaints(left_TP, [std] * len(left_TP))]


def test_honest_noise_has_no_complaints_and_a_tenth_more_or_less_has(capsys):
    for seed in range(5):
        left_TP = 2.0 * np.random.default_rng(seed).standard_normal((6, 1500))
        assert noise_findings(left_TP) == []
        assert "times the std" in noise_findings(1.1 * left_TP)[0]
        assert "times the std" in noise_findings(0.9 * left_TP)[0]


def test_noise_of_another_shape_is_found():
    left_TP = 2.0 * np.sqrt(3) * np.random.default_rng(0).uniform(-1, 1, (6, 1500))
    assert "not normal" in noise_findings(left_TP)[0]


def test_measured_noise_is_bounded_from_both_sides():
    least, most = noise.multiplier_bounds(np.random.default_rng(0).standard_normal((4, 1000)), 0.999)
    assert 0.9 < least < 1 < most < 1.1


def test_a_gain_other_than_one_is_found():
    generator = np.random.default_rng(0)
    sent_TP, noise_TP = generator.standard_normal((2, 5, 400))
    assert noise.gain_of(sent_TP + noise_TP, sent_TP, [1.0] * 5)[1] > 1e-4
    gain, p = noise.gain_of(0.5 * sent_TP + noise_TP, sent_TP, [1.0] * 5)
    assert gain == pytest.approx(0.5, abs=0.1)
    assert p < noise.ALARM


# --- the local mechanism ---


def local(z: float, monkeypatch=None, **given):
    event = LocalRelease("r", 1, 0, noise_multiplier=z, clipping_norm=0.5)
    return audit_local(event, 2, 300, 16, Simulated(5), np.random.default_rng(1), DELTA, **given)


def test_the_local_mechanism_holds_and_its_bound_is_below_the_claim():
    found = local(analytic_noise_multiplier(4.0, DELTA) * 2)
    assert found["holds"], found["findings"]
    assert 0.5 < found["lower"] < found["upper"]


def test_local_noise_that_was_forgotten_is_found(monkeypatch):
    monkeypatch.setattr("fedquilt.privacy.mechanisms.noised", lambda total_P, *where: total_P.copy())
    assert "times the std" in local(2.0)["findings"][0]


# --- membership ---


def test_users_whose_loss_fell_are_taken_for_members():
    assert loss_threshold(np.array([0.2, 0.9]), np.array([1.0, 1.0])).tolist() == pytest.approx([0.8, 0.1])


def test_likelihood_ratios_find_members_whom_a_threshold_misses():
    generator = np.random.default_rng(0)
    hard_U, in_SU = 5 * generator.random(400), generator.random((9, 400)) < 0.5
    loss_SU = hard_U - 0.5 * in_SU + 0.2 * generator.standard_normal((9, 400))
    by_ratio = facts_of(lira(loss_SU[0], loss_SU[1:], in_SU[1:]), in_SU[0], DELTA)
    by_threshold = facts_of(-loss_SU[0], in_SU[0], DELTA)
    assert by_ratio["auc"] > 0.9 > 0.65 > by_threshold["auc"]
    assert by_ratio["lower"] > 1 > by_threshold["lower"]


def test_scores_without_information_are_at_chance():
    in_U = np.arange(1000) % 2 == 0
    found = facts_of(np.random.default_rng(0).random(1000), in_U, DELTA)
    assert found["auc"] == pytest.approx(0.5, abs=0.06)
    assert found["lower"] < 0.3


def test_auc_and_hits_by_hand():
    # members at 3, 1; others at 2, 0: of four pairs three are in order; above the highest other is one member of two
    scores_U, in_U = np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, True, False, False])
    assert auc(scores_U, in_U) == 0.75
    assert hits_at(scores_U, in_U, 0.01) == 0.5
