"""``fedquilt up``: real device processes, each with the log of its own users only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_recommender import tiny_run

from cli.simulate import simulate
from client.own_log import OwnLog
from client.recommend import make_task
from fedquilt.graphs.device_logs import read_device_log
from server.deploy import write_device_logs

ROOT = Path(__file__).resolve().parents[1]


def test_a_device_log_holds_what_its_users_clicked_and_nothing_of_others(tmp_path):
    config = tiny_run()
    whole = make_task(config, 1, 3)
    (_, path, _) = write_device_logs(config, tmp_path)
    ids_U, split = read_device_log(path)
    assert set(split.train.users_C) | set(split.valid.users_H) | set(split.test.users_H) <= set(ids_U)
    own = OwnLog(path)(config, 1, 3)
    np.testing.assert_array_equal(own.client_ids_U, whole.client_ids_U)
    for user in own.client_ids_U:
        np.testing.assert_array_equal(own.split.train.items_of(user), whole.split.train.items_of(user))
        np.testing.assert_array_equal(own.split.cloud.items_of(user), whole.split.cloud.items_of(user))


@pytest.mark.slow
def test_three_device_processes_end_with_the_patch_of_a_simulation(tmp_path):
    config = tmp_path / "tiny.toml"
    config.write_text(tiny_run(federation={"rounds": 2, "wait_timeout_s": 300}).to_toml())
    simulate(config=config, out=tmp_path / "here")
    command = [
        sys.executable,
        "-m",
        "cli.main",
        "up",
        "--devices",
        "3",
        "--config",
        config,
        "--out",
        tmp_path / "there",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    (there,) = (tmp_path / "there").iterdir()
    logs = "\n".join(path.read_text() for path in there.glob("device-*.log"))
    assert done.returncode == 0, done.stderr[-2000:] + logs[-3000:]
    (here,) = (tmp_path / "here").iterdir()
    with np.load(here / "patch.npz") as simulated, np.load(there / "patch.npz") as deployed:
        np.testing.assert_array_equal(deployed["patch_P"], simulated["patch_P"])
    assert not list(tmp_path.glob("fedquilt-up-*"))  # keys and logs are gone
