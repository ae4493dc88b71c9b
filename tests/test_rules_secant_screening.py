"""Secant screening on quadratic losses, where honest answers are positive by arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.aggregators.mean import Mean
from strategies.aggregators.secant_screening import SecantScreening
from strategies.rules import RoundContext, apply_rule
from strategies.secants import observe, recall

HONEST, LIARS, P = 8, 2, 6
CENTRES_HP = np.random.default_rng(0).normal(size=(HONEST, P)).astype(np.float32)
RULE = SecantScreening(num_byzantine=LIARS, warm_up=5)


def honest_rows(patch_P):
    """Steps of the losses |w - centre|² / 2, each user its own centre."""
    return 0.2 * (CENTRES_HP - patch_P)


def federate(lie, rule=RULE, rounds=40, ids=None):
    """(the patch after all rounds, what each user's row counted in the last); ``lie(honest rows)`` -> a row."""
    patch_P, state = np.zeros(P, np.float32), {}
    for round_ in range(rounds):
        honest_HP = honest_rows(patch_P + 0.1 * np.sin(round_ + np.arange(P)))
        rows_KP = torch.from_numpy(np.vstack([honest_HP, *[lie(honest_HP)] * LIARS]).astype(np.float32))
        k = len(rows_KP)
        even_K = torch.full((k,), 1 / k)
        context = RoundContext(round_=round_, client_ids_K=np.arange(k) if ids is None else ids)
        bound = rule.in_round(context)
        counted_K = bound.row_weights(rows_KP, even_K, state)
        update_P, state = apply_rule(rule, rows_KP, even_K, state, context)
        patch_P = patch_P + update_P
    return patch_P, counted_K.numpy()


def reversed_mean(honest_HP):
    return -honest_HP.mean(axis=0)


def test_who_sends_the_mean_the_wrong_way_round_is_left_out_and_no_honest_user_is():
    _, counted_K = federate(reversed_mean)
    assert counted_K[HONEST:].tolist() == [0, 0]
    assert (counted_K[:HONEST] > 0).all()


def test_nothing_is_won_by_having_others_left_out():
    state, patch_P = {}, np.zeros(P, np.float32)
    for round_ in range(40):
        honest_HP = honest_rows(patch_P + 0.1 * np.sin(round_ + np.arange(P)))
        mean_P = honest_HP.mean(axis=0)
        late_P = mean_P if round_ < 39 else -50 * mean_P
        rows_KP = torch.from_numpy(np.vstack([honest_HP, -mean_P, -mean_P, late_P, late_P]).astype(np.float32))
        k = len(rows_KP)
        bound, even_K = RULE.in_round(RoundContext(client_ids_K=np.arange(k))), torch.full((k,), 1 / k)
        counted_K = bound.row_weights(rows_KP, even_K, state)
        update_P, state = apply_rule(RULE, rows_KP, even_K, state, RoundContext(client_ids_K=np.arange(k)))
        patch_P = patch_P + update_P
    assert counted_K[HONEST : HONEST + LIARS].tolist() == [0, 0]  # as many as the rule was told of
    pushes_K = counted_K * rows_KP.norm(dim=1)
    assert pushes_K[-1] <= pushes_K[:HONEST].max() < 0.1 * rows_KP[-1].norm()  # 0.1: its share of a plain mean


def loss_of_its_own(honest_HP):
    """The step of a loss as convex as the honest ones, with its minimum on the other side."""
    patch_P = CENTRES_HP[0] - honest_HP[0] / 0.2
    return 0.2 * (-4 * CENTRES_HP.mean(axis=0) - patch_P)


def test_who_loses_by_what_the_others_gain_is_left_out():
    settled = replace(RULE, settle=5, probation=10, gain_share=0.35)
    assert federate(loss_of_its_own, settled)[1][HONEST:].tolist() == [0, 0]
    assert (federate(loss_of_its_own, replace(settled, settle=1000))[1][HONEST:] > 0).all()


def test_after_probation_only_who_lost_much_stays_out():
    lenient = replace(RULE, settle=5, probation=10, loss_share=-99.0)
    assert federate(loss_of_its_own, lenient, rounds=14)[1][HONEST:].tolist() == [0, 0]
    assert (federate(loss_of_its_own, lenient, rounds=40)[1][HONEST:] > 0).all()


def test_the_patch_ends_nearer_to_the_honest_mean_than_without_screening():
    patch_P, _ = federate(reversed_mean)
    unscreened_P, _ = federate(reversed_mean, replace(RULE, warm_up=1000))
    goal_P = CENTRES_HP.mean(axis=0)
    assert np.linalg.norm(patch_P - goal_P) < np.linalg.norm(unscreened_P - goal_P)


def test_a_client_is_known_by_its_id_and_not_by_its_row():
    ids = np.array([70, 3, 41, 5, 66, 7, 80, 9, 100, 20])
    assert federate(reversed_mean, ids=ids)[1][HONEST:].tolist() == [0, 0]


def test_nobody_is_left_out_before_the_warm_up_is_over():
    _, counted_K = federate(reversed_mean, replace(RULE, warm_up=100))
    assert (counted_K[HONEST:] > 0).all()


def test_honest_users_alone_are_all_kept():
    _, counted_K = federate(lambda honest_HP: honest_HP[0])
    assert (counted_K > 0).sum() >= HONEST


def test_without_byzantine_users_it_is_the_mean():
    rows_KP, even_K = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.full((5,), 0.2)
    expected_P = Mean()(rows_KP, even_K, {})
    assert torch.allclose(SecantScreening(num_byzantine=0)(rows_KP, even_K, {}), expected_P, atol=1e-6)


def test_the_state_of_a_large_patch_holds_the_drawn_coordinates_only():
    rule = SecantScreening(num_coordinates=10).in_round(RoundContext(run_seed=4))
    _, state = rule.step(torch.randn(5, 1000), torch.full((5,), 0.2), {})
    assert state["rows_CB"].shape == (5, 10)


@pytest.mark.parametrize(("num_users", "left_out"), [(7, 0), (9, 2), (10, 3), (20, 3)])
def test_as_many_are_kept_as_clipping_and_mixing_need_though_three_answer_the_wrong_way(num_users, left_out):
    seen, ids_K, drawn = recall({}, P), np.arange(num_users), np.random.default_rng(0)
    way_K = np.where(ids_K < 3, 1, -1)[:, None].astype(np.float32)
    for _ in range(12):
        patch_P = drawn.normal(size=P).astype(np.float32)
        seen = observe(replace(seen, position_B=patch_P), ids_K, way_K * patch_P, pace=0.1, memory=0.9)
    rule, rows_KP = replace(RULE, num_byzantine=3), torch.from_numpy(drawn.normal(size=(num_users, P))).float()
    counted_K = rule.row_weights(rows_KP, torch.full((num_users,), 1 / num_users), seen.stored())
    assert (counted_K == 0)[:3].sum() == (counted_K == 0).sum() == left_out


@settings(deadline=None, max_examples=30)
@given(st.floats(0.01, 5), st.integers(0, 1000))
def test_the_answer_of_any_quadratic_loss_is_positive_and_of_its_reverse_the_negative(curvature, seed):
    # Hand: u = -c w gives Δu·Δw = -c |Δw|², so the answer is 1 whatever c is; u = c w gives -1
    seen, drawn = recall({}, P), np.random.default_rng(seed)
    for _ in range(6):
        patch_P = drawn.normal(size=P).astype(np.float32)
        rows_KB = np.stack([-curvature * patch_P, curvature * patch_P]).astype(np.float32)
        seen = observe(replace(seen, position_B=patch_P), np.array([8, 2]), rows_KB, pace=0.1, memory=0.9)
    assert seen.answers_C == pytest.approx([1, -1], abs=1e-3)


def test_the_gain_is_what_the_loss_fell_by():
    # Hand: |w|²/2 from w = 2 to 1 falls by 1.5; with pace 1 the means are the values themselves
    seen = recall({}, 1)
    for place in np.linspace(2, 1, 1001, dtype=np.float32):
        patch_P = np.full(1, place, np.float32)
        seen = observe(replace(seen, position_B=patch_P), np.array([4]), -patch_P[None], pace=1.0, memory=0.9)
    assert seen.gains_C[0] == pytest.approx(1.5, rel=1e-2)
    assert seen.shares_gained_C[0] == pytest.approx(1)


def test_a_state_without_gains_begins_anew():
    state = {"ids_C": np.array([1]), "rows_CB": np.zeros((1, P), np.float32)}
    assert len(recall(state, P).ids_C) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("settle", 0), ("loss_share", float("nan")), ("pace", 1.5), ("memory", 0.0), ("share", -2.0), ("warm_up", 0)],
)
def test_a_parameter_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        SecantScreening(**{name: value})
