"""What colluders are tried for in the contract of a rule: f users who send anything, near, far, and over rounds."""

from __future__ import annotations

from dataclasses import replace

import torch

from strategies.conformance_cases import FAR, Case, Skipped, honest_updates
from strategies.facts import tolerates
from strategies.rules import State, apply_rule, smallest_k


def holds(case: Case) -> str | Skipped:
    """The worst of several colluders' rows, from usual to far, moves the result by no more than honest rows differ:
    together or to two sides, at two scales, in one coordinate that no honest user touches, and over rounds."""
    f = tolerates(case.rule, len(case.updates_KP))
    if not f:
        return Skipped(f"the rule withstands nobody at K={len(case.updates_KP)}")
    reach = 4 * spread(case)
    ways = {"": _moved, ", at two scales,": _moved_at_two_scales, ", in one coordinate,": _moved_in_one_coordinate}
    ways |= {", over rounds,": _moved_over_rounds} if case.facts.stateful else {}
    for way, measure in ways.items():
        if not (moved := measure(case, f)) <= reach:
            return f"{f} of {len(case.updates_KP)} users{way} move it by {moved:.3g}, honest: {reach:.3g}"
    return ""


def holds_with_nobody_to_spare(case: Case) -> str | Skipped:
    """Where the rule has no user to spare."""
    fewest = smallest_k(case.rule, getattr(case.rule, "num_byzantine", 0))
    return holds(replace(case, updates_KP=case.updates_KP[:fewest]))


def breaks(case: Case) -> str | Skipped:
    """The declared point is the point: one more colluder moves a rule that declares tight = True anywhere."""
    if not case.facts.tight:
        return Skipped("the rule does not declare tight = True")
    f = tolerates(case.rule, len(case.updates_KP)) + 1
    moved = _moved(case, f)
    return "" if moved > FAR / 1e3 else f"declares tight = True, yet {f} users move it by {moved:.3g} only: claim more"


def bounded(case: Case) -> str | Skipped:
    """A colluder ten times farther away does not move the result ten times farther."""
    f = tolerates(case.rule, len(case.updates_KP))
    if not f:
        return Skipped("the rule withstands nobody")
    near, far = _moved(case, f, (FAR,)), _moved(case, f, (10 * FAR,))
    return "" if far <= 2 * near + spread(case) else f"moved by {near:.3g}, and by {far:.3g} from ten times farther"


def spread(case: Case) -> float:
    """The largest distance of an honest row from the honest mean."""
    return float((case.updates_KP - case.updates_KP.mean(dim=0)).norm(dim=1).max())


def _moved(case: Case, f: int, distances: tuple[float, ...] = (1.0, 10.0, 1e3, FAR)) -> float:
    """How far f colluders drag the result from the honest mean: one point for all, or to both sides."""
    honest_KP = case.updates_KP[f:]
    mean_P = honest_KP.mean(dim=0)
    moved = 0.0
    for distance in distances:
        for opposed in (False, True):
            sign_f = torch.where(torch.arange(f) % 2 == 1, -1.0, 1.0) if opposed else torch.ones(f)
            liars_fP = distance * sign_f[:, None] * torch.ones_like(mean_P)
            moved = max(moved, float((case.of(torch.cat([liars_fP, honest_KP])) - mean_P).norm()))
    return moved


def _moved_at_two_scales(case: Case, f: int) -> float:
    """One liar far out pulls the mean its way; the others stay where that is, and go another way less far."""
    honest_KP = case.updates_KP[f:]
    moved = 0.0
    for scale in (10.0, FAR):
        liars_fP = torch.zeros(f, honest_KP.shape[1])
        liars_fP[1:, 0], liars_fP[1:, 1], liars_fP[0, 1] = scale, 1e3 * scale / len(case.updates_KP), 1e3 * scale
        moved = max(moved, _distance(case.of(torch.cat([liars_fP, honest_KP])), honest_KP))
    return moved


def _moved_in_one_coordinate(case: Case, f: int) -> float:
    """As rows of an item that nobody else has clicked: liars are like the others wherever these can compare."""
    honest_KP = case.updates_KP[f:].clone()
    honest_KP[:, -1] = 0
    liars_fP = honest_KP.mean(dim=0).repeat(f, 1)
    liars_fP[:, -1] = FAR
    return _distance(case.of(torch.cat([liars_fP, honest_KP])), honest_KP)


def _moved_over_rounds(case: Case, f: int, rounds: int = 24) -> float:
    """Liars who lie in every round, or only in the second half of them; honest rows are drawn anew."""
    k, p = case.updates_KP.shape
    even_K, moved = torch.full((k,), 1 / k), 0.0
    for begins in (0, rounds // 2):
        state: State = {}
        for round_ in range(rounds):
            rows_KP = honest_updates(k, p, case.seed + 1 + round_)
            if round_ >= begins:
                rows_KP[:f] = -FAR
            update_P, state = apply_rule(case.rule, rows_KP, even_K, state, case.context)
            if round_ >= begins:
                moved = max(moved, _distance(torch.from_numpy(update_P), rows_KP[f:]))
    return moved


def _distance(update_P: torch.Tensor, honest_KP: torch.Tensor) -> float:
    return float((update_P - honest_KP.mean(dim=0)).norm())
