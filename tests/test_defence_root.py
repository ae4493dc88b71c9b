"""The cloud's own clicks as an update: the device's own step on them, in FLTrust and in runs that stop and go on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_recommender import tiny_run

from cli.attack_world import run_attack
from client.app import app
from client.recommend import RecommendTask
from fedquilt.config import Config, parse
from fedquilt.errors import ConfigError
from fedquilt.graphs.cohorts import MIN_CLICKS
from fedquilt.graphs.datasets import load_split
from fedquilt.privacy.clipping import clip_rows
from fedquilt.runs import RunFolder
from fedquilt.seeds import key_for
from server.root import RootData, wants_root
from server.simulate import prepare, simulate

TRUST = {"aggregator": "fltrust", "evaluate_every": 0, "rounds": 3}


def trusting(root_users: int = 30, **sections) -> Config:
    tiny = tiny_run(**{"federation": TRUST, "cloud": {"epochs": 1}, **sections})
    return parse({**tiny.model_dump(), "defence": {"root_users": root_users}})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Config, RunFolder, RootData]:
    config = trusting()
    run = RunFolder.create(tmp_path_factory.mktemp("prepared"), config)
    return config, run, prepare(config, run).root


def a_patch(root: RootData, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(root.spec.num_parameters)).astype(np.float32)


# --- the update ---


def test_the_root_update_is_the_mean_of_what_devices_with_those_clicks_would_send(prepared):
    config, run, root = prepared
    base, split = prepare(config, run).base, load_split(config.data, config.split)
    device = RecommendTask(config, replace(split, train=split.cloud), root.users_U)
    device.install(base)
    nothing = np.zeros((len(root.users_U), device.personal_size), np.float32)
    sent = device.train(root.users_U, a_patch(root), nothing, 2, key_for(config.seed, use="root-moments"))
    rows_KP, _ = clip_rows(sent.updates_KP, config.federation.clipping_norm)
    of_all, _ = RootData(trusting(root_users=1000), split.cloud, base).update(2, a_patch(root))
    np.testing.assert_allclose(of_all, rows_KP.mean(axis=0), atol=1e-7)
    assert not np.allclose(root.update(2, a_patch(root))[0], of_all, atol=1e-4)  # thirty of them


def test_the_root_users_have_clicks_enough_in_the_cloud_and_change_with_the_round(prepared):
    config, _, root = prepared
    cloud = load_split(config.data, config.split).cloud
    assert (np.diff(cloud.offsets)[root.users_U] >= MIN_CLICKS).all()
    first, second = (root.update(round_, a_patch(root)) for round_ in (1, 2))
    assert first[1].digest != second[1].digest
    assert not np.allclose(first[0], second[0])


def test_the_same_round_and_patch_give_the_same_bits(prepared):
    _, _, root = prepared
    assert root.update(3, a_patch(root))[0].tobytes() == root.update(3, a_patch(root))[0].tobytes()


def test_the_root_update_lowers_the_loss_that_it_was_made_for(prepared):
    """A step along it serves the cloud's own clicks better than a step against it."""
    _, _, root = prepared
    patch_P = a_patch(root)
    update_P, _ = root.update(1, patch_P)
    assert root.ndcg(patch_P + 3 * update_P) > root.ndcg(patch_P - 3 * update_P)


def test_a_patch_whose_scores_are_not_finite_serves_nobody(prepared):
    _, _, root = prepared
    assert root.ndcg(np.full(root.spec.num_parameters, 1e38, np.float32)) == 0.0


# --- whole runs ---


def run_in(folder: Path, config: Config) -> RunFolder:
    run = RunFolder.create(folder, config)
    simulate(config, run, app)
    return run


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> RunFolder:
    return run_in(tmp_path_factory.mktemp("trusting"), trusting())


def patch_of(run: RunFolder) -> np.ndarray:
    return run.read_arrays("patch.npz")["patch_P"]


def test_fltrust_runs_with_the_clouds_own_clicks_and_moves_the_patch(done):
    assert [record["replies"] > 0 for record in done.records("round")] == [True] * 3
    assert np.abs(patch_of(done)).max() > 1e-3


def test_the_draw_of_root_users_is_in_the_ledger_of_randomness(done):
    lines = (done.path / "randomness.jsonl").read_text().splitlines()
    assert sum("root-cohort" in line for line in lines) == 3


def test_an_fltrust_run_that_goes_on_from_a_checkpoint_ends_with_the_same_bits(done, tmp_path):
    shutil.copytree(done.path, tmp_path / "again")
    again = RunFolder.open(tmp_path / "again")
    (again.checkpoints / "round-00000003.safetensors").unlink()
    (again.path / "patch.npz").unlink()
    simulate(again.config, again, app)
    for name in ("patch.npz", "randomness.jsonl", "checkpoints/round-00000003.safetensors"):
        assert (again.path / name).read_bytes() == (done.path / name).read_bytes(), name


def test_a_cloud_without_clicks_is_told_before_anything_is_trained(tmp_path):
    config = trusting(split={"cloud_share": 0.0})
    run = RunFolder.create(tmp_path, config)
    with pytest.raises(ConfigError, match=r"'fltrust' needs root data, and the cloud has seen no.*split\.cloud_share"):
        prepare(config, run)
    assert not run.cloud_path.exists()


def test_rules_that_do_not_ask_for_root_data_cost_nothing(tmp_path):
    config = tiny_run(cloud={"epochs": 1})
    assert not wants_root(config)
    assert prepare(config, RunFolder.create(tmp_path, config)).root is None


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["sign-flip", "min-max"])
def test_fltrust_is_simulated_under_attack_and_liars_who_disagree_get_no_weight(tmp_path, attack):
    config = trusting()
    told = config.model_copy(update={"attack": config.attack.model_copy(update={"name": attack, "malicious": 0.3})})
    row = run_attack(told, tmp_path)
    assert row["rejected"]["malicious"] is not None  # the oracle knew the root update and judged every row
    if attack == "sign-flip":
        assert row["rejected"]["malicious"] > row["rejected"]["honest"] + 0.1
