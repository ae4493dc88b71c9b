"""The whole path in this process, with a toy task: what comes out of it."""

from __future__ import annotations

import numpy as np
import toy_task
from toy_task import BASE, MEANS, SPEC, federate, toy_config, toy_deployment

from client.app import make_client_app
from fedquilt import wire
from fedquilt.config import load
from fedquilt.runs import RunFolder
from server.in_process import InProcessGrid
from server.loop import run_federation
from server.task import Hooks
from strategies.patch_strategy import PatchStrategy


def test_rounds_bring_the_patch_nearer_to_what_users_want(tmp_path):
    _, run = federate(tmp_path, hooks=MEANS, rounds=40, evaluate_every=20)
    losses = [record["loss"] for record in run.records("evaluation") if record["part"] == "valid"]
    assert losses[0] > losses[1] > losses[2]


def test_the_result_does_not_depend_on_how_many_nodes_host_the_users(tmp_path):
    alone, _ = federate(tmp_path, num_supernodes=1)
    spread, _ = federate(tmp_path, num_supernodes=7)
    assert alone.patch_P.tobytes() == spread.patch_P.tobytes()
    assert alone.test.arrays["loss"].tobytes() == spread.test.arrays["loss"].tobytes()


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    (first, run), (again, run_again) = federate(tmp_path), federate(tmp_path)
    assert first.patch_P.tobytes() == again.patch_P.tobytes()
    assert toy_task.metrics_without_seconds(run.path) == toy_task.metrics_without_seconds(run_again.path)
    config = load(overrides=["seed=1"])
    other = config.model_copy(update={"data": toy_config().data, "federation": toy_config().federation})
    grid = InProcessGrid(make_client_app(toy_task.toy_task), 3)
    changed = run_federation(grid, other, toy_deployment(), RunFolder.create(tmp_path, other))
    assert changed.patch_P.tobytes() != first.patch_P.tobytes()


def test_personal_patches_persist_between_rounds(tmp_path):
    result, run = federate(tmp_path, rounds=3, cohort_size=24)
    assert result.test.arrays["rounds"].tolist() == [3] * 24
    assert len(list(run.devices.glob("personal-*.sqlite"))) == 3


def test_an_evaluation_holds_every_user_in_order_of_client_id(tmp_path):
    result, _ = federate(tmp_path)
    assert result.valid.client_ids_U.tolist() == list(range(100, 124))
    assert (result.test.arrays["loss"] == result.valid.arrays["loss"] + 1).all()


def test_a_rounds_record_says_what_happened(tmp_path):
    _, run = federate(tmp_path, rounds=1)
    (record,) = run.records("round")
    assert record["replies"] == 10
    assert record["rejected"] == []
    assert record["metrics"]["loss"] > 0
    assert 0 < record["update_norm"]["median"] <= 0.5
    assert record["update_norm"]["clipped_share"] == 1
    assert record["bytes_up"] >= 10 * 4 * SPEC.num_parameters
    assert record["bytes_down"] >= 3 * 4 * SPEC.num_parameters
    assert record["seconds"] > 0


def test_hooks_see_every_round_and_every_evaluation(tmp_path):
    rounds, parts = [], []
    hooks = Hooks(
        on_evaluation=lambda evaluation: parts.append((evaluation.round_, evaluation.part)),
        on_round=lambda record: rounds.append(record["round"]),
    )
    federate(tmp_path, hooks=hooks)
    assert rounds == [1, 2, 3, 4]
    assert parts == [(0, "valid"), (2, "valid"), (4, "valid"), (4, "test")]


def test_the_strategy_also_works_under_flowers_own_start(tmp_path):
    config = toy_config()
    grid = InProcessGrid(make_client_app(toy_task.toy_task), 3)
    strategy = PatchStrategy(config, SPEC, BASE, tmp_path / "devices")
    result = strategy.start(grid, wire.write_patch(np.zeros(SPEC.num_parameters, np.float32)), num_rounds=4)
    ours, _ = federate(tmp_path)
    assert wire.read_patch(result.arrays).tobytes() == ours.patch_P.tobytes()
    assert set(result.train_metrics_clientapp) == set(result.evaluate_metrics_clientapp) == {1, 2, 3, 4}


def test_zero_rounds_evaluate_the_initial_patch(tmp_path):
    result, _ = federate(tmp_path, rounds=0)
    assert not result.patch_P.any()
    assert result.test.arrays["rounds"].tolist() == [0] * 24
