"""Uniform neighbourhoods: every set of neighbours equally likely, none twice, and all where there are few."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from fedquilt.errors import ConfigError, DataError
from fedquilt.graphs.coclick import CoClickGraph
from fedquilt.graphs.uniform import uniform_neighbours
from fedquilt.seeds import generator_for


def stars(num_stars: int, points: int) -> CoClickGraph:
    """Hubs 0 .. num_stars - 1, each with edges (one way) to the same ``points`` items; weights fall along the row."""
    row = np.arange(num_stars, num_stars + points)
    num_items = num_stars + points
    indptr = np.minimum(np.arange(num_items + 1), num_stars) * points
    weights = np.tile(np.arange(points, 0, -1, dtype=np.float32), num_stars)
    return CoClickGraph(indptr.astype(np.int64), np.tile(row, num_stars).astype(np.int32), weights, num_items)


def p_value_of_pairs(expected: np.ndarray) -> float:
    # 20,000 hubs of 5 points, 2 of which are drawn: 10 sets.
    hubs = 20_000
    table = uniform_neighbours(stars(hubs, 5), np.arange(hubs), 2, generator_for(0, use="uniform"))
    sets = [tuple(row) for row in (table.items_ST - hubs).tolist()]
    counts = [sets.count(pair) for pair in combinations(range(5), 2)]
    return chisquare(counts, expected / expected.sum() * hubs).pvalue


def test_every_pair_of_neighbours_is_equally_likely_and_another_law_is_rejected():
    assert p_value_of_pairs(np.ones(10)) > 1e-3
    assert p_value_of_pairs(np.array([1.1] * 5 + [0.9] * 5)) < 1e-6


def test_a_degree_within_top_gives_all_neighbours_alike():
    table = uniform_neighbours(stars(1, 3), np.array([0]), 5, generator_for(0))
    assert table.items_ST.tolist() == [[1, 2, 3, -1, -1]]
    assert table.weights_ST[0] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0])


def test_an_isolated_item_has_an_empty_row():
    table = uniform_neighbours(stars(1, 3), np.array([2]), 2, generator_for(0))
    assert table.items_ST.tolist() == [[-1, -1]]
    assert table.weights_ST.tolist() == [[0, 0]]


@given(st.integers(1, 40), st.integers(1, 45), st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_rows_hold_different_neighbours_and_weights_that_sum_to_one(points, top, seed):
    table = uniform_neighbours(stars(3, points), np.arange(3), top, generator_for(seed))
    for row, weights in zip(table.items_ST, table.weights_ST, strict=True):
        kept = row[row >= 0].tolist()
        assert len(set(kept)) == len(kept) == min(points, top)
        assert all(3 <= item < 3 + points for item in kept)
        assert weights.sum() == pytest.approx(1, abs=1e-6)


def test_a_row_does_not_depend_on_the_other_seeds():
    graph = stars(30, 50)
    together = uniform_neighbours(graph, np.arange(30), 7, generator_for(5))
    apart = uniform_neighbours(graph, np.array([21, 4]), 7, generator_for(5))
    other = uniform_neighbours(graph, np.array([21, 4]), 7, generator_for(6))
    np.testing.assert_array_equal(apart.items_ST, together.items_ST[[21, 4]])
    assert (apart.items_ST != other.items_ST).any()


def test_bad_settings_and_seeds_are_refused_in_words():
    with pytest.raises(ConfigError, match="top"):
        uniform_neighbours(stars(1, 3), np.array([0]), 0, generator_for(0))
    with pytest.raises(DataError, match=r"seeds 9 \.\. 9 in a graph of 4 items"):
        uniform_neighbours(stars(1, 3), np.array([9]), 2, generator_for(0))
