"""The ceiling on lift in whole runs: what is served, offered and evaluated, and what a backdoor gets."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from test_attacks_simulated import config_of
from tiny_recommender import tiny_run

from cli.attack_world import run_attack
from client.app import app
from client.rank import rank
from client.recommend import make_task
from fedquilt.config import Config, parse
from fedquilt.errors import ConfigError, DrainedError
from fedquilt.offers import read_offer
from fedquilt.runs import RunFolder
from server.checkpoint import load_latest
from server.in_process import InProcessGrid
from server.loop import run_federation
from server.recommend import Recommender
from server.simulate import finish, hooks, prepare, simulate
from server.task import Hooks

ROUNDS = {"federation": {"rounds": 3, "evaluate_every": 0}, "cloud": {"epochs": 1}}


def with_defence(config: Config, **defence) -> Config:
    return parse({**config.model_dump(), "defence": defence})


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
    assert ceiling_I.shape == (100,)
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
