"""The co-click graph from devices whose clicks the cloud never sees: ask, sum, noise, record, decode.

One release on the run's own ledger, of all users at once. In central and dp-ftrl runs the cloud adds the noise, in
distributed ones the devices do. It may be made before the first round or between any two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from fedquilt.config import Config
from fedquilt.errors import FederationError, PrivacyError
from fedquilt.graphs.coclick import CoClickGraph
from fedquilt.privacy.accountants import accountant_named, atom_of
from fedquilt.privacy.distributed import centred
from fedquilt.privacy.events import GraphRelease
from fedquilt.privacy.graph_release import GraphRequest, graph_event, noised_table
from fedquilt.privacy.mechanisms import digest_of
from fedquilt.privacy.pair_decode import SPECTRAL_ITEMS, HeavyPairs, graph_of, heavy_pairs, spectral_pairs
from fedquilt.privacy.pair_table import table_for
from fedquilt.privacy.plan import smallest_noise
from fedquilt.privacy.terms import Terms
from fedquilt.runs import RunFolder
from fedquilt.wire import Standing, WireError, arrays_hash
from fedquilt.wire_graph import GRAPH, GraphOrder, GraphReply, read_graph_reply, write_graph_order
from server.privacy import open_rounds
from server.task import Deployment
from strategies.patch_strategy import PatchStrategy
from strategies.private import Common
from strategies.roster import Roster, failure

GRAPH_FILE, GRAPH_RECORD = "private_graph.npz", "private-graph"
_LENGTH_SLACK = 1e-6


@dataclass(frozen=True)
class GraphWish:
    """``epsilon`` of this release alone, or its ``noise_multiplier``; the other is 0. ``threshold``: stds of noise."""

    epsilon: float = 0.0
    noise_multiplier: float = 0.0
    max_pairs: int = 512
    width: int = 1 << 20
    depth: int = 5
    threshold: float = 2.0
    spectral: bool = True


@dataclass(frozen=True)
class PrivateGraph:
    graph: CoClickGraph
    event: GraphRelease
    facts: dict[str, Any]


def private_graph(grid: Grid, config: Config, deployment: Deployment, run: RunFolder, wish: GraphWish) -> PrivateGraph:
    """Deploy, ask every node, release, decode; the graph lies in the run's folder as ``private_graph.npz``.

    PrivacyError or BudgetExceededError before anyone is asked; FederationError where no node answers.
    """
    _require_possible(config, wish)
    with run.writing():
        strategy = PatchStrategy(config, deployment.spec, deployment.base, run.devices)
        roster = strategy.deploy(grid)
        private, round_ = _rounds(config, run, grid, roster, strategy.spec.num_parameters)
        request = _request(config, deployment, wish)
        terms = _terms(config, private, request, roster, wish)
        event = graph_event(request, terms, round_, roster.client_ids_U, _neighbours(private))
        private.gate.require_admission(event)
        standing = Standing(strategy.spec.hash, strategy.config_hash, arrays_hash(deployment.base))
        replies, refused = _ask(grid, config, roster, standing, terms, request, round_)
        table_W = _release(private, event, request, terms, replies, roster)
        pairs = _decoded(request, table_W, event, replies, wish)
        graph = graph_of(pairs, request.table.num_items, config.graph.top_neighbours)
        facts = _facts(event, graph, pairs, replies, refused, private, digest_of(table_W))
        run.write_arrays(GRAPH_FILE, indptr=graph.indptr, indices=graph.indices, weights=graph.weights)
        run.append({"kind": GRAPH_RECORD, "round": round_, **facts})
    return PrivateGraph(graph, event, facts)


def _require_possible(config: Config, wish: GraphWish) -> None:
    mode = config.privacy.mode
    if mode in ("none", "local"):
        why = {
            "none": "the run has no ledger that a release could be charged to",
            "local": "its devices send nothing without noise of their own, and pair rows would be sent without",
        }[mode]
        raise PrivacyError(
            f"privacy.mode = {mode!r}: {why}; a private graph takes a run in mode central, dp-ftrl or distributed"
        )
    if (wish.epsilon > 0) == (wish.noise_multiplier > 0):
        raise PrivacyError("a private graph takes an epsilon or a noise multiplier, positive, and not both")


def _rounds(config: Config, run: RunFolder, grid: Grid, roster: Roster, size: int) -> tuple[Common, int]:
    """The run's ledger behind its gate, and the last round that it knows of."""
    records = [*run.records("round"), *run.records(GRAPH_RECORD)]
    heads = [str(record.get("privacy_head", "")) for record in records]
    last = max((int(record["round"]) for record in records), default=0)
    private = open_rounds(config, run, grid, roster.client_ids_U, last, heads, size)
    assert isinstance(private, Common)  # every mode's rounds are
    return private, max([last, *(event.round_ for event in private.gate.ledger.events() if event.releases)])


def _neighbours(private: Common) -> Any:
    return "replace-one" if private.plan.sampler.kind == "fixed-size" else "add-or-remove"


def _request(config: Config, deployment: Deployment, wish: GraphWish) -> GraphRequest:
    num_items = len(deployment.base["neighbour_items"])
    table = table_for(num_items, wish.width, wish.depth, config.seed)
    return GraphRequest(table, config.graph.window, wish.max_pairs)


