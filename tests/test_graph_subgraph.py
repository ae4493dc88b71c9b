"""Local subgraphs: which nodes, in which order, joined by which edges, and what they weigh on the wire."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.errors import ConfigError, DataError
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.subgraph import SubgraphBuilder, Subgraphs, build_subgraphs, latest_clicks, subgraph_bytes

# Six items. Items 0 and 1 both point at 3, item 0 also at 4, item 1 also at 5; item 2 has no neighbours.
ITEMS_IT = np.array([[3, 4], [3, 5], [-1, -1], [0, 1], [0, -1], [1, -1]], np.int32)
WEIGHTS_IT = np.array([[0.6, 0.4], [0.5, 0.5], [0, 0], [0.5, 0.5], [1, 0], [1, 0]], np.float32)


def build(contexts: list[list[int]], num_nodes: int = 6, num_clicked: int = 3, window: int = 1) -> Subgraphs:
    return build_subgraphs(np.array(contexts, np.int32), ITEMS_IT, WEIGHTS_IT, num_nodes, num_clicked, window)


def reference_nodes(context: np.ndarray, builder: SubgraphBuilder) -> tuple[list[int], list[int]]:
    """Clicked nodes and neighbours of one user, said plainly."""
    distinct = list(dict.fromkeys(int(item) for item in context if item >= 0))
    clicked = distinct[: builder.num_clicked]
    scores: dict[int, np.float32] = {}
    for recency, item in enumerate(clicked):
        for j, weight in zip(builder.neighbour_items_IT[item], builder.neighbour_weights_IT[item], strict=True):
            if j >= 0 and j not in distinct:
                vote = np.float32(builder.recency_decay**recency) * weight
                scores[int(j)] = scores.get(int(j), np.float32(0)) + vote
    ranked = sorted(scores, key=lambda j: (-scores[j], j))
    return clicked, ranked[: builder.num_nodes - len(clicked)]


def reference_edges(clicked: list[int], neighbours: list[int], builder: SubgraphBuilder) -> np.ndarray:
    edges_NN = np.zeros((builder.num_nodes, builder.num_nodes), np.float32)
    for a, item in enumerate(clicked):
        for b in range(len(clicked)):
            if 1 <= abs(a - b) <= builder.window:
                edges_NN[a, b] = 1 / abs(a - b)
        for slot, j in enumerate(neighbours, start=len(clicked)):
            for column in np.flatnonzero(builder.neighbour_items_IT[item] == j):
                edges_NN[a, slot] = edges_NN[slot, a] = builder.neighbour_weights_IT[item, column]
    return edges_NN


@st.composite
def worlds(draw: st.DrawFn) -> tuple[SubgraphBuilder, np.ndarray]:
    """A catalogue, an importance table and a few users' contexts, repeats, gaps and empty users included."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_items, per_item = draw(st.integers(2, 30)), draw(st.integers(1, 6))
    per_item = min(per_item, num_items - 1)
    order = np.stack([generator.permutation(np.delete(np.arange(num_items), i)) for i in range(num_items)])
    items = np.where(generator.random((num_items, per_item)) < 0.8, order[:, :per_item], -1).astype(np.int32)
    weights = (generator.integers(1, 5, items.shape) / 4).astype(np.float32)  # quarters: ties are common, sums exact
    num_nodes = draw(st.integers(2, 12))
    builder = SubgraphBuilder(
        items,
        weights,
        num_nodes,
        draw(st.integers(1, num_nodes)),
        draw(st.integers(1, 4)),
        draw(st.sampled_from([1, 0.5])),
    )
    contexts = generator.integers(-1, num_items, (draw(st.integers(0, 6)), draw(st.integers(1, 14))), dtype=np.int32)
    return builder, contexts


def test_nodes_are_the_latest_distinct_clicks_and_then_the_best_neighbours():
    graph = build([[1, 1, 0, 1]])
    # 3 has 0.5 + 0.6, then 5 has 0.5, then 4 has 0.4
    assert graph.nodes_UN.tolist() == [[1, 0, 3, 5, 4, 0]]
    assert graph.node_mask_UN.tolist() == [[True, True, True, True, True, False]]
    assert graph.recency_UN.tolist() == [[0, 1, -1, -1, -1, -1]]


def test_clicked_nodes_are_joined_within_the_window_by_one_over_their_distance():
    edges_NN = build([[2, 1, 0]], window=2).edges_UNN[0]
    assert edges_NN[:3, :3].tolist() == [[0, 1, 0.5], [1, 0, 1], [0.5, 1, 0]]


def test_a_neighbour_is_joined_to_every_click_that_has_it_in_its_row():
    edges_NN = build([[1, 0]]).edges_UNN[0]
    # columns: 1, 0, 3, 5, 4
    assert edges_NN[0].tolist() == pytest.approx([0, 1, 0.5, 0.5, 0, 0])
    assert edges_NN[1].tolist() == pytest.approx([1, 0, 0.6, 0, 0.4, 0])


def test_an_item_of_the_older_history_is_no_neighbour():
    graph = build([[1, 2, 0, 5, 3]], num_clicked=2)
    assert graph.nodes_UN[0, : graph.node_mask_UN[0].sum()].tolist() == [1, 2]


def test_equal_scores_put_the_smaller_item_first():
    items, weights = np.array([[2, 1], [-1, -1], [-1, -1]], np.int32), np.ones((3, 2), np.float32)
    assert build_subgraphs(np.array([[0]]), items, weights, 3, 1, 1).nodes_UN.tolist() == [[0, 1, 2]]


