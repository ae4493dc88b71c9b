"""The flag: a round that serves the cloud's own clicks worse is undone, said so, and undone again after a kill."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import toy_task
from tiny_recommender import tiny_run

from cli.attack_world import run_attack
from client.app import app, make_client_app
from client.task import LocalUpdates
from fedquilt.config import Config, parse
from fedquilt.errors import ConfigError
from fedquilt.privacy.verify import verify
from fedquilt.runs import RunFolder
from server.checkpoint import load_latest
from server.in_process import InProcessGrid
from server.loop import run_federation
from server.rollback import Rollback, rollback_note, rolled_back
from server.simulate import simulate
from server.task import Deployment, Hooks
from strategies.cohort import Draw

BAD_ROUND = 3


class NearTheCentre:
    """Serves the better, the nearer the patch is to the toy users' mean target."""

    def ndcg(self, patch_P: np.ndarray) -> float:
        return float(np.exp(-np.square(patch_P - toy_task.BASE["centre"] - 0.5).mean()))

    def update(self, round_: int, patch_P: np.ndarray) -> tuple[np.ndarray, Draw]:
        raise AssertionError("no rule here asks for it")


class OneBadRound(toy_task.ToyTask):
    def train(self, client_ids_K, patch_P, personal_KR, round_, run_seed) -> LocalUpdates:
        local = super().train(client_ids_K, patch_P, personal_KR, round_, run_seed)
        local.updates_KP[:] *= -40 if round_ == BAD_ROUND else 1
        return local


def toy(tolerance: float = 0.2, **sections) -> Config:
    given = toy_task.toy_config(clipping_norm=8.0, checkpoint_every=1).model_dump()
    slow = {"name": "adam", "learning_rate": 0.5, "decay": 0.0}
    return parse({**given, "server_optimizer": slow, "defence": {"rollback_tolerance": tolerance}, **sections})


def go_on(run: RunFolder) -> None:
    grid = InProcessGrid(make_client_app(toy_task.factory_of(OneBadRound)), 3)
    plain = toy_task.toy_deployment()
    deployment = Deployment(plain.spec, plain.initial_patch_P, plain.base, NearTheCentre())
    result = run_federation(grid, run.config, deployment, run, Hooks())
    run.write_arrays("result.npz", patch_P=result.patch_P)


def run_of(folder, config: Config) -> RunFolder:
    run = RunFolder.create(folder, config)
    go_on(run)
    return run


@pytest.fixture(scope="module")
def undone(tmp_path_factory) -> RunFolder:
    return run_of(tmp_path_factory.mktemp("undone"), toy())


# --- the verdict ---


@pytest.mark.parametrize(
    ("tolerance", "after", "expected"),
    [(0.1, 0.46, False), (0.1, 0.44, True), (0.0, 0.5, False), (0.0, 0.4999, True), (0.1, math.nan, True)],
)
def test_a_round_is_undone_where_it_loses_more_than_the_tolerance(tolerance, after, expected):
    levels = {0.0: 0.5, 1.0: after}
    verdict = Rollback(lambda patch_P: levels[float(patch_P[0])], tolerance).verdict(np.zeros(1), np.ones(1))
    assert verdict["rolled_back"] is expected


def test_the_patch_that_was_kept_is_not_measured_twice():
    measured = []
    flag = Rollback(lambda patch_P: measured.append(float(patch_P[0])) or float(patch_P[0]), 0.1)
    flag.verdict(np.ones(1), np.full(1, 2.0))
    flag.verdict(np.full(1, 2.0), np.full(1, 3.0))
    assert measured == [1.0, 2.0, 3.0]


def test_the_flag_without_root_data_is_refused(tmp_path):
    run = RunFolder.create(tmp_path, toy())
    grid = InProcessGrid(make_client_app(toy_task.toy_task), 3)
    with pytest.raises(ConfigError, match=r"rollback_tolerance = 0\.2 needs root data"):
        run_federation(grid, run.config, toy_task.toy_deployment(), run)


# --- federations ---


def test_only_the_bad_round_is_undone_and_its_record_says_so(undone):
    records = undone.records("round")
    assert rolled_back(records) == [BAD_ROUND]
    assert rollback_note(records[BAD_ROUND - 1]).startswith("rolled back: NDCG@10 on the cloud's own clicks")
    assert [rollback_note(record) for record in records if record["round"] != BAD_ROUND] == [""] * 3


