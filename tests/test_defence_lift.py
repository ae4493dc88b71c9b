"""The ceiling on lift: what lift is, how high judges set it, lists under it, and what a run serves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_attacks_simulated import config_of
from tiny_attacks import Town
from tiny_recommender import base_of, random_patch, tiny_run
from toy_task import PERSONAL, SPEC, toy_config, toy_task

from cli.attack_world import make_world
from client.attacks.evasion import Device
from client.attacks.poisoned_task import PoisonedTasks
from client.node import Node
from client.recommend import RecommendTask, make_task
from client.store import PersonalStore
from fedquilt.config import Config
from fedquilt.errors import SpecMismatchError
from fedquilt.wire import EvaluateOrder, Standing
from models.lift import excess, lifts
from server.lift import LiftCeiling

ITEMS = 100


def tensor(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# --- what lift is ---


def test_what_all_items_of_a_user_gain_alike_is_no_lift():
    base_UI = tensor([3, 1, 2], [0, 5, 9])
    assert not lifts(base_UI + tensor([4], [-7]), base_UI).any()


def test_lift_is_what_an_item_gains_beyond_the_users_median_item():
    # Hand: the first user's items gain 1, 2, 5, median 2; the second's 0, 0, 8, median 0.
    base_UI = tensor([3, 1, 2], [0, 5, 9])
    assert lifts(base_UI + tensor([1, 2, 5], [0, 0, 8]), base_UI).tolist() == [[-1, 0, 3], [0, 0, 8]]


def test_lift_above_the_ceiling_is_taken_off_and_lift_below_stays():
    # Hand: lifts -1, 0, 3 under ceilings 0, 1, 1: only the last is above, by 2.
    base_UI = tensor([3, 1, 2])
    patched_UI = base_UI + tensor([1, 2, 5])
    assert excess(patched_UI, base_UI, torch.tensor([0, 1, 1])).tolist() == [[0, 0, 2]]


def test_a_ceiling_may_be_below_zero():
    base_UI = tensor([3, 1, 2])
    assert excess(base_UI, base_UI, torch.tensor([-1.5, 0, 0])).tolist() == [[1.5, 0, 0]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 8))
def test_nothing_is_above_the_ceiling_once_its_excess_is_off_and_nothing_else_changes(seed, users, items):
    rng = np.random.default_rng(seed)
    base_UI, added_UI = (torch.from_numpy(rng.normal(size=(users, items))) for _ in range(2))
    ceiling_I = torch.from_numpy(rng.normal(size=items))
    off_UI = excess(base_UI + added_UI, base_UI, ceiling_I)
    centre_U1 = added_UI.median(dim=1, keepdim=True).values
    left_UI = added_UI - off_UI - centre_U1
    assert (left_UI <= ceiling_I + 1e-12).all()
    assert (off_UI >= 0).all()
    assert not off_UI[added_UI - centre_U1 < ceiling_I - 1e-12].any()


# --- how high it is ---


def ceiling_of(added_JI: np.ndarray, quantile: float) -> tuple[np.ndarray, dict[str, float]]:
    """Of judges who score differently without the patch, and gain this with it."""
    base_JI = np.random.default_rng(0).integers(-9, 9, added_JI.shape).astype(np.float32)
    return LiftCeiling(lambda patch_P: base_JI + added_JI, base_JI, quantile).over(np.zeros(1))


def test_the_ceiling_of_an_item_is_the_quantile_of_its_lift_over_judges():
    # Hand: five judges with median gain 0; item 0 has lifts 0, 1, 2, 3, 4, of which 3 is the three-quarter quantile.
    added_JI = np.array([[4, 0, -1], [1, 0, -1], [3, 0, -1], [0, 0, -1], [2, 0, -1]], np.float32)
    ceiling_I, told = ceiling_of(added_JI, 0.75)
    assert ceiling_I.tolist() == [3, 0, -1]
    assert ceiling_I.dtype == np.float32
    assert told == {"median": 0, "most": 3}


def test_what_a_judge_gains_for_all_items_raises_no_ceiling():
    added_JI = np.array([[7, 7, 7], [0, 0, 0]], np.float32)
    assert ceiling_of(added_JI, 0.9)[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("judges", "seen"), [(1, False), (4, True)])
def test_a_target_is_held_down_while_fewer_judges_than_the_rest_get_it(judges, seen):
    added_JI = np.zeros((40, 3), np.float32)
    added_JI[:judges, 0] = 9
    assert (ceiling_of(added_JI, 0.95)[0][0] > 0) == seen


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_patch_with_a_score_that_is_not_finite_lifts_nothing(broken):
    added_JI = np.full((4, 3), [5, 0, 0], np.float32)
    added_JI[1, 2] = broken
    ceiling_I, told = ceiling_of(added_JI, 0.5)
    assert ceiling_I.tolist() == [0, 0, 0]
    assert told == {"median": 0, "most": 0}


# --- lists under it ---


@pytest.fixture(scope="module")
def task() -> RecommendTask:
    return installed(tiny_run(patch={"parts": ("bottleneck", "item-bias", "item-low-rank"), "item_rank": 2}))


def installed(config: Config) -> RecommendTask:
    made = make_task(config, 0, 1)
    made.install(base_of(config))
    return made


def asked(task: RecommendTask) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Twelve users, a patch, and patches of their own."""
    ids_K = task.client_ids_U[:12]
    personal_KR = 0.1 * np.random.default_rng(1).standard_normal((12, task.personal_size)).astype(np.float32)
    return ids_K, random_patch(task.spec), personal_KR


