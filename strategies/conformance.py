"""The contract that every rule is held to, ours and a plug-in author's: ``check_rule(rule)`` -> findings.

A check is a function of a ``Case``; it returns what is wrong, "" for nothing, or ``Skipped`` with the reason why it
does not apply. Inputs are drawn from a seed that is given, so that a finding can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fedquilt.errors import FederationError, TooManyByzantineError
from strategies.conformance_cases import (
    TOLERANCE,
    Case,
    Finding,
    Skipped,
    delivered,
    honest_updates,
    run_check,
    usual_num_users,
)
from strategies.conformance_cost import costs_of
from strategies.conformance_liars import bounded, breaks, holds, holds_with_nobody_to_spare
from strategies.conformance_private import own_rows_are_own, sensitivity_holds
from strategies.rules import Aggregator, State, apply_rule, smallest_k

Check = Callable[[Case], "str | Skipped"]
CHECKS: dict[str, Check] = {}


def check(name: str) -> Callable[[Check], Check]:
    def register(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return register


def check_rule(rule: Aggregator, seed: int = 0, only: tuple[str, ...] = ()) -> list[Finding]:
    """One finding a check. A rule that raises fails that check, with what it raised."""
    case = Case(rule, honest_updates(usual_num_users(rule), seed=seed), seed)
    return [run_check(name, CHECKS[name], case) for name in only or CHECKS]


@check("returns an update")
def _returns(case: Case) -> str:
    case.of(case.updates_KP)
    return ""


@check("permutation")
def _permutation(case: Case) -> str:
    """The order of users does not matter."""
    order_K = torch.randperm(len(case.updates_KP), generator=torch.Generator().manual_seed(case.seed + 1))
    return case.close(case.of(case.updates_KP), case.of(case.updates_KP[order_K]))


@check("translation, as declared")
def _translation(case: Case) -> str | Skipped:
    if not case.facts.translation:
        return Skipped("the rule does not declare translation = True")
    shift_P = torch.linspace(-5, 5, case.updates_KP.shape[1])
    return case.close(case.of(case.updates_KP + shift_P), case.of(case.updates_KP) + shift_P, size=5)


@check("scale, as declared")
def _scale(case: Case) -> str | Skipped:
    if not case.facts.scale:
        return Skipped("the rule does not declare scale = True")
    return case.close(case.of(4 * case.updates_KP), 4 * case.of(case.updates_KP), size=4)


@check("weights, as declared")
def _weights(case: Case) -> str | Skipped:
    """A rule that does not honour weights gives the same for any; one that does, gives another."""
    k = len(case.updates_KP)
    uneven_K = torch.arange(1, k + 1, dtype=torch.float32) / (k * (k + 1) / 2)
    even_P, uneven_P = case.of(case.updates_KP), case.of(case.updates_KP, uneven_K)
    if case.facts.honours_weights:
        return "" if case.close(even_P, uneven_P) else "declares honours_weights = True, and ignores them"
    apart = case.close(even_P, uneven_P)
    return f"declares honours_weights = False, and its result {apart} with other weights" if apart else ""


@check("duplicates")
def _duplicates(case: Case) -> str | Skipped:
    """All users send the same: so does the rule, or nothing of it, or a part of it where it bounds."""
    row_P = case.updates_KP[0]
    got_P = case.of(row_P.repeat(len(case.updates_KP), 1))
    if not case.facts.translation:
        longest = float(row_P.norm()) * (1 + TOLERANCE)
        return "" if float(got_P.norm()) <= longest else "is longer than the one update that all users sent"
    return case.close(got_P, row_P)


@check("zero updates")
def _zeros(case: Case) -> str:
    got_P = case.of(torch.zeros_like(case.updates_KP))
    return "" if not got_P.any() else "is not zero where all updates are"


@check("K = 1")
def _one_user(case: Case) -> str | Skipped:
    return _small(case, 1)


@check("K = smallest")
def _fewest(case: Case) -> str | Skipped:
    return _small(case, smallest_k(case.rule, getattr(case.rule, "num_byzantine", 0)))


def _small(case: Case, k: int) -> str | Skipped:
    """A result, or TooManyByzantineError where the rule needs more users."""
    needed = smallest_k(case.rule, getattr(case.rule, "num_byzantine", 0))
    try:
        case.of(case.updates_KP[:k])
    except TooManyByzantineError as error:
        told = str(error)
        if k >= needed:
            return f"raises at K={k}, though needs() says {needed}"
        return "" if f"K={k}" in told and "f=" in told else f"the error names not both K and f: {told}"
    return "" if k >= needed else f"gives a result at K={k}, though needs() says {needed}: raise TooManyByzantineError"


@check("f = 0 against its own definition")
def _no_byzantine(case: Case) -> str | Skipped:
    """With nobody to withstand, the rule stays inside the users' values in every coordinate."""
    rule: Any = case.rule  # a dataclass, as the first check asks
    if not hasattr(rule, "num_byzantine"):
        return Skipped("the rule has no num_byzantine")
    got_P = replace(case, rule=replace(rule, num_byzantine=0)).of(case.updates_KP)
    slack = TOLERANCE * float(case.updates_KP.abs().max())
    low_P, high_P = case.updates_KP.min(dim=0).values - slack, case.updates_KP.max(dim=0).values + slack
    return "" if ((got_P >= low_P) & (got_P <= high_P)).all() else "leaves the range of the users' values at f = 0"


