"""A whole run of the recommender in this process, on a bazaar of 200 users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_task
from tiny_recommender import tiny_run

from client.app import app
from fedquilt.config import Config
from fedquilt.errors import ConfigError
from fedquilt.graphs.datasets import load_split
from fedquilt.runs import RunFolder
from server.simulate import simulate

VARIANTS = {"stale", "base", "global", "personal"}


def run(folder: Path, config: Config, **options: Any) -> tuple[dict[str, Any], RunFolder]:
    made = RunFolder.create(folder, config)
    return simulate(config, made, app, **options), made


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[dict[str, Any], RunFolder]:
    return run(tmp_path_factory.mktemp("runs"), tiny_run())


def patch_of(made: RunFolder) -> np.ndarray:
    return made.read_arrays("patch.npz")["patch_P"]


def test_results_hold_a_table_for_every_variant_and_group(done):
    results, made = done
    assert made.read_json("results.json") == results
    assert results["tables"].keys() == VARIANTS
    for table in results["tables"].values():
        assert {"all"} < table.keys()
        assert all(0 <= table["all"][f"{metric}@{k}"] <= 1 for metric in ("HR", "NDCG") for k in (5, 10))
    assert results["rounds"] == 4


def test_every_held_out_click_is_answered(done):
    config = done[1].config
    split = load_split(config.data, config.split)
    assert done[0]["answered"] == done[0]["held_out"] == len(split.test)


def test_the_records_tell_the_whole_story_in_order(done):
    kinds = [record["kind"] for record in done[1].records()]
    assert (
        kinds
        == ["cloud", "cloud", "device", "evaluation", "round", "round", "evaluation", "round", "round"]
        + ["evaluation"] * 2
    )
    parts = [(record["round"], record["part"]) for record in done[1].records("evaluation")]
    assert parts == [(0, "valid"), (2, "valid"), (4, "valid"), (4, "test")]


def test_before_the_first_round_the_patch_changes_nothing(done):
    tables = done[1].records("evaluation")[0]["tables"]
    assert tables["global"] == tables["base"]
    last = done[1].records("evaluation")[-1]["tables"]
    assert last["global"] != last["base"]


def test_the_device_record_counts_what_is_there(done):
    (record,) = done[1].records("device")
    assert record["patch_parameters"] == len(patch_of(done[1])) == 2 * 2 * 8 * 3 + 100
    assert record["patch_bytes"] == 4 * record["patch_parameters"]
    assert record["kernel_parameters"] == 2 * 64 + 3 * 8 + 4 * 64
    assert record["model_parameters"] == record["kernel_parameters"] + 100 * 8 + 100


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(done, tmp_path):
    _, again = run(tmp_path, tiny_run())
    assert (again.path / "patch.npz").read_bytes() == (done[1].path / "patch.npz").read_bytes()
    assert toy_task.metrics_without_seconds(again.path) == toy_task.metrics_without_seconds(done[1].path)
    _, other = run(tmp_path, tiny_run(seed=4))
    assert not np.allclose(patch_of(other), patch_of(done[1]), atol=1e-3)


@pytest.mark.parametrize("num_supernodes", [1, 7])
def test_the_result_does_not_depend_on_how_many_nodes_host_the_users(done, tmp_path, num_supernodes):
    results, made = run(tmp_path, tiny_run(federation={"num_supernodes": num_supernodes}))
    np.testing.assert_allclose(patch_of(made), patch_of(done[1]), atol=2e-6)
    for variant in VARIANTS:
        ours, theirs = (r["tables"][variant]["all"]["NDCG@10"] for r in (results, done[0]))
        assert ours == pytest.approx(theirs, abs=1e-3)


def test_progress_is_told_by_stage(tmp_path):
    told: list[tuple[str, int, int]] = []
    run(tmp_path, tiny_run(), progress=lambda stage, done, total, note="": told.append((stage, done, total)))
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["data", "cloud", "federation"]
    for stage in stages:
        assert [entry for entry in told if entry[0] == stage][-1][1:] == {"data": (1, 1), "cloud": (2, 2)}.get(
            stage, (4, 4)
        )


@pytest.mark.parametrize(
    "sections",
    [
        {"split": {"protocol": "rand-60-20-20"}},
        {"split": {"protocol": "loo99"}, "data": {"num_items": 200}},
        {"split": {"cloud_share": 0.0}, "patch": {"parts": ["item-low-rank", "bottleneck"]}},
        {"split": {"cloud_share": 0.0}, "meta": {"num_negatives": 2}},
        {"split": {"cloud_share": 1.0}, "meta": {"num_negatives": 2, "second_order": False, "num_contexts": 2}},
        {"meta": {"inner_parts": []}, "evaluation": {"personal_steps": 0}},
        {"meta": {"inner_steps": 0}, "federation": {"weighting": "num-examples", "clipping_norm": float("inf")}},
        {"federation": {"rounds": 0}},
    ],
    ids=lambda sections: " ".join(f"{s}.{k}={v}" for s, keys in sections.items() for k, v in keys.items()),
)
def test_other_settings_run_to_the_end(tmp_path, sections):
    results, made = run(tmp_path, tiny_run(**{**sections, "cloud": {"epochs": 1}}))
    assert results["answered"] == results["held_out"]
    assert np.isfinite(patch_of(made)).all()


def test_unknown_parts_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"patch.parts: no part named 'botleneck'"):
        run(tmp_path, tiny_run(patch={"parts": ["botleneck"]}))


def test_inner_parts_that_the_patch_lacks_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match=r"meta.inner_parts names 'readout'"):
        run(tmp_path, tiny_run(meta={"inner_parts": ["bottleneck", "readout"]}))
