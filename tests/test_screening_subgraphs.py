"""Screening of local subgraphs: what goes, what stays, and that a screen which is off changes no bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_recommender import (
    CLICKED,
    GRAPH,
    ITEMS,
    log_of,
    meta_config,
    random_table,
    random_weights,
    spec_of,
    tiny_run,
)

from client.attacks.contract import make_attack
from client.attacks.evasion import Device, Prey
from client.attacks.laboratory import Laboratory
from fedquilt.config import Config, parse
from fedquilt.device_defences import ScreeningConfig
from fedquilt.errors import ConfigError, DataError
from fedquilt.graphs.cohorts import CohortBuilder
from fedquilt.graphs.screening import (
    Screen,
    local_graphs,
    screened_clicks,
    similar_pairs,
    strongest_edges,
    unit_vectors,
)
from models.kernel import initial_kernel
from server.robustness import success_by_budget

# Items 0 to 3 lie along one axis, 4 to 7 along another.
TWO_CORNERS = unit_vectors(np.repeat(np.eye(2, dtype=np.float32), 4, axis=0))


def base_of(seed: int = 0) -> dict[str, np.ndarray]:
    items, weights = random_table(7)
    return {"neighbour_items": items, "neighbour_weights": weights, **random_weights(seed).arrays()}


def contexts(seed: int, users: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made = np.stack([rng.permutation(ITEMS)[:CLICKED] for _ in range(users)]).astype(np.int32)
    made[np.arange(CLICKED) >= rng.integers(1, CLICKED + 1, users)[:, None]] = -1
    return made


# --- clicks ---


def test_a_click_that_nothing_resembles_goes_and_the_others_close_up():
    screened = screened_clicks(np.array([[7, 0, 1, 2, -1]]), TWO_CORNERS, 0.5, 0.3)
    assert screened.tolist() == [[0, 1, 2, -1, -1]]


def test_a_second_interest_of_enough_clicks_stays():
    assert screened_clicks(np.array([[0, 4, 1, 5, 2]]), TWO_CORNERS, 0.5, 0.25).tolist() == [[0, 4, 1, 5, 2]]


@pytest.mark.parametrize("context", [[3, -1, -1], [0, 4, -1], [-1, -1, -1]])
def test_a_user_of_whom_nothing_would_be_left_keeps_everything(context):
    assert screened_clicks(np.array([context]), TWO_CORNERS, 0.5, 0.9).tolist() == [context]


@given(st.integers(0, 10**6), st.floats(-1, 1), st.floats(0.01, 1))
def test_what_stays_is_in_order_and_was_there(seed, similarity, support):
    unit_IF = unit_vectors(random_weights(seed).item_vectors.numpy())
    before, after = contexts(seed), screened_clicks(contexts(seed), unit_IF, similarity, support)
    for old, new in zip(before, after, strict=True):
        left = [item for item in old if item in new]
        assert new[new >= 0].tolist() == [item for item in left if item >= 0]
        assert (new[len(new[new >= 0]) :] == -1).all()
        assert (new >= 0).any() == (old >= 0).any()


@given(st.integers(1, 3))
def test_fake_clicks_cannot_vouch_for_one_another_below_the_bound_of_the_docstring(fakes):
    support, honest = 0.5, [0, 1, 2, 3]
    screened = screened_clicks(np.array([[4, 5, 6][:fakes] + honest]), TWO_CORNERS, 0.5, support)
    too_few = fakes - 1 < support * (fakes + len(honest) - 1)
    assert bool(set(screened[0].tolist()) & {4, 5, 6}) != too_few


# --- edges ---


def test_edges_between_unlike_items_go():
    allowed = similar_pairs(np.array([[0, 1, 4]]), TWO_CORNERS, 0.5)
    assert allowed[0].tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_an_item_without_a_vector_is_like_nothing():
    assert not similar_pairs(np.array([[0, 1]]), unit_vectors(np.array([[1.0, 0], [0, 0]])), 0.1)[0, 0, 1]


@given(st.integers(0, 10**6), st.integers(1, 5))
def test_no_node_keeps_more_edges_than_the_degree_and_edges_stay_symmetric(seed, degree):
    rng = np.random.default_rng(seed)
    weights = np.triu(rng.random((2, 7, 7)) * (rng.random((2, 7, 7)) < 0.7), 1)
    kept = strongest_edges(weights + weights.transpose(0, 2, 1), degree)
    assert kept.sum(axis=2).max() <= degree
    assert np.array_equal(kept, kept.transpose(0, 2, 1))


def test_the_heaviest_edge_of_all_always_stays():
    edges = np.zeros((1, 3, 3))
    edges[0, 0, 1] = edges[0, 1, 0] = 0.9
    edges[0, 0, 2] = edges[0, 2, 0] = 0.5
    assert strongest_edges(edges, 1)[0].tolist() == [[False, True, False], [True, False, False], [False] * 3]


# --- the whole screen ---


def test_a_screen_that_is_off_changes_no_bit():
    off = local_graphs(GRAPH, ScreeningConfig(), base_of())
    nothing = replace(off, screen=Screen(unit_vectors(base_of()["item_vectors"]), ScreeningConfig()))
    assert off.screen is None
    for made in (off(contexts(1)), nothing(contexts(1))):
        plain = off.builder(contexts(1))
        assert all(np.array_equal(getattr(made, name), getattr(plain, name)) for name in vars(plain))


def test_training_and_recommending_see_the_screened_subgraphs():
    from test_client_recommend import installed

    config = tiny_run()
    plain = installed(config)._device.data
    strict = config.model_copy(update={"screening": ScreeningConfig(similarity=0.0, degree=2)})
    screened = installed(strict)._device.data
    ids = np.flatnonzero(np.diff(plain.log.offsets) > 3)[:20]
    for cohort in (screened.training_cohort(ids, 1, 0), screened.serving_cohort(ids)):
        assert (cohort.edges_UGNN > 0).sum(axis=-1).max() <= 2
    assert (plain.serving_cohort(ids).edges_UGNN > 0).sum(axis=-1).max() > 2


def test_a_run_without_a_screen_hashes_as_before_there_was_one():
    assert Config().hash() == Config(screening=ScreeningConfig()).hash()
    assert Config().hash() != Config(screening=ScreeningConfig(degree=3)).hash()


def test_support_without_a_similarity_is_refused():
    with pytest.raises(ConfigError, match=r"set screening\.similarity above -1"):
        parse({"screening": {"support": 0.2}})


def test_item_vectors_must_be_finite():
    with pytest.raises(DataError, match="finite item vectors"):
        unit_vectors(np.array([[np.nan, 1.0]]))


# --- against evasion ---


def street(screening: ScreeningConfig) -> Device:
    """Two kinds of ten items each; every user clicks four of one kind; a kernel that averages what was clicked."""
    rng = np.random.default_rng(0)
    vectors_IF = np.repeat(np.eye(2, 6), 10, axis=0) + 0.15 * rng.standard_normal((ITEMS, 6))
    weights = replace(
        random_weights(),
        item_vectors=torch.from_numpy(vectors_IF.astype(np.float32)),
        item_bias=torch.zeros(ITEMS),
        **{**initial_kernel(6, CLICKED), "convolution": 0.5 * random_weights().convolution},
    )
    log = log_of([(10 * (user % 2) + rng.permutation(10)[:4]).tolist() for user in range(24)])
    graphs = local_graphs(GRAPH, screening, {**base_of(), "item_vectors": vectors_IF})
    builder = CohortBuilder(log, graphs, GRAPH, meta_config())
    spec = spec_of(("item-bias",), weights)
    return Device(Laboratory(weights, spec, builder, log, np.arange(24)), np.zeros(spec.num_parameters, np.float32))


def gaps_under(screening: ScreeningConfig, attack: str, **options: Any) -> np.ndarray:
    """float [users, budget + 1]: the target is an item of the other kind."""
    device, found = street(screening), []
    for user in range(12):
        items = device.lab.log.items_of(user)
        context_L = np.append(items[::-1], [-1, -1]).astype(np.int32)
        prey = Prey(context_L, np.isin(np.arange(ITEMS), items), 10 * (1 - user % 2) + user // 2, k=3)
        found.append(make_attack(attack, {"budget": 2, **options}).gaps(device, prey, np.random.default_rng(user)))
    return np.stack(found)


STRICT = ScreeningConfig(similarity=0.5, support=0.5)


@pytest.mark.parametrize("search", ["greedy", "gradient"])
def test_fewer_users_see_the_target_of_fake_clicks_behind_a_screen(search):
    """The attacker knows the screen: greedy runs it, gradient tries only clicks that get past it."""
    plain, screened = (
        success_by_budget(gaps_under(screening, "evasion-clicks", search=search) > 0)
        for screening in (ScreeningConfig(), STRICT)
    )
    assert plain[0] == screened[0] == 0
    assert plain[2] >= 0.3
    assert screened[2] == 0


@pytest.mark.parametrize("search", ["greedy", "gradient"])
def test_inserted_edges_bring_the_target_less_near_behind_a_screen(search):
    plain, screened = (
        np.ptp(gaps_under(screening, "evasion-edges", search=search), axis=1).mean()
        for screening in (ScreeningConfig(), STRICT)
    )
    assert 0 < screened < 0.6 * plain