def scores_of(task: RecommendTask) -> dict[str, np.ndarray]:
    return {variant: scores_KI.numpy().copy() for variant, scores_KI in task.scores(*asked(task))}


def ceiling(value: float) -> np.ndarray:
    return np.full(ITEMS, value, np.float32)


def test_a_list_is_made_without_the_lift_that_is_above(task):
    plain, bounded = scores_of(task), scores_of(task.under(ceiling(0.2)))
    off_KI = excess(*(torch.from_numpy(plain[name]) for name in ("global", "base")), torch.tensor(0.2)).numpy()
    assert (off_KI > 0.1).any()
    np.testing.assert_allclose(bounded["global"], plain["global"] - off_KI, atol=1e-5)


def test_every_item_has_its_own_ceiling(task):
    ceiling_I = ceiling(1e9)
    ceiling_I[7] = -5
    changed_KI = scores_of(task.under(ceiling_I))["global"] != scores_of(task)["global"]
    assert np.flatnonzero(changed_KI.any(axis=0)).tolist() == [7]


def test_what_a_users_own_steps_add_is_not_taken_off(task):
    """Own and shared scores lose the same: what the shared patch has too much."""
    plain, bounded = scores_of(task), scores_of(task.under(ceiling(0)))
    own_KI = plain["personal"] - plain["global"]
    assert np.abs(own_KI).max() > 0.1
    np.testing.assert_allclose(bounded["personal"] - bounded["global"], own_KI, atol=1e-5)


def test_the_cloud_model_alone_has_no_lift(task):
    plain, bounded = scores_of(task), scores_of(task.under(ceiling(0)))
    for variant in ("stale", "base"):
        assert plain[variant].tobytes() == bounded[variant].tobytes()


def test_under_a_huge_ceiling_scores_keep_their_bits(task):
    ids_K, patch_P, personal_KR = asked(task)
    plain, bounded = scores_of(task), task.under(ceiling(1e9))
    for variant, scores_KI in scores_of(bounded).items():
        assert scores_KI.tobytes() == plain[variant].tobytes()
    assert bounded.shared_scores(ids_K, patch_P).numpy().tobytes() == plain["global"].tobytes()
    assert bounded.personal_scores(ids_K, patch_P, personal_KR).numpy().tobytes() == plain["personal"].tobytes()


def test_without_a_ceiling_scores_keep_the_bits_of_the_kernel(task):
    ids_K, patch_P, personal_KR = asked(task)
    cohort, plain = task._device.data.serving_cohort(ids_K), scores_of(task)
    assert plain["global"].tobytes() == task._shared_scores(cohort, patch_P).numpy().tobytes()
    assert plain["personal"].tobytes() == task._own_scores(cohort, patch_P, personal_KR).numpy().tobytes()


def test_what_is_evaluated_and_what_is_recommended_is_under_one_ceiling(task):
    ids_K, patch_P, personal_KR = asked(task)
    bounded = task.under(ceiling(0.2))
    evaluated = scores_of(bounded)
    np.testing.assert_array_equal(bounded.shared_scores(ids_K, patch_P).numpy(), evaluated["global"])
    np.testing.assert_array_equal(bounded.personal_scores(ids_K, patch_P, personal_KR).numpy(), evaluated["personal"])


