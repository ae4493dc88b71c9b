"""Runs the toy federation in a run folder and kills its own process, for good, at one point of one round.

Reads lines of JSON ``[run folder, point, round]``, forks for each, so that imports are paid for once, and answers with
the child's exit status. Point "never" runs to the end. Started by test_federation_resume.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from pathlib import Path

import toy_task

import server.checkpoint
import server.loop
from client import store
from client.app import make_client_app
from fedquilt import runs
from fedquilt.privacy.events import DeviceRound
from fedquilt.privacy.ledger import Ledger
from fedquilt.runs import RunFolder
from server.in_process import InProcessGrid
from server.loop import run_federation
from server.task import Hooks
from strategies.patch_strategy import PatchStrategy


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(target, name: str, when) -> None:
    """Die before ``target.name(...)`` where ``when(*arguments)`` holds."""
    real = getattr(target, name)

    @functools.wraps(real)
    def deadly(*arguments, **named):
        if when(*arguments, **named):
            die()
        return real(*arguments, **named)

    setattr(target, name, deadly)


def after(target, name: str, when) -> None:
    real = getattr(target, name)

    @functools.wraps(real)
    def deadly(*arguments, **named):
        result = real(*arguments, **named)
        if when(*arguments, **named):
            die()
        return result

    setattr(target, name, deadly)


def tear_record(round_: int) -> None:
    """Half of the round's line in metrics.jsonl, then the end."""

    def append(self: RunFolder, record: dict) -> None:
        if record["kind"] == "round" and record["round"] == round_:
            with (self.path / runs.METRICS).open("ab") as file:
                file.write(json.dumps(record, default=runs.plain).encode()[:40])
            die()
        real(self, record)

    real, RunFolder.append = RunFolder.append, append


def by_cloud(event) -> bool:
    return event.releases and not by_device(event)


def by_device(event) -> bool:
    return isinstance(event, DeviceRound)


def arm(point: str, round_: int) -> None:
    is_checkpoint = f"round-{round_:08d}"
    if point == "after the cohort is drawn":
        after(PatchStrategy, "configure_train", lambda _, server_round, *rest: server_round == round_)
    elif point == "in a node's store write":
        count = iter(range(10**6))
        per_round = 3  # nodes, each of which writes once a round
        before(store, "_drop_superseded", lambda *_: next(count) == per_round * (round_ - 1) + 1)
    elif point == "after aggregation":
        after(PatchStrategy, "aggregate_train", lambda _, server_round, *rest: server_round == round_)
    elif point == "within a record":
        tear_record(round_)
    elif point == "before the checkpoint":
        before(server.loop, "save_checkpoint", lambda _, checkpoint: checkpoint.round_ == round_)
    elif point == "before the checkpoint is renamed":
        before(Path, "replace", lambda path, target: is_checkpoint in target.name)
    elif point == "after the checkpoint":
        after(server.loop, "save_checkpoint", lambda _, checkpoint: checkpoint.round_ == round_)
    elif point == "before the release is recorded":
        before(Ledger, "append", lambda _, event, *rest: by_cloud(event) and event.round_ == round_)
    elif point == "after the release is recorded":
        after(Ledger, "append", lambda _, event, *rest: by_cloud(event) and event.round_ == round_)
    elif point == "before the device's record":
        before(Ledger, "append", lambda _, event, *rest: by_device(event) and event.round_ == round_)
    elif point == "after the device's record":
        after(Ledger, "append", lambda _, event, *rest: by_device(event) and event.round_ == round_)
    elif point == "before the last record":
        before(RunFolder, "append", lambda _, record: record.get("part") == "test")
    elif point != "never":
        raise SystemExit(f"no such point: {point}")


def main(folder: str, point: str, round_: int) -> None:
    run = RunFolder.open(folder)
    arm(point, round_)
    grid = InProcessGrid(make_client_app(toy_task.toy_task), run.config.federation.num_supernodes)
    hooks = Hooks(on_evaluation=lambda evaluation: evaluation.means())
    result = run_federation(grid, run.config, toy_task.toy_deployment(), run, hooks)
    test = dict(sorted(result.test.arrays.items()))
    run.write_arrays("result.npz", patch_P=result.patch_P, **test)


def serve() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            main(*json.loads(line))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
