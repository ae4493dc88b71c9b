"""The doctor names what is wrong and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli import doctor
from cli.main import main


def test_this_machine_gets_a_list_of_checks(capsys):
    with pytest.raises(SystemExit):
        main(["doctor", "--json"])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert {"python", "flwr", "torch", "one copy", "FLWR_HOME", "cores", "memory"} <= set(checks)
    assert checks["flwr"]["state"] == "ok"


def test_a_switch_that_is_off_comes_with_the_line_that_sets_it():
    checks = {check.name: check for check in doctor.environment({"RAY_USAGE_STATS_ENABLED": "0"}.get)}
    assert checks["RAY_USAGE_STATS_ENABLED"].state == "ok"
    assert checks["FLWR_TELEMETRY_ENABLED"].advice == "export FLWR_TELEMETRY_ENABLED=0"


@pytest.mark.parametrize(("name", "state"), [("my-app-2", "ok"), ("my_app", "warn"), ("my app", "warn")])
def test_flower_builds_only_from_plain_folder_names(name, state):
    assert doctor.folder_name(Path("/anywhere") / name).state == state


def test_another_client_folder_in_the_working_directory_is_a_hazard(tmp_path):
    root = Path(doctor.__file__).resolve().parents[1]
    assert doctor.one_copy(root, root).state == "ok"
    (tmp_path / "client").mkdir()
    assert doctor.one_copy(root, tmp_path).state == "warn"
    assert doctor.one_copy(tmp_path, tmp_path).state == "fail"


def test_a_home_that_does_not_exist_yet_is_judged_by_its_parent(tmp_path):
    assert doctor.flower_home(tmp_path / "new" / "home").state == "ok"
    assert doctor.flower_home(Path("/proc/none")).state == "fail"
