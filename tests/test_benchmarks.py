"""The throughput benchmarks, cut down: they run, agree with their peers and leave the figures that others read."""

from __future__ import annotations

import json

import pytest

from experiments.benchmarks import throughput, throughput_federation, throughput_pfl, throughput_step
from experiments.benchmarks.throughput_common import in_child
from experiments.benchmarks.throughput_readme import headline_table
from experiments.results import write_results

POPULATION = 60


@pytest.fixture(scope="module")
def pfl_rows():
    return list(throughput_pfl.measure(users=20, rounds=3))


def test_the_loop_over_users_gives_the_updates_of_the_batched_step():
    row = throughput_step.measure(users=12, population=POPULATION, parts="bottleneck", loop=True, repeats=1)
    assert row["users_at_once"] == 12
    assert row["largest_difference"] < 1e-5


def test_the_whole_path_gives_the_mean_update_of_a_plain_vmap_loop(pfl_rows):
    whole_path = next(row for row in pfl_rows if row["step"] == "pfl-task")
    assert whole_path["relative_difference_before_noise"] < 1e-5


def test_a_federation_reports_its_speed_and_its_memory():
    row = throughput_federation.measure(users=POPULATION, cohort=20)
    assert row["rounds"] == 5
    assert row["users_per_s_best_round"] >= row["users_per_s"] > 0
    assert 0 < row["peak_gb_rounds"] <= row["peak_gb"] < 4


def test_a_child_process_hands_its_rows_back():
    (row,) = in_child("throughput_step", {"users": 4, "population": POPULATION, "repeats": 1}, threads=1)
    assert row["step"] == "client-step"
    assert row["users_at_once"] == 4
    assert row["users_per_s"] > 0


def test_the_results_file_holds_the_headline_figures_under_their_fixed_names(tmp_path):
    rows = [
        {"step": "client-step", "parts": "bottleneck", "users_at_once": 4096, "threads": 2, "users_per_s": 900.0},
        {"step": "client-step", "parts": "bottleneck,item-bias", "users_at_once": 4096, "threads": 2, "users_per_s": 1},
        {"step": "loop", "parts": "bottleneck", "users_at_once": 256, "threads": 1, "users_per_s": 90.0},
        {"step": "loop", "parts": "bottleneck", "users_at_once": 256, "threads": 2, "users_per_s": 60.0},
        {"step": "federation", "users": 10_000, "threads": 2, "users_per_s": 800.0, "peak_gb": 0.5},
        {"step": "federation", "users": 100_000, "threads": 2, "users_per_s": 700.0, "peak_gb": 2.5},
        {"step": "ray", "users": 32, "threads": 1, "users_per_s": 20.0},
        {"step": "pfl-task", "users": 1_000, "threads": 1, "users_per_s": 5_000.0},
    ]
    path = tmp_path / "throughput.json"
    write_results(path, rows, throughput.headline, throughput.KEY)
    assert json.loads(path.read_text())["headline"] == {
        "users_per_s": 900.0,
        "speedup_vs_loop": 10.0,  # against the faster of the two loops
        "speedup_vs_ray": 40.0,  # the federation of 10,000
        "pfl_task_users_per_s_core": 5_000.0,
        "peak_gb_100k_users": 2.5,
    }


def test_the_table_says_which_aims_are_missed():
    table = headline_table({"users_per_s": 9_000.0, "speedup_vs_ray": 59.0, "peak_gb_100k_users": 3.9})
    reached = [line.split("|")[-2].strip() for line in table.splitlines()[2:]]
    assert reached == ["yes", "**no**", "yes"]
