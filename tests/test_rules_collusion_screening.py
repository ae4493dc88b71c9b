"""Collusion screening: rows that many repeat lose their place, rows that a few repeat count as one, others stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.pre_rules.collusion_screening import CollusionScreening
from strategies.rules import RoundContext

P = 300


def honest(count: int = 16, seed: int = 0) -> torch.Tensor:
    """Rows that share a third of their length."""
    rows_KP = torch.from_numpy(np.random.default_rng(seed).standard_normal((count, P))).float()
    rows_KP = torch.nn.functional.normalize(rows_KP, dim=1)
    rows_KP[:, 0] += 0.35
    return rows_KP


def wish(count: int, own: float = 0.2, seed: int = 1) -> torch.Tensor:
    """Rows that go one way, with a little of their own."""
    rows_KP = own * honest(count, seed)
    rows_KP[:, 5] += 1
    return rows_KP


def screened(rows_KP: torch.Tensor, **options) -> tuple[torch.Tensor, list[int]]:
    """(Rows, ids) of those who stay."""
    context = RoundContext(client_ids_K=np.arange(len(rows_KP)), nodes_K=np.zeros(len(rows_KP), np.int64))
    weights_K = torch.full((len(rows_KP),), 1 / len(rows_KP))
    rows, weights, seen = CollusionScreening(**options)(rows_KP, weights_K, context)
    assert len(rows) == len(weights) == len(seen.client_ids_K) == len(seen.nodes_K)
    assert float(weights.sum()) == pytest.approx(1)
    return rows, seen.client_ids_K.tolist()


def left(rows_KP: torch.Tensor, **options) -> list[int]:
    return screened(rows_KP, **options)[1]


def copied(victims: int, copies: int, colluders: int = 18, among: int = 82) -> torch.Tensor:
    """Honest rows, then colluders of whom ``copies`` each send the row of one of the first honest users."""
    rows_KP = honest(among)
    return torch.cat([rows_KP, rows_KP[torch.arange(colluders) // copies % victims]])


def test_colluders_with_one_wish_are_left_out():
    assert left(torch.cat([honest(), wish(4)])) == list(range(16))


def test_who_hides_the_wish_in_enough_of_its_own_passes():
    assert left(torch.cat([honest(), wish(4, own=3.0)])) == list(range(20))


def test_honest_rows_stay():
    assert left(honest(40)) == list(range(40))


def test_as_many_twins_as_others_allows_are_not_touched():
    rows_KP = torch.cat([honest(), wish(1).repeat(3, 1)])  # each has two rows that repeat it
    assert torch.equal(screened(rows_KP)[0], rows_KP)


def test_rows_that_a_few_repeat_count_as_one():
    rows_KP = torch.cat([honest(96), wish(1).repeat(4, 1)])
    kept_KP, ids = screened(rows_KP)
    assert ids == list(range(100))
    torch.testing.assert_close(kept_KP[96:].sum(dim=0), rows_KP[96])


def test_rows_that_a_crowd_repeats_are_left_out():
    assert len(left(torch.cat([honest(90), wish(1).repeat(10, 1)]))) == 90


def test_a_few_copies_of_an_honest_row_leave_its_user_in_place_and_its_sum_as_it_was():
    rows_KP = copied(victims=6, copies=3)
    kept_KP, ids = screened(rows_KP)
    assert ids == list(range(100))
    torch.testing.assert_close(kept_KP.sum(dim=0), rows_KP[:82].sum(dim=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("copies", [3, 4, 6, 7, 8, 9, 18])
def test_whoever_copies_honest_rows_to_have_them_removed_needs_a_crowd_for_each(copies):
    removed = set(range(82)) - set(left(copied(victims=18 // copies, copies=copies)))
    assert len(removed) <= 18 / (0.08 * 100)


def summed(victims: int, groups: int, colluders: int = 18, among: int = 82) -> torch.Tensor:
    """Honest rows, then ``groups`` of colluders of whom each sends the sum of other ``victims`` honest rows."""
    rows_KP = honest(among)
    sums_GP = torch.stack([rows_KP[group * victims : (group + 1) * victims].sum(dim=0) for group in range(groups)])
    return torch.cat([rows_KP, sums_GP[torch.arange(colluders) // (colluders // groups)]])


@pytest.mark.parametrize("victims", [1, 2, 3, 5, 8, 12])
def test_a_sum_of_honest_rows_removes_few_of_them_however_many_it_resembles(victims):
    removed = set(range(82)) - set(left(summed(victims, groups=2)))
    assert len(removed) <= 2 * (10 / 0.8 - 9)  # (c + 1) / overlap - c for each of two crowds of nine


def test_sums_of_many_rows_do_not_switch_the_screen_off():
    rows_KP = torch.cat([summed(6, groups=6), wish(12)])
    assert not set(left(rows_KP)) & set(range(100, 112))


def test_where_most_rows_repeat_each_other_nobody_is_left_out():
    assert len(left(torch.cat([honest(6), wish(14)]))) == 20


def test_rows_of_zeros_resemble_nothing():
    assert len(left(torch.cat([honest(), torch.zeros(5, P)]))) == 21


def test_fewer_users_than_it_compares_with_stay():
    assert left(wish(3)) == [0, 1, 2]


@pytest.mark.parametrize("options", [{"others": 0}, {"least": 0.0}, {"bound": -1.0}, {"crowd": 0.0}, {"overlap": 1.5}])
def test_a_parameter_out_of_range_is_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        CollusionScreening(**options)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.01, 100.0]))
def test_lengths_and_order_do_not_matter(seed, scale):
    rng = np.random.default_rng(seed)
    rows_KP = torch.cat([honest(16, seed), wish(4)])
    scales_K1 = torch.from_numpy(rng.uniform(1, 2, (20, 1))).float() * scale
    order_K = rng.permutation(20)
    assert left(scales_K1 * rows_KP) == left(rows_KP)
    assert sorted(order_K[left(rows_KP[torch.from_numpy(order_K)])]) == left(rows_KP)
