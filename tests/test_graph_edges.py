"""Hidden edges: a predicted counterpart leaves the neighbourhood, and the rest keeps its order and proportions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.errors import DataError
from fedquilt.graphs.blocks import build_blocks, table_sampler
from fedquilt.graphs.edges import Clickers, without_edges, without_pairs, without_users
from fedquilt.graphs.importance import Neighbourhoods
from fedquilt.graphs.log import InteractionLog


def table() -> Neighbourhoods:
    """0: 1 (1/2), 2 (1/4), 3 (1/4); 1: 0 only; 2: 0 and 3 alike; 3: nothing."""
    items = np.array([[1, 2, 3], [0, -1, -1], [0, 3, -1], [-1, -1, -1]], np.int32)
    weights = np.array([[0.5, 0.25, 0.25], [1, 0, 0], [0.5, 0.5, 0], [0, 0, 0]], np.float32)
    return Neighbourhoods(items, weights)


def test_the_counterpart_leaves_and_the_others_share_its_weight():
    left = without_edges(table(), np.arange(4), np.array([1, 2, 0, 0]))
    assert left.items_ST.tolist() == [[2, 3, -1], [0, -1, -1], [3, -1, -1], [-1, -1, -1]]
    assert left.weights_ST.tolist() == [[0.5, 0.5, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_a_row_of_nothing_but_the_counterpart_becomes_empty_without_nan():
    row = Neighbourhoods(table().items_ST[[1]], table().weights_ST[[1]])
    left = without_edges(row, np.array([1]), np.array([0]))
    assert left.items_ST.tolist() == [[-1, -1, -1]]
    assert left.weights_ST.tolist() == [[0, 0, 0]]


def test_no_counterpart_changes_nothing_and_padding_is_none():
    same = without_edges(table(), np.arange(4), np.full(4, -1))
    np.testing.assert_array_equal(same.items_ST, table().items_ST)
    np.testing.assert_array_equal(same.weights_ST, table().weights_ST)


def test_the_table_that_was_given_is_left_as_it_was():
    given = table()
    without_edges(given, np.arange(4), np.array([1, 0, 0, 0]))
    np.testing.assert_array_equal(given.items_ST, table().items_ST)


def test_pairs_are_hidden_in_both_directions_and_in_every_layer():
    sample = without_pairs(table_sampler(table()), np.array([0, 0]), np.array([1, 2]))
    assert sample(np.array([2, 0, 1, 3])).items_ST.tolist() == [[3, -1, -1], [3, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    for block in build_blocks(np.array([0]), sample, num_layers=2):
        assert block.sources_N.tolist() == [0, 3]


def test_other_pairs_of_the_same_items_stay():
    sample = without_pairs(table_sampler(table()), np.array([0, 2]), np.array([1, 3]))
    assert sample(np.array([0, 2])).items_ST.tolist() == [[2, 3, -1], [0, -1, -1]]


def test_lengths_that_differ_are_refused_in_words():
    with pytest.raises(DataError, match="4 rows for 4 seeds and 1 others"):
        without_edges(table(), np.arange(4), np.array([1]))
    with pytest.raises(DataError, match="1 heads for 2 tails"):
        without_pairs(table_sampler(table()), np.array([1]), np.array([1, 2]))


def resting(histories: list[list[int]], users: list[int]) -> list[list[int]]:
    """What is left of item 0's neighbours 1, 2, 3."""
    of_C = np.repeat(np.arange(len(histories)), [len(items) for items in histories])
    log = InteractionLog("hand", of_C, np.concatenate(histories).astype(np.int64), len(histories), 4)
    rows = Neighbourhoods(np.array([[1, 2, 3]], np.int32), np.full((1, 3), 1 / 3, np.float32))
    return without_users(lambda seeds: rows, Clickers.of(log), np.array(users))(np.array([0])).items_ST.tolist()


def test_a_neighbour_that_rests_on_the_batch_s_users_is_hidden():
    # 0 and 1: users 0, 1, 2, 3; 0 and 2: users 0, 1; 0 and 3: nobody.
    histories = [[0, 1, 2], [0, 1, 2], [0, 1], [1, 0], [3]]
    assert resting(histories, [4]) == [[1, 2, 3]]
    assert resting(histories, [0]) == [[1, 3, -1]]  # half of two
    assert resting(histories, [0, 1]) == [[3, -1, -1]]  # half of four
    assert resting(histories, [2]) == [[1, 2, 3]]  # a quarter of four


def test_a_user_who_clicked_an_item_twice_counts_once():
    assert resting([[0, 1, 1, 1, 0], [0, 1], [0, 1]], [0]) == [[1, 2, 3]]


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=8),
    st.sets(st.integers(0, 7), min_size=1),
)
def test_hiding_by_users_is_what_counting_says(histories, users):
    users = sorted(user % len(histories) for user in users)
    kept = []
    for item in (1, 2, 3):
        both = [user for user, history in enumerate(histories) if {0, item} <= set(history)]
        kept += [item] if not both or 2 * len(set(both) & set(users)) < len(both) else []
    assert resting(histories, users) == [kept + [-1] * (3 - len(kept))]
