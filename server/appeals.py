"""Suspected clients of a run, and appeals: a score that a person has set back to nothing, and why.

``appeals.jsonl`` has a line per appeal, with the round after which it counts: that of the newest checkpoint, where
the run goes on. A run that goes back further hears it after that round again, so a resume ends with the same bits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from fedquilt.errors import RunError
from fedquilt.runs import RunFolder
from server.checkpoint import load_latest
from strategies.patch_strategy import StrategyState
from strategies.suspicion import History

APPEALS = "appeals.jsonl"


@dataclass(frozen=True)
class Appeal:
    """``score``: what it was; ``time``: ISO, UTC."""

    round: int
    client_id: int
    reason: str
    score: float
    time: str


@dataclass(frozen=True)
class Suspect:
    """``charges``: what the rounds' records say against the client, {"round", "points", "why"}, oldest first."""

    client_id: int
    score: float
    excluded: bool
    charges: tuple[Mapping[str, Any], ...] = ()


def appeal(run: RunFolder, client_id: int, reason: str) -> Appeal:
    """Set the client's score back and write down why. RunError where there is nothing to appeal, or another process
    writes to the run.
    """
    if not reason.strip():
        raise RunError("an appeal needs a reason: say why the client is not what it was taken for")
    with run.writing():
        suspected = {suspect.client_id: suspect for suspect in suspects(run)}
        if client_id not in suspected:
            worst = ", ".join(str(other) for other in list(suspected)[:5]) or "nobody"
            raise RunError(f"{run.path}: client {client_id} is not suspected of anything; suspected: {worst}")
        checkpoint, _ = load_latest(run.checkpoints)
        assert checkpoint is not None  # it is where suspects are read from
        now = datetime.now(UTC).isoformat(timespec="seconds")
        made = Appeal(checkpoint.round_, client_id, reason.strip(), suspected[client_id].score, now)
        with (run.path / APPEALS).open("ab") as file:
            file.write((json.dumps(asdict(made)) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        return made


def appeals(run: RunFolder) -> list[Appeal]:
    """Oldest first; a last line that was never finished is left out. RunError for damage elsewhere."""
    path = run.path / APPEALS
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        return [Appeal(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error}") from None


def heard(run: RunFolder, round_: int, state: StrategyState) -> StrategyState:
    """The state after a round, once the appeals of that round have been heard."""
    named = [made.client_id for made in appeals(run) if made.round == round_] if state.suspicion else []
    history = History.of(state.suspicion)
    for client_id in named:
        history = history.without(client_id)
    return replace(state, suspicion=history.state()) if named else state


def suspects(run: RunFolder) -> list[Suspect]:
    """Everybody with a score, those who are not drawn first, then by score."""
    checkpoint, _ = load_latest(run.checkpoints)
    if checkpoint is None or not checkpoint.suspicion_state:
        return []
    state = StrategyState({}, suspicion=checkpoint.suspicion_state)
    history = History.of(heard(run, checkpoint.round_, state).suspicion)
    charges = _charges(run)
    found = [
        Suspect(client_id, score, excluded, tuple(charges.get(client_id, ())))
        for client_id, score, excluded in zip(
            history.client_ids_S.tolist(), history.scores_S.tolist(), history.excluded_S.tolist(), strict=True
        )
    ]
    return sorted(found, key=lambda suspect: (not suspect.excluded, -suspect.score, suspect.client_id))


def _charges(run: RunFolder) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for record in run.records("round"):
        for charge in record.get("suspicion", {}).get("charged", ()):
            told = {"round": record["round"], "points": charge["points"], "why": charge["why"]}
            found.setdefault(charge["client_id"], []).append(told)
    return found
