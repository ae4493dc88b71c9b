"""A gateway that drains: what it still takes, what it tells, and how waiting ends."""

from __future__ import annotations

import threading
import time

import grpc
import numpy as np
import pytest
from fleet_toy import Caller, gateway, make_keys
from flwr.app import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from limits import join

from fedquilt import wire
from fedquilt.code import code_hash
from fedquilt.errors import DrainedError, FederationError
from fedquilt.rpc import fleet_pb2
from server.fleet_service import CLOSING


@pytest.fixture
def grid(tmp_path):
    with gateway(make_keys(tmp_path, 1)) as grid:
        yield grid


@pytest.fixture
def device(grid, tmp_path):
    with Caller(grid, tmp_path / "keys" / "devices" / "d0") as device:
        device.node = device.enrol().node_id
        device.orders = device.stub.Pull(fleet_pb2.PullRequest(code_hash=code_hash()))
        while device.node not in grid.get_node_ids():
            time.sleep(0.01)
        yield device


def order(device):
    content = wire.write_evaluate_order(wire.EvaluateOrder(wire.Standing("a", "b", "c"), 1, "valid", np.zeros(3)))
    return Message(content, device.node, wire.EVALUATE, ttl=60, group_id="1")


def test_who_waits_for_replies_is_told_when_the_grid_gives_up(grid, device):
    threading.Timer(0.2, grid.give_up).start()
    started = time.monotonic()
    with pytest.raises(DrainedError):
        grid.send_and_receive([order(device)], timeout=30)
    assert time.monotonic() - started < 5


def test_after_giving_up_no_order_goes_out(grid, device):
    grid.give_up()
    with pytest.raises(DrainedError):
        grid.send_and_receive([order(device)], timeout=30)


def test_nobody_waits_for_devices_of_a_grid_that_drains(grid, device):
    grid.drain()
    with pytest.raises(DrainedError):
        grid.get_node_ids()


def test_the_health_service_says_that_a_gateway_drains(grid, device):
    def status():
        return health_pb2_grpc.HealthStub(device.channel).Check(health_pb2.HealthCheckRequest(), timeout=5).status

    assert status() == health_pb2.HealthCheckResponse.SERVING
    grid.drain()
    assert status() == health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_gateway_that_many_threads_close_at_once_closes(tmp_path):
    keys = make_keys(tmp_path, 1)
    for _ in range(5):
        grid = gateway(keys)
        closing = [threading.Thread(target=grid.close, daemon=True) for _ in range(8)]
        for thread in closing:
            thread.start()
        for thread in closing:
            join(thread, 30)
        assert not any(thread.is_alive() for thread in closing)


def test_a_call_that_a_closing_gateway_never_begins_ends_in_an_error(tmp_path):
    grid = gateway(make_keys(tmp_path, 1))
    ended = []

    def ask():
        try:
            while True:
                grid.get_node_ids()
        except FederationError as error:
            ended.append(error)

    asking = [threading.Thread(target=ask, daemon=True) for _ in range(8)]
    for thread in asking:
        thread.start()
    grid.close()
    for thread in asking:
        join(thread, 30)
    assert len(ended) == 8


def test_devices_are_told_that_the_gateway_closes(grid, device):
    threading.Timer(0.2, grid.close).start()
    with pytest.raises(grpc.RpcError) as ended:
        next(device.orders)
    assert (ended.value.code(), ended.value.details()) == (grpc.StatusCode.UNAVAILABLE, CLOSING)
