"""Central user-level privacy in rounds: who is drawn, what is noised, what is recorded, in an order that cannot fail.

Before anyone is asked: the cohort by the plan that accounts for it, and room in the budget. After the replies: clip
again, sum with weight 1 each, noise, divide by the *expected* cohort, record, and only then the next patch. Few
replies, or none, end no round: whether users answer may depend on them, so the noise is released all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch

from fedquilt.config import Config
from fedquilt.errors import PrivacyError
from fedquilt.privacy.clipping import clip_rows
from fedquilt.privacy.events import GaussianRelease
from fedquilt.privacy.gate import Gate
from fedquilt.privacy.mechanisms import digest_of, noised_mean, require_proven
from fedquilt.privacy.samplers import Drawn, SamplingPlan
from strategies.aggregation import make_aggregation

OwnRows = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Released:
    """What left: float32 [P], the digest that its event holds, and the ledger's head with that event."""

    update_P: np.ndarray
    digest: str
    head: str


@dataclass
class CentralRounds:
    """One run's rounds. ``run`` is the name in the ledger, which keys the noise too."""

    run: str
    plan: SamplingPlan
    gate: Gate
    noise_multiplier: float
    clipping_norm: float
    rule: str = "mean"
    own_rows: tuple[OwnRows, ...] = ()
    _drawn: Drawn | None = field(default=None, repr=False)

    def begin(self, round_: int) -> np.ndarray:
        """The cohort, sorted ids [K]; it may be empty. BudgetExceededError before anything is sent."""
        drawn = self.plan.draw(round_)
        self.gate.require_admission(self._event(drawn))
        self._drawn = drawn
        return drawn.cohort_K

    def release(self, round_: int, updates_KP: np.ndarray) -> Released:
        """(Σ own rows, clipped, + N(0, (z C)² I)) / expected cohort, after its event is on disk.

        ``updates_KP``: usable rows of users of the round's cohort, any number of them.
        """
        drawn = self._drawn
        if drawn is None or drawn.round_ != round_:
            raise PrivacyError(f"round {round_}: no cohort was drawn for it, so nothing can be accounted for")
        rows_KP, source = self._rows(updates_KP), self.plan.source
        made_P = self.gate.release(
            self._event(drawn),
            lambda event: noised_mean(rows_KP, cast("GaussianRelease", event), source),
            drawn.cohort_K,
        )
        return Released(made_P.astype(np.float32), digest_of(made_P), str(self.gate.ledger.head()))

    def _rows(self, updates_KP: np.ndarray) -> np.ndarray:
        rows = torch.from_numpy(np.array(updates_KP, np.float32))
        for own_rows in self.own_rows:
            rows = own_rows(rows)
        return clip_rows(rows.numpy(), self.clipping_norm)[0]

    def _event(self, drawn: Drawn) -> GaussianRelease:
        facts = {"randomness": self.plan.source.kind, "rule": self.rule}
        return drawn.release(GaussianRelease, self.run, self.noise_multiplier, self.clipping_norm, **facts)


def require_private(config: Config) -> tuple[OwnRows, ...]:
    """What the pre-rules and the rule do to a row, in order. PrivacyError where noise is not proven to cover it."""
    federation = config.federation
    if federation.weighting != "uniform":
        raise PrivacyError(
            f"federation.weighting = {federation.weighting!r}: a user whose weight is its own choice moves the sum by"
            " more than the clipping norm. Central privacy weighs all alike: set federation.weighting = 'uniform'"
        )
    if not np.isfinite(federation.clipping_norm):
        raise PrivacyError(
            "federation.clipping_norm = inf: noise needs a bound on what one user can move; set a finite clipping norm"
        )
    aggregation = make_aggregation(federation)
    steps = [
        _own_rows(f"pre-rule {name!r}", rule)
        for name, rule in zip(federation.pre_rules, aggregation.pre_rules, strict=True)
    ]
    name, rule = federation.aggregator, aggregation.rule
    if not hasattr(rule, "own_rows"):
        require_proven(name, rule.sensitivity)
    return (*steps, _own_rows(f"aggregator {name!r}", rule))


def _own_rows(what: str, rule: Any) -> OwnRows:
    own_rows = getattr(rule, "own_rows", None)
    if own_rows is None or own_rows(torch.zeros(1, 1)) is None:
        raise PrivacyError(
            f"{what}: there is no proof that one user moves its sum by at most the clipping norm, so central privacy"
            " refuses it. Take 'mean' without pre-rules, or a rule with `own_rows` (see docs/privacy.md)"
        )
    return own_rows
