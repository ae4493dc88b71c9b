"""What rounds under differential privacy share: who is drawn, what the devices are told, what left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch

from fedquilt.errors import PrivacyError
from fedquilt.privacy.clipping import clip_rows
from fedquilt.privacy.events import AbortedRound, Deviation
from fedquilt.privacy.gate import Gate
from fedquilt.privacy.samplers import Drawn, SamplingPlan
from fedquilt.privacy.terms import Terms
from strategies.pipeline import Usable

OwnRows = Callable[[torch.Tensor], torch.Tensor]
NOBODY = np.empty(0, np.int64)


@dataclass(frozen=True)
class Released:
    """What left: float32 [P], the digest that its event holds, the ledger's head with that event, what to tell."""

    update_P: np.ndarray
    digest: str
    head: str
    notes: tuple[str, ...] = ()


@dataclass
class Common:
    """Of one run's rounds, whatever the mechanism. ``run`` is the name in the ledger, which keys the noise too."""

    run: str
    plan: SamplingPlan
    gate: Gate
    noise_multiplier: float
    clipping_norm: float
    delta: float = 0.5
    drawn: Drawn | None = field(default=None, init=False, repr=False)

    @property
    def head(self) -> str:
        return str(self.gate.ledger.head())

    def draw(self, round_: int) -> Drawn:
        self.drawn = None  # until the round is admitted
        return self.plan.draw(round_)

    def of_round(self, round_: int) -> Drawn:
        if self.drawn is None or self.drawn.round_ != round_:
            raise PrivacyError(f"round {round_}: no cohort was drawn for it, so nothing can be accounted for")
        return self.drawn

    def remark(self, text: str) -> None:
        """On the ledger as of round 0: it tells of later rounds, and excuses nothing that they release."""
        told = Deviation(self.run, 0, text)
        if told not in self.gate.ledger.events():
            self.gate.open(told)

    def abort(self, round_: int, cause: str) -> None:
        told, events = AbortedRound(self.run, round_, cause), self.gate.ledger.events()
        if told not in events and not any(event.releases and event.round_ == round_ for event in events):
            self.gate.open(told)

    def sign(self, private_key: bytes) -> None:
        self.gate.ledger.sign(private_key)

    def facts(self) -> dict[str, str]:
        """For events and terms: the kind of noise that is drawn."""
        return {"randomness": self.plan.source.kind}


class PrivateRounds(Protocol):
    """``takes``: what devices send. *sum*: rows that the cloud sums and noises. *rows*: rows that are private already.
    *shares*: sums of shares of a noised sum.
    """

    takes: ClassVar[Literal["sum", "rows", "shares"]]

    @property
    def head(self) -> str: ...

    def begin(self, round_: int, absent_A: np.ndarray = NOBODY) -> np.ndarray:
        """The cohort, sorted ids [K]; it may be empty. BudgetExceededError before anything is sent.

        ``absent_A``: users who are known not to answer. They are drawn, and charged, like everybody.
        """

    def remark(self, text: str) -> None:
        """For every statement to tell; once."""

    def abort(self, round_: int, cause: str) -> None:
        """On the ledger, once, that nothing of the round left; not where something did. Costs nothing."""

    def sign(self, private_key: bytes) -> None:
        """The ledger's head as it is now (Ed25519)."""

    def terms(self, round_: int) -> Terms:
        """What the devices of the round that was begun are told."""

    def row_bound(self, num_parameters: int) -> float:
        """The longest row that an honest device sends."""

    def release(self, round_: int, usable: Usable) -> Released:
        """After its event is on disk. Of *rows* the update is empty: any rule may make one."""


def own_clipped(updates_KP: np.ndarray, own_rows: tuple[OwnRows, ...], clipping_norm: float) -> np.ndarray:
    """What pre-rules and rule do to each row by itself, clipped: a copy."""
    rows = torch.from_numpy(np.array(updates_KP, np.float32))
    for own in own_rows:
        rows = own(rows)
    return clip_rows(rows.numpy(), clipping_norm)[0]