def test_a_task_itself_stays_without_a_ceiling(task):
    before = scores_of(task)
    task.under(ceiling(0))
    np.testing.assert_array_equal(scores_of(task)["global"], before["global"])


BROKEN = {
    "of another length": np.zeros(ITEMS - 1, np.float32),
    "of another shape": np.zeros((1, ITEMS), np.float32),
    "with NaN": np.where(np.arange(ITEMS) == 3, np.nan, 0).astype(np.float32),
    "without end": ceiling(np.inf),
}


@pytest.mark.parametrize("broken_I", BROKEN.values(), ids=BROKEN)
def test_no_list_is_made_under_a_ceiling_that_does_not_fit(task, broken_I):
    with pytest.raises(SpecMismatchError, match="100 finite numbers"):
        task.under(broken_I)


# --- nodes and attackers ---


def node_of(task, folder, config: Config) -> Node:
    return Node(task, PersonalStore(folder, 0, task.spec.hash, task.personal_size), config, ledger=None)


def order_of(task, patch_P: np.ndarray, ceiling_I: np.ndarray | None) -> EvaluateOrder:
    return EvaluateOrder(Standing(task.spec.hash, "", ""), 0, "test", patch_P, task.client_ids_U[:12], ceiling_I)


def test_a_node_ranks_under_the_ceiling_of_its_order_and_of_no_other(task, tmp_path):
    node, (ids_K, patch_P, _) = node_of(task, tmp_path, task.config), asked(task)
    nobody_KR = np.zeros((12, task.personal_size), np.float32)
    for given_I, expected in ((ceiling(0), task.under(ceiling(0))), (None, task)):
        told = node.evaluate(order_of(task, patch_P, given_I)).arrays
        np.testing.assert_array_equal(
            told["top_global"], expected.evaluate(ids_K, patch_P, nobody_KR, "test")["top_global"]
        )
    tops = [node.evaluate(order_of(task, patch_P, given)).arrays["top_global"] for given in (ceiling(0), None)]
    assert not np.array_equal(*tops)


def test_a_task_that_ranks_no_items_refuses_a_ceiling_in_words(tmp_path):
    config = toy_config()
    toy = toy_task(config, 0, 3)
    toy.install({"centre": np.zeros(SPEC.num_parameters, np.float32)})
    node, patch_P = node_of(toy, tmp_path, config), np.zeros(SPEC.num_parameters, np.float32)
    assert toy.personal_size == PERSONAL
    assert len(node.evaluate(order_of(toy, patch_P, None)).arrays["loss"])
    with pytest.raises(SpecMismatchError, match="this node's task ranks no items under one"):
        node.evaluate(order_of(toy, patch_P, ceiling(0)))


def test_users_who_train_on_forged_clicks_are_judged_under_the_ceiling_and_go_on_forging():
    world = make_world(config_of("label-flip"))
    poisoned = PoisonedTasks(world.attack, world.plan)(world.config, 0, 1)
    poisoned.install(base_of(world.config))
    bounded, honest = poisoned.under(ceiling(0)), installed(world.config)
    nobody_KR = np.zeros((12, poisoned.personal_size), np.float32)
    given = world.malicious_M[:12], random_patch(poisoned.spec), nobody_KR

    def top_lists(task) -> np.ndarray:
        return task.evaluate(*given, "test")["top_global"]

    np.testing.assert_array_equal(top_lists(bounded), top_lists(honest.under(ceiling(0))))
    assert not np.array_equal(top_lists(bounded), top_lists(honest))
    assert not np.array_equal(bounded.train(*given, 1, 0).updates_KP, honest.train(*given, 1, 0).updates_KP)


def test_an_attacker_at_inference_meets_the_scores_that_the_user_gets():
    town = Town()
    graphs, _ = town.lab.present(town.honest_H[:6])
    ceiling_I = np.linspace(-0.2, 0.2, len(town.lab.weights.item_bias)).astype(np.float32)
    nothing_P = np.zeros_like(town.patch_P)
    with torch.no_grad():
        patched_XI, base_XI = (Device(town.lab, patch_P).scores(graphs) for patch_P in (town.patch_P, nothing_P))
        bounded_XI = Device(town.lab, town.patch_P, ceiling_I).scores(graphs)
    off_XI = excess(patched_XI, base_XI, torch.from_numpy(ceiling_I))
    assert (off_XI > 0.1).any()
    torch.testing.assert_close(bounded_XI, patched_XI - off_XI)
