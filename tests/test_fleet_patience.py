"""What ends a device for good, and what it waits out: on real gateways, with real certificates."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from fleet_toy import LIMITS, gateway, make_keys, running, toy_agent
from limits import join, wait_until
from toy_task import federate

from client import patience
from client.agent import Agent
from client.patience import Patience
from fedquilt.errors import RefusedError
from fedquilt.rpc import fleet_pb2, fleet_pb2_grpc
from fedquilt.rpc.frames import RETRY_AFTER_MS, FrameError
from fedquilt.rpc.keys import DEVICE, SERVER, TOKEN, Identity, fingerprint, make_authority, make_device
from server.fleet_registry import give_token, revoke

Code = grpc.StatusCode


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Waits of half a second where devices wait for a minute."""
    monkeypatch.setattr(patience, "LONGEST_WAIT_S", 0.5)
    monkeypatch.setattr(patience, "LONGEST_REFUSED_S", 0.5)


@pytest.fixture
def keys(tmp_path) -> Path:
    return make_keys(tmp_path, 1)


def told(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "fedquilt.device"]


def comes(grid) -> None:
    wait_until(lambda: list(grid.get_node_ids()), "the device is there")


# --- what is waited out ---


def test_a_device_without_a_token_is_told_so_once_and_comes_in_once_it_has_one(keys, caplog):
    device = keys / "devices" / "d0"
    (device / TOKEN).unlink()
    caplog.set_level(logging.INFO)
    with gateway(keys) as grid, running(toy_agent(grid, device)):
        wait_until(lambda: "token is unknown or used" in str(told(caplog)), "it says why")
        threading.Event().wait(2.0)  # some more tries
        give_token(keys, device)
        comes(grid)
        assert str(told(caplog)).count("token is unknown or used") == 1


