"""The same apps and strategy on Flower's own engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy_task

from fedquilt.runs import RunFolder

ROOT = Path(__file__).resolve().parents[1]
DRIVER = Path(__file__).with_name("ray_driver.py")


@pytest.mark.slow
def test_ray_and_this_process_give_the_same_patch_and_the_same_records(tmp_path):
    result, here = toy_task.federate(tmp_path, hooks=toy_task.MEANS)
    there = RunFolder.create(tmp_path, here.config)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(DRIVER), str(there.path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    np.testing.assert_allclose(there.read_arrays("patch.npz")["patch_P"], result.patch_P, rtol=1e-6)
    assert toy_task.metrics_without_seconds(there.path) == toy_task.metrics_without_seconds(here.path)
    assert (there.path / "randomness.jsonl").read_text() == (here.path / "randomness.jsonl").read_text()