def test_patch_and_optimizer_are_those_of_before_the_round(undone, tmp_path):
    shutil.copytree(undone.path, tmp_path / "cut")
    cut = RunFolder.open(tmp_path / "cut")
    (cut.checkpoints / "round-00000004.safetensors").unlink()
    after, _ = load_latest(cut.checkpoints)
    two = run_of(tmp_path, toy(federation={**toy().federation.model_dump(), "rounds": 2}))
    before, _ = load_latest(two.checkpoints)
    assert (after.round_, before.round_) == (BAD_ROUND, 2)
    assert after.patch_P.tobytes() == before.patch_P.tobytes()
    for name, array in before.optimizer_state.items():
        assert after.optimizer_state[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("last", [2, 3])
def test_a_run_killed_around_the_round_ends_with_the_same_bits(undone, tmp_path, last):
    if last == 2:  # its checkpoint is gone by the end of a run: stop there instead, with the records of a kill in it
        again = RunFolder.create(tmp_path, undone.config)
        grid = InProcessGrid(make_client_app(toy_task.factory_of(OneBadRound)), 3)
        plain = toy_task.toy_deployment()
        deployment = Deployment(plain.spec, plain.initial_patch_P, plain.base, NearTheCentre())

        def stop(record) -> None:
            if record["round"] == BAD_ROUND:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_federation(grid, again.config, deployment, again, Hooks(on_round=stop))
        (again.checkpoints / f"round-{BAD_ROUND:08d}.safetensors").unlink()
    else:
        shutil.copytree(undone.path, tmp_path / "again")
        again = RunFolder.open(tmp_path / "again")
        (again.checkpoints / "round-00000004.safetensors").unlink()
    go_on(again)
    for file in ("result.npz", "randomness.jsonl", "checkpoints/round-00000004.safetensors"):
        assert (again.path / file).read_bytes() == (undone.path / file).read_bytes(), file
    assert toy_task.metrics_without_seconds(again.path) == toy_task.metrics_without_seconds(undone.path)


def test_off_nothing_is_judged(tmp_path):
    run = run_of(tmp_path, toy(tolerance=math.inf))
    assert not any("validation" in record for record in run.records("round"))


def test_a_private_round_that_is_undone_is_charged_all_the_same(tmp_path):
    run = run_of(tmp_path, toy(privacy={"mode": "central", "noise_multiplier": 0.01}))
    assert BAD_ROUND in rolled_back(run.records("round"))
    assert all(record["privacy_head"] for record in run.records("round"))
    assert verify(run.path).holds


# --- the recommender ---


def recommender(**sections) -> Config:
    federation = {"rounds": 3, "evaluate_every": 0}
    tiny = tiny_run(cloud={"epochs": 1}, federation=federation, server_optimizer={"learning_rate": 0.02})
    return parse({**tiny.model_dump(), "defence": {"rollback_tolerance": 0.3}, **sections})


def test_without_an_attack_the_recommender_undoes_no_round_and_ends_as_without_the_flag(tmp_path):
    watched, plain = (RunFolder.create(tmp_path, config) for config in (recommender(), recommender(defence={})))
    results = [simulate(run.config, run, app) for run in (watched, plain)]
    assert "rolled_back" not in results[0]
    assert (watched.path / "patch.npz").read_bytes() == (plain.path / "patch.npz").read_bytes()
    assert all(record["validation"]["after"] > 0 for record in watched.records("round"))


@pytest.mark.slow
def test_rounds_of_model_replacement_are_undone_and_the_results_name_them(tmp_path):
    config = recommender(defence={"rollback_tolerance": 0.1})
    told = {"name": "sign-flip", "malicious": 0.6}
    big = config.model_copy(
        update={
            "attack": config.attack.model_copy(update=told),
            "server_optimizer": config.server_optimizer.model_copy(update={"learning_rate": 0.2}),
        }
    )
    row = run_attack(big, tmp_path)
    run = RunFolder.open(tmp_path / row["run"])
    assert run.read_json("results.json")["rolled_back"] == rolled_back(run.records("round")) != []
