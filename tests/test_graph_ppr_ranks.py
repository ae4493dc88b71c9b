"""Ranks by personalised PageRank: the linear system gives the same, and windows cut the ranking where they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.errors import ConfigError, DataError
from fedquilt.graphs.coclick import CoClickGraph, build_coclick
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.ppr_ranks import ppr_scores, ppr_window, window_of


def graph_of(num_items: int, clicks: int, seed: int = 0) -> CoClickGraph:
    """A graph of random histories over items 0 .. num_items - 2; the last item is isolated."""
    generator = np.random.default_rng(seed)
    users = np.sort(generator.integers(0, max(1, clicks // 5), clicks))
    log = InteractionLog("tiny", users, generator.integers(0, num_items - 1, clicks), clicks, num_items)
    return build_coclick(log, window=2, top_neighbours=4)


def solved(graph: CoClickGraph, seed: int, alpha: float) -> np.ndarray:
    """The row of alpha (I - (1 - alpha) P)^-1, without the seed."""
    weights_II = graph.to_scipy().toarray().astype(np.float64)
    transitions = weights_II / np.maximum(weights_II.sum(axis=1, keepdims=True), 1e-30)
    system = np.eye(graph.num_items) - (1 - alpha) * transitions
    scores = np.linalg.solve(system.T, alpha * np.eye(graph.num_items)[seed])
    scores[seed] = 0
    return scores


def ranking(scores_I: np.ndarray) -> list[int]:
    order = np.lexsort((np.arange(len(scores_I)), -scores_I))
    return order[scores_I[order] > 0].tolist()


def test_scores_solve_the_linear_system_and_not_that_of_another_alpha():
    graph = graph_of(40, 300)
    for seed in range(40):
        np.testing.assert_allclose(ppr_scores(graph, seed, 0.15, 1e-9), solved(graph, seed, 0.15), atol=1e-9)
    assert np.abs(ppr_scores(graph, 0, 0.15, 1e-9) - solved(graph, 0, 0.2)).max() > 1e-3


def test_the_whole_window_is_the_ranking_of_the_linear_system():
    graph = graph_of(40, 300)
    window = ppr_window(graph, np.arange(39), 1, 39, 0.15, tolerance=1e-12)
    for seed in range(39):
        expected = ranking(solved(graph, seed, 0.15))
        assert window[seed, : len(expected)].tolist() == expected
        assert (window[seed, len(expected) :] == -1).all()


def test_a_window_is_a_cut_of_the_ranking():
    graph, seeds = graph_of(60, 600), np.array([7, 0, 31])
    whole = ppr_window(graph, seeds, 1, 59, 0.2)
    np.testing.assert_array_equal(ppr_window(graph, seeds, 11, 20, 0.2), whole[:, 10:20])


@given(st.integers(3, 30), st.integers(0, 150), st.sampled_from([1e-4, 1e-2, 1.0, 10.0]), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_scores_fall_short_by_no_more_than_the_tolerance_says(num_items, clicks, tolerance, seed):
    graph = graph_of(num_items, clicks, seed)
    popularity_I = graph.to_scipy().sum(axis=1) / max(float(graph.weights.sum()), 1e-30)
    missing = solved(graph, 0, 0.2) - ppr_scores(graph, 0, 0.2, tolerance)
    assert (missing >= -1e-12).all()
    assert (missing <= tolerance * popularity_I + 1e-9).all()


def test_a_row_does_not_depend_on_the_seeds_before_it():
    graph = graph_of(40, 300)
    together = ppr_window(graph, np.arange(39), 3, 9, 0.15)
    np.testing.assert_array_equal(ppr_window(graph, np.array([30, 2]), 3, 9, 0.15), together[[30, 2]])


def test_an_isolated_item_and_ranks_beyond_the_catalogue_are_padded():
    graph = graph_of(10, 80)
    assert (ppr_window(graph, np.array([9]), 1, 4, 0.2) == -1).all()
    assert (ppr_window(graph, np.array([0]), 20, 22, 0.2) == -1).all()


def test_shares_of_the_catalogue_become_ranks_that_exist():
    assert window_of(10_000, 0.2, 0.5) == (2001, 5000)
    assert window_of(10, 0, 1) == (1, 9)  # nine other items
    assert window_of(50, 0.001, 0.002) == (1, 1)  # at least one rank
    assert window_of(2, 0.9, 1.0) == (1, 1)


def test_bad_settings_and_seeds_are_refused_in_words():
    graph = graph_of(10, 80)
    with pytest.raises(ConfigError, match="first_rank <= last_rank"):
        ppr_window(graph, np.array([0]), 5, 4, 0.2)
    with pytest.raises(ConfigError, match="alpha"):
        ppr_window(graph, np.array([0]), 1, 4, 1.0)
    with pytest.raises(ConfigError, match="tolerance"):
        ppr_window(graph, np.array([0]), 1, 4, 0.2, tolerance=0)
    with pytest.raises(ConfigError, match="shares"):
        window_of(10, 0.5, 0.5)
    with pytest.raises(DataError, match="catalogue of 1"):
        window_of(1, 0.1, 0.5)
    with pytest.raises(DataError, match=r"seeds 10 \.\. 10 in a graph of 10 items"):
        ppr_window(graph, np.array([10]), 1, 4, 0.2)
