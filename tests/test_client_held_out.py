"""Held-out clicks by user: padded rows, and counts that agree with sorting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.held_out import TOP, HeldOutClicks
from fedquilt.graphs.splits import HeldOut

# User 0 has two held-out clicks, user 1 none, user 3 one; not in the order of users.
HELD_OUT = HeldOut(np.array([3, 0, 0]), np.array([7, 5, 6]))


def test_rows_are_padded_to_the_user_with_most_clicks():
    clicks = HeldOutClicks(HELD_OUT, num_users=4)
    assert clicks.items(np.array([3, 1, 0])).tolist() == [[7, -1], [-1, -1], [5, 6]]
    assert clicks.items(np.array([1])).tolist() == [[-1, -1]]  # parts of an evaluation must fit together


def test_a_split_that_holds_nothing_out_has_padding_only():
    clicks = HeldOutClicks(HeldOut(np.zeros(0, np.int64), np.zeros(0, np.int64)), num_users=4)
    assert clicks.items(np.array([0, 3])).tolist() == [[-1], [-1]]
    counts = clicks.counts("base", np.zeros((2, 30), np.float32), np.array([0, 3]), np.zeros((2, 30), bool))
    assert counts["greater_base"].tolist() == [[0], [0]]


@given(st.integers(0, 2**32 - 1))
def test_counts_are_those_of_comparing_with_every_candidate(seed):
    rng = np.random.default_rng(seed)
    ids, scores = np.array([3, 1, 0]), rng.integers(0, 6, (3, 12)).astype(np.float32)
    seen = rng.random((3, 12)) < 0.4
    found = HeldOutClicks(HELD_OUT, 4).counts("x", scores, ids, seen)
    for row, wanted in enumerate([[7, -1], [-1, -1], [5, 6]]):
        for column, target in enumerate(wanted):
            rivals = [i for i in range(12) if not seen[row, i] and i != target]
            greater = sum(scores[row, i] > scores[row, target] for i in rivals) if target >= 0 else 0
            ties = sum(scores[row, i] == scores[row, target] for i in rivals) if target >= 0 else 0
            assert (found["greater_x"][row, column], found["ties_x"][row, column]) == (greater, ties)


def test_frozen_negatives_are_the_only_rivals():
    held_out = HeldOut(HELD_OUT.users_H, HELD_OUT.items_H, np.array([[0, 1, 2], [3, 4, 8], [0, 1, 9]]))
    scores = np.tile(np.arange(12.0, dtype=np.float32), (2, 1))
    scores[1, 9] = scores[1, 6]
    nothing_seen = np.zeros((2, 12), bool)
    counts = HeldOutClicks(held_out, 4).counts("x", scores, np.array([3, 0]), nothing_seen)
    assert counts["greater_x"].tolist() == [[0, 0], [1, 0]]
    assert counts["ties_x"].tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize("num_items", [5, TOP, 50])
def test_the_list_holds_the_best_unseen_items_best_first(num_items):
    scores = np.random.default_rng(0).permutation(3 * num_items).reshape(3, num_items).astype(np.float32)
    seen = np.zeros((3, num_items), bool)
    seen[1, np.argmax(scores[1])] = True
    top = HeldOutClicks(HeldOut(np.array([0]), np.array([1])), 4).counts("x", scores, np.arange(3), seen)["top_x"]
    for row in range(3):
        order = [i for i in np.argsort(-scores[row]) if not seen[row, i]]
        assert top[row].tolist()[: len(order)] == order[:TOP]
