"""Importance of neighbours: random walks follow the edge weights, personalised PageRank its formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from fedquilt.errors import ConfigError, DataError
from fedquilt.graphs.coclick import CoClickGraph, build_coclick
from fedquilt.graphs.importance import Neighbourhoods, ppr, visit_counts
from fedquilt.graphs.log import InteractionLog
from fedquilt.seeds import generator_for


def graph_of(num_items: int, clicks: int, seed: int = 0) -> CoClickGraph:
    """A graph of random histories over items 0 .. num_items - 2; the last item is isolated."""
    generator = np.random.default_rng(seed)
    users = np.sort(generator.integers(0, max(1, clicks // 5), clicks))
    log = InteractionLog("tiny", users, generator.integers(0, num_items - 1, clicks), clicks, num_items)
    return build_coclick(log, window=2, top_neighbours=4)


def star() -> CoClickGraph:
    """0 is joined to 1, 2, 3 with weights 3, 2, 1; 1 and 2 with weight 1; 4 is isolated."""
    histories = [[0, 1]] * 3 + [[0, 2]] * 2 + [[0, 3]] + [[1, 2]]
    users = np.repeat(np.arange(len(histories)), 2)
    return build_coclick(InteractionLog("star", users, np.concatenate(histories), 7, 5), 1, 5)


def transition_matrix(graph: CoClickGraph) -> np.ndarray:
    weights_II = graph.to_scipy().toarray().astype(np.float64)
    return weights_II / np.maximum(weights_II.sum(axis=1, keepdims=True), 1e-30)


def expected_visits(
    graph: CoClickGraph, seed: int, walk_length: int, restart: float, transitions: np.ndarray | None = None
) -> np.ndarray:
    """Expected arrivals per walk at every item but the seed, exactly."""
    transitions = transition_matrix(graph) if transitions is None else transitions
    home = np.eye(graph.num_items)[seed]
    at, visits = home, np.zeros(graph.num_items)
    for _ in range(walk_length):
        at = (restart * home + (1 - restart) * at) @ transitions
        visits += at
    visits[seed] = 0
    return visits


def row_of(neighbourhoods: Neighbourhoods, row: int, num_items: int) -> np.ndarray:
    dense = np.zeros(num_items)
    kept = neighbourhoods.mask_ST[row]
    dense[neighbourhoods.items_ST[row, kept]] = neighbourhoods.weights_ST[row, kept]
    return dense


def test_the_heaviest_neighbour_is_visited_most():
    table = visit_counts(star(), np.array([0]), 2000, 1, generator_for(0, use="walk"), top=3)
    assert table.items_ST.tolist() == [[1, 2, 3]]
    assert table.weights_ST[0] == pytest.approx([3 / 6, 2 / 6, 1 / 6], abs=0.05)


def p_value_of_first_hops(probabilities: np.ndarray) -> float:
    # One hop from item 0 reaches 1, 2 or 3, once a walk, so the counts are multinomial and chi-square applies.
    walks = 20_000
    table = visit_counts(star(), np.array([0]), walks, 1, generator_for(1, use="walk"), top=5)
    return chisquare(np.rint(row_of(table, 0, 5)[1:4] * walks), probabilities * walks).pvalue


def test_first_hops_follow_the_edge_weights_and_no_others():
    assert p_value_of_first_hops(np.array([3, 2, 1]) / 6) > 1e-3
    assert p_value_of_first_hops(np.array([1, 1, 1]) / 3) < 1e-9
    assert p_value_of_first_hops(np.array([3.3, 1.9, 1]) / 6.2) < 1e-6


def visit_error(restart_used: float, restart_expected: float, num_walks: int = 100_000) -> float:
    graph = graph_of(12, 60)
    table = visit_counts(graph, np.arange(11), num_walks, 3, generator_for(2, use="walk"), 12, restart=restart_used)
    errors = []
    for seed in range(11):
        expected = expected_visits(graph, seed, 3, restart_expected)
        errors.append(np.abs(row_of(table, seed, 12) - expected / expected.sum()).max())
    return max(errors)


def test_three_hop_visits_agree_with_the_powers_of_the_transition_matrix_and_reject_another_restart():
    # One standard error of a frequency over 100,000 walks is below 0.0016 (0.5 / sqrt of 100,000): 4 of them.
    assert visit_error(0.3, 0.3) < 0.0064
    assert visit_error(0.0, 0.0) < 0.0064
    assert visit_error(0.3, 0.0) > 0.012


def test_the_same_generator_gives_the_same_table_and_another_key_another_one():
    graph, seeds = graph_of(40, 400), np.arange(40)
    first, again, other = (visit_counts(graph, seeds, 16, 2, generator_for(seed, use="walk"), 5) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.items_ST, again.items_ST)
    np.testing.assert_array_equal(first.weights_ST, again.weights_ST)
    assert (first.items_ST != other.items_ST).any()


def test_an_isolated_item_has_an_empty_row():
    seeds = np.array([4, 0])
    for table in (visit_counts(star(), seeds, 8, 2, generator_for(0), 3), ppr(star(), seeds, 0.2, 3)):
        assert not table.mask_ST[0].any()
        assert not table.weights_ST[0].any()
        assert table.mask_ST[1].any()


@given(st.integers(3, 25), st.integers(0, 120), st.integers(1, 6), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_rows_are_distinct_sorted_normalised_and_without_their_seed(num_items, clicks, top, seed):
    graph, seeds = graph_of(num_items, clicks, seed), np.arange(num_items)
    for table in (visit_counts(graph, seeds, 8, 2, generator_for(seed), top), ppr(graph, seeds, 0.3, top)):
        assert table.items_ST.shape == table.weights_ST.shape == (num_items, top)
        assert (table.weights_ST[~table.mask_ST] == 0).all()
        for item, (row, weights, mask) in enumerate(zip(table.items_ST, table.weights_ST, table.mask_ST, strict=True)):
            kept = row[mask].tolist()
            assert row[: len(kept)].tolist() == kept  # padding comes last
            assert len(set(kept)) == len(kept)
            assert item not in kept
            assert (np.diff(weights[mask]) <= 0).all()
            assert weights.sum() == pytest.approx(1 if kept else 0, abs=1e-6)


def exact_ppr(graph: CoClickGraph, seed: int, alpha: float) -> np.ndarray:
    """alpha (I - (1 - alpha) P)^-1, row of the seed, without the seed, normalised."""
    size = graph.num_items
    row = alpha * np.linalg.inv(np.eye(size) - (1 - alpha) * transition_matrix(graph))[seed]
    row[seed] = 0
    return row / row.sum()


def test_ppr_agrees_with_the_closed_form_and_not_with_another_alpha():
    graph = graph_of(15, 80)
    table = ppr(graph, np.arange(14), alpha=0.2, top=15, num_hops=80)
    for seed in range(14):
        np.testing.assert_allclose(row_of(table, seed, 15), exact_ppr(graph, seed, 0.2), atol=1e-6)
    assert np.abs(row_of(table, 0, 15) - exact_ppr(graph, 0, 0.25)).max() > 1e-3


def test_two_hops_of_ppr_are_the_first_two_terms():
    p_II = transition_matrix(star())
    expected = 0.2 * (0.8 * p_II[3] + 0.8**2 * (p_II @ p_II)[3])
    expected[3] = 0
    np.testing.assert_allclose(row_of(ppr(star(), np.array([3]), 0.2, 5), 0, 5), expected / expected.sum(), atol=1e-7)


def test_bad_settings_and_seeds_are_refused_in_words():
    with pytest.raises(ConfigError, match="num_walks"):
        visit_counts(star(), np.array([0]), 0, 2, generator_for(0), 3)
    with pytest.raises(ConfigError, match="alpha"):
        ppr(star(), np.array([0]), 1.0, 3)
    with pytest.raises(DataError, match=r"seeds 5 \.\. 5 in a graph of 5 items"):
        ppr(star(), np.array([5]), 0.2, 3)
