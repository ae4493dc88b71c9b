"""The co-click graph: what counts as a co-click, what is kept, and how it lies in memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.errors import ConfigError, DataError
from fedquilt.graphs.coclick import CoClickGraph, build_coclick
from fedquilt.graphs.log import InteractionLog


def log_of(histories: list[list[int]], num_items: int) -> InteractionLog:
    users = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    items = np.array([item for history in histories for item in history], np.int64)
    return InteractionLog("tiny", users, items, len(histories), num_items)


def dense(graph: CoClickGraph) -> np.ndarray:
    return graph.to_scipy().toarray()


def reference(histories: list[list[int]], num_items: int, window: int) -> np.ndarray:
    """All pairs, unpruned, said plainly."""
    weights_II = np.zeros((num_items, num_items))
    for history in histories:
        for a, i in enumerate(history):
            for distance, j in enumerate(history[a + 1 : a + 1 + window], start=1):
                if i != j:
                    weights_II[i, j] += 1 / distance
                    weights_II[j, i] += 1 / distance
    return weights_II


histories_and_items = st.integers(2, 12).flatmap(
    lambda num_items: st.tuples(
        st.lists(st.lists(st.integers(0, num_items - 1), max_size=12), min_size=1, max_size=8), st.just(num_items)
    )
)


def test_closer_clicks_weigh_more():
    graph = build_coclick(log_of([[0, 1, 2]], 3), window=2, top_neighbours=5)
    assert dense(graph).tolist() == [[0, 1, 0.5], [1, 0, 1], [0.5, 1, 0]]


def test_clicks_outside_the_window_or_of_another_user_are_not_joined():
    graph = build_coclick(log_of([[0, 1, 2], [3, 4]], 5), window=1, top_neighbours=5)
    assert sorted(zip(*np.nonzero(dense(graph)), strict=True)) == [(0, 1), (1, 0), (1, 2), (2, 1), (3, 4), (4, 3)]


def test_a_repeated_click_makes_no_self_loop_but_counts_again():
    graph = build_coclick(log_of([[0, 0, 1]], 2), window=2, top_neighbours=5)
    assert dense(graph).tolist() == [[0, 1.5], [1.5, 0]]


def test_an_edge_is_kept_when_either_end_chose_it():
    # Item 0 is everyone's best neighbour; its own single choice is 1, with two co-clicks.
    graph = build_coclick(log_of([[0, 1], [0, 1], [0, 2], [3, 0]], 4), window=1, top_neighbours=1)
    assert graph.row(0)[0].tolist() == [1, 2, 3]
    assert graph.row(0)[1].tolist() == [2, 1, 1]
    assert graph.row(2)[0].tolist() == [0]


@given(histories_and_items, st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_without_pruning_it_equals_all_pairs_said_plainly(case, window):
    histories, num_items = case
    graph = build_coclick(log_of(histories, num_items), window, top_neighbours=num_items)
    np.testing.assert_allclose(dense(graph), reference(histories, num_items, window), rtol=1e-6)


@given(histories_and_items, st.integers(1, 3), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_pruning_keeps_the_union_of_every_items_heaviest(case, window, top):
    histories, num_items = case
    full_II = build_coclick(log_of(histories, num_items), window, num_items)
    graph = build_coclick(log_of(histories, num_items), window, top)
    expected = {(i, j) for i in range(num_items) for j in full_II.row(i)[0][:top].tolist()}
    expected |= {(j, i) for i, j in expected}
    assert set(zip(*(ends.tolist() for ends in np.nonzero(dense(graph))), strict=True)) == expected
    assert graph.num_edges <= 2 * num_items * top
    for i in range(num_items):
        assert graph.row(i)[0][:top].tolist() == full_II.row(i)[0][:top].tolist()


@given(histories_and_items, st.integers(1, 4), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_rows_are_symmetric_sorted_and_without_self_loops(case, window, top):
    histories, num_items = case
    graph = build_coclick(log_of(histories, num_items), window, top)
    np.testing.assert_array_equal(dense(graph), dense(graph).T)  # to the bit
    assert graph.indptr[0] == 0
    assert graph.indptr[-1] == graph.num_edges == len(graph.weights)
    for i in range(num_items):
        neighbours, weights = graph.row(i)
        assert i not in neighbours
        assert sorted(zip(-weights, neighbours, strict=True)) == list(zip(-weights, neighbours, strict=True))


@given(histories_and_items, st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_bands_do_not_show(case, max_pairs):
    histories, num_items = case
    log = log_of(histories, num_items)
    whole, banded = build_coclick(log, 3, 2), build_coclick(log, 3, 2, max_pairs=max_pairs)
    for name in ("indptr", "indices", "weights"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(banded, name))


def test_types_and_bytes_per_edge_are_as_promised():
    graph = build_coclick(log_of([[0, 1, 2]], 3), window=2, top_neighbours=5)
    assert (graph.indptr.dtype, graph.indices.dtype, graph.weights.dtype) == (np.int64, np.int32, np.float32)
    assert graph.bytes_per_edge == pytest.approx(8 + 8 * 4 / 6)  # 6 directed edges, 4 row ends


def test_sorting_the_scipy_copy_leaves_the_graph_alone():
    graph = build_coclick(log_of([[0, 2], [0, 2], [0, 1]], 3), window=1, top_neighbours=5)
    graph.to_scipy().sort_indices()
    assert graph.row(0)[0].tolist() == [2, 1]


def test_bad_settings_and_empty_catalogues_are_refused_in_words():
    with pytest.raises(ConfigError, match="must be >= 1"):
        build_coclick(log_of([[0, 1]], 2), window=0, top_neighbours=1)
    with pytest.raises(DataError, match="no items"):
        build_coclick(log_of([[]], 0), window=1, top_neighbours=1)
