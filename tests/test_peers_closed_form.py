"""Peers with a closed form: popularity, ItemKNN, EASE, by hand on four items."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.peers import ease, item_knn, popularity
from experiments.peers.interface import click_matrix
from fedquilt.graphs.log import InteractionLog


@pytest.fixture
def three_users() -> InteractionLog:
    """Clicks: user 0 on items 0, 1, 2; user 1 on 0, 1; user 2 on 2. Item 3 is never clicked."""
    users, items = [0, 0, 0, 1, 1, 2], [0, 1, 2, 0, 1, 2]
    return InteractionLog("hand", np.array(users), np.array(items), num_users=3, num_items=4)


def never(scores) -> float:
    raise AssertionError("a closed form has no epoch to choose")


def test_popularity_gives_every_user_the_click_counts(three_users):
    scores = popularity.fit(three_users, never, seed=0)
    assert scores(np.array([0, 2])).tolist() == [[2, 2, 2, 0], [2, 2, 2, 0]]


def test_cosine_of_items_by_hand(three_users):
    similarity_II = item_knn.cosine(click_matrix(three_users))
    # items 0 and 1 share both of their users; 0 and 2 share one of two each: 1 / sqrt(2 * 2)
    assert similarity_II == pytest.approx(np.array([[0, 1, 0.5, 0], [1, 0, 0.5, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0]]))


def test_nearest_keeps_the_largest_entries_of_a_row():
    assert item_knn.nearest(np.array([[0.1, 0.3, 0.2], [0.5, 0.0, 0.4]]), 1).tolist() == [[0, 0.3, 0], [0.5, 0, 0]]


def test_one_neighbour_of_the_candidate_and_of_the_clicked_differ(three_users):
    candidate = item_knn.fit(three_users, never, seed=0, neighbours=1, side="candidate")(np.array([1]))[0]
    history = item_knn.fit(three_users, never, seed=0, neighbours=1, side="history")(np.array([1]))[0]
    # user 1 clicked 0 and 1, each other's nearest; item 2 has one of them as its nearest, but is the nearest of neither
    assert candidate.tolist() == pytest.approx([1, 1, 0.5, 0])
    assert history.tolist() == pytest.approx([1, 1, 0, 0])


def test_ease_is_the_ridge_regression_of_each_item_on_the_others(three_users):
    clicks_UI = click_matrix(three_users)
    weights_II = ease.item_weights(clicks_UI, penalty=0.7)
    for item in range(4):
        others = [i for i in range(4) if i != item]
        x_UO = clicks_UI[:, others]
        ridge_O = np.linalg.inv(x_UO.T @ x_UO + 0.7 * np.eye(3)) @ x_UO.T @ clicks_UI[:, item]
        assert weights_II[others, item] == pytest.approx(ridge_O, abs=1e-6)
        assert weights_II[item, item] == 0


def test_a_very_large_penalty_turns_ease_into_counting_of_common_users(three_users):
    # P -> I / penalty - XᵀX / penalty², so penalty · B -> XᵀX off the diagonal
    clicks_UI = click_matrix(three_users)
    together_II = clicks_UI.T @ clicks_UI
    np.fill_diagonal(together_II, 0)
    assert 1e6 * ease.item_weights(clicks_UI, penalty=1e6) == pytest.approx(together_II, abs=1e-4)
