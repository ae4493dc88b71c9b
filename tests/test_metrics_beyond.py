"""Coverage, Gini, the worst decile and summaries by group."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.metrics import coverage, gini, summarise, worst_decile


def test_coverage_is_the_share_of_items_shown_to_anybody():
    assert coverage(np.array([[0, 1], [1, 2]]), num_items=6) == pytest.approx(0.5)


def test_equal_exposure_has_gini_zero():
    assert gini(np.array([[0, 1], [2, 3]]), num_items=4) == pytest.approx(0)


def test_one_item_that_takes_all_has_gini_one_minus_its_share():
    assert gini(np.array([[2], [2], [2]]), num_items=4) == pytest.approx(0.75)


def test_gini_of_two_items_by_hand():
    # exposures 1 and 3: mean absolute difference over pairs = 2·(2)/4 = 1; / (2 · mean 2) = 0.25
    assert gini(np.array([[0], [1], [1], [1]]), num_items=2) == pytest.approx(0.25)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_gini_is_half_the_relative_mean_difference(shown):
    exposure = np.bincount(shown, minlength=10)
    pairs = np.abs(exposure[:, None] - exposure[None, :]).mean()
    assert gini(np.array(shown)[:, None], 10) == pytest.approx(pairs / (2 * exposure.mean()))


def test_the_worst_decile_rounds_up():
    assert worst_decile(np.array([3.0, 1.0, 2.0])) == 1
    assert worst_decile(np.arange(20.0)) == pytest.approx(0.5)


def test_groups_are_named_and_empty_ones_left_out():
    values = {"HR@10": np.array([1.0, 0.0, 0.5])}
    groups = {"items": np.array([0, 0, 2], np.int8), "new-to-cloud": np.array([False, True, True])}
    tables = summarise(values, groups)
    assert set(tables) == {"all", "items/head", "items/tail", "new-to-cloud"}
    assert tables["items/head"] == {"users": 2, "HR@10": 0.5}
    assert tables["new-to-cloud"] == {"users": 2, "HR@10": 0.25}
    assert tables["all"]["worst-decile HR@10"] == 0
