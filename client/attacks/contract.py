"""What an attack is, and what it may know. For simulations only: nothing that runs on a device imports this folder.

An attack is a frozen dataclass, one a file, registered by name. It declares

- ``kind``: what it touches. ``updates`` (the rows that colluders send), ``replies`` (what a node sends, malformed),
  ``clicks`` (the colluders' local histories), ``cloud-clicks`` (their clicks in the cloud's log), or ``inference``
  (one user's clicks or edges, against a fixed patch);
- ``goal``: ``untargeted``, ``promote``, ``demote`` or ``backdoor``;
- ``knows``: a set of ``KNOWLEDGE``. What it does not declare it cannot read: a ``View`` refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fedquilt.errors import ConfigError, FedquiltError
from fedquilt.registry import Registry
from fedquilt.types import PatchSpec

if TYPE_CHECKING:
    from client.attacks.laboratory import Laboratory

ATTACKS = Registry("attack", "client.attacks")

OWN, COLLUDERS, BENIGN, RULE = "own data", "colluders", "benign rows", "rule"
POPULARITY, PUBLIC, RIVALS = "popularity", "public clicks", "cohort"
KNOWLEDGE = {
    OWN: "their own clicks and the update that honest training makes of them; every attacker has this",
    COLLUDERS: "each other's rows: they agree on what to send",
    BENIGN: "the rows of all honest users of the round (omniscient)",
    RULE: "the cloud's rule, its parameters and its state",
    POPULARITY: "how often each item is clicked, as a public chart tells",
    PUBLIC: "the clicks of a share of the honest users, as public profiles tell",
    RIVALS: "how many users the round has and how many of them are malicious",
}
KINDS = ("updates", "replies", "clicks", "cloud-clicks", "inference")
GOALS = ("untargeted", "promote", "demote", "backdoor")

Rule = Callable[[np.ndarray], np.ndarray]
"""updates_KP (clipped by the cloud first) -> update_P: what the cloud would make of these rows, now."""


class UndeclaredKnowledgeError(FedquiltError):
    """An attack reads what it does not declare to know."""


class Attack(Protocol):
    """What every attack declares. ``source``: paper. See ``UpdateAttack`` and ``ClickAttack`` for the two calls."""

    kind: str
    goal: str
    knows: frozenset[str]
    source: str


class UpdateAttack(Attack, Protocol):
    def rows(self, view: View) -> np.ndarray:
        """float32 [M, P]: what the M colluders of this round send, before the cloud clips it."""


class ClickAttack(Attack, Protocol):
    def histories(self, clicks: Clicks) -> Mapping[int, np.ndarray]:
        """{malicious client id: item ids in order, as long as the history was}."""


@dataclass(frozen=True)
class View:
    """What colluders see of one round. Shapes: M colluders, H honest users of the round, P, T targets.

    ``own_MP``: the rows that honest training gave them, clipped. ``memory``: theirs, from round to round. ``patch_P``:
    what the cloud sent, which every client knows, as it does the base model in ``laboratory``.
    """

    round_: int
    client_ids_M: np.ndarray
    own_MP: np.ndarray
    patch_P: np.ndarray
    spec: PatchSpec
    clipping_norm: float
    targets_T: np.ndarray
    generator: np.random.Generator
    knows: frozenset[str] = frozenset({OWN})
    memory: MutableMapping[str, Any] = field(default_factory=dict)
    laboratory: Laboratory | None = None
    benign: np.ndarray | None = None
    oracle: Rule | None = None
    num_cohort: int = 0
    trigger_S: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    chart_I: np.ndarray | None = None
    public: np.ndarray | None = None

    @property
    def popularity_I(self) -> np.ndarray:
        """int64 [I]: clicks on each item."""
        return self._known(POPULARITY, self.chart_I)

    @property
    def public_ids(self) -> np.ndarray:
        """Honest users whose clicks could be public, in an order of which an attack takes its share from the front."""
        return self._known(PUBLIC, self.public)

    @property
    def benign_HP(self) -> np.ndarray:
        return self._known(BENIGN, self.benign)

    @property
    def rule(self) -> Rule:
        return self._known(RULE, self.oracle)

    @property
    def num_users(self) -> int:
        """K: honest users of the round and colluders."""
        return int(self._known(RIVALS, self.num_cohort))

    @property
    def model(self) -> Laboratory:
        """The base model and own data, on which gradients can be computed."""
        if self.laboratory is None:
            raise ConfigError("this attack needs a recommender to compute with, and the simulation has none")
        return self.laboratory

    def reference(self, omniscient: bool) -> np.ndarray:
        """The rows that a moment is estimated from: the honest ones, or the colluders' own as a stand-in."""
        return self.benign_HP if omniscient else self.own_MP

    def _known(self, what: str, value: Any) -> Any:
        if what not in self.knows:
            raise UndeclaredKnowledgeError(f"the attack reads {what!r}, but declares only {sorted(self.knows)}")
        if value is None:
            raise ConfigError(f"the attack needs {what!r}, and the simulation gave none")
        return value


@dataclass(frozen=True)
class Clicks:
    """What colluders see of the data before round 1: their own histories; targets; and, if declared, popularity."""

    histories: Mapping[int, np.ndarray]
    num_items: int
    targets_T: np.ndarray
    generator: np.random.Generator
    knows: frozenset[str] = frozenset({OWN})
    chart_I: np.ndarray | None = None

    @property
    def popularity_I(self) -> np.ndarray:
        """int64 [I]: clicks on each item."""
        if POPULARITY not in self.knows:
            raise UndeclaredKnowledgeError(f"the attack reads {POPULARITY!r}, but declares only {sorted(self.knows)}")
        assert self.chart_I is not None
        return self.chart_I

    @property
    def own_popularity_I(self) -> np.ndarray:
        """int64 [I]: what the colluders' own clicks tell of popularity."""
        own = [items for items in self.histories.values() if len(items)]
        return np.bincount(np.concatenate(own) if own else np.empty(0, np.int64), minlength=self.num_items)


def make_attack(name: str, options: Mapping[str, Any] | None = None) -> Any:
    """ConfigError for an option that the attack does not take."""
    entry = ATTACKS[name]
    try:
        return entry(**(options or {}))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"attack {name!r} with options {dict(options or {})}: {error}") from None


def describe() -> list[dict[str, str]]:
    """One record an attack, for ``fedquilt attack list``."""
    rows = []
    for name in ATTACKS:
        attack = ATTACKS[name]()
        first = (type(attack).__doc__ or "").strip().splitlines()[0]
        rows.append(
            {
                "attack": name,
                "kind": attack.kind,
                "goal": attack.goal,
                "knows": told(attack.knows),
                "what": first,
                "source": attack.source,
            }
        )
    return rows


def told(knows: Iterable[str]) -> str:
    return ", ".join(name for name in KNOWLEDGE if name in set(knows))
