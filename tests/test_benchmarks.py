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


def speed(step: str, users_per_s: float, pair: int | None = None, threads: int = 2, **fields):
    return {"step": step, "threads": threads, "users_per_s": users_per_s, **({"pair": pair} if pair else {}), **fields}


def test_the_results_file_holds_the_headline_figures_under_their_fixed_names(tmp_path):
    rows = [
        speed("client-step", 5_000.0),  # in no pair: in no ratio
        *(speed("client-step", value, pair) for pair, value in enumerate((600.0, 900.0, 800.0), 1)),
        *(speed("loop", 50.0, pair, threads=1) for pair in (1, 2, 3)),
        *(speed("loop", value, pair) for pair, value in enumerate((60.0, 10.0, 80.0), 1)),  # the faster loop counts
        *(speed("federation", value, pair, users=10_000, peak_gb=0.5) for pair, value in enumerate((700, 900, 800), 1)),
        *(speed("ray", 20.0, pair, threads=1, users=32) for pair in (1, 2, 3)),
        speed("federation", 700.0, users=100_000, peak_gb=2.5),
        speed("pfl-task", 5_000.0, threads=1, users=1_000),
    ]
    path = tmp_path / "throughput.json"
    write_results(path, rows, throughput.headline, throughput.KEY)
    written = json.loads(path.read_text())
    assert len(written["rows"]) == len(rows)
    assert written["headline"] == {
        "users_per_s": 900.0,
        "speedup_vs_loop": 10.0,  # of 10, 18, 10
        "speedup_vs_ray": 40.0,  # of 35, 45, 40
        "pfl_task_users_per_s_core": 5_000.0,
        "peak_gb_100k_users": 2.5,
    }


def test_the_table_says_which_aims_are_missed():
    table = headline_table({"users_per_s": 9_000.0, "speedup_vs_ray": 59.0, "peak_gb_100k_users": 3.9})
    reached = [line.split("|")[-2].strip() for line in table.splitlines()[2:]]
    assert reached == ["yes", "**no**", "yes"]
