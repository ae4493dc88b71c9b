"""A run folder: what is written is read back, what a kill leaves is survived, what is damaged is named."""

from __future__ import annotations

import numpy as np
import pytest

from fedquilt.config import load
from fedquilt.errors import RunError
from fedquilt.runs import RunFolder, list_runs


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path, load(overrides=["name=trial", "federation.rounds=3"]))


def test_a_run_is_named_by_time_configuration_and_four_digits(run):
    stamp, name, suffix = run.name.split("-")
    assert len(stamp) == len("20260101T000000")
    assert name == "trial"
    assert len(suffix) == 4


def test_the_configuration_is_read_back_as_it_was(run):
    assert RunFolder.open(run.path).config == run.config
    assert RunFolder.open(run.path).config.federation.rounds == 3


def test_records_come_back_in_order_and_by_kind(run):
    run.append({"kind": "cloud", "epoch": 1})
    run.append({"kind": "round", "round": 1, "loss": np.float32(0.5), "norms": np.arange(2)})
    assert run.records() == [{"kind": "cloud", "epoch": 1}, {"kind": "round", "round": 1, "loss": 0.5, "norms": [0, 1]}]
    assert [record["round"] for record in run.records("round")] == [1]


def test_a_run_without_records_has_none(run):
    assert run.records() == []


@pytest.mark.parametrize("torn", [b'{"kind": "rou', b'{"kind": "round", "round": 2}', b"\xff"])
def test_a_torn_last_line_is_dropped_by_readers_and_by_the_next_append(run, torn):
    run.append({"kind": "round", "round": 1})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert [record["round"] for record in run.records()] == [1]
    run.append({"kind": "round", "round": 2})
    assert [record["round"] for record in run.records()] == [1, 2]


def test_a_damaged_earlier_line_is_named(run):
    run.append({"kind": "round", "round": 1})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "rou\n')
    run.append({"kind": "round", "round": 3})
    with pytest.raises(RunError, match="line 2"):
        run.records()


def test_truncating_drops_later_rounds_and_keeps_what_has_no_round(run):
    for record in ({"kind": "cloud"}, {"kind": "round", "round": 1}, {"kind": "round", "round": 2}):
        run.append(record)
    run.truncate_after(1)
    assert run.records() == [{"kind": "cloud"}, {"kind": "round", "round": 1}]


def test_truncating_then_repeating_gives_the_same_bytes(run):
    for round_ in (1, 2, 3):
        run.append({"kind": "round", "round": round_, "loss": 1 / 3})
    before = (run.path / "metrics.jsonl").read_bytes()
    run.truncate_after(1)
    for round_ in (2, 3):
        run.append({"kind": "round", "round": round_, "loss": 1 / 3})
    assert (run.path / "metrics.jsonl").read_bytes() == before


def test_a_record_without_a_kind_is_refused(run):
    with pytest.raises(RunError, match="kind"):
        run.append({"round": 1})


def test_arrays_come_back_without_pickle(run):
    run.write_arrays("evaluation.npz", ids=np.arange(3), names=np.array(["a", "b"]))
    arrays = run.read_arrays("evaluation.npz")
    assert arrays["ids"].tolist() == [0, 1, 2]
    assert arrays["names"].tolist() == ["a", "b"]


def test_python_objects_are_not_stored(run):
    with pytest.raises(RunError, match="Python objects"):
        run.write_arrays("bad.npz", things=np.array([{}, None]))


def test_a_damaged_array_file_is_named(run):
    (run.path / "evaluation.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(RunError, match=r"evaluation\.npz is damaged"):
        run.read_arrays("evaluation.npz")


def test_a_missing_result_names_the_state_of_the_run(run):
    run.set_status("interrupted", round=2)
    with pytest.raises(RunError, match=r"no results\.json.*interrupted"):
        run.read_json("results.json")


def test_the_status_is_the_last_one_set(run):
    assert run.status == {}
    run.set_status("running", round=1)
    run.set_status("done", round=3)
    assert (run.status["state"], run.status["round"]) == ("done", 3)


def test_replacing_a_file_leaves_nothing_beside_it(run):
    run.write_json("results.json", {"a": 1})
    run.write_json("results.json", {"a": 2})
    assert run.read_json("results.json") == {"a": 2}
    assert sorted(path.name for path in run.path.iterdir()) == ["config.toml", "results.json"]


def test_opening_a_path_without_a_run_says_so(tmp_path):
    with pytest.raises(RunError, match="not a folder"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"no config\.toml"):
        RunFolder.open(tmp_path)


def test_a_configuration_of_another_version_is_named(run):
    with (run.path / "config.toml").open("a") as file:
        file.write("\n[nonsense]\nx = 1\n")
    with pytest.raises(RunError, match=r"config\.toml is damaged or from another version.*nonsense"):
        RunFolder.open(run.path)


def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match="letters, digits"):
        RunFolder.create(tmp_path, load(overrides=["name='../up'"]))


def test_runs_are_listed_oldest_first_and_other_folders_are_not_runs(tmp_path, run):
    (tmp_path / "notes").mkdir()
    later = RunFolder.create(tmp_path, load(overrides=["name=zz"]))
    assert {found.name for found in list_runs(tmp_path)} == {run.name, later.name}
    assert list_runs(tmp_path / "nowhere") == []