def test_recency_decay_lets_the_latest_click_choose():
    items = np.array([[2], [3], [-1], [-1]], np.int32)
    weights = np.array([[0.5], [0.9], [0], [0]], np.float32)
    contexts = np.array([[0, 1]])
    assert build_subgraphs(contexts, items, weights, 3, 2, 1).nodes_UN[0, 2] == 3
    assert build_subgraphs(contexts, items, weights, 3, 2, 1, recency_decay=0.5).nodes_UN[0, 2] == 2


def test_a_user_without_clicks_has_an_empty_subgraph():
    graph = build([[-1, -1], [0, -1]])
    assert not graph.node_mask_UN[0].any()
    assert not graph.edges_UNN[0].any()
    assert len(graph) == 2


@given(worlds())
@settings(max_examples=150, deadline=None)
def test_whole_cohorts_agree_with_one_user_said_plainly(world):
    builder, contexts_UL = world
    graph = builder(contexts_UL)
    for u, context in enumerate(contexts_UL):
        clicked, neighbours = reference_nodes(context, builder)
        nodes = clicked + neighbours
        assert graph.nodes_UN[u].tolist() == nodes + [0] * (builder.num_nodes - len(nodes))
        assert graph.node_mask_UN[u].sum() == len(nodes)
        assert (graph.recency_UN[u] >= 0).sum() == len(clicked)
        np.testing.assert_array_equal(graph.edges_UNN[u], reference_edges(clicked, neighbours, builder))


@given(worlds())
@settings(max_examples=50, deadline=None)
def test_edges_are_symmetric_without_self_loops_and_padding_is_zero(world):
    builder, contexts_UL = world
    graph = builder(contexts_UL)
    np.testing.assert_array_equal(graph.edges_UNN, graph.edges_UNN.transpose(0, 2, 1))
    assert not np.einsum("unn->un", graph.edges_UNN).any()
    assert not graph.edges_UNN[~graph.node_mask_UN].any()
    assert not graph.nodes_UN[~graph.node_mask_UN].any()
    assert (graph.recency_UN[~graph.node_mask_UN] == -1).all()


@given(worlds(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_a_users_row_does_not_depend_on_the_other_rows(world, random):
    builder, contexts_UL = world
    together = builder(contexts_UL)
    order = list(range(len(contexts_UL)))
    random.shuffle(order)
    for name in ("nodes_UN", "node_mask_UN", "recency_UN", "edges_UNN"):
        whole = getattr(together, name)
        np.testing.assert_array_equal(getattr(builder(contexts_UL[order]), name), whole[order])
        for u in range(len(contexts_UL)):
            np.testing.assert_array_equal(getattr(builder(contexts_UL[u : u + 1]), name)[0], whole[u])


def test_chunks_do_not_show():
    generator = np.random.default_rng(0)
    items = generator.permuted(np.tile(np.arange(50, dtype=np.int32), (60, 1)), axis=1)[:, :8] + 1
    items[items == np.arange(60)[:, None]] = -1
    builder = SubgraphBuilder(items, generator.random(items.shape, np.float32) + 0.1, 20, 12, 3)
    contexts_UL = generator.integers(-1, 60, (3000, 20), dtype=np.int32)
    whole, tail = builder(contexts_UL), builder(contexts_UL[1500:])
    np.testing.assert_array_equal(whole.nodes_UN[1500:], tail.nodes_UN)
    np.testing.assert_array_equal(whole.edges_UNN[1500:], tail.edges_UNN)


def test_latest_clicks_are_most_recent_first_and_padded():
    log = InteractionLog("tiny", np.array([0, 0, 0, 2]), np.array([5, 6, 7, 8]), num_users=3, num_items=9)
    assert latest_clicks(log, np.array([2, 0, 1]), 2).tolist() == [[8, -1], [7, 6], [-1, -1]]


def test_bytes_count_node_vectors_and_the_edges_that_travel():
    sizes = subgraph_bytes(build([[1, 0], [2, -1]]), dim=32)
    # user 0: 5 nodes, 4 clicked-neighbour edges; user 1: 1 node, none. fp32 4 + 128 a node, int8 4 + 32 + 2; 4 an edge
    assert sizes == {"fp32_mean": (676 + 132) / 2, "int8_mean": (206 + 38) / 2, "fp32_max": 676, "int8_max": 206}


def test_bad_tables_contexts_and_sizes_are_refused_in_words():
    with pytest.raises(DataError, match=r"items 7 \.\. 7; expected -1"):
        build([[7]])
    with pytest.raises(DataError, match="must be"):
        build_subgraphs(np.zeros(3, np.int32), ITEMS_IT, WEIGHTS_IT, 6, 3, 1)
    with pytest.raises(DataError, match="positive weight"):
        build_subgraphs(np.array([[0]]), ITEMS_IT, 0 * WEIGHTS_IT, 6, 3, 1)
    with pytest.raises(DataError, match=r"must both be \[I, T\]"):
        build_subgraphs(np.array([[0]]), ITEMS_IT, WEIGHTS_IT[:, :1], 6, 3, 1)
    with pytest.raises(DataError, match="neighbour 5 in a catalogue of 2"):
        build_subgraphs(np.array([[0]]), ITEMS_IT[:2], WEIGHTS_IT[:2], 6, 3, 1)
    with pytest.raises(ConfigError, match="num_clicked=7, num_nodes=6"):
        build([[0]], num_clicked=7)
    with pytest.raises(ConfigError, match="window >= 1"):
        build([[0]], window=0)
