"""What a rule declares of itself, with defaults for what it does not say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from strategies.rules import smallest_k


@dataclass(frozen=True)
class Facts:
    """``tight``: one more Byzantine user than ``tolerates`` says can move the result anywhere.

    ``translation``: rule(X + c) = rule(X) + c. ``scale``: rule(a X) = a rule(X) for a > 0. ``needs_ids``: it keeps a
    history by client id.
    """

    source: str
    breakdown: float
    sensitivity: float | None
    cost: str
    needed: str
    translation: bool
    scale: bool
    honours_weights: bool
    tight: bool
    stateful: bool
    needs_ids: bool


def facts_of(rule: Any) -> Facts:
    """Of a rule that is made, as some facts follow from its parameters."""
    return Facts(
        source=getattr(rule, "source", "not declared"),
        breakdown=float(rule.breakdown),
        sensitivity=rule.sensitivity,
        cost=getattr(rule, "cost", "not declared"),
        needed=needed_text(rule),
        translation=bool(getattr(rule, "translation", False)),
        scale=bool(getattr(rule, "scale", False)),
        honours_weights=bool(getattr(rule, "honours_weights", False)),
        tight=bool(getattr(rule, "tight", False)),
        stateful=hasattr(rule, "next_state") or hasattr(rule, "step"),
        needs_ids=bool(getattr(rule, "needs_ids", False)),
    )


def needed_text(rule: Any) -> str:
    """The smallest K as a formula in f: every ``needs`` of ours is a line beyond f = 0."""
    at_1, at_2 = smallest_k(rule, 1), smallest_k(rule, 2)
    slope, constant = at_2 - at_1, 2 * at_1 - at_2
    factor = {0: "", 1: "f"}.get(slope, f"{slope}f")
    return f"{factor} + {constant}" if factor and constant else factor or str(constant)


def tolerates(rule: Any, num_users: int) -> int:
    """Byzantine users of ``num_users`` whom the rule withstands: its own answer, or from ``breakdown`` and ``f``.

    A breakdown of 0.5 means fewer than half; a rule told of ``num_byzantine`` withstands no more than these.
    """
    if hasattr(rule, "tolerates"):
        return int(rule.tolerates(num_users))
    by_share = max(math.ceil(rule.breakdown * num_users) - 1, 0)
    return min(by_share, getattr(rule, "num_byzantine", by_share))
