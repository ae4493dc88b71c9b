"""The walking engine: its law, its keys, its ties, and graphs that no log gives; edges given by hand become a graph."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from fedquilt.errors import DataError
from fedquilt.graphs.coclick import CoClickGraph, graph_from_edges
from fedquilt.graphs.walks import top_visited, walk_tables

KEY = 2**63 + 12345


def random_graph(num_items: int, num_edges: int, seed: int, equal: bool = False) -> CoClickGraph:
    generator = np.random.default_rng(seed)
    ends = generator.integers(0, num_items, (2, num_edges))
    weights = generator.gamma(0.5, size=num_edges) + 0.01
    graph = graph_from_edges(ends[0], ends[1], weights, num_items, symmetric=True)[0]
    ones = np.ones_like(graph.weights)
    return CoClickGraph(graph.indptr, graph.indices, ones, num_items) if equal else graph


def transition_matrix(graph: CoClickGraph) -> np.ndarray:
    weights_II = graph.to_scipy().toarray().astype(np.float64)
    return weights_II / np.maximum(weights_II.sum(axis=1, keepdims=True), 1e-30)


def arrivals_at_step(graph: CoClickGraph, seed: int, steps: int, restart: float) -> np.ndarray:
    home = np.eye(graph.num_items)[seed]
    at = home
    for _ in range(steps):
        at = (restart * home + (1 - restart) * at) @ transition_matrix(graph)
    return at


def visits(graph: CoClickGraph, seed: int, num_walks: int, length: int, restart: float) -> np.ndarray:
    items, counts = top_visited(graph, np.array([seed]), num_walks, length, KEY, graph.num_items, restart)
    dense = np.zeros(graph.num_items, np.int64)
    dense[items[items >= 0]] = counts[items >= 0]
    return dense


def p_value_of_step(graph: CoClickGraph, steps: int, restart: float, expected_restart: float | None = None) -> float:
    # The first steps of longer walks are those of shorter ones, so a difference counts the arrivals of one step:
    # one a walk, independent, so multinomial. What did not arrive elsewhere arrived at the seed.
    walks, seed = 200_000, 0
    last = visits(graph, seed, walks, steps, restart)
    last = last - (visits(graph, seed, walks, steps - 1, restart) if steps > 1 else 0)
    last[seed] = walks - last.sum()
    law = arrivals_at_step(graph, seed, steps, restart if expected_restart is None else expected_restart)
    assert (last[law == 0] == 0).all()
    return chisquare(last[law > 0], law[law > 0] / law.sum() * walks).pvalue


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("restart", [0.0, 0.35])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_arrivals_at_each_step_follow_the_exact_distribution(steps, restart, equal):
    assert p_value_of_step(random_graph(14, 30, 1, equal), steps, restart) > 1e-4


def test_the_distribution_of_another_restart_or_of_other_weights_is_rejected():
    weighted, equal = random_graph(14, 30, 1), random_graph(14, 30, 1, equal=True)
    assert p_value_of_step(weighted, 3, 0.35, expected_restart=0.37) < 1e-6
    law = arrivals_at_step(equal, 0, 1, 0)
    first = visits(weighted, 0, 200_000, 1, 0)
    assert chisquare(first[law > 0], law[law > 0] * 200_000).pvalue < 1e-9


@given(st.integers(2, 40), st.integers(1, 120), st.integers(1, 20), st.integers(1, 9), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_a_row_does_not_depend_on_order_chunks_or_number_of_seeds(num_items, num_edges, num_walks, length, top):
    graph, everything = random_graph(num_items, num_edges, num_walks), np.arange(num_items)
    items, counts = top_visited(graph, everything, num_walks, length, KEY, top, 0.2)
    shuffled = np.random.default_rng(0).permutation(num_items)
    again, counts_again = top_visited(graph, shuffled, num_walks, length, KEY, top, 0.2)
    np.testing.assert_array_equal(again, items[shuffled])
    np.testing.assert_array_equal(counts_again, counts[shuffled])
    alone, counts_alone = top_visited(graph, shuffled[:1], num_walks, length, KEY, top, 0.2)
    np.testing.assert_array_equal(alone[0], items[shuffled[0]])
    np.testing.assert_array_equal(counts_alone[0], counts[shuffled[0]])


def test_walks_of_a_seed_that_span_several_chunks_are_one_count():
    graph = random_graph(50, 200, 3)
    items, counts = top_visited(graph, np.array([5, 9]), 5000, 3, KEY, 50, 0.0)
    assert counts.sum(axis=1).max() <= 15_000
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in items)


@given(st.integers(2, 60), st.integers(1, 200), st.integers(1, 200), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_a_smaller_top_is_the_beginning_of_a_larger_one(num_items, num_edges, num_walks, top):
    # The whole ranking is sorted here, by count and then by item, so the selection is checked against a plain sort.
    graph, seeds = random_graph(num_items, num_edges, top), np.arange(min(num_items, 8))
    whole, counts = top_visited(graph, seeds, num_walks, 3, KEY, num_items, 0.1)
    for row, count in zip(whole, counts, strict=True):
        kept = row >= 0
        assert sorted(zip(-count[kept], row[kept], strict=True)) == list(zip(-count[kept], row[kept], strict=True))
    items, _ = top_visited(graph, seeds, num_walks, 3, KEY, top, 0.1)
    np.testing.assert_array_equal(items[:, :num_items], whole[:, :top])
    assert (items[:, num_items:] == -1).all()


def test_the_same_key_gives_the_same_row_and_another_key_another_one():
    graph, seeds = random_graph(200, 2000, 2), np.array([3, 3, 8])
    first, again, other = (top_visited(graph, seeds, 20, 4, key, 10, 0.1)[0] for key in (KEY, KEY, KEY + 1))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[0], first[1])
    assert (first[0] != other[0]).any()


def test_a_walker_on_a_dead_end_goes_on_as_from_its_seed():
    # 0 -> 1 and 1 -> nothing: every step arrives at 1. Item 2 is reached by nobody and has no edges.
    graph, _ = graph_from_edges(np.array([0]), np.array([1]), None, 3)
    items, counts = top_visited(graph, np.array([0, 1, 2]), 10, 4, KEY, 2, 0.0)
    assert items.tolist() == [[1, -1], [-1, -1], [-1, -1]]
    assert counts.tolist() == [[40, 0], [0, 0], [0, 0]]


def test_a_heavy_and_a_light_neighbour_keep_their_proportion():
    graph, _ = graph_from_edges(np.zeros(3, int), np.array([1, 2, 3]), np.array([1e6, 1.0, 1e6]), 4)
    counts = visits(graph, 0, 1_000_000, 1, 0.0)
    assert counts[2] <= 8  # expected 0.5
    assert counts[1] == pytest.approx(500_000, abs=2500)


def test_tables_are_made_once_and_cost_8_or_16_bytes_an_edge():
    equal, weighted = random_graph(1000, 20_000, 0, equal=True), random_graph(1000, 20_000, 0)
    assert walk_tables(equal) is walk_tables(equal)
    assert 8 <= walk_tables(equal).nbytes / equal.num_edges < 9
    assert 16 <= walk_tables(weighted).nbytes / weighted.num_edges < 17


def test_weights_that_no_walk_can_follow_are_refused_in_words():
    for weight in (np.nan, -1.0, 0.0, np.inf):
        graph = CoClickGraph(np.array([0, 1, 2]), np.array([1, 0], np.int32), np.array([1, weight], np.float32), 2)
        with pytest.raises(DataError, match=r"an edge of item 1 has weight"):
            top_visited(graph, np.array([0]), 1, 1, KEY, 1, 0.0)


def test_given_edges_lose_self_loops_and_zeros_and_sum_duplicates():
    rows, columns = np.array([0, 0, 1, 2, 1]), np.array([1, 1, 0, 2, 2])
    graph, report = graph_from_edges(rows, columns, np.array([1, 2, 4, 9, 0]), 3)
    assert graph.to_scipy().toarray().tolist() == [[0, 3, 0], [4, 0, 0], [0, 0, 0]]
    assert (report.given, report.self_loops, report.zero_weights, report.duplicates) == (5, 1, 1, 1)


def test_given_edges_become_symmetric_on_request():
    graph, report = graph_from_edges(np.array([0, 1, 1]), np.array([1, 0, 2]), None, 3, symmetric=True)
    assert graph.to_scipy().toarray().tolist() == [[0, 2, 0], [2, 0, 1], [0, 1, 0]]
    assert report.duplicates == 2
    assert graph.row(1)[0].tolist() == [0, 2]  # heaviest first


def test_given_edges_out_of_range_or_without_a_proper_weight_are_refused_in_words():
    one, two = np.array([0, 1]), np.array([1, 0])
    for bad in (np.nan, -0.5, np.inf):
        with pytest.raises(DataError, match="at place 1; need finite weights of at least 0"):
            graph_from_edges(one, two, np.array([1, bad]), 2)
    with pytest.raises(DataError, match="row 1 at place 1, of 1 items"):
        graph_from_edges(one, two, None, 1)
    with pytest.raises(DataError, match="column -1 at place 0"):
        graph_from_edges(one, np.array([-1, 0]), None, 2)
    with pytest.raises(DataError, match="2 rows, 1 columns"):
        graph_from_edges(one, np.array([1]), None, 2)


def test_no_edges_make_a_graph_of_isolated_items():
    graph, _ = graph_from_edges(np.empty(0, int), np.empty(0, int), None, 3)
    items, _ = top_visited(graph, np.arange(3), 5, 2, KEY, 2, 0.0)
    assert (items == -1).all()
