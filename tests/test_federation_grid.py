"""The in-process grid is a Flower grid: isolated, bounded in time, with error replies."""

from __future__ import annotations

import re

import numpy as np
import toy_task
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from client.app import make_client_app
from fedquilt import wire
from server.in_process import InProcessGrid


def test_neither_side_sees_what_the_other_does_to_a_message():
    client_app = ClientApp()
    seen = []

    @client_app.train()
    def train(message, context):
        seen.append(message)
        message.content["facts"]["list"].append(9)
        message.content["facts"]["word"] = "changed"
        message.content["arrays"]["a"].data = b"changed"
        return Message(message.content, reply_to=message)

    content = RecordDict(
        {"facts": ConfigRecord({"list": [1], "word": "as sent"}), "arrays": wire.write_patch(np.ones(3))}
    )
    content["arrays"]["a"] = content["arrays"]["patch"]
    grid = InProcessGrid(client_app, 2)
    replies = list(grid.send_and_receive([Message(content, node_id, "train") for node_id in (1, 2)]))
    assert content["facts"]["list"] == [1]
    assert content["facts"]["word"] == "as sent"
    assert content["arrays"]["a"].data != b"changed"
    assert [reply.content["facts"]["list"] for reply in replies] == [[1, 9], [1, 9]]
    seen[0].content["facts"]["list"].append(10)
    assert replies[0].content["facts"]["list"] == [1, 9]


def test_the_grid_also_runs_a_strategy_of_flowers_own():
    client_app = ClientApp()

    def answer(message, context):
        metrics = MetricRecord({"num-examples": 1, "partition": context.node_config["partition-id"]})
        return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)

    client_app.train()(answer)
    client_app.evaluate()(answer)
    result = FedAvg(min_available_nodes=2).start(InProcessGrid(client_app, 4), ArrayRecord([np.ones(3)]), num_rounds=2)
    assert result.train_metrics_clientapp[2]["partition"] == 1.5


def test_a_message_past_its_time_to_live_is_not_delivered():
    grid = InProcessGrid(make_client_app(toy_task.toy_task), 1)
    order = wire.write_evaluate_order(wire.EvaluateOrder(wire.Standing("a", "b", "c"), 1, "valid", np.zeros(3)))
    message = Message(order, 1, wire.EVALUATE, ttl=1e-9)
    assert list(grid.send_and_receive([message])) == []


def test_a_message_to_nobody_gets_an_error_reply():
    grid = InProcessGrid(make_client_app(toy_task.toy_task), 1)
    order = wire.write_evaluate_order(wire.EvaluateOrder(wire.Standing("a", "b", "c"), 1, "valid", np.zeros(3)))
    (reply,) = grid.send_and_receive([Message(order, 7, wire.EVALUATE)])
    assert "no such node" in reply.error.reason


def test_message_types_are_routed_by_flower():
    assert all(
        re.fullmatch(r"(train|evaluate|query)(\.\w+)?", kind) for kind in (wire.DEPLOY, wire.TRAIN, wire.EVALUATE)
    )
