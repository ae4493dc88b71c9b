"""What conformance checks share: findings, and the case of a rule that is judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from fedquilt.wire import TrainReply
from strategies.facts import Facts, facts_of
from strategies.pipeline import NodeAnswer, RowBuffer, Usable, collect
from strategies.rules import Aggregator, RoundContext, State, apply_rule, smallest_k

C = TypeVar("C")
NUM_COORDINATES = 40
FAR = 1e6
TOLERANCE = 1e-4  # relative to the largest honest row: float32, and sums in another order


@dataclass(frozen=True)
class Skipped:
    reason: str


@dataclass(frozen=True)
class Finding:
    """``outcome``: "holds", "fails" or "skipped"."""

    check: str
    outcome: str
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Case:
    """A rule and K honest updates around a common direction: [K, P], unit noise, mean 1."""

    rule: Aggregator
    updates_KP: torch.Tensor
    seed: int = 0
    facts: Facts = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", facts_of(self.rule))

    @property
    def context(self) -> RoundContext:
        """As of a round in which the cloud's own update is the common direction."""
        k, p = self.updates_KP.shape
        return RoundContext(
            run_seed=self.seed, client_ids_K=np.arange(k), nodes_K=np.zeros(k, int), root_update_P=torch.ones(p)
        )

    def of(
        self, updates_KP: torch.Tensor, weights_K: torch.Tensor | None = None, state: State | None = None
    ) -> torch.Tensor:
        k = len(updates_KP)
        weights_K = torch.full((k,), 1 / k) if weights_K is None else weights_K
        context = replace(self.context, client_ids_K=np.arange(k), nodes_K=np.zeros(k, int))
        update_P, _ = apply_rule(self.rule, updates_KP, weights_K, state or {}, context)
        return torch.from_numpy(update_P)

    def close(self, a_P: torch.Tensor, b_P: torch.Tensor, size: float = 1.0) -> str:
        """ "" or how far apart they are, relative to ``size`` times the honest rows' largest value."""
        gap = float((a_P - b_P).abs().max()) / (float(self.updates_KP.abs().max()) * size) if len(a_P) else 0.0
        return "" if gap <= TOLERANCE else f"differs by {gap:.2g} of the largest value"


def usual_num_users(rule: Any) -> int:
    """Enough for the rule, and for two Byzantine ones more than it was told of."""
    return max(smallest_k(rule, getattr(rule, "num_byzantine", 0)) + 4, 12)


def honest_updates(num_users: int, num_coordinates: int = NUM_COORDINATES, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(num_users, num_coordinates, generator=torch.Generator().manual_seed(seed))
    return drawn.to(torch.float32) + 1


def delivered(rows_KP: np.ndarray) -> Usable:
    """What the pipeline makes of one node's rows, of users 0 to K - 1: those that are not finite lose their place."""
    ids_K, nobody = np.arange(len(rows_KP)), np.empty(0, np.int64)
    reply = TrainReply(0, "spec", ids_K, rows_KP, np.ones(len(rows_KP), np.int64), nobody, nobody)
    return collect(
        [NodeAnswer("node", ids_K, reply)],
        round_=0,
        spec_hash="spec",
        num_parameters=rows_KP.shape[1],
        clipping_norm=math.inf,
        buffer=RowBuffer(),
    )


def run_check(name: str, function: Callable[[C], str | Skipped], case: C) -> Finding:
    """What raises fails the check, with what it raised."""
    try:
        answer = function(case)
    except Exception as error:  # of a method that is not the call itself, such as needs() or row_weights()
        return Finding(name, "fails", f"{type(error).__name__}: {error}")
    if isinstance(answer, Skipped):
        return Finding(name, "skipped", answer.reason)
    return Finding(name, "fails" if answer else "holds", answer)


def failures(findings: list[Finding]) -> Mapping[str, str]:
    return {finding.check: finding.detail for finding in findings if finding.outcome == "fails"}