def test_a_device_of_other_code_waits_for_a_gateway_that_runs_its_own(keys, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as updating:
        updating.setattr("server.fleet_service.code_hash", lambda: "0" * 16)
        grid = gateway(keys)
        port, agent = grid.port, toy_agent(grid, keys / "devices" / "d0")
        running_agent = running(agent)
        running_agent.__enter__()
        wait_until(lambda: "install one version on both sides" in str(told(caplog)), "it says why")
        grid.close()
    with gateway(keys, port=port) as grid:
        comes(grid)
        assert "install one version on both sides" in str(told(caplog))
        running_agent.__exit__(None, None, None)


def test_a_device_outlives_a_gateway_that_is_another_authoritys_for_a_while(keys, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    others = tmp_path / "others"
    make_authority(others)
    grid = gateway(others)
    port, agent = grid.port, toy_agent(grid, keys / "devices" / "d0")
    with running(agent):
        wait_until(lambda: "not connected" in str(told(caplog)), "it says that it is not connected")
        grid.close()
        with gateway(keys, port=port) as grid:
            comes(grid)
            assert len(list(grid.get_node_ids())) == 1


class Broken(fleet_pb2_grpc.FleetServicer):
    """Lets everybody in and sends pieces that make no message."""

    def Enrol(self, request, context):
        return fleet_pb2.EnrolReply(node_id=7, partition=0)

    def Describe(self, request, context):
        return fleet_pb2.Description(heartbeat_s=5)

    def Pull(self, request, context):
        yield fleet_pb2.Chunk(message_id="a", total_bytes=9, data=b"half")
        yield fleet_pb2.Chunk(message_id="b", total_bytes=4, data=b"else")


@contextmanager
def broken_gateway(keys):
    from concurrent.futures import ThreadPoolExecutor

    server, mine = grpc.server(ThreadPoolExecutor(4)), Identity.read(keys, SERVER)
    fleet_pb2_grpc.add_FleetServicer_to_server(Broken(), server)
    credentials = grpc.ssl_server_credentials([(mine.key, mine.certificate)], mine.ca, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait(20)


def test_a_broken_frame_costs_a_connection_and_not_the_device(keys, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with broken_gateway(keys) as port:
        agent = Agent(f"localhost:{port}", keys / "devices" / "d0", lambda me, cloud: bytes)
        with running(agent):
            wait_until(lambda: "FrameError" in str(told(caplog)), "it says what came")
            threading.Event().wait(1.5)
            assert str(told(caplog)).count("FrameError") == 1
    give_token(keys, keys / "devices" / "d0")  # the broken gateway had it used up
    with gateway(keys) as grid:
        later = toy_agent(grid, keys / "devices" / "d0")
        with running(later):
            result, _ = federate(tmp_path, grid=grid, wait_timeout_s=20, num_supernodes=1, rounds=1)
    assert result.rounds == 1


def test_a_device_that_has_only_been_there_says_that_it_is_connected_again(keys, caplog):
    caplog.set_level(logging.INFO)
    grid = gateway(keys)
    port, agent = grid.port, toy_agent(grid, keys / "devices" / "d0")
    with running(agent):
        comes(grid)
        grid.close()
        wait_until(lambda: "not connected" in str(told(caplog)), "it says that it is not connected")
        with gateway(keys, port=port) as grid:
            wait_until(lambda: "connected again" in str(told(caplog)), "a heartbeat was answered")
            assert str(told(caplog)).count("connected again") == 1


# --- what ends it ---


def fingerprint_in(device: Path) -> str:
    return fingerprint(Identity.read(device, DEVICE).certificate)


def ends_with(agent: Agent) -> str:
    """What it ends with."""
    words: list[str] = []

    def live() -> None:
        try:
            agent.run()
        except RefusedError as error:
            words.append(str(error))

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    join(thread, 60)
    return words[0]


def test_a_device_whose_certificate_is_revoked_ends_and_says_what_to_do(keys):
    device = keys / "devices" / "d0"
    revoke(keys, fingerprint_in(device))
    with gateway(keys) as grid:
        assert "the certificate is revoked; it needs new keys and a new token" in ends_with(toy_agent(grid, device))


def test_a_device_that_is_revoked_while_it_is_there_ends(keys):
    device = keys / "devices" / "d0"
    with gateway(keys, limits=LIMITS) as grid:
        agent = toy_agent(grid, device)
        threading.Timer(1.0, revoke, (keys, fingerprint_in(device))).start()
        assert "revoked" in ends_with(agent)


def test_a_device_whose_certificate_has_expired_ends(keys):
    old = make_device(keys, "old", days=1, begins=datetime.now(UTC) - timedelta(days=2))
    with gateway(keys) as grid:
        assert "certificate expired on" in ends_with(toy_agent(grid, old))


def test_a_device_whose_certificate_is_of_another_authority_than_it_trusts_ends(keys, tmp_path):
    others = tmp_path / "others"
    make_authority(others)
    device = keys / "devices" / "d0"
    (device / "ca.crt").write_bytes((others / "ca.crt").read_bytes())
    with gateway(keys) as grid:
        assert "not of the authority" in ends_with(toy_agent(grid, device))


# --- how long it waits ---


class Refused(grpc.RpcError):
    def __init__(self, code, details="no", metadata=()):
        self._all = code, details, metadata

    def code(self):
        return self._all[0]

    def details(self):
        return self._all[1]

    def trailing_metadata(self):
        return self._all[2]


@pytest.mark.parametrize(
    ("error", "longest"),
    [(Refused(Code.UNAVAILABLE), 30), (Refused(Code.FAILED_PRECONDITION), 60), (FrameError("odd"), 60), (None, 30)],
)
def test_waits_double_up_to_a_cap_and_vary_by_half(error, longest, monkeypatch):
    monkeypatch.undo()
    patient = Patience("cloud")
    waits = [patient.after(error) for _ in range(20)]
    due = [min(0.2 * 2**n, longest) for n in range(20)]
    assert all(wait <= most and wait >= most / 2 for wait, most in zip(waits, due, strict=True))
    assert len({round(wait / most, 6) for wait, most in zip(waits, due, strict=True)}) > 15


def test_an_answer_makes_it_hopeful_again_and_a_time_that_the_cloud_names_is_kept(monkeypatch):
    monkeypatch.undo()
    patient = Patience("cloud")
    for _ in range(9):
        patient.after(Refused(Code.UNAVAILABLE))
    patient.rewarded()
    assert patient.after(Refused(Code.UNAVAILABLE)) <= 0.2
    assert patient.after(Refused(Code.RESOURCE_EXHAUSTED, metadata=((RETRY_AFTER_MS, "7000"),))) == 7.0


def test_a_reason_is_told_again_when_it_changes_and_only_then(caplog):
    caplog.set_level(logging.INFO)
    patient = Patience("cloud")
    for details in ("other code", "other code", "not enrolled", "other code"):
        patient.after(Refused(Code.FAILED_PRECONDITION, details))
    assert [text.split(": ")[2].split(";")[0] for text in told(caplog)] == ["other code", "not enrolled", "other code"]
