"""A cloud that talks a device out of its noise: what is deployed and what the owner allows hold against any order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import toy_task
from private_toy import device_ledgers, events, federate, private

from client.app import make_client_app
from client.promises import require_clipping, require_round_noise, require_terms
from fedquilt.errors import FederationError, PrivacyError
from fedquilt.privacy.settings import PrivacyConfig
from fedquilt.privacy.terms import Terms
from fedquilt.runs import RunFolder
from server.in_process import InProcessGrid
from server.loop import run_federation
from strategies.distributed import DistributedRounds
from strategies.local import LocalRounds

OWN_NOISE = {"local": LocalRounds, "distributed": DistributedRounds}
ONE_ROUND = {"rounds": 1, "evaluate_every": 0}


class Told(InProcessGrid):
    """Remembers what nodes refuse."""

    def send_and_receive(self, messages, *, timeout=None):
        replies = list(super().send_and_receive(messages, timeout=timeout))
        self.refused = [*getattr(self, "refused", []), *(r.error.reason for r in replies if r.has_error())]
        return replies


def refusals(folder, config, **node_config) -> str:
    grid = Told(make_client_app(toy_task.toy_task), 3, node_config=node_config)
    try:
        run_federation(grid, config, toy_task.toy_deployment(), RunFolder.create(folder, config))
    except FederationError:
        assert grid.refused
    return "\n".join(grid.refused)


def hostile(monkeypatch, mode, **said):
    """The cloud's orders say something else than its ledger."""
    honest = OWN_NOISE[mode].terms
    monkeypatch.setattr(OWN_NOISE[mode], "terms", lambda self, round_: replace(honest(self, round_), **said))


@pytest.mark.parametrize("mode", OWN_NOISE)
@pytest.mark.parametrize(
    ("said", "privacy", "words"),
    [
        ({"randomness": "simulated"}, {}, "simulated noise, the deployment for secret"),
        ({"noise_multiplier": 0.0}, {}, "rows without noise"),
        ({"noise_multiplier": 0.5}, {}, "0.5 times the clipping norm, the deployment for 1"),
        ({"noise_multiplier": 1e-9, "delta": 0.999999}, {"epsilon": 2.0}, "the deployment promises 2 for all rounds"),
    ],
)
def test_less_noise_than_was_deployed_is_refused_and_nothing_is_sent(mode, said, privacy, words, tmp_path, monkeypatch):
    hostile(monkeypatch, mode, **said)
    config = private(mode, ONE_ROUND, randomness="secret", **privacy)
    told = refusals(tmp_path, config).splitlines()
    assert 0 < len(told) <= 3  # the nodes that were asked: the draw is secret, so not always all
    assert all(words in line for line in told)
    assert not any(events(path) for path in tmp_path.glob("*/devices/privacy-*.sqlite"))


def test_a_limit_of_the_device_does_not_make_seeded_noise_right(tmp_path, monkeypatch):
    hostile(monkeypatch, "local", randomness="simulated")
    config = private("local", ONE_ROUND, randomness="secret")
    assert "simulated noise, the deployment for secret" in refusals(tmp_path, config, **{"device-epsilon": 1000.0})


@pytest.mark.parametrize("mode", ["central", "local", "distributed", "dp-ftrl"])
def test_a_deployed_seed_is_refused_by_somebodys_device_and_taken_in_simulations(mode, tmp_path):
    config = private(mode, ONE_ROUND)
    _, run = federate(tmp_path / "simulated", config)
    assert len(device_ledgers(run)) == 3
    told = refusals(tmp_path / "real", config, **{"device-dir": str(tmp_path / "own")})
    assert told.count("so it is somebody's device") == 3
    assert not list((tmp_path / "own").glob("privacy-*.sqlite"))


@pytest.mark.parametrize("mode", OWN_NOISE)
def test_planned_noise_is_taken_although_the_device_cannot_plan_it(mode, tmp_path):
    config = private(mode, ONE_ROUND, randomness="secret", epsilon=2.0)
    _, run = federate(tmp_path, config, **{"device-dir": str(tmp_path / "own")})
    assert len(run.records("round")) == 1


def terms(**said) -> Terms:
    facts = {"run": "r", "mode": "distributed", "clipping_norm": 0.5, "noise_multiplier": 1.0, "delta": 1e-3}
    return Terms(**{**facts, "run_head": "1:a", "shares": 10, "dropout_margin": 0.1, "noise": "skellam", **said})


def test_shares_sized_for_fewer_dropouts_than_deployed_are_refused():
    privacy = PrivacyConfig(mode="distributed", noise_multiplier=1.0, dropout_margin=0.2)
    with pytest.raises(PrivacyError, match="of dropouts, the deployment for 20%"):
        require_terms(terms(), privacy, own=False)
    require_terms(terms(dropout_margin=0.3), privacy, own=False)


def test_a_central_promise_below_the_deployed_one_is_refused():
    privacy = PrivacyConfig(mode="central", noise_multiplier=1.0)
    with pytest.raises(PrivacyError, match="the deployment for 1"):
        require_round_noise(terms(mode="central", noise_multiplier=0.9), privacy, 10)


@pytest.mark.parametrize("mode", OWN_NOISE)
@pytest.mark.parametrize("norm", [1e6, 0.1])
def test_another_clipping_norm_than_was_deployed_is_refused_and_nothing_is_sent(mode, norm, tmp_path, monkeypatch):
    hostile(monkeypatch, mode, clipping_norm=norm)
    told = refusals(tmp_path, private(mode, ONE_ROUND))
    assert told.count(f"for rows of norm {norm:g}, the deployment for") == 3
    assert not any(events(path) for path in tmp_path.glob("*/devices/privacy-*.sqlite"))


@pytest.mark.parametrize("mode", ["central", "norms", "dp-ftrl"])
def test_no_order_moves_the_clipping_norm_in_any_mode(mode):
    config = private(mode)
    with pytest.raises(PrivacyError, match=r"rows of norm 1e\+06"):
        require_clipping(terms(mode=config.privacy.mode, clipping_norm=1e6), config)


def test_a_clipping_norm_that_follows_a_quantile_is_taken():
    taken = terms(mode="central", clipping_norm=0.7, adaptive=True)
    assert require_clipping(taken, private("quantile")) is None  # else it raises
