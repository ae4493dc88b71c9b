"""The benchmark of embedding, cut down, and the results file that it shares with the cloud's other benchmarks."""

from __future__ import annotations

import json

import pytest

from experiments.benchmarks import cloud_results, embed
from experiments.results import write_results


@pytest.mark.slow
def test_a_row_has_speed_memory_and_the_repeated_projections():
    row = embed.measure(items=500)
    assert row["largest_difference"] < 1e-5
    assert row["projections_naive"] == row["projections"] + row["projections_repeated"] > 2 * row["projections"]
    assert row["items_per_s"] > 0
    assert 0 < row["peak_gb"] < 4


def speed(items: int, items_per_s: float, threads: int, **fields):
    about = {"step": "embed", "engine": "in-process", "items": items, "threads": threads, "peak_gb": 1.0}
    return about | {"items_per_s": items_per_s, "items_per_cpu_s": items_per_s + 5} | fields


def test_the_results_file_keeps_the_rows_and_figures_of_other_benchmarks(tmp_path):
    path = tmp_path / "cloud.json"
    others = [{"benchmark": "walks", "step": "walks", "graph": graph} for graph in ("random", "clustered")]
    write_results(path, others, lambda rows: {"walk_steps_per_s": 30.0}, cloud_results.KEY)
    rows = [speed(1_000_000, 20.0, 1), speed(1_000_000, 30.0, 2, peak_gb=1.5), speed(10_000, 99.0, 1)]
    cloud_results.write("embed", rows, embed.headline, path)
    cloud_results.write("embed", rows[:1], embed.headline, path)  # replaced, not added
    written = json.loads(path.read_text())
    assert len(written["rows"]) == 5
    assert written["headline"] == {
        "walk_steps_per_s": 30.0,
        "embed_items_per_s": 25.0,  # on one core
        "embed_items_per_s_wall": 30.0,
        "embed_peak_gb_1m_items": 1.5,
    }
