"""The aggregator benchmark, cut down: limits hold, rows stay, definitions agree, and the figures that others read."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from experiments.benchmarks import aggregators, aggregators_cells, aggregators_server
from experiments.benchmarks.aggregators_exact import distance_to_exact
from experiments.benchmarks.aggregators_readme import headline_table, size_tables
from experiments.results import read_results, write_results


def request(tmp_path, rule="mean", who="torch", **changed):
    np.save(tmp_path / "data.npy", aggregators_cells.updates(20, 50, 2).numpy())
    limits = {"seconds": 60, "memory_gb": 4, "threads": 1}
    told = {"who": who, "rule": rule, "f": 2, "data": str(tmp_path / "data.npy"), "save": "", **limits}
    return {**told, **changed}


def spin(rows_KP):
    until = time.process_time() + 20
    while time.process_time() < until:
        rows_KP = rows_KP + 0
    return rows_KP


@pytest.fixture
def patched(monkeypatch):
    def with_call(call):
        monkeypatch.setitem(aggregators_server.MAKERS, "torch", lambda name, k, f, p: call)

    return with_call


def test_a_cell_tells_its_time_and_its_memory(tmp_path):
    row = aggregators_server.serve(request(tmp_path, save=str(tmp_path / "torch.npy")))
    assert row["status"] == "ok"
    assert 0 < row["cpu_seconds"] < 0.1
    assert 0 < row["peak_gb"] < 4
    assert np.load(tmp_path / "torch.npy").shape == (50,)


def test_a_call_beyond_its_seconds_is_ended_and_said_to_be_too_slow(tmp_path, patched):
    patched(spin)
    row = aggregators_server.serve(request(tmp_path, seconds=0.2))
    assert row == {"status": "too slow", "detail": "> 0.2 s"}


def test_a_call_beyond_its_memory_is_said_to_be_out_of_memory(tmp_path, patched):
    patched(lambda rows_KP: torch.ones(2**30))
    row = aggregators_server.serve(request(tmp_path, memory_gb=2))
    assert row == {"status": "out of memory", "detail": "out of memory at 2 GB"}


def test_an_error_of_a_peer_is_a_row(tmp_path, patched):
    patched(lambda rows_KP: 1 / 0)
    row = aggregators_server.serve(request(tmp_path))
    assert row == {"status": "error", "detail": "ZeroDivisionError: division by zero"}


def test_who_has_no_such_rule_says_so(tmp_path):
    assert aggregators_server.serve(request(tmp_path, rule="caf")) == {"status": "has none"}


@pytest.mark.parametrize("who", ["ours", "torch"])
def test_clipping_in_place_is_timed_on_the_same_rows_again_and_again(tmp_path, who):
    rows = {}
    for rule in ("clipping", "clipping-in-place"):
        saved = str(tmp_path / f"{rule}.npy")
        assert aggregators_server.serve(request(tmp_path, rule=rule, who=who, save=saved))["status"] == "ok"
        rows[rule] = np.load(saved)
    assert rows["clipping-in-place"] == pytest.approx(rows["clipping"], rel=1e-6)
    assert np.linalg.norm(rows["clipping"], axis=1) == pytest.approx(2)


def test_colluders_of_the_benchmark_all_send_the_same_row_near_the_mean():
    rows_KP = aggregators_cells.updates(20, 50, 2)
    assert torch.equal(rows_KP[18], rows_KP[19])
    assert rows_KP[18] == pytest.approx(rows_KP[:18].mean(dim=0) - 1.5 * rows_KP[:18].std(dim=0), abs=1e-6)


def test_ours_agree_with_plain_torch_and_flower_and_measured_rows_stay(tmp_path):
    told = ["--sizes", "30x40", "--rules", "median,multi-krum", "--turns", "1", "--json", str(tmp_path / "a.json")]
    aggregators.main(told)
    first = read_results(tmp_path / "a.json")
    aggregators.main(told)
    assert read_results(tmp_path / "a.json") == first
    rows = {(row["rule"], row["who"]): row for row in first["rows"]}
    assert set(rows) == {(rule, who) for rule in ("median", "multi-krum") for who in ("ours", "flower", "torch")}
    assert rows["median", "flower"]["relative_difference"] < 1e-6


@pytest.mark.parametrize("rule", ["skew-screening", "support-screening", "frozen-parts", "supernode-cap"])
def test_rules_that_ask_for_items_or_supernodes_are_given_them(tmp_path, rule):
    saved = str(tmp_path / "ours.npy")
    assert aggregators_server.serve(request(tmp_path, rule=rule, who="ours", save=saved))["status"] == "ok"
    left_P = np.load(saved).any(axis=0)
    frozen = slice(2, 18) if rule == "frozen-parts" else slice(0)  # two items, their biases first
    assert not left_P[frozen].any()
    assert left_P.sum() == 50 - (frozen.stop - (frozen.start or 0))


def test_measuring_again_asks_also_who_failed(tmp_path):
    told = ["--sizes", "30x40", "--rules", "median", "--turns", "1", "--json", str(tmp_path / "a.json")]
    for who in aggregators.MAKERS:
        failed = row("median", who, 20, 40, status="too slow", detail="> 1 s")
        write_results(tmp_path / "a.json", [failed], aggregators.headline, aggregators.KEY)
    aggregators.main(told)
    assert {one["status"] for one in read_results(tmp_path / "a.json")["rows"]} == {"too slow"}
    aggregators.main([*told, "--again"])
    again = {one["who"]: one["status"] for one in read_results(tmp_path / "a.json")["rows"] if one["k"] == 30}
    assert again == {"ours": "ok", "flower": "ok", "torch": "ok"}


def test_where_results_differ_the_row_of_each_tells_its_difference_to_the_definition(tmp_path, monkeypatch):
    monkeypatch.setattr(aggregators, "AGREES", -1.0)
    told = ["--sizes", "30x40", "--rules", "mean", "--turns", "1", "--json", str(tmp_path / "a.json")]
    aggregators.main(told)
    found = {one["who"]: one.get("float64_difference") for one in read_results(tmp_path / "a.json")["rows"]}
    assert 0 <= found["ours"] < 1e-6
    assert 0 <= found["flower"] < 1e-6
    assert found["torch"] is None  # its definition is not compared


@pytest.mark.parametrize("rule", aggregators.all_rules())
def test_every_rule_of_ours_can_be_timed(rule):
    call = aggregators_cells.ours(rule, 20, 2, 50)
    assert torch.isfinite(call(aggregators_cells.updates(20, 50, 2))).all()


@pytest.mark.parametrize("rule", ["mean", "median", "trimmed-mean", "mean-of-medians"])
def test_exact_results_are_those_of_our_rules(tmp_path, rule):
    rows = aggregators_cells.updates(20, 50, 2)
    np.save(tmp_path / "data.npy", rows.numpy())
    np.save(tmp_path / "ours.npy", aggregators_cells.ours(rule, 20, 2, 50)(rows).numpy())
    np.save(tmp_path / "zero.npy", np.zeros(50, np.float32))
    gaps = distance_to_exact(rule, tmp_path / "data.npy", 2, [tmp_path / "ours.npy", tmp_path / "zero.npy"])
    assert gaps[0] < 1e-6
    assert gaps[1] == 1


def row(rule, who, k, p, cpu_seconds=1.0, status="ok", **fields):
    head = {"rule": rule, "who": who, "k": k, "p": p, "threads": 1, "status": status}
    return {**head, **({"cpu_seconds": cpu_seconds, "peak_gb": 1.5} if status == "ok" else {}), **fields}


def test_the_headline_is_of_the_worst_cell_that_a_peer_finished():
    rows = [
        row("median", "ours", 1000, 100_000, 1.0),
        row("median", "byzfl", 1000, 100_000, 3.0),
        row("median", "torch", 1000, 100_000, 2.5, relative_difference=2e-7),
        row("krum", "ours", 100, 4000, 1.0),
        row("krum", "byzfl", 100, 4000, 1.5),
        row("krum", "byzfl", 1000, 4000, status="too slow"),
        row("nearest-neighbour-mixing", "ours", 1000, 100_000),
    ]
    assert aggregators.headline(rows) == {
        "min_speedup_vs_byzfl": 1.5,
        "min_speedup_vs_torch": 2.5,
        "median_speedup_vs_best": 2.5,
        "mixing_peak_gb": 1.5,
        "largest_difference": 2e-7,
    }


def test_a_cell_that_only_the_peer_finished_is_a_speed_up_of_nothing():
    rows = [row("krum", "byzfl", 100, 4000), row("krum", "ours", 100, 4000, status="too slow")]
    assert aggregators.headline(rows)["min_speedup_vs_byzfl"] == 0


def test_who_failed_at_a_size_is_not_asked_at_a_larger_one():
    held = [row("krum", "byzfl", 1000, 4000, status="too slow", detail="> 60 s")]
    assert aggregators.failed_at_less(held, "krum", "byzfl", 1000, 100_000) == {
        "status": "too slow",
        "detail": "> 60 s",
        "at": "1000x4000",
    }
    assert aggregators.failed_at_less(held, "krum", "byzfl", 100, 100_000) is None


def test_the_tables_say_what_became_of_a_peer_and_which_aims_are_missed():
    rows = [row("krum", "ours", 10, 5, 0.0123), row("krum", "byzfl", 10, 5, status="too slow", detail="> 60 s")]
    (table,) = size_tables(rows)
    assert table.splitlines()[-1] == "| krum | 12.3 | > 60 s | – | – | 1.50 |"
    missed = headline_table({"min_speedup_vs_byzfl": 0.9, "mixing_peak_gb": 1.0}).splitlines()[2:]
    assert [line.split("|")[-2].strip() for line in missed] == ["**no**", "yes"]
