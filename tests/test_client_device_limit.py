"""A device's limit of epsilon: counted at the device's own delta, whatever the cloud's is."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from private_toy import device_ledgers, events, federate, private, sendings

import client.device_ledger as module
from cli.device import device
from client.device_ledger import DeviceLedger, device_event
from fedquilt.errors import FederationError, PrivacyError
from fedquilt.privacy.events import DeviceLimit, DeviceRound, NormedDeviceRound
from fedquilt.privacy.gaussian import gaussian_epsilon
from fedquilt.privacy.ledger import Ledger
from fedquilt.privacy.terms import Terms
from fedquilt.privacy.verify import verify
from strategies.local import LocalRounds

ALICE = np.array([7])


def round_at(delta: float, round_: int = 1, ids_K: np.ndarray = ALICE) -> DeviceRound:
    """Noise of std 4 C on one row: mu = 1/2 in local mode."""
    return device_event(Terms("r", "local", 1.0, 4.0, delta, "1:a"), round_, ids_K, 10, f"d{round_}")


@pytest.mark.parametrize("named", [1 - 1e-12, 0.5, 1e-3])
def test_a_clouds_large_delta_buys_no_rounds(tmp_path, named):
    once = gaussian_epsilon(0.5, 1e-5)
    device = DeviceLedger(tmp_path / "device.sqlite", 1.01 * once, delta=1e-5)
    assert device.admit(round_at(named), ALICE).all()
    device.record([(round_at(named), ALICE)])
    assert not device.admit(round_at(named, 2), ALICE).any()


def test_a_smaller_delta_than_the_devices_own_counts(tmp_path):
    device = DeviceLedger(tmp_path / "device.sqlite", gaussian_epsilon(0.5, 1e-5))
    assert not device.admit(round_at(1e-9), ALICE).any()


def test_without_a_delta_of_its_own_a_device_counts_at_one_in_a_million(tmp_path):
    at, below = (DeviceLedger(tmp_path / "device.sqlite", gaussian_epsilon(0.5, 1e-6) * k) for k in (1.0001, 0.9999))
    assert (at.admit(round_at(0.9), ALICE).all(), below.admit(round_at(0.9), ALICE).any()) == (True, False)


def test_an_owner_who_names_a_delta_sends_nothing_to_runs_that_promise_less(tmp_path):
    config = private("local", {"rounds": 1, "evaluate_every": 0}, delta=1e-3)
    with pytest.raises(FederationError, match=r"at delta 0\.001, the owner of this device wants at most 1e-05"):
        federate(tmp_path / "a", config, **{"device-delta": 1e-5})
    _, run = federate(tmp_path / "b", config, **{"device-delta": 1e-3})
    assert len(run.records("round")) == 1


def test_a_deployment_cannot_loosen_the_delta_of_an_owners_own_limit(tmp_path, monkeypatch):
    honest = LocalRounds.terms
    monkeypatch.setattr(LocalRounds, "terms", lambda self, round_: replace(honest(self, round_), delta=1 - 1e-12))
    once = gaussian_epsilon(2.0, 1e-6)
    config = private("local", {"evaluate_every": 0}, device_delta=0.999)
    with pytest.raises(FederationError, match=r"round 3: .* own privacy budget is spent"):
        federate(tmp_path, config, **{"device-epsilon": 1.01 * once})
    sent = [event.cohort_size for path in tmp_path.glob("*/devices/privacy-*.sqlite") for event in sendings(path)]
    assert sum(sent) == 24  # each once: in two rounds, as two groups take turns


# --- the limit on the ledger ---


def test_the_limit_is_on_the_devices_ledger_whenever_it_is_another_one(tmp_path):
    for round_, limit in enumerate((0.0, 30.0, 30.0, 50.0, 0.0, 0.0)):
        DeviceLedger(tmp_path / "device.sqlite", limit, 1e-5).record([(round_at(1e-6, round_), ALICE)])
    said = [(e.round_, e.epsilon, e.delta) for e in events(tmp_path / "device.sqlite") if isinstance(e, DeviceLimit)]
    assert said == [(1, 30.0, 1e-5), (3, 50.0, 1e-5), (4, 0.0, 1e-5)]


def test_the_limit_is_said_once_although_the_ledger_is_opened_again(tmp_path):
    for round_ in (1, 2):
        DeviceLedger(tmp_path / "device.sqlite", 30.0).record([(round_at(1e-6, round_), ALICE)])
        module._open.clear()
    assert [event.kind for event in events(tmp_path / "device.sqlite")].count(DeviceLimit.kind) == 1


@pytest.mark.parametrize(("rounds", "holds"), [(4, True), (5, False)])
def test_verify_finds_a_user_beyond_the_limit_that_the_device_said(tmp_path, rounds, holds):
    ledger, limit = Ledger.create(tmp_path / "device.sqlite"), gaussian_epsilon(1.0, 1e-6)  # of four rounds
    ledger.append(DeviceLimit("r", 1, limit, 1e-6))
    for round_ in range(rounds):
        ledger.append(round_at(1e-6, round_), ALICE)
    found = verify(ledger.path).findings
    assert [finding.kind for finding in found] == ([] if holds else ["limit"])
    assert holds or "a user's epsilon came to" in found[0].text


def test_what_was_spent_before_a_lower_limit_is_no_finding(tmp_path):
    ledger = DeviceLedger(tmp_path / "device.sqlite", 100.0)
    ledger.record([(round_at(1e-6, round_), ALICE) for round_ in (1, 2)])
    lower, bob = DeviceLedger(ledger.path, gaussian_epsilon(0.5, 1e-6)), np.array([8])
    assert not lower.admit(round_at(1e-6, 3), ALICE).any()
    lower.record([(round_at(1e-6, 3, bob), bob)])
    assert verify(ledger.path).holds


# --- whose limit it is ---


@pytest.mark.parametrize(
    ("own", "kind"),
    [
        ({}, NormedDeviceRound),  # the deployment's limit
        ({"device-epsilon": 100.0}, DeviceRound),
        ({"device-epsilon": 100.0, "device-norms": True}, NormedDeviceRound),
    ],
)
def test_an_owners_own_limit_is_charged_by_norms_only_if_the_owner_says_so(tmp_path, own, kind):
    config = private("norms", {"rounds": 1, "evaluate_every": 0}, device_epsilon=100.0)
    _, run = federate(tmp_path, config, **own)
    assert {type(event) for path in device_ledgers(run) for event in sendings(path)} == {kind}


def test_an_owner_who_says_so_does_not_turn_norms_on_in_runs_without_them(tmp_path):
    own = {"device-epsilon": 100.0, "device-norms": True}
    _, run = federate(tmp_path, private("central", {"rounds": 1, "evaluate_every": 0}), **own)
    assert {type(event) for path in device_ledgers(run) for event in sendings(path)} == {DeviceRound}


@pytest.mark.parametrize("said", [False, True])
def test_the_command_line_hands_on_what_the_owner_says_of_norms(tmp_path, monkeypatch, said):
    given = {}

    class Agent:
        def __init__(self, server, keys, node_config):
            given.update(node_config)

        def run(self):
            return None

    monkeypatch.setattr("client.agent.Agent", Agent)
    monkeypatch.setattr("cli.device._opens", lambda data, node_config: node_config)
    untouched = SimpleNamespace(SIGTERM=0, SIGINT=0, signal=lambda number, handler: None)
    monkeypatch.setattr("cli.device.signal", untouched)
    (tmp_path / "log.npz").touch()
    device(tmp_path / "log.npz", tmp_path, epsilon=3.0, charge_by_norms=said)
    assert (given["device-epsilon"], given.get("device-norms", False)) == (3.0, said)


def test_a_delta_that_is_none_is_refused(tmp_path):
    for delta in (0.0, -1e-6, 1.5, float("nan")):
        with pytest.raises(PrivacyError, match="lies in"):
            DeviceLedger(tmp_path / "device.sqlite", 1.0, delta)