def _terms(config: Config, private: Common, request: GraphRequest, roster: Roster, wish: GraphWish) -> Terms:
    mode, users = config.privacy.mode, len(roster.client_ids_U)

    def with_noise(z: float) -> Terms:
        distributed = mode == "distributed"
        return Terms(
            private.run, mode, request.clipping_norm, z, private.delta, private.head,
            randomness=private.plan.source.kind, shares=users if distributed else 0,
            dropout_margin=config.privacy.dropout_margin if distributed else 0.0,
            noise="skellam" if distributed else "gaussian",
        )  # fmt: skip

    def fits(z: float) -> bool:
        event = graph_event(request, with_noise(z), 0, roster.client_ids_U, _neighbours(private))
        atom = atom_of(event)
        assert atom is not None
        return accountant_named("rdp").epsilon({atom: 1}, private.delta) <= wish.epsilon

    return with_noise(wish.noise_multiplier or smallest_noise(fits, f"epsilon {wish.epsilon:g} for the graph"))


def _ask(
    grid: Grid, config: Config, roster: Roster, standing: Standing, terms: Terms, request: GraphRequest, round_: int
) -> tuple[list[GraphReply], list[str]]:
    """-> (usable answers, why others are not)."""
    deadline, by_node = config.federation.round_deadline_s, roster.by_node(roster.client_ids_U)
    orders = []
    for node, ids_K in by_node.items():
        order = GraphOrder(standing, round_, ids_K, terms.to_json(), request.to_json())
        orders.append(Message(write_graph_order(order), node, GRAPH, ttl=deadline, group_id=str(round_)))
    usable, refused = dict[int, GraphReply](), dict.fromkeys(by_node, "no answer in time")
    for message in grid.send_and_receive(orders, timeout=deadline):
        node = message.metadata.src_node_id
        try:
            usable[node] = _checked(message, by_node[node], request, terms, round_)
        except (FederationError, WireError) as error:
            refused[node] = str(error)
    told = [f"{roster.names[node]}: {why}" for node, why in refused.items() if node not in usable]
    if not usable:
        raise FederationError("no node answered the order for co-click pairs:\n" + "\n".join(told))
    return [usable[node] for node in by_node if node in usable], told


def _checked(message: Message, asked_K: np.ndarray, request: GraphRequest, terms: Terms, round_: int) -> GraphReply:
    """The sum of k rows of norm C is no longer than k C; a longer one costs the node its place."""
    if message.has_error():
        raise FederationError(failure(message))
    reply = read_graph_reply(message.content, request.table.cells, terms.mode == "distributed")
    ids_K = reply.client_ids_K
    if reply.round_ != round_ or not np.isin(ids_K, asked_K).all() or len(np.unique(ids_K)) != len(ids_K):
        raise FederationError("answers for another round, or for users who were not asked")
    if terms.mode == "distributed":
        return reply
    length, most = float(np.linalg.norm(reply.sum_W)), len(ids_K) * request.clipping_norm
    if not length <= most * (1 + _LENGTH_SLACK):
        raise FederationError(f"a sum of norm {length:g} for {len(ids_K)} users, who make at most {most:g}")
    return reply


def _release(
    private: Common, event: GraphRelease, request: GraphRequest, terms: Terms, replies: list[GraphReply], roster: Roster
) -> np.ndarray:
    """float64 [cells], after the event is on disk."""
    if terms.mode != "distributed":
        total_W = np.sum([reply.sum_W for reply in replies], axis=0)
        source = private.plan.source
        return private.gate.release(event, lambda event: noised_table(total_W, event, source), roster.client_ids_U)
    noise = request.shares_noise(terms.noise_multiplier, terms.shares, terms.dropout_margin)
    survivors = sum(len(reply.client_ids_K) for reply in replies)
    noise.require_fit(survivors)
    shares_W = np.zeros(request.table.cells, np.uint32)
    for reply in replies:
        shares_W += reply.sum_W
    opened_W = noise.opened(centred(shares_W), survivors, 1.0)
    return private.gate.release(event, lambda event: opened_W, roster.client_ids_U)


def _decoded(
    request: GraphRequest, table_W: np.ndarray, event: GraphRelease, replies: list[GraphReply], wish: GraphWish
) -> HeavyPairs:
    """More shares than the noise was sized for are more noise."""
    shares = sum(len(reply.client_ids_K) for reply in replies) / event.shares if event.noise == "skellam" else 1.0
    std, table = event.noise_multiplier * event.clipping_norm * math.sqrt(max(shares, 1.0)), request.table
    if wish.spectral and table.copies == 1 and table.exact(0) and table.num_items <= SPECTRAL_ITEMS:
        return spectral_pairs(table, table_W, std, wish.threshold)
    return heavy_pairs(table, table_W, std, wish.threshold)


def _facts(
    event: GraphRelease, graph: CoClickGraph, pairs: HeavyPairs, replies: list[GraphReply], refused: list[str],
    private: Common, digest: str,
) -> dict[str, Any]:  # fmt: skip
    atom = atom_of(event)
    assert atom is not None
    return {
        "epsilon": accountant_named("rdp").epsilon({atom: 1}, private.delta),
        "delta": private.delta,
        "noise": event.noise,
        "noise_multiplier": event.noise_multiplier,
        "users": sum(len(reply.client_ids_K) for reply in replies),
        "cells": event.cells,
        "max_pairs": event.max_pairs,
        "heavy_pairs": len(pairs.keys_M),
        "threshold": pairs.threshold,
        "eigenvectors": pairs.rank,
        "edges": graph.num_edges,
        "refused": refused,
        "release_digest": digest,
        "privacy_head": private.head,
    }
