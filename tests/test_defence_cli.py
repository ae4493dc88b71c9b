"""Suspects and appeals from the command line and in the report, on a bazaar of 200 users."""

from __future__ import annotations

import contextlib
import json

import pytest
from tiny_recommender import tiny_run

from cli.attack_world import make_world, run_attack
from cli.main import main
from cli.report import write_report
from fedquilt.config import Config, parse
from fedquilt.runs import RunFolder
from server.appeals import suspects


def attacked() -> Config:
    federation = {"rounds": 4, "evaluate_every": 0, "aggregator": "median"}
    tiny = tiny_run(cloud={"epochs": 1}, federation=federation)
    given = {
        "attack": {"name": "not-finite", "malicious": 0.1},
        "defence": {"suspicion": True, "suspicion_threshold": 2, "suspicion_far": 1e30},
    }
    return parse({**tiny.model_dump(), **given})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    folder = tmp_path_factory.mktemp("attacked")
    return RunFolder.open(folder / run_attack(attacked(), folder)["run"])


def say(capsys, *arguments: str) -> str:
    with contextlib.suppress(SystemExit):  # what was said is looked at
        main(list(arguments))
    return capsys.readouterr().out


def test_senders_of_nan_are_not_drawn_again_and_they_alone(run):
    malicious = set(make_world(attacked()).malicious_M.tolist())
    left_out = {suspect.client_id for suspect in suspects(run) if suspect.excluded}
    assert left_out
    assert left_out <= malicious
    drawn_twice = [len(suspect.charges) for suspect in suspects(run) if suspect.client_id in left_out]
    assert max(drawn_twice) == 1


def test_the_list_the_appeal_and_the_report_tell_of_a_client(run, capsys):
    listed = json.loads(say(capsys, "appeal", str(run.path), "--json"))
    worst = listed[0]
    assert worst["excluded"] is True
    assert "update" in worst["charges"][0]["why"]  # not finite, or longer than the clipping norm
    html = write_report(run).read_text()
    assert "Suspected clients" in html
    assert f"<td>{worst['client_id']}</td>" in html
    told = say(capsys, "appeal", str(run.path), str(worst["client_id"]), "--reason", "its sensor <b> broke")
    assert "set back" in told
    html = run.report_path.read_text()
    assert "its sensor &lt;b&gt; broke" in html
    assert f"<td>{worst['client_id']}</td>" not in html
