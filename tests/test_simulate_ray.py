"""The recommender on Flower's own engine gives what it gives in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_recommender import tiny_run

from client.app import app
from fedquilt.runs import RunFolder
from server.simulate import simulate

ROOT = Path(__file__).resolve().parents[1]
DRIVER = Path(__file__).with_name("ray_recommender.py")
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.mark.slow
def test_ray_and_this_process_give_the_same_patch_and_the_same_evaluation(tmp_path):
    pytest.importorskip("ray", reason="Flower's simulation engine needs Ray")
    config = tiny_run(federation={"wait_timeout_s": 120.0})
    here, there = (RunFolder.create(tmp_path, config) for _ in range(2))
    results = simulate(config, here, app)
    environment = {**os.environ, **QUIET, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(DRIVER), str(there.path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = (run.read_arrays("patch.npz")["patch_P"] for run in (here, there))
    np.testing.assert_allclose(theirs, ours, atol=2e-6)
    assert np.abs(ours).max() > 0.01
    ours, theirs = (run.read_arrays("evaluation.npz") for run in (here, there))
    assert ours.keys() == theirs.keys()
    for name in ("client_ids", "items", "greater_base", "greater_stale"):
        assert (ours[name] == theirs[name]).all(), name
    assert np.mean(ours["greater_personal"] == theirs["greater_personal"]) > 0.99
    assert (there.path / "randomness.jsonl").read_text() == (here.path / "randomness.jsonl").read_text()
    assert there.read_json("results.json").keys() == results.keys()
