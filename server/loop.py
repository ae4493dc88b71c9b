"""Our own loop around a strategy: Flower's ``start`` has no start round, no hook and no checkpoint.

A round is: configure, send, aggregate, record, evaluate if it is time, checkpoint, hook. Writes reach the disk in this
order, the checkpoint last: what is on disk beyond it belongs to a round that will be run again, with the same result.
They are synced while the next round trains.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from logging import WARNING
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from flwr.supercore import log

from fedquilt.code import whole_code_hash
from fedquilt.config import Config
from fedquilt.errors import BudgetExceededError, DrainedError, FederationError, RunError
from fedquilt.privacy.signing import read_key
from fedquilt.runs import RunFolder
from fedquilt.wire import read_ceiling, read_patch, write_patch
from server.appeals import heard
from server.checkpoint import Checkpoint, kept_rounds, load_latest, save_checkpoint
from server.privacy import open_rounds, require_deployable, require_possible
from server.randomness import RandomnessLedger
from server.rollback import make_rollback, rollback_note
from server.scribe import Scribe
from server.settled import settle, settled
from server.task import Deployment, FederationResult, Hooks, not_served
from strategies.cohort import Draw
from strategies.evaluation import Evaluation
from strategies.patch_strategy import PatchStrategy, StrategyState
from strategies.population import Population, absence, absent_users, fewest_nodes, in_words
from strategies.roster import Roster

LEDGER = "randomness.jsonl"
_TOLD = 5  # nodes that an error names


def run_federation(
    grid: Grid, config: Config, deployment: Deployment, run: RunFolder, hooks: Hooks | None = None
) -> FederationResult:
    """Run the rounds that are left: all of them in a new run folder, those after the checkpoint in an old one.

    FederationError where a round cannot go on, RunError where the folder does not fit or another process writes to it,
    DrainedError where ``hooks.draining`` says to stop; the run can be resumed.
    """
    with run.writing(), Scribe() as scribe:
        return _Federation(grid, config, deployment, run, hooks or Hooks(), scribe).run_rounds()


class _Federation:
    def __init__(
        self, grid: Grid, config: Config, deployment: Deployment, run: RunFolder, hooks: Hooks, scribe: Scribe
    ):
        self.grid, self.config, self.run, self.hooks, self.scribe = grid, config, run, hooks, scribe
        self.ledger = RandomnessLedger(run.path / LEDGER)
        self.checkpoints = run.checkpoints
        self.num_draws = 0
        self.root = deployment.root
        self.strategy = PatchStrategy(
            config,
            deployment.spec,
            deployment.base,
            run.devices,
            witness=self._witness,
            examine=hooks.examine,
            root_update=self._root_update if self.root else None,
        )
        self.rollback = make_rollback(config, self.root)
        self.ceiling, self.lift = deployment.ceiling, deployment.lift
        self.arrays: ArrayRecord = write_patch(deployment.initial_patch_P)
        self._bounded: tuple[ArrayRecord, ArrayRecord, dict[str, Any]] | None = None  # what was served of which patch
        self.population: Population  # settled by the first deploy
        self.last_done = self.last_saved = self.complete = self.draws_done = 0

    def run_rounds(self) -> FederationResult:
        federation = self.config.federation
        require_possible(self.config)
        require_deployable(self.config, self.grid)
        self.last_done = self.last_saved = self.complete = self._go_back_to_checkpoint()
        self._serve(self.last_done)
        if self.last_done == 0 and federation.evaluate_every:
            self._evaluate(0, "valid")
        try:
            for round_ in range(self.last_done + 1, federation.rounds + 1):
                if self.hooks.draining():
                    raise DrainedError(f"{self.run.path}: stopped after round {self.last_done} of {federation.rounds}")
                self._round(round_)
        except BudgetExceededError as error:
            self._stop(str(error))
        except DrainedError:
            self._leave()
            raise
        return self._finish()

    def _leave(self) -> None:
        """What is complete is kept. A round, or its evaluation, that was given up is asked for again after a resume."""
        self.scribe.wait()
        self.num_draws = self.draws_done
        if self.last_saved < self.last_done == self.complete:
            self._save(self.last_done)

    def _stop(self, why: str) -> None:
        """The budget is spent: the run ends with what it has, and can go on once somebody raises the budget."""
        log(WARNING, "stopped after round %d: %s", self.last_done, why)
        self.scribe.wait()
        self.num_draws = self.draws_done  # of a round that was drawn and not released, nothing stays
        if self.strategy.private is not None:
            self.strategy.private.abort(self.last_done + 1, "budget")
        if self.last_saved < self.last_done:
            self._save(self.last_done)
        told = {"kind": "warning", "round": self.last_done, "message": f"stopped by the privacy budget: {why}"}
        if told not in self.run.records("warning"):
            self.run.append(told)

    def _go_back_to_checkpoint(self) -> int:
        """Deploy, restore the newest checkpoint and drop what was written after it. -> the last round that is done."""
        checkpoint, complaints = load_latest(self.checkpoints)
        for complaint in complaints:
            log(WARNING, "%s; going on from the one before", complaint)
        if checkpoint is not None:
            self._require_fit(checkpoint)
        roster = self._deploy(checkpoint)
        self._open_privacy(checkpoint, roster.client_ids_U)
        if checkpoint is None:
            self._drop_records_after(0, ledger_lines=0)
            self._tell_of_absent(0)
            return 0
        self.arrays = write_patch(checkpoint.patch_P)
        states = checkpoint.optimizer_state, checkpoint.rule_state, checkpoint.suspicion_state
        self.strategy.state = heard(self.run, checkpoint.round_, StrategyState(*states))
        self._drop_records_after(checkpoint.round_, checkpoint.ledger_lines)
        self._tell_of_other_code(checkpoint)
        self._tell_of_absent(checkpoint.round_)
        return checkpoint.round_

    def _deploy(self, checkpoint: Checkpoint | None) -> Roster:
        """The first deploy settles whom the run is about; later ones find who of them is there."""
        begun = settled(self.run)
        roster = self.strategy.deploy(self.grid, begun)
        for refusal in roster.refused:
            log(WARNING, "%s", refusal)
        self.population = begun or Population.of(roster)
        if checkpoint is not None and checkpoint.population_hash != self.population.hash:
            raise FederationError(
                f"the nodes host {len(roster.client_ids_U)} users, not the ones of the checkpoint of round"
                f" {checkpoint.round_}: resume with the same data and nodes, or start a new run"
            )
        if len(self.population.nodes) < (fewest := fewest_nodes(self.config.federation, self.grid)):
            raise FederationError(
                f"{len(self.population.nodes)} nodes are there, and federation.min_supernodes = {fewest}: the run could"
                " never end; lower it or start more nodes"
            )
        if begun is None:
            settle(self.run, self.population)
        return roster

    def _tell_of_absent(self, round_: int) -> None:
        """In the records and on the privacy ledger, once until somebody comes or goes. Round lines name them too."""
        assert self.strategy.roster is not None  # there was a deploy
        told = absence(self.strategy.roster)
        before = [{key: record[key] for key in told} for record in self.run.records("population")]
        if told == (before[-1] if before else {**told, "absent": 0, "partitions": {}}):
            return
        words = in_words(told, round_)
        log(WARNING, "%s", words)
        if self.strategy.private is not None:
            self.strategy.private.remark(words)
        self.run.append({"kind": "population", "round": round_, **told})

    def _open_privacy(self, checkpoint: Checkpoint | None, population_U: np.ndarray) -> None:
        """Everything that the run remembers of its ledger must be in it: the checkpoint, and every round's record."""
        if self.config.privacy.mode == "none":
            return
        heads = [str(record.get("privacy_head", "")) for record in self.run.records("round")]
        heads += [checkpoint.privacy_head] if checkpoint else []
        last_done = checkpoint.round_ if checkpoint else 0
        size = self.strategy.spec.num_parameters
        found = (self.run, self.grid, population_U, last_done, heads)
        self.strategy.private = open_rounds(self.config, *found, size)

    def _tell_of_other_code(self, checkpoint: Checkpoint) -> None:
        """Allowed, as a fix may be why the run is resumed; but it may no longer end with the same bits."""
        if checkpoint.code_hash in ("", whole_code_hash()):
            return
        told = (
            f"resumed after round {checkpoint.round_} under other code ({whole_code_hash()}) than it was run with"
            f" ({checkpoint.code_hash}): the result may differ from that of a run that never stopped"
        )
        log(WARNING, "%s: %s", self.run.path, told)
        self.run.append({"kind": "warning", "round": checkpoint.round_, "message": told})

    def _require_fit(self, checkpoint: Checkpoint) -> None:
        ours = {"config_hash": self.strategy.config_hash, "spec_hash": self.strategy.spec.hash}
        for name, value in ours.items():
            if getattr(checkpoint, name) != value:
                raise RunError(
                    f"{self.run.path}: checkpoint of round {checkpoint.round_} has {name} {getattr(checkpoint, name)},"
                    f" ours is {value}: resume with the configuration of the run"
                )

    def _drop_records_after(self, round_: int, ledger_lines: int) -> None:
        self.run.truncate_after(round_)
        self.ledger.go_back(round_, ledger_lines)
        self.num_draws = self.draws_done = ledger_lines

    def _witness(self, draw: Draw) -> None:
        self.num_draws += 1
        self.scribe.submit(self.ledger.append, draw)

    def _root_update(self, round_: int, patch_P: np.ndarray) -> np.ndarray:
        assert self.root is not None  # else the strategy is given no root update
        update_P, draw = self.root.update(round_, patch_P)
        self._witness(draw)
        return update_P

    def _judged(self, arrays: ArrayRecord, state: StrategyState) -> tuple[ArrayRecord, dict[str, Any]]:
        """(The patch to go on with, what the round's record says of it); ``state`` is that before the round."""
        if self.rollback is None:
            return arrays, {}
        verdict = self.rollback.verdict(read_patch(self.arrays), read_patch(arrays))
        if verdict["rolled_back"]:
            arrays, self.strategy.state = self.arrays, self.strategy.state.undone(state)
        return arrays, {"validation": verdict}

    def _round(self, round_: int) -> None:
        self._welcome(round_ - 1)
        started, state = time.perf_counter(), self.strategy.state
        self.strategy.settled_round = min(kept_rounds(self.checkpoints), default=0)
        orders = self.strategy.configure_train(round_, self.arrays, ConfigRecord(), self.grid)
        deadline = self.config.federation.round_deadline_s
        replies = self.grid.send_and_receive(orders, timeout=deadline) if orders else ()
        arrays, _ = self.strategy.aggregate_train(round_, replies)
        report = self.strategy.report
        assert arrays is not None  # aggregate_train gives both or raises
        assert report is not None
        arrays, judged = self._judged(arrays, state)
        self.strategy.state = heard(self.run, round_, self.strategy.state)
        self.arrays, self.last_done, self.draws_done = arrays, round_, self.num_draws
        record = {**report.record(), **judged, **self._absent(), "seconds": time.perf_counter() - started}
        if undone := rollback_note(record):
            log(WARNING, "round %d %s", round_, undone)
        self.scribe.wait()  # for the writes of the round before: at most one round is on its way to the disk
        self.scribe.submit(self.run.append, record)
        last = round_ == self.config.federation.rounds
        every = self.config.federation.evaluate_every
        if every and round_ % every == 0 and not last:
            self._evaluate(round_, "valid")
        if last or round_ % self.config.federation.checkpoint_every == 0:
            self._save(round_)
        self.complete = round_
        self._serve(round_)
        self.hooks.on_round(record)

    def _welcome(self, round_: int) -> None:
        """Devices that were absent and are there after ``round_``."""
        if self.strategy.welcome(self.grid, self.population):
            self.scribe.wait()
            self._tell_of_absent(round_)

    def _absent(self) -> dict[str, int]:
        users = len(absent_users(self.strategy.roster))
        return {"absent": users} if users else {}

    def _sign(self) -> None:
        """The privacy ledger's head, where the run was given a key."""
        if self.strategy.private is not None and self.config.privacy.signing_key:
            self.strategy.private.sign(read_key(Path(self.config.privacy.signing_key)))

    def _save(self, round_: int) -> None:
        self._sign()
        checkpoint = Checkpoint(
            round_=round_,
            patch_P=read_patch(self.arrays),
            config_hash=self.strategy.config_hash,
            spec_hash=self.strategy.spec.hash,
            population_hash=self.population.hash,
            ledger_lines=self.num_draws,
            code_hash=whole_code_hash(),
            privacy_head=self.strategy.private.head if self.strategy.private else "",
            optimizer_state=self.strategy.state.optimizer,
            rule_state=self.strategy.state.rule,
            suspicion_state=self.strategy.state.suspicion,
        )
        self.scribe.submit(save_checkpoint, self.checkpoints, checkpoint)
        self.last_saved = round_

    def _served(self) -> tuple[ArrayRecord, dict[str, Any]]:
        """(The patch that users are served with, what an evaluation's record says of it). Training goes on from
        ``self.arrays``: from a patch that was lowered, devices would push the lowered items up again.
        """
        if self.ceiling is None and self.lift is None:
            return self.arrays, {}
        if self._bounded is None or self._bounded[0] is not self.arrays:
            self._bounded = self.arrays, *self._bound()
        return self._bounded[1:]

    def _bound(self) -> tuple[ArrayRecord, dict[str, Any]]:
        patch_P, ceiling_I, told = read_patch(self.arrays), None, {}
        if self.ceiling is not None:
            patch_P, told["exposure"] = self.ceiling.lowered(patch_P)
        if self.lift is not None:
            ceiling_I, told["lift"] = self.lift.over(patch_P)
        return write_patch(patch_P, ceiling_I), told

    def _serve(self, round_: int) -> None:
        if self.hooks.on_patch is not not_served:
            arrays, _ = self._served()
            self.hooks.on_patch(round_, read_patch(arrays), read_ceiling(arrays))

    def _evaluate(self, round_: int, part: str) -> Evaluation:
        arrays, told = self._served()
        orders = self.strategy.configure_evaluate(round_, arrays, ConfigRecord({"part": part}), self.grid)
        replies = self.grid.send_and_receive(orders, timeout=self.config.federation.round_deadline_s)
        self.strategy.aggregate_evaluate(round_, replies)
        evaluation = self.strategy.evaluation
        assert evaluation is not None  # aggregate_evaluate gives one or raises
        for fault in evaluation.refused:
            log(WARNING, "evaluation of round %d: refused %s", round_, fault)
        fields = self.hooks.on_evaluation(evaluation)
        if fields is not None:
            self._record_once(evaluation, {**told, **fields})
        return evaluation

    def _record_once(self, evaluation: Evaluation, fields: Mapping[str, Any]) -> None:
        """A run that is resumed after its last checkpoint evaluates again, and the record may be there already."""
        key = {"kind": "evaluation", "round": evaluation.round_, "part": evaluation.part}
        self.scribe.wait()
        there = self.run.records("evaluation")
        if any(key.items() <= record.items() for record in there):
            return
        without = {"missing": list(evaluation.missing), "refused": list(evaluation.refused)}
        told = {name: nodes for name, nodes in without.items() if nodes}
        self.run.append({**key, "users": len(evaluation.client_ids_U), **told, **fields})

    def _finish(self) -> FederationResult:
        """Of the nodes that answered within the round's deadline, if they are enough; the others are named."""
        rounds = self.last_done
        self._welcome(rounds)
        self._sign()
        valid, test = self._evaluate(rounds, "valid"), self._evaluate(rounds, "test")
        for evaluation in (valid, test):
            self._require_enough(evaluation)
        served, _ = self._served()
        return FederationResult(rounds, read_patch(served), valid, test, read_ceiling(served))

    def _require_enough(self, evaluation: Evaluation) -> None:
        fewest, missing = fewest_nodes(self.config.federation, self.grid), evaluation.missing
        if not missing or (answered := len(self.population.nodes) - len(missing)) >= fewest:
            return
        raise FederationError(
            f"the last evaluation lacks users, so there is no result: {answered} nodes answered and it takes {fewest};"
            f" resume to retry: {missing[:_TOLD]}"
        )
