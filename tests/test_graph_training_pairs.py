"""Pairs and schedules: what an epoch learns from, how fast, and against how many hard negatives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.config import GraphModelConfig
from fedquilt.errors import DataError
from fedquilt.graphs.importance import Neighbourhoods
from fedquilt.graphs.log import InteractionLog
from fedquilt.seeds import generator_for
from server.graph_training.pairs import batch_of, click_pairs, epoch_order, num_batches, walk_pairs
from server.graph_training.schedule import hard_negatives_at, learning_rate_at


def log_of(*histories: list[int]) -> InteractionLog:
    users = np.repeat(np.arange(len(histories)), [len(items) for items in histories])
    return InteractionLog("tiny", users, np.concatenate(histories).astype(np.int64), len(histories), 10)


def test_clicks_in_a_row_are_pairs_and_users_do_not_mix():
    assert click_pairs(log_of([1, 2, 3], [4, 5]), window=1).tolist() == [[1, 2], [2, 3], [4, 5]]


def test_a_wider_window_adds_pairs_further_apart():
    assert click_pairs(log_of([1, 2, 3]), window=2).tolist() == [[1, 2], [2, 3], [1, 3]]


def test_an_item_is_no_pair_with_itself():
    assert click_pairs(log_of([1, 1, 2]), window=2).tolist() == [[1, 2], [1, 2]]


def test_a_log_without_a_pair_is_refused_in_words():
    with pytest.raises(DataError, match="no pair to learn from"):
        click_pairs(log_of([1], [2]), window=3)


def test_walk_pairs_follow_the_visit_counts():
    visited = Neighbourhoods(
        np.array([[1, 2], [-1, -1], [0, -1]], np.int32), np.float32([[0.75, 0.25], [0, 0], [1, 0]])
    )
    pairs_P2 = walk_pairs(visited, 4000, generator_for(3, use="test"))
    assert set(pairs_P2[:, 0].tolist()) == {0, 2}  # item 1 is isolated
    from_first = pairs_P2[pairs_P2[:, 0] == 0, 1]
    # five standard errors of a share of 3/4 over 4,000 draws
    assert np.mean(from_first == 1) == pytest.approx(0.75, abs=5 * np.sqrt(0.75 * 0.25 / 4000))
    assert (pairs_P2[pairs_P2[:, 0] == 2, 1] == 0).all()


def test_walk_pairs_of_a_graph_without_edges_are_refused():
    with pytest.raises(DataError, match="no edges"):
        walk_pairs(Neighbourhoods(np.full((2, 1), -1, np.int32), np.zeros((2, 1), np.float32)), 1, generator_for(0))


@given(pairs=st.integers(1, 200), batch_size=st.integers(1, 64), per_epoch=st.integers(0, 120))
def test_batches_share_out_an_epoch_without_loss_and_evenly(pairs, batch_size, per_epoch):
    order = epoch_order(pairs, per_epoch, seed=0, epoch=1)
    count = num_batches(pairs, per_epoch, batch_size)
    batches = [batch_of(order, batch, count) for batch in range(count)]
    assert np.concatenate(batches).tolist() == order.tolist()
    assert len(set(order.tolist())) == len(order) == (min(per_epoch, pairs) if per_epoch else pairs)
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_epochs_have_orders_of_their_own():
    assert not np.array_equal(epoch_order(100, 0, 0, 1), epoch_order(100, 0, 0, 2))
    assert np.array_equal(epoch_order(100, 0, 0, 1), epoch_order(100, 0, 0, 1))


def test_the_rate_climbs_through_the_first_epoch_then_decays_exponentially():
    config = GraphModelConfig(learning_rate=1.0, decay=0.5)
    # Hand: 4 steps an epoch; epoch 1 climbs by quarters, an epoch later a half is left, then a quarter.
    rates = [learning_rate_at(config, step, 4) for step in range(12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[7] == pytest.approx(0.5)
    assert rates[11] == pytest.approx(0.25)
    ratios = np.divide(rates[4:], rates[3:-1])
    assert ratios == pytest.approx(0.5**0.25)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0, 1, 2, 3, 3]),
        ({"curriculum": False}, [3, 3, 3, 3, 3]),
        ({"hard_negatives": False}, [0, 0, 0, 0, 0]),
    ],
)
def test_the_curriculum_adds_one_hard_negative_an_epoch(settings, expected):
    config = GraphModelConfig(max_hard_negatives=3, **settings)
    assert [hard_negatives_at(config, epoch) for epoch in range(1, 6)] == expected
