"""What a node adds to the private co-click graph: bounded rows of its users' own clicks, as one sum."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np

from client.charge import charged_sum
from client.device_ledger import device_event
from client.node import Node
from fedquilt.errors import FederationError, PrivacyError
from fedquilt.privacy.events import DeviceRound
from fedquilt.privacy.graph_release import GraphRequest, shares_of
from fedquilt.privacy.mechanisms import digest_of
from fedquilt.privacy.pair_rows import pair_rows
from fedquilt.privacy.terms import Terms
from fedquilt.wire_graph import GraphOrder, GraphReply


@runtime_checkable
class HoldsClicks(Protocol):
    """A task whose users have clicks on items."""

    def clicks(self, client_ids_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(client ids [C], equal ones together; items [C] in the order of the clicks)."""


def graph_reply(node: Node, order: GraphOrder) -> GraphReply:
    """The sum of the rows of users with room in their budget, recorded on the device before it leaves.

    In distributed runs the sum carries these users' shares of the noise; else the cloud adds it, as it promised.
    """
    node.require_hosted(order.client_ids_K)
    if not isinstance(node.task, HoldsClicks):
        raise FederationError(f"{type(node.task).__name__} holds no clicks on items: no co-click graph can be made")
    terms, request = node.terms(order.terms), GraphRequest.from_json(order.request)
    _require_fit(terms, request)
    all_K = order.client_ids_K
    ids_K = all_K[node.ledger.admit(_event(terms, request, order.round_, all_K), all_K)]

    def made(ids_K: np.ndarray) -> tuple[np.ndarray, DeviceRound]:
        sum_W = _sum(node, terms, request, ids_K)
        return sum_W, _event(terms, request, order.round_, ids_K, digest_of(sum_W))

    sum_W, ids_K = charged_sum(node.ledger, ids_K, made)
    return GraphReply(order.round_, ids_K, sum_W)


def _sum(node: Node, terms: Terms, request: GraphRequest, ids_K: np.ndarray) -> np.ndarray:
    assert isinstance(node.task, HoldsClicks)  # else the order was refused
    users_C, items_C = node.task.clicks(ids_K)
    rows = pair_rows(request.table, users_C, items_C, request.window, request.max_pairs, request.clipping_norm)
    if terms.mode == "distributed":
        return shares_of(request, rows, terms, len(ids_K), node.source(terms))
    return rows.sum(request.table.cells)


def _require_fit(terms: Terms, request: GraphRequest) -> None:
    if terms.mode == "local":
        raise PrivacyError(
            "privacy.mode is 'local': nothing leaves this device without noise of its own, and pair rows would"
        )
    if terms.noise_multiplier <= 0 or terms.clipping_norm != request.clipping_norm:
        raise PrivacyError(
            f"the order promises noise {terms.noise_multiplier:g} times {terms.clipping_norm:g} for rows of norm"
            f" {request.clipping_norm:g}: nothing is sent"
        )


def _event(terms: Terms, request: GraphRequest, round_: int, ids_K: np.ndarray, digest: str = "") -> DeviceRound:
    return replace(device_event(terms, round_, ids_K, request.row_cells, digest), mechanism="graph")
