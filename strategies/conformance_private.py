"""What central privacy is told by a rule: rows that are each user's own, and how far one user moves the result."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from strategies.conformance_cases import TOLERANCE, Case, Skipped
from strategies.independence import declared, mixing


def own_rows_are_own(case: Case) -> str | Skipped:
    """Each from the same row alone, no longer than it, and with the result as their mean at equal weights."""
    own_rows = declared(case.rule)
    if own_rows is None:
        return Skipped("the rule declares no own_rows")
    if told := mixing(own_rows):
        return f"own_rows mixes users: {told}"
    rows_KP = own_rows(case.updates_KP.clone())
    longer_K = rows_KP.norm(dim=1) > case.updates_KP.norm(dim=1) * (1 + TOLERANCE)
    if longer_K.any():
        return f"own_rows makes the row of user {int(torch.nonzero(longer_K)[0])} longer than it was"
    apart = case.close(rows_KP.mean(dim=0), case.of(case.updates_KP))
    return f"the result {apart} from the mean of own_rows" if apart else ""


def sensitivity_holds(case: Case) -> str | Skipped:
    """max ||rule(U) - rule(U')|| <= sensitivity / K, U and U' of rows of norm at most 1 that differ in one row."""
    if case.rule.sensitivity is None:
        return Skipped("the rule declares no sensitivity")
    k, bound = len(case.updates_KP), case.rule.sensitivity / len(case.updates_KP)
    for what, rows_KP in _bounded(case.updates_KP):
        before_P = case.of(rows_KP)
        for user in (0, k // 2, k - 1):
            for row_P in (torch.zeros_like(rows_KP[0]), -rows_KP[user], rows_KP[user - 1], -rows_KP.mean(dim=0)):
                moved_KP = rows_KP.clone()
                moved_KP[user] = row_P
                moved = float((case.of(moved_KP) - before_P).norm())
                if not moved <= bound * (1 + TOLERANCE):
                    told = f"user {user} moves the result by {moved * k:.3g} / K, of rows that are no longer than 1"
                    return f"{told} ({what}); declares sensitivity = {case.rule.sensitivity:g}"
    return ""


def _bounded(updates_KP: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    unit_KP = updates_KP / updates_KP.norm(dim=1, keepdim=True)
    sides_K = torch.where(torch.arange(len(updates_KP)) < len(updates_KP) // 2, 1.0, -1.0)
    lengths_K = torch.logspace(-3, 0, len(updates_KP), dtype=updates_KP.dtype)
    yield "all at the bound", unit_KP
    yield "of every length", unit_KP * lengths_K[:, None]
    yield "all alike", unit_KP[:1].repeat(len(unit_KP), 1)
    yield "on two sides", unit_KP[:1] * sides_K[:, None]
