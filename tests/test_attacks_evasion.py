"""Evasion at inference: fake clicks and edges in one user's subgraph, against a patch that stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_attacks import Town, least_wanted
from tiny_recommender import CLICKED, ITEMS

from client.attacks.contract import make_attack
from client.attacks.evasion import Device, Prey, gap, with_click
from client.attacks.evasion_clicks import first_order_gains
from client.attacks.evasion_edges import _inserted, _with_edges
from fedquilt.errors import ConfigError


@pytest.fixture(scope="module")
def town() -> Town:
    return least_wanted(Town())


@pytest.fixture(scope="module")
def device(town) -> Device:
    return Device(town.lab, town.patch_P)


def prey_of(town: Town, user: int, k: int = 3) -> Prey:
    items = town.log.items_of(user)
    seen_I = np.isin(np.arange(ITEMS), items)
    context_L = np.full(CLICKED, -1, np.int32)
    context_L[: min(len(items), CLICKED)] = items[::-1][:CLICKED]
    return Prey(context_L, seen_I, int(town.targets_T[0]), k)


def preys(town: Town, count: int = 8) -> list[Prey]:
    open_users = [user for user in town.honest_H if town.targets_T[0] not in town.log.items_of(int(user))]
    return [prey_of(town, int(user)) for user in open_users[:count]]


def gaps_by(town: Town, device: Device, name: str, **options) -> np.ndarray:
    """[users, budget + 1]."""
    attack = make_attack(name, {"budget": 3, **options})
    return np.stack([attack.gaps(device, prey, np.random.default_rng(1)) for prey in preys(town)])


def test_a_fake_click_is_the_latest_and_pushes_the_oldest_out():
    assert with_click(np.array([3, 2, 1]), np.array([7, 8])).tolist() == [[7, 3, 2], [8, 3, 2]]


def test_the_gap_is_to_the_kth_best_of_what_is_neither_clicked_nor_faked():
    # Hand: target 0 scores 1; of the others 1 is seen and 2 is faked, so {3: 4, 4: 2} compete: second best is 2.
    prey = Prey(np.array([2]), np.array([False, True, False, False, False]), 0, k=2)
    assert gap(torch.tensor([[1.0, 9, 8, 4, 2]]), prey, np.array([[2]])).tolist() == [-1.0]


def test_scores_of_a_context_are_those_of_the_users_own_subgraph(town, device):
    user = int(town.honest_H[0])
    prey = prey_of(town, user)
    graphs, _ = town.lab.present(np.array([user]))
    with torch.no_grad():
        ours = device.scores(device.graphs(prey.context_L[None])[0])
        expected = town.lab.scores(graphs, device.patch)
    assert torch.allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("search", ["greedy", "gradient"])
def test_fake_clicks_that_are_searched_for_bring_the_target_nearer(town, device, search):
    searched = gaps_by(town, device, "evasion-clicks", search=search)
    blind = gaps_by(town, device, "evasion-clicks", search="random")
    assert (np.diff(searched, axis=1) >= 0).all()
    assert (searched[:, -1] > searched[:, 0]).mean() > 0.5
    assert searched[:, -1].mean() > blind[:, -1].mean()


def test_greedy_over_all_items_takes_the_best_first_click(town, device):
    prey = preys(town, 1)[0]
    found = make_attack("evasion-clicks", {"budget": 1, "candidates": ITEMS}).gaps(
        device, prey, np.random.default_rng(0)
    )
    free = [i for i in range(ITEMS) if i not in prey.context_L and i != prey.target]
    tried = [float(device.gaps(with_click(prey.context_L, np.array([i])), prey)[0]) for i in free]
    assert found[1] == pytest.approx(max(*tried, found[0]), abs=1e-6)


def test_popular_clicks_are_the_most_popular_that_are_free(town, device):
    prey = preys(town, 1)[0]
    attack = make_attack("evasion-clicks", {"search": "popular", "budget": 1})
    tried = attack._tried(device, prey, prey.context_L, np.random.default_rng(0))
    free = [i for i in range(ITEMS) if i not in prey.context_L and i != prey.target]
    assert town.log.popularity_I[tried[0]] == max(town.log.popularity_I[free])


def test_first_order_gains_agree_with_a_small_move_of_the_clicked_items_vector(town, device):
    prey = preys(town, 1)[0]
    start = next(i for i in range(ITEMS) if i not in prey.context_L and i != prey.target)
    gains_I = first_order_gains(device, prey, prey.context_L, start)
    contexts = with_click(prey.context_L, np.array([start]))
    vectors_IF = town.lab.weights.item_vectors
    other, step = (start + 5) % ITEMS, 1e-2

    def moved(amount: float) -> float:
        inputs_IF = vectors_IF.clone()
        inputs_IF[start] += amount * (vectors_IF[other] - vectors_IF[start])
        with torch.no_grad():
            return float(gap(device.scores(device.graphs(contexts)[0], inputs_IF), prey, contexts)[0])

    assert gains_I[other] == pytest.approx((moved(step) - moved(-step)) / (2 * step), rel=0.05, abs=1e-3)


@pytest.mark.parametrize("search", ["greedy", "gradient"])
def test_inserted_edges_never_hurt_the_attacker_and_help_somewhere(town, device, search):
    found = gaps_by(town, device, "evasion-edges", search=search)
    assert (np.diff(found, axis=1) >= 0).all()
    assert (found[:, -1] > found[:, 0] + 1e-4).any()


def test_an_edge_is_inserted_both_ways_and_rows_are_normalised_again(device, town):
    graphs, edges = device.graphs(preys(town, 1)[0].context_L[None])
    more = _inserted(edges[0], 0, 3, 1.0)
    assert more[0, 3] == more[3, 0] == 1
    adjacency = _with_edges(graphs, more[None]).adjacency
    assert adjacency[0].sum(-1)[:2].tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_searches_have_names():
    with pytest.raises(ConfigError, match="search must be greedy or gradient, got 'psychic'"):
        make_attack("evasion-edges", {"search": "psychic"})
