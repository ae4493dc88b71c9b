"""What protects nobody is refused before the cloud has spent an hour on its model."""

from __future__ import annotations

import pytest
from flwr.app import Context, RecordDict

from fedquilt.config import Config, parse
from fedquilt.errors import PrivacyError
from fedquilt.runs import RunFolder
from server.app import make_server_app
from server.deploy import serve

SEEDED = {"mode": "central", "noise_multiplier": 1.0}


def tiny(**privacy: object) -> Config:
    return parse({"data": {"dataset": "bazaar", "num_users": 20, "num_items": 30}, "privacy": privacy})


def test_a_gateway_with_seeded_noise_stops_before_it_reads_any_data(tmp_path):
    run, stages = RunFolder.create(tmp_path, tiny(**SEEDED)), []
    with pytest.raises(PrivacyError, match="every device is told"):
        serve(run.config, run, tmp_path / "keys", ("localhost", 0), lambda *told: stages.append(told))
    assert stages == []


def test_a_superlink_with_seeded_noise_stops_before_the_cloud_is_trained(tmp_path):
    run, prepared = RunFolder.create(tmp_path, tiny(**SEEDED)), []
    app = make_server_app(lambda config, run: prepared.append(run), run_config={"run-dir": str(run.path)})
    with pytest.raises(PrivacyError, match="every device is told"):
        app(object(), Context(0, 0, {}, RecordDict(), {}))
    assert prepared == []
