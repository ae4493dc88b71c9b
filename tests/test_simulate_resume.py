"""``fedquilt simulate`` is killed or interrupted anywhere, goes on with ``--resume``, and nothing differs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import toy_task
from limits import end, ended, last_words, line_of, wait_until
from tiny_recommender import tiny_run

from fedquilt.runs import RunFolder, list_runs

ROOT = Path(__file__).resolve().parents[1]
DRIVER = Path(__file__).with_name("kill_recommender.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
COMMAND = [sys.executable, "-m", "cli.main", "simulate"]

POINTS = [
    "in the second epoch of the cloud",
    "before the cloud model is stored",
    "between two records of the cloud",
    "before the devices are described",
    "while the second node trains in round 1",
    "while the last node trains in round 3",
    "while round 2 is evaluated",
    "before the results are written",
]


@pytest.fixture(scope="module")
def drive():
    """(arguments of fedquilt, point) -> exit status of a process that ran it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    driver = subprocess.Popen([sys.executable, str(DRIVER)], env=ENVIRONMENT, start_new_session=True, **pipes)

    def drive_one(arguments: list[str], point: str = "never") -> int:
        driver.stdin.write(json.dumps([arguments, point]) + "\n")
        driver.stdin.flush()
        return int(line_of(driver))

    yield drive_one
    driver.stdin.close()
    assert ended(driver) == 0


def start_arguments(folder: Path, **sections) -> list[str]:
    path = folder / "tiny.toml"
    path.write_text(tiny_run(**sections).to_toml())
    return ["--config", str(path), "--out", str(folder / "runs"), "--json"]


def only_run(folder: Path) -> RunFolder:
    (run,) = list_runs(folder / "runs")
    return run


def traces(run: RunFolder) -> dict[str, object]:
    """All that two runs must have in common."""
    names = ["patch.npz", "evaluation.npz", "results.json", "cloud.safetensors", "cloud.json", "randomness.jsonl"]
    checkpoints = [f"checkpoints/{path.name}" for path in sorted(run.checkpoints.glob("round-*"))]
    files = {name: (run.path / name).read_bytes() for name in names + checkpoints}
    return {**files, "metrics": toy_task.metrics_without_seconds(run.path), "state": run.status["state"]}


def to_the_end(drive, arguments: list[str]) -> bool:
    """Up to the report, which takes longer than all the rest and changes nothing; then killed once more."""
    return drive(["simulate", *arguments], "before the report") == -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, drive) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("whole")
    assert drive(["simulate", *start_arguments(folder)]) == 0  # the one that nobody kills
    return traces(only_run(folder))


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_and_resumed_run_ends_with_the_same_bits(tmp_path, drive, undisturbed, point):
    assert drive(["simulate", *start_arguments(tmp_path)], point) == -signal.SIGKILL
    run = only_run(tmp_path)
    assert run.status["state"] in ("running", "done")
    assert to_the_end(drive, ["--resume", str(run.path), "--json"])
    assert traces(run) == undisturbed


def test_a_run_killed_before_its_report_gets_one_by_going_on(tmp_path, drive, undisturbed):
    assert to_the_end(drive, start_arguments(tmp_path))
    run = only_run(tmp_path)
    assert not run.report_path.exists()
    assert drive(["simulate", "--resume", str(run.path), "--json"]) == 0
    assert traces(run) == undisturbed
    assert run.report_path.is_file()


def test_a_run_may_be_killed_again_while_it_resumes(tmp_path, drive, undisturbed):
    assert drive(["simulate", *start_arguments(tmp_path)], POINTS[2]) == -signal.SIGKILL
    resume = ["simulate", "--resume", str(only_run(tmp_path).path), "--json"]
    for point in (POINTS[4], POINTS[4], POINTS[7]):
        assert drive(resume, point) == -signal.SIGKILL
    assert to_the_end(drive, resume[1:])
    assert traces(only_run(tmp_path)) == undisturbed


# --- signals from outside, to the command itself ---

LONG = {"federation": {"rounds": 30, "evaluate_every": 0}, "cloud": {"epochs": 30, "patience": 30}}


@pytest.fixture(scope="module")
def long_undisturbed(tmp_path_factory, drive) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("long")
    assert to_the_end(drive, start_arguments(folder, **LONG))
    return traces(only_run(folder))


def stop(folder: Path, sign: signal.Signals, when: Callable[[RunFolder], bool]) -> tuple[int, str]:
    """Start the command, send the signal when it is time: -> (exit status, what it said)."""
    process = subprocess.Popen(
        [*COMMAND, *start_arguments(folder, **LONG)], cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )

    def is_time() -> bool:
        assert process.poll() is None, process.stderr.read()
        return bool(list_runs(folder / "runs")) and when(only_run(folder))

    try:
        wait_until(is_time, when.__name__)
        process.send_signal(sign)
        _, said = last_words(process)
    finally:
        end(process)
    return process.returncode, said


def in_the_cloud(run: RunFolder) -> bool:
    if run.status.get("state") != "running":
        return False
    time.sleep(0.3)  # the data is made, training takes a second or more
    return not run.cloud_path.exists()


def some_rounds_done(run: RunFolder) -> bool:
    return len(run.records("round")) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("when", [in_the_cloud, some_rounds_done])
def test_ctrl_c_says_how_to_go_on_and_going_on_gives_the_same_bits(tmp_path, drive, long_undisturbed, when):
    for attempt in range(3):  # Python drops an interrupt that falls into a ctypes callback, as of numba's compiler
        folder = tmp_path / str(attempt)
        folder.mkdir()
        status, said = stop(folder, signal.SIGINT, when)
        if "Exception ignored on calling ctypes callback" not in said:
            break
    run = only_run(folder)
    # Python ends itself by the signal if this broke into an exec (as in an import); to a shell it is 130 all the same.
    assert status in (130, -signal.SIGINT), said
    assert f"fedquilt simulate --resume {run.path}" in said
    assert "Traceback" not in said
    assert run.status["state"] == "interrupted"
    assert to_the_end(drive, ["--resume", str(run.path), "--json"])
    assert traces(run) == long_undisturbed


@pytest.mark.slow
def test_kill_9_from_outside_in_the_middle_of_the_rounds(tmp_path, long_undisturbed):
    status, _ = stop(tmp_path, signal.SIGKILL, some_rounds_done)
    assert status == -signal.SIGKILL
    run = only_run(tmp_path)
    resume = [*COMMAND, "--resume", str(run.path), "--json"]
    done = subprocess.run(resume, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == str(run.path)
    assert traces(run) == long_undisturbed
