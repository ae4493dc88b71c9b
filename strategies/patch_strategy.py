"""The one Flower strategy. What varies is its aggregator and its server optimizer, both from the configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import INFO, WARNING
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log

from fedquilt import wire
from fedquilt.code import code_hash
from fedquilt.config import Config
from fedquilt.errors import FederationError, PrivacyError
from fedquilt.types import PatchSpec
from fedquilt.wire_evaluation import read_judgement
from fedquilt.wire_shares import SharesReply, read_shares_reply
from strategies.aggregation import counted, make_aggregation, needs_root
from strategies.cohort import Draw, Witness, draw_cohort, ids_digest
from strategies.distributed import collect_shares
from strategies.evaluation import Evaluation, Examine, put_together, unexamined
from strategies.pipeline import NodeAnswer, RowBuffer, Step, Usable, advance, collect, stepped, tensor_of, weights_for
from strategies.population import (
    Population,
    absent_users,
    attended,
    fewest_nodes,
    joined,
    returned,
    wait_for_population,
)
from strategies.private import PrivateRounds
from strategies.report import RoundReport, report_release, report_round, require_enough
from strategies.roster import Binds, Enrolls, Roster, failure, read_roster, wait_for_nodes
from strategies.rules import RoundContext, State, make_optimizer
from strategies.suspicion import History, judge, left_out, record_of, remember, require_suspicion, zero_weighted

T = TypeVar("T")
RootUpdate = Callable[[int, np.ndarray], np.ndarray]
"""(round, patch [P]) -> the update [P] that the cloud computes from data of its own."""

_TOLD = 5  # nodes that an error names
_TRIES, _WELCOME_S = 3, 60.0  # of a node that comes back in the middle of a run, which the others wait for


@dataclass(frozen=True)
class StrategyState:
    """What rounds carry on, apart from the patch."""

    optimizer: State
    rule: State = field(default_factory=dict)
    suspicion: State = field(default_factory=dict)

    def undone(self, before: StrategyState) -> StrategyState:
        """After a round that is rolled back: as before it, but for what was learnt of its clients."""
        return replace(before, suspicion=self.suspicion)


@dataclass(frozen=True)
class _Asked:
    """The orders of one round that are out."""

    round_: int
    by_node: Mapping[int, np.ndarray]
    part: str = ""
    bytes_down: int = 0


def _unseen(draw: Draw) -> None:
    return None


@final
class PatchStrategy(Strategy):
    """Deploys, draws cohorts, and turns users' updates into the next patch.

    Works under ``server.loop``, which adds resume, records and hooks, and under Flower's own ``start``. After a round
    ``report`` holds what happened in it; after an evaluation ``evaluation`` holds the per-user arrays.
    """

    def __init__(
        self,
        config: Config,
        spec: PatchSpec,
        base: Mapping[str, np.ndarray],
        device_folder: str | Path = "",
        witness: Witness = _unseen,
        examine: Examine = unexamined,
        root_update: RootUpdate | None = None,
    ):
        federation, optimizer = config.federation, config.server_optimizer
        self.config, self.spec, self.base = config, spec, base
        self.config_hash = config.hash()
        self.rule = make_aggregation(federation)
        self.optimizer = make_optimizer(optimizer.name, optimizer.learning_rate, optimizer.options)
        self.suspicious = require_suspicion(config)
        self.state = StrategyState(self.optimizer.initial_state(spec.num_parameters))
        self.settled_round: int | None = None  # None: the round before, for a loop that never goes back
        self.roster: Roster | None = None
        self._present: Roster | None = None  # of the roster, the nodes that are there
        self._tries: Counter[int] = Counter()
        self.private: PrivateRounds | None = None  # set once the population is known, unless privacy.mode is none
        self.report: RoundReport | None = None
        self.evaluation: Evaluation | None = None
        self._device_folder = str(Path(device_folder).absolute()) if device_folder else ""
        self._standing = wire.Standing(spec.hash, self.config_hash, wire.arrays_hash(base))
        self._witness, self._examine = witness, examine
        self._root_update = root_update if needs_root(self.rule) else None
        self._buffer = RowBuffer()
        self._asked: _Asked | None = None
        self._patch_P = np.zeros(spec.num_parameters, np.float32)

    def summary(self) -> None:
        federation = self.config.federation
        log(INFO, "patch of %d parameters, spec %s", self.spec.num_parameters, self.spec.hash)
        log(INFO, "cohorts of %d users, clipped to %g", federation.cohort_size, federation.clipping_norm)
        log(INFO, "aggregator %r, server optimizer %r", self.rule.rule, self.optimizer)

    # --- deploy ---

    def deploy(self, grid: Grid, population: Population | None = None) -> Roster:
        """Wait for the nodes, send each the deployment, learn whom they host. Before round 1 and after every resume.

        ``population``: of a run that has begun; some of its nodes may be gone.
        """
        federation = self.config.federation
        if population is None:
            nodes = wait_for_nodes(grid, federation.num_supernodes, federation.wait_timeout_s)
            self.roster = self._deployed(grid, nodes, federation.num_supernodes, federation.round_deadline_s)
            return self.roster
        nodes = wait_for_population(grid, population, federation)
        self._present = self._deployed(grid, nodes, fewest_nodes(federation, grid), federation.round_deadline_s)
        self.roster = attended(self._present, population, grid)
        return self.roster

    def welcome(self, grid: Grid, population: Population) -> bool:
        """Deploy to nodes that were absent and have come since; -> whether anything has changed."""
        assert self.roster is not None  # deployed, before there can be somebody who was absent
        nodes = [node for node in returned(grid, population, self.roster) if self._tries[node] < _TRIES]
        if not nodes or self._present is None:
            return False
        self._tries.update(nodes)
        try:
            more = self._deployed(grid, nodes, 1, min(_WELCOME_S, self.config.federation.round_deadline_s))
        except FederationError as error:
            log(WARNING, "%s", error)
            return False
        self._present = joined(self._present, more)
        self.roster = attended(self._present, population, grid)
        return True

    def _deployed(self, grid: Grid, nodes: Sequence[int], required: int, timeout_s: float) -> Roster:
        order = wire.DeployOrder(
            base=self.base,
            spec=self.spec,
            config_toml=self.config.to_toml(),
            config_hash=self.config_hash,
            base_hash=self._standing.base_hash,
            code_hash=code_hash(),
            folder=self._device_folder,
        )
        content = wire.write_deploy_order(order)
        messages = [self._message(content, node, wire.DEPLOY, 0) for node in nodes]
        replies = grid.send_and_receive(messages, timeout=timeout_s)
        enrolled = grid.partitions() if isinstance(grid, Enrolls) else None
        bind = grid.bind if isinstance(grid, Binds) else None
        return read_roster(replies, nodes, required, enrolled, bind, self.spec.hash)

    # --- train ---

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        roster = self.roster or self.deploy(grid)
        self._patch_P = self._read_patch(arrays)
        cohort_K, draw = self._draw(server_round, roster)
        self._witness(draw)
        by_node = roster.by_node(cohort_K)
        there = {node: ids_K for node, ids_K in by_node.items() if node not in roster.absent}
        messages = [self._train_message(server_round, node, ids_K) for node, ids_K in there.items()]
        self._asked = _Asked(server_round, by_node, bytes_down=_total_bytes(messages))
        return messages

    def _draw(self, round_: int, roster: Roster) -> tuple[np.ndarray, Draw]:
        if self.private is not None:
            cohort_K = self.private.begin(round_, absent_users(roster))
            return cohort_K, Draw(round_, "privacy/cohort", 0, ids_digest(cohort_K))  # a key may be secret
        if self.config.privacy.mode != "none":
            raise PrivacyError(
                f"privacy.mode = {self.config.privacy.mode!r} needs a ledger, and nobody opened one: run the strategy"
                " under server.loop"
            )
        trusted_U = np.setdiff1d(roster.client_ids_U, left_out(History.of(self.state.suspicion), roster.client_ids_U))
        return draw_cohort(self.config.seed, round_, trusted_U, self.config.federation.cohort_size)

    def _train_message(self, round_: int, node: int, client_ids_K: np.ndarray) -> Message:
        settled = max(round_ - 1, 0) if self.settled_round is None else self.settled_round
        terms = self.private.terms(round_).to_json() if self.private else ""
        order = wire.TrainOrder(self._standing, round_, settled, client_ids_K, self._patch_P, terms)
        return self._message(wire.write_train_order(order), node, wire.TRAIN, round_)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next patch. FederationError, naming the causes, where fewer than ``min_replies`` updates are usable."""
        asked, replies = self._out(server_round), list(replies)
        private = self.private
        if private is not None and private.takes != "rows":
            collect_ = self._collect_shares if private.takes == "shares" else self._collect
            return self._release(private, asked, collect_(asked, replies), _total_bytes(replies))
        usable = self._collect(asked, replies)
        released = private.release(server_round, usable) if private else None  # of rows that are private already
        require_enough(usable, self.config.federation.min_replies, server_round)
        weights_K = weights_for(usable, self.config.federation.weighting, self.config.federation.max_examples)
        step = self._advance(server_round, usable, weights_K)
        _require_finite(step.patch_P, server_round)
        suspicion, told = self._suspect(server_round, usable, weights_K, step)
        self.state = StrategyState(step.optimizer_state, step.rule_state, suspicion)
        self.report = report_round(
            server_round,
            usable,
            self.config.federation.clipping_norm,
            asked.bytes_down,
            _total_bytes(replies),
            step.notes,
            told,
        )
        if released is not None:
            self.report = replace(self.report, release_digest=released.digest, privacy_head=released.head)
        return wire.write_patch(step.patch_P), wire.mean_metrics(self.report.flat())

    def _release(
        self, private: PrivateRounds, asked: _Asked, usable: Usable, bytes_up: int
    ) -> tuple[ArrayRecord, MetricRecord]:
        """The next patch from what was released: what follows the release costs no privacy."""
        released = private.release(asked.round_, usable)
        step, scale = (self.optimizer, self.state.optimizer, released.update_P), self._step_scale(asked.round_)
        optimizer_state, patch_P = stepped(*step, self._patch_P, scale, self.spec)
        _require_finite(patch_P, asked.round_)
        self.state = replace(self.state, optimizer=optimizer_state)
        self.report = report_release(asked.round_, usable, released, asked.bytes_down, bytes_up)
        return wire.write_patch(patch_P), wire.mean_metrics(self.report.flat())

    def _advance(self, round_: int, usable: Usable, weights_K: np.ndarray) -> Step:
        rule, optimizer = (self.rule, self.state.rule), (self.optimizer, self.state.optimizer)
        try:
            context = self._context(round_, usable)
            scale = self._step_scale(round_)
            return advance(self._patch_P, usable, weights_K, *rule, *optimizer, step_scale=scale, context=context)
        except FederationError as error:
            raise type(error)(f"round {round_}: {error}") from error

    def _context(self, round_: int, usable: Usable) -> RoundContext:
        root = self._root_update(round_, self._patch_P) if self._root_update else None
        return RoundContext(
            run_seed=self.config.seed,
            round_=round_,
            client_ids_K=usable.client_ids_K,
            nodes_K=usable.nodes_K,
            spec=self.spec,
            root_update_P=None if root is None else torch.from_numpy(np.array(root, np.float32)),
        )

    def _suspect(
        self, round_: int, usable: Usable, weights_K: np.ndarray, step: Step
    ) -> tuple[State, Mapping[str, Any]]:
        """(The scores after a round, what its record says of them); nothing where suspicion is off."""
        if not self.suspicious or self.roster is None:
            return {}, {}
        rows, defence = (tensor_of(usable.updates_KP), tensor_of(weights_K)), self.config.defence
        known = counted(self.rule, *rows, self.state.rule, step.context)
        weightless_K = None if known is None else zero_weighted(usable, *known)
        norm, far = self.config.federation.clipping_norm, defence.suspicion_far
        judgement = judge(usable, weightless_K, step.update_P, norm, far, np.isin(usable.client_ids_K, step.screened_J))
        history = remember(History.of(self.state.suspicion), judgement, defence)
        return history.state(), record_of(judgement, left_out(history, self.roster.client_ids_U))

    def _step_scale(self, round_: int) -> float:
        """Linear decay; a strategy that Flower's own ``start`` runs for more rounds goes on with the smallest step."""
        rounds = max(self.config.federation.rounds, 1)
        return 1 - self.config.server_optimizer.decay * min(round_ / rounds, 1)

    def _collect(self, asked: _Asked, replies: list[Message]) -> Usable:
        answers = [
            NodeAnswer(name, ids_K, reply)
            for name, ids_K, reply in self._answers(asked, replies, self._read_train_reply)
        ]
        return collect(
            answers,
            round_=asked.round_,
            spec_hash=self.spec.hash,
            num_parameters=self.spec.num_parameters,
            clipping_norm=self._row_bound(),
            buffer=self._buffer,
        )

    def _row_bound(self) -> float:
        size = self.spec.num_parameters
        return self.private.row_bound(size) if self.private else self.config.federation.clipping_norm

    def _collect_shares(self, asked: _Asked, replies: list[Message]) -> Usable:
        answers = list(self._answers(asked, replies, self._read_shares_reply))
        return collect_shares(answers, asked.round_, self.spec.hash, self.spec.num_parameters)

    def _read_train_reply(self, content: RecordDict) -> wire.TrainReply:
        return wire.read_train_reply(content, self.spec.num_parameters, self._most_rows())

    def _read_shares_reply(self, content: RecordDict) -> SharesReply:
        return read_shares_reply(content, self.spec.num_parameters, self._most_rows())

    def _most_rows(self) -> int:
        asked = self._asked.by_node.values() if self._asked else ()
        return 2 * max(map(len, asked), default=0) + 16  # some slack: a few unasked rows cost only their senders

    # --- evaluate ---

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Every hosted user, on ``config["part"]`` ("valid" unless it says "test")."""
        roster = self.roster or self.deploy(grid)
        part = str(config.get("part", "valid"))
        by_node = roster.by_node(roster.client_ids_U)
        patch_P, ceiling_I = self._read_patch(arrays), wire.read_ceiling(arrays)
        self._asked = _Asked(server_round, by_node, part)
        orders = {
            node: wire.EvaluateOrder(self._standing, server_round, part, patch_P, ids_K, ceiling_I)
            for node, ids_K in by_node.items()
            if node not in roster.absent
        }
        write = wire.write_evaluate_order
        return [self._message(write(order), node, wire.EVALUATE, server_round) for node, order in orders.items()]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        asked = self._out(server_round)
        answers = list(self._answers(asked, list(replies), read_judgement))
        length = max(self.config.evaluation.ks)
        self.evaluation = put_together(server_round, asked.part, answers, self._examine, length)
        if not self.evaluation.answered:
            told = "; ".join((*self.evaluation.missing, *self.evaluation.refused)[:_TOLD])
            raise FederationError(f"evaluation of round {server_round}: no usable reply: {told}")
        return wire.mean_metrics(self.evaluation.means())

    # --- shared ---

    def _message(self, content: RecordDict, node: int, message_type: str, round_: int) -> Message:
        ttl = self.config.federation.round_deadline_s
        return Message(content, node, message_type, ttl=ttl, group_id=str(round_))

    def _out(self, round_: int) -> _Asked:
        if self._asked is None or self._asked.round_ != round_:
            raise FederationError(f"replies of round {round_}, but the orders that are out are {self._asked}")
        return self._asked

    def _answers(
        self, asked: _Asked, replies: Iterable[Message], read: Callable[[RecordDict], T]
    ) -> Iterator[tuple[str, np.ndarray, T | str]]:
        """(node, whom it was asked for, its reply or the reason why there is none), in order of partition."""
        assert self.roster is not None  # orders went out to its nodes
        by_sender = {message.metadata.src_node_id: message for message in replies}
        for node, ids_K in asked.by_node.items():
            why = self.roster.absent.get(node)
            told: T | str = self._read(by_sender.get(node), read) if why is None else why
            yield self.roster.names[node], ids_K, told

    def _read(self, message: Message | None, read: Callable[[RecordDict], T]) -> T | str:
        if message is None:
            return f"no reply within {self.config.federation.round_deadline_s:g} s"
        if message.has_error():
            return failure(message)
        try:
            return read(message.content)
        except wire.WireError as error:
            return f"unreadable reply: {error}"

    def _read_patch(self, arrays: ArrayRecord) -> np.ndarray:
        patch_P = wire.read_patch(arrays)
        if patch_P.shape != (self.spec.num_parameters,):
            raise FederationError(f"the patch has {patch_P.size} parameters, its spec {self.spec.num_parameters}")
        return patch_P


def _require_finite(patch_P: np.ndarray, round_: int) -> None:
    if not np.isfinite(patch_P).all():
        raise FederationError(f"round {round_}: the next patch is not finite; lower server_optimizer.learning_rate")


def _total_bytes(messages: Iterable[Message]) -> int:
    return sum(wire.content_bytes(message.content) for message in messages if message.has_content())
