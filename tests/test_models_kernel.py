"""The device's kernel: the formula, padding, users apart from each other, and a patch that is off."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from tiny_recommender import (
    ALL_PARTS,
    CLICKED,
    DIM,
    ITEMS,
    cohorts_of,
    log_of,
    random_log,
    random_patch,
    random_weights,
    scores_by_hand,
    spec_of,
)

from fedquilt.types import Cohort
from models.kernel import Graphs, KernelWeights, all_scores, initial_kernel, scores_of, user_vectors
from models.patches import initial_patch

WEIGHTS = random_weights()


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    """Eight users with 0 to 15 clicks, four moments each."""
    return cohorts_of(random_log(3)).training_cohort(np.arange(8), 1, 0)


def scores(cohort: Cohort, patch=None, weights: KernelWeights = WEIGHTS) -> torch.Tensor:
    return all_scores(weights, user_vectors(weights, Graphs.of(cohort), patch), patch)


def rows_of(spec, *patches_P: np.ndarray) -> dict[str, torch.Tensor]:
    return spec.views(torch.from_numpy(np.stack(patches_P)))


# --- the formula ---


@pytest.mark.parametrize("parts", [(), *((part,) for part in ALL_PARTS), ALL_PARTS], ids=" ".join)
def test_scores_are_those_of_the_formula_taken_one_user_and_one_subgraph_at_a_time(cohort, parts):
    spec = spec_of(parts)
    patch = rows_of(spec, *(random_patch(spec, seed) for seed in range(8)))
    found = scores(cohort, patch)
    for user in range(8):
        own = {name: tensor[user] for name, tensor in patch.items()}
        for graph in range(4):
            expected = scores_by_hand(WEIGHTS, cohort, user, graph, own)
            np.testing.assert_allclose(found[user, graph], expected, atol=2e-5)


def one_user(nodes: list[int], recency: list[int], edges: list[list[float]]) -> Cohort:
    mask = np.ones((1, 1, len(nodes)), bool)
    return Cohort(
        client_ids_U=np.zeros(1, np.int64),
        nodes_UGN=np.array([[nodes]], np.int32),
        node_mask_UGN=mask,
        recency_UGN=np.array([[recency]], np.int16),
        edges_UGNN=np.array([[edges]], np.float32),
        targets_UGT=np.full((1, 1, 1), -1, np.int32),
        num_support=0,
        seen=(np.zeros(0, np.int64), np.zeros(0, np.int64)),
    )


def test_pools_over_two_clicks_and_a_neighbour_by_hand():
    # One-dimensional items 1, 2, 4; no convolution; logits 0 and ln 3 make weights 1/4 and 3/4; the neighbour is 4.
    weights = KernelWeights(
        item_vectors=torch.tensor([[1.0], [2.0], [4.0]]),
        item_bias=torch.tensor([0.0, 0.0, 10.0]),
        convolution=torch.zeros(2, 1, 1),
        pool_logits=torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [math.log(3), 0.0]]),
        mix=torch.tensor([[1.0], [100.0], [10_000.0], [1_000_000.0]]),
    )
    cohort = one_user([0, 1, 2], [0, 1, -1], np.zeros((3, 3)).tolist())
    # pools: (1 + 2) / 2, 1/4 + 3/4 · 2, 3/4 + 1/4 · 2, and the neighbour's 4
    expected = 1.5 + 100 * 1.75 + 10_000 * 1.25 + 1_000_000 * 4
    vector = user_vectors(weights, Graphs.of(cohort))
    assert vector.item() == pytest.approx(expected)
    assert all_scores(weights, vector)[0, 0].tolist() == pytest.approx([expected, 2 * expected, 4 * expected + 10])


def test_one_convolution_by_hand():
    # Nodes 1 and 2 joined by an edge of any weight: each gets tanh(W · the other). Then the plain average of both.
    weights = KernelWeights(
        item_vectors=torch.tensor([[1.0], [2.0]]),
        item_bias=torch.zeros(2),
        convolution=torch.tensor([[[0.5]], [[0.0]]]),
        pool_logits=torch.zeros(1, 2),
        mix=torch.tensor([[1.0], [0.0]]),
    )
    cohort = one_user([0, 1], [0, 1], [[0, 0.3], [0.3, 0]])
    expected = ((1 + np.tanh(0.5 * 2)) + (2 + np.tanh(0.5 * 1))) / 2
    assert user_vectors(weights, Graphs.of(cohort)).item() == pytest.approx(expected)


def test_an_untrained_kernel_averages_recency_pools():
    weights = dataclasses.replace(WEIGHTS, **initial_kernel(DIM, CLICKED))
    cohort = cohorts_of(log_of([[4, 9]])).serving_cohort(np.array([0]))
    latest, before = WEIGHTS.item_vectors[9], WEIGHTS.item_vectors[4]
    # weights of the latest click in pools that fall to 1/e after inf, 10 and 2 clicks
    share = np.mean([1 / (1 + np.exp(-1 / scale)) for scale in (np.inf, 10, 2)])
    vector = user_vectors(weights, Graphs.of(cohort)[-1:])[0, 0]
    np.testing.assert_allclose(vector, share * latest + (1 - share) * before, atol=1e-6)


# --- what must not matter, and what must ---


def test_what_stands_in_padding_does_not_matter_to_the_bit(cohort):
    padding = ~cohort.node_mask_UGN
    assert padding.any()
    other = dataclasses.replace(cohort, nodes_UGN=np.where(padding, 17, cohort.nodes_UGN))
    spec = spec_of()
    patch = rows_of(spec, *(random_patch(spec, seed) for seed in range(8)))
    assert scores(other).equal(scores(cohort))
    assert scores(other, patch).equal(scores(cohort, patch))


def test_more_padding_changes_nothing(cohort):
    def padded(array: np.ndarray, axes: int, value: int = 0) -> np.ndarray:
        return np.pad(array, [(0, 0), (0, 0)] + [(0, 5)] * axes, constant_values=value)

    wider = dataclasses.replace(
        cohort,
        nodes_UGN=padded(cohort.nodes_UGN, 1),
        node_mask_UGN=padded(cohort.node_mask_UGN, 1),
        recency_UGN=padded(cohort.recency_UGN, 1, -1),
        edges_UGNN=padded(cohort.edges_UGNN, 2),
    )
    np.testing.assert_allclose(scores(wider), scores(cohort), atol=1e-5)


def test_the_order_of_nodes_does_not_matter(cohort):
    order = np.random.default_rng(0).permutation(cohort.nodes_UGN.shape[2])
    shuffled = dataclasses.replace(
        cohort,
        nodes_UGN=cohort.nodes_UGN[:, :, order].copy(),
        node_mask_UGN=cohort.node_mask_UGN[:, :, order].copy(),
        recency_UGN=cohort.recency_UGN[:, :, order].copy(),
        edges_UGNN=cohort.edges_UGNN[:, :, order][:, :, :, order].copy(),
    )
    np.testing.assert_allclose(scores(shuffled), scores(cohort), atol=1e-5)


def test_a_users_scores_do_not_depend_on_the_other_users():
    cohorts, spec = cohorts_of(random_log(3)), spec_of()
    patches = [random_patch(spec, seed) for seed in range(8)]
    together = scores(cohorts.serving_cohort(np.arange(8)), rows_of(spec, *patches))
    for user in range(8):
        alone = scores(cohorts.serving_cohort(np.array([user])), rows_of(spec, patches[user]))
        np.testing.assert_allclose(alone[0], together[user], atol=1e-5)


def test_a_user_without_clicks_gets_the_item_bias():
    cohort = cohorts_of(log_of([[]])).serving_cohort(np.array([0]))
    assert scores(cohort)[0, -1].equal(WEIGHTS.item_bias)


def test_neighbours_and_their_edges_and_recency_each_matter(cohort):
    neighbour = cohort.node_mask_UGN & (cohort.recency_UGN < 0)
    several_clicks = (cohort.recency_UGN >= 1).any(2, keepdims=True)
    user, graph, node = np.argwhere(neighbour & several_clicks)[0]
    changed = cohort.nodes_UGN.copy()
    changed[user, graph, node] = (changed[user, graph, node] + 1) % ITEMS
    other_node = dataclasses.replace(cohort, nodes_UGN=changed)
    no_edges = dataclasses.replace(cohort, edges_UGNN=np.zeros_like(cohort.edges_UGNN))
    older = dataclasses.replace(
        cohort, recency_UGN=np.where(cohort.recency_UGN >= 0, CLICKED - 1 - cohort.recency_UGN, -1)
    )
    for other in (other_node, no_edges, older):
        assert not scores(other)[user, graph].allclose(scores(cohort)[user, graph], atol=1e-4)


@pytest.mark.parametrize("part", ALL_PARTS)
def test_every_part_of_a_patch_moves_the_scores(cohort, part):
    spec = spec_of((part,))
    patch = rows_of(spec, *(random_patch(spec, seed) for seed in range(8)))
    active = cohort.node_mask_UGN[:, -1].any(1)
    moved = (scores(cohort, patch) - scores(cohort))[:, -1].abs().amax(1)
    assert (moved[active] > 1e-3).all()


# --- the flag ---


@pytest.mark.parametrize("parts", [*((part,) for part in ALL_PARTS), ALL_PARTS], ids=" ".join)
def test_a_fresh_patch_leaves_every_score_as_it_is_to_the_bit(cohort, parts):
    spec = spec_of(parts)
    fresh_P = initial_patch(spec, torch.Generator().manual_seed(5))
    patch = {name: view.expand(8, *view.shape) for name, view in spec.views(fresh_P).items()}
    assert scores(cohort, patch).equal(scores(cohort, None))


def test_an_empty_patch_is_no_patch(cohort):
    assert scores(cohort, {}).equal(scores(cohort, None))


# --- scoring some items ---


@pytest.mark.parametrize("parts", [(), ("item-bias",), ("item-low-rank",), ALL_PARTS], ids=" ".join)
def test_scores_of_some_items_are_the_full_scores_gathered(cohort, parts):
    spec = spec_of(parts)
    patch = rows_of(spec, *(random_patch(spec, seed) for seed in range(8)))
    users = user_vectors(WEIGHTS, Graphs.of(cohort), patch)
    items = torch.from_numpy(np.random.default_rng(1).integers(0, ITEMS, (8, 4, 7)))
    expected = all_scores(WEIGHTS, users, patch).gather(2, items)
    np.testing.assert_allclose(scores_of(WEIGHTS, users, items, patch), expected, atol=1e-5)


def test_graphs_are_sliced_along_moments(cohort):
    graphs = Graphs.of(cohort)
    whole = user_vectors(WEIGHTS, graphs)
    np.testing.assert_allclose(user_vectors(WEIGHTS, graphs[1:3]), whole[:, 1:3], atol=1e-6)


def test_weights_go_through_arrays_unchanged():
    again = KernelWeights.of(WEIGHTS.arrays())
    assert all(getattr(again, name).equal(getattr(WEIGHTS, name)) for name in WEIGHTS.arrays())
    assert WEIGHTS.num_kernel_parameters == 2 * DIM**2 + 3 * CLICKED + 4 * DIM**2
