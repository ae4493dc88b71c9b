"""The ceiling on lift: what lift is, how high judges set it, lists under it, and what a run serves."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_attacks_simulated import config_of
from tiny_attacks import Town
from tiny_recommender import base_of, random_patch, tiny_run
from toy_task import PERSONAL, SPEC, toy_config, toy_task

from cli.attack_world import make_world, run_attack
from client.app import app
from client.attacks.evasion import Device
from client.attacks.poisoned_task import PoisonedTasks
from client.node import Node
from client.rank import rank
from client.recommend import RecommendTask, make_task
from client.store import PersonalStore
from fedquilt.config import Config, parse
from fedquilt.errors import ConfigError, DrainedError, SpecMismatchError
from fedquilt.offers import read_offer
from fedquilt.runs import RunFolder
from fedquilt.wire import EvaluateOrder, Standing
from models.lift import excess, lifts
from server.checkpoint import load_latest
from server.in_process import InProcessGrid
from server.lift import LiftCeiling
from server.loop import run_federation
from server.recommend import Recommender
from server.simulate import finish, hooks, prepare, simulate
from server.task import Hooks

ROUNDS = {"federation": {"rounds": 3, "evaluate_every": 0}, "cloud": {"epochs": 1}}
ITEMS = 100


def with_defence(config: Config, **defence) -> Config:
    return parse({**config.model_dump(), "defence": defence})


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


# --- in a run ---


def federated(config: Config, folder, told: Hooks | None = None, resume: bool = False) -> SimpleNamespace:
    """A run of the loop, with all that its hook was given to serve."""
    run = RunFolder.open(folder) if resume else RunFolder.create(folder, config)
    served: list[tuple[int, np.ndarray, np.ndarray | None]] = []
    deployment = prepare(config, run)
    recommender = Recommender(config, deployment.spec, deployment.base)

    def on_patch(round_: int, patch_P: np.ndarray, ceiling_I: np.ndarray | None) -> None:
        served.append((round_, patch_P, ceiling_I))
        recommender.take(round_, patch_P, ceiling_I)

    made = SimpleNamespace(run=run, served=served, deployment=deployment, recommender=recommender, result=None)
    given = replace(told or hooks(config, run), on_patch=on_patch)
    try:
        made.result = run_federation(InProcessGrid(app, 3), config, deployment, run, given)
        finish(config, run, made.result)
    except DrainedError:
        pass
    made.trained_P = load_latest(run.checkpoints)[0].patch_P
    return made


@pytest.fixture(scope="module")
def lifted(tmp_path_factory):
    """Three rounds under both ceilings, each so low that it acts."""
    config = with_defence(tiny_run(**ROUNDS), exposure_share=0.0, lift_quantile=0.5)
    return federated(config, tmp_path_factory.mktemp("lifted"))


def test_what_is_served_begins_with_the_first_patch_and_follows_every_round(lifted):
    assert [round_ for round_, _, _ in lifted.served] == [0, 1, 2, 3]


def test_the_gateway_serves_the_lowered_patch(lifted):
    _, patch_P, _ = lifted.served[-1]
    assert not np.array_equal(patch_P, lifted.trained_P)
    np.testing.assert_array_equal(patch_P, lifted.deployment.ceiling.lowered(lifted.trained_P)[0])


def test_the_gateway_serves_the_ceiling_of_the_patch_that_it_serves(lifted):
    _, patch_P, ceiling_I = lifted.served[-1]
    np.testing.assert_array_equal(ceiling_I, lifted.deployment.lift.over(patch_P)[0])
    assert ceiling_I.shape == (ITEMS,)
    assert not np.array_equal(ceiling_I, lifted.served[-2][2])


def test_a_run_ends_with_what_it_serves(lifted):
    _, patch_P, ceiling_I = lifted.served[-1]
    stored = lifted.run.read_arrays("patch.npz")
    for found in (vars(lifted.result), stored):
        np.testing.assert_array_equal(found["patch_P"], patch_P)
        np.testing.assert_array_equal(found["ceiling_I"], ceiling_I)


def test_evaluations_rank_what_is_served(lifted):
    config, evaluation = lifted.run.config, lifted.result.test
    plain = make_task(config, 0, 1)
    plain.install(lifted.deployment.base)
    bounded, ids_U = plain.under(lifted.result.ceiling_I), evaluation.client_ids_U
    nobody_UR = np.zeros((len(ids_U), plain.personal_size), np.float32)
    found, without = (
        one.evaluate(ids_U, lifted.result.patch_P, nobody_UR, "test")["top_global"] for one in (bounded, plain)
    )
    np.testing.assert_array_equal(evaluation.arrays["top_global"], found)
    assert not np.array_equal(evaluation.arrays["top_global"], without)


def test_a_device_is_offered_what_evaluations_judge(lifted):
    offer = read_offer(lifted.recommender.answer([], 0))
    np.testing.assert_array_equal(offer.patch_p, lifted.result.patch_P)
    np.testing.assert_array_equal(offer.ceiling_S, lifted.result.ceiling_I)
    assert len(rank(offer, np.array([3, 1, 4]), 5).items_K) == 5


def test_an_evaluation_tells_how_high_the_ceiling_is(lifted):
    records = lifted.run.records("evaluation")
    assert [record["lift"] for record in records] == [lifted.deployment.lift.over(lifted.result.patch_P)[1]] * 2
    assert all(record["exposure"]["items"] for record in records)


def test_training_goes_on_from_the_patch_as_it_was(lifted, tmp_path):
    plain = tiny_run(**ROUNDS)
    run = RunFolder.create(tmp_path, plain)
    simulate(plain, run, app)
    np.testing.assert_array_equal(load_latest(run.checkpoints)[0].patch_P, lifted.trained_P)


@pytest.mark.parametrize(("defence", "lowers", "bounds"), [
    ({"exposure_share": 0.0}, True, False), ({"lift_quantile": 0.5}, False, True), ({}, False, False)
])  # fmt: skip
def test_each_ceiling_stands_alone(tmp_path, defence, lowers, bounds):
    made = federated(with_defence(tiny_run(**ROUNDS), **defence), tmp_path)
    _, patch_P, ceiling_I = made.served[-1]
    assert np.array_equal(patch_P, made.trained_P) == (not lowers)
    assert (ceiling_I is not None) == bounds
    assert ("ceiling_I" in made.run.read_arrays("patch.npz")) == bounds


def test_a_run_that_is_stopped_and_goes_on_serves_the_same(lifted, tmp_path):
    config = lifted.run.config
    stops = iter([False, False, True])
    stopped = federated(config, tmp_path, Hooks(draining=lambda: next(stops)))
    assert stopped.result is None
    resumed = federated(config, stopped.run.path, resume=True)
    assert [round_ for round_, _, _ in resumed.served] == [2, 3]
    for ours, theirs in zip(resumed.served, lifted.served[2:], strict=True):
        np.testing.assert_array_equal(ours[1], theirs[1])
        np.testing.assert_array_equal(ours[2], theirs[2])
    files = [(run.path / "results.json").read_bytes() for run in (resumed.run, lifted.run)]
    assert files[0] == files[1]


def test_a_cloud_without_clicks_is_refused(tmp_path):
    config = with_defence(tiny_run(**ROUNDS, split={"cloud_share": 0}), lift_quantile=0.95)
    with pytest.raises(ConfigError, match=r"lift_quantile = 0\.95 needs root data"):
        prepare(config, RunFolder.create(tmp_path, config))


@pytest.mark.parametrize("quantile", [-0.1, 1.0])
def test_a_quantile_is_a_share_below_one(quantile):
    with pytest.raises(ConfigError, match="lift_quantile"):
        parse({"defence": {"lift_quantile": quantile}})


# Of the last version that had no such option.
BEFORE = [
    ({}, "4821f2752517eda3"),
    ({"exposure_share": 0.02}, "7331131e0b9095b7"),
    ({"suspicion": True}, "3d786d7a7cbc85fa"),
]


@pytest.mark.parametrize(("defence", "before"), BEFORE)
def test_a_run_without_the_option_keeps_the_hash_that_it_had_before_there_was_one(defence, before):
    assert parse({"defence": defence}).hash() == before
    assert parse({"defence": {**defence, "lift_quantile": 0.95}}).hash() != before


def test_runs_with_other_quantiles_are_other_runs():
    assert len({parse({"defence": {"lift_quantile": share}}).hash() for share in (0, 0.9, 0.95)}) == 3


# --- against a backdoor ---


@pytest.fixture(scope="module")
def backdoors(tmp_path_factory):
    """{quantile: row} of a backdoor that hides well (``stealth``), against the plain mean. Seed 1, one that opens."""
    folder, rows = tmp_path_factory.mktemp("backdoors"), {}
    config = config_of("backdoor", learning_rate=0.03, options={"stealth": 0.9}).model_dump()
    config["federation"] |= {"rounds": 16, "evaluate_every": 0}
    config["evaluation"] |= {"personal_steps": 1, "personal_learning_rate": 0.03}  # the defaults; tiny_run's are longer
    for quantile in (0.0, 0.95):
        made = parse({**config, "seed": 1, "defence": {"lift_quantile": quantile}})
        rows[quantile] = run_attack(made, folder, folder / "clouds")
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["global", "personal"])
def test_a_trigger_shows_its_target_to_many_and_under_the_ceiling_to_few(backdoors, variant):
    assert backdoors[0.0]["backdoor"][variant]["triggered"] > 0.8
    assert backdoors[0.95]["backdoor"][variant]["triggered"] < 0.2


@pytest.mark.slow
def test_the_ceiling_costs_honest_users_little(backdoors):
    open_, bounded = (backdoors[quantile]["test"]["global"]["NDCG@10"] for quantile in (0.0, 0.95))
    assert bounded > 0.9 * open_
