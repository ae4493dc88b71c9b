"""What a node takes, refuses, keeps on disk and finds there again."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import toy_task
from flwr.app import ConfigRecord
from toy_task import BASE, SPEC, federate, toy_config

from client import node
from client.app import make_client_app
from fedquilt import wire
from fedquilt.errors import ConfigError, FederationError
from server.app import open_run
from server.in_process import InProcessGrid
from strategies.patch_strategy import PatchStrategy


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"code_hash": "0" * 16}, r"cloud runs code 0{16}, this node"),
        ({"config_hash": "0" * 16}, "configuration hashes to"),
        ({"base_hash": "0" * 16}, "base arrays hash to"),
        ({"config_toml": "rounds = ["}, "not valid TOML"),
        ({"config_toml": "sede = 1"}, "did you mean 'seed'"),
        ({"config_hash": "../../etc"}, "configuration hashes to"),
        ({"spec": dataclasses.replace(SPEC, shapes=(("scale", (1,)),))}, "patch spec .* does not fit ours"),
    ],
)
def test_a_deployment_that_does_not_fit_is_refused_in_words(tmp_path, monkeypatch, change, words):
    real = wire.write_deploy_order
    monkeypatch.setattr(wire, "write_deploy_order", lambda order: real(dataclasses.replace(order, **change)))
    with pytest.raises(FederationError, match=rf"0 of 3 nodes took the deployment(.|\n)*{words}"):
        federate(tmp_path)


def test_a_node_that_was_never_deployed_to_says_so(tmp_path):
    strategy = PatchStrategy(toy_config(), SPEC, BASE, tmp_path)
    strategy.deploy(InProcessGrid(make_client_app(toy_task.toy_task), 3))
    fresh = InProcessGrid(make_client_app(toy_task.toy_task), 3)
    arrays = wire.write_patch(np.zeros(SPEC.num_parameters, np.float32))
    orders = strategy.configure_train(1, arrays, ConfigRecord(), fresh)
    with pytest.raises(FederationError, match="deploy first"):
        strategy.aggregate_train(1, fresh.send_and_receive(orders))


def test_another_process_serves_a_node_from_what_lies_on_disk(tmp_path):
    config = toy_config()
    grid = InProcessGrid(make_client_app(toy_task.toy_task), 3)
    strategy = PatchStrategy(config, SPEC, BASE, tmp_path)
    strategy.deploy(grid)
    arrays = wire.write_patch(np.zeros(SPEC.num_parameters, np.float32))
    warm, _ = strategy.aggregate_train(
        1, grid.send_and_receive(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    )
    node._deployments.clear()  # what another process starts with
    strategy.state = PatchStrategy(config, SPEC, BASE, tmp_path).state
    cold, _ = strategy.aggregate_train(
        1, grid.send_and_receive(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    )
    assert wire.read_patch(cold).tobytes() == wire.read_patch(warm).tobytes()


@pytest.mark.parametrize(
    ("pattern", "words"), [("base-*", "hash to|deploy first"), ("config-*", "deploy first|hashes")]
)
def test_a_node_whose_disk_was_damaged_asks_for_a_deploy(tmp_path, pattern, words):
    grid = InProcessGrid(make_client_app(toy_task.toy_task), 3)
    strategy = PatchStrategy(toy_config(), SPEC, BASE, tmp_path)
    strategy.deploy(grid)
    node._deployments.clear()
    for path in tmp_path.glob(pattern):
        path.write_bytes(path.read_bytes().replace(b"\x3f", b"\x3e") if pattern == "base-*" else b"seed = 5")
    arrays = wire.write_patch(np.zeros(SPEC.num_parameters, np.float32))
    orders = strategy.configure_train(1, arrays, ConfigRecord(), grid)
    with pytest.raises(FederationError, match=words):
        strategy.aggregate_train(1, grid.send_and_receive(orders))


def test_a_devices_own_folder_wins_over_the_one_that_the_cloud_names(tmp_path):
    own = tmp_path / "own"
    grid = InProcessGrid(make_client_app(toy_task.toy_task), 3, node_config={"device-dir": str(own)})
    _, run = federate(tmp_path, grid=grid)
    assert len(list(own.glob("personal-*.sqlite"))) == 3
    assert not list(run.devices.iterdir())


# --- the ServerApp's run-config ---


def test_a_run_config_makes_a_new_run_or_goes_on_with_one(tmp_path):
    toml = tmp_path / "study.toml"
    toml.write_text('name = "study"\n[federation]\nrounds = 7\n')
    new = open_run({"config": str(toml), "set": "seed=3 federation.cohort_size=9", "run-dir": str(tmp_path / "runs")})
    assert new.path.parent == tmp_path / "runs"
    assert (new.config.name, new.config.seed) == ("study", 3)
    assert (new.config.federation.rounds, new.config.federation.cohort_size) == (7, 9)
    assert open_run({"config": "", "set": "", "run-dir": str(new.path)}).config == new.config


@pytest.mark.parametrize(
    ("run_config", "words"),
    [({}, "lacks run-dir"), ({"run-dir": "runs"}, "absolute"), ({"run-dir": "/runs", "config": "a.toml"}, "absolute")],
)
def test_a_run_config_that_depends_on_the_working_directory_is_refused(run_config, words):
    with pytest.raises(ConfigError, match=words):
        open_run(run_config)