@check("one NaN sender")
def _nan_sender(case: Case) -> str:
    """The pipeline drops the row; the round is the same as if its sender had not answered."""
    k, p = case.updates_KP.shape
    rows_KP = case.updates_KP.numpy().copy()
    rows_KP[k // 2, p // 2] = np.nan
    without_KP = case.updates_KP[torch.arange(k) != k // 2]
    return case.close(case.of(torch.from_numpy(delivered(rows_KP).updates_KP)), case.of(without_KP))


CHECKS["holds at f"] = holds
CHECKS["holds at f, K = smallest"] = holds_with_nobody_to_spare
CHECKS["breaks at f + 1"] = breaks
CHECKS["bounded influence"] = bounded
CHECKS["own rows are each user's own"] = own_rows_are_own
CHECKS["sensitivity, as declared"] = sensitivity_holds


@check("determinism")
def _determinism(case: Case) -> str:
    first_P, second_P = case.of(case.updates_KP), case.of(case.updates_KP.clone())
    return "" if torch.equal(first_P, second_P) else "the same input gives other bits"


@check("no mutation")
def _no_mutation(case: Case) -> str:
    rows_KP, weights_K = case.updates_KP.clone(), torch.full((len(case.updates_KP),), 1 / len(case.updates_KP))
    kept_KP, kept_K = rows_KP.clone(), weights_K.clone()
    case.of(rows_KP, weights_K)
    if not torch.equal(rows_KP, kept_KP):
        return "writes into updates_KP"
    return "" if torch.equal(weights_K, kept_K) else "writes into weights_K"


@check("state")
def _state(case: Case) -> str | Skipped:
    """What a rule carries on is named numpy arrays, and a second round takes it."""
    if not case.facts.stateful:
        return Skipped("the rule carries no state")
    k = len(case.updates_KP)
    _, state = apply_rule(case.rule, case.updates_KP, torch.full((k,), 1 / k), {}, case.context)
    case.of(case.updates_KP, state=state)
    return ""


@check("history by client id, as declared")
def _history(case: Case) -> str | Skipped:
    """Who sends the same rows under ids that change from round to round gets another result where ids are remembered;
    such a rule declares needs_ids, as after some pre-rules rows are no single user's."""
    if not case.facts.stateful:
        return Skipped("the rule carries no state")
    if case.facts.needs_ids:
        return ""
    k = len(case.updates_KP)
    same_P, other_P = (_after_rounds(case, order) for order in (np.arange(k), np.arange(k)[::-1]))
    return "remembers users by client id: declare needs_ids = True" if case.close(same_P, other_P) else ""


def _after_rounds(case: Case, ids_K: np.ndarray, rounds: int = 4) -> torch.Tensor:
    """The last round's result; ids are 0 to K - 1 in the first and ``ids_K`` in the others."""
    k = len(case.updates_KP)
    state: State = {}
    for round_ in range(rounds):
        context = replace(case.context, round_=round_, client_ids_K=ids_K if round_ else np.arange(k))
        update_P, state = apply_rule(case.rule, case.updates_KP, torch.full((k,), 1 / k), state, context)
    return torch.from_numpy(update_P)


@check("row weights")
def _row_weights(case: Case) -> str | Skipped:
    """A rule that tells how much each row counted tells the truth."""
    bind = getattr(case.rule, "in_round", None)
    rule: Any = bind(case.context) if bind else case.rule
    if not hasattr(rule, "row_weights"):
        return Skipped("the rule does not say how much each row counts")
    k = len(case.updates_KP)
    given_K = rule.row_weights(case.updates_KP, torch.full((k,), 1 / k), {})
    return case.close(given_K.to(torch.float32) @ case.updates_KP, case.of(case.updates_KP))


@check("patch-only")
def _patch_only(case: Case) -> str:
    """The rule acts on P numbers, whatever P is: none, one, many."""
    k = len(case.updates_KP)
    for p in (0, 1, 1000):
        context = replace(case, updates_KP=honest_updates(k, p, case.seed))
        got_P = context.of(context.updates_KP)
        if got_P.shape != (p,):
            return f"returns {tuple(got_P.shape)} at P = {p}"
    return ""


@check("time and memory")
def _cost(case: Case) -> str:
    """300 users of 1,000 parameters in a fresh process: under 10 s and about 10 K·P + 4 K² floats."""
    return costs_of([case.rule], case.seed)[0].fault


def require_rule(rule: Any) -> None:
    """FederationError for what is not a rule at all: not callable, or without the two declared facts."""
    absent = [name for name in ("sensitivity", "breakdown") if not hasattr(rule, name)]
    if not callable(rule) or absent:
        what = f"declares no {' and no '.join(absent)}" if absent else "cannot be called"
        raise FederationError(f"{type(rule).__name__} is not a rule: it {what}; docs/plugin.md has an example")
