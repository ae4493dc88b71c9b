"""The contract that every rule is held to, ours and a plug-in author's: ``check_rule(rule)`` -> findings.

A check is a function of a ``Case``; it returns what is wrong, "" for nothing, or ``Skipped`` with the reason why it
does not apply. Inputs are drawn from a seed that is given, so that a finding can be repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from fedquilt.errors import FederationError, FedquiltError, TooManyByzantineError
from fedquilt.wire import TrainReply
from strategies.conformance_cost import costs_of
from strategies.facts import Facts, facts_of, tolerates
from strategies.pipeline import NodeAnswer, RowBuffer, collect
from strategies.rules import Aggregator, RoundContext, State, apply_rule, smallest_k

NUM_COORDINATES = 40
FAR = 1e6
_TOLERANCE = 1e-4  # relative to the largest honest row: float32, and sums in another order


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
        return "" if gap <= _TOLERANCE else f"differs by {gap:.2g} of the largest value"


Check = Callable[[Case], "str | Skipped"]
CHECKS: dict[str, Check] = {}


def check(name: str) -> Callable[[Check], Check]:
    def register(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return register


def usual_num_users(rule: Any) -> int:
    """Enough for the rule, and for two Byzantine ones more than it was told of."""
    return max(smallest_k(rule, getattr(rule, "num_byzantine", 0)) + 4, 12)


def honest_updates(num_users: int, num_coordinates: int = NUM_COORDINATES, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(num_users, num_coordinates, generator=torch.Generator().manual_seed(seed))
    return drawn.to(torch.float32) + 1


def check_rule(rule: Aggregator, seed: int = 0, only: tuple[str, ...] = ()) -> list[Finding]:
    """One finding a check. A rule that raises fails that check, with what it raised."""
    case = Case(rule, honest_updates(usual_num_users(rule), seed=seed), seed)
    return [_run(name, CHECKS[name], case) for name in only or CHECKS]


def _run(name: str, function: Check, case: Case) -> Finding:
    try:
        answer = function(case)
    except FedquiltError as error:
        return Finding(name, "fails", f"{type(error).__name__}: {error}")
    except Exception as error:  # of a method that is not the call itself, such as needs() or row_weights()
        return Finding(name, "fails", f"{type(error).__name__}: {error}")
    if isinstance(answer, Skipped):
        return Finding(name, "skipped", answer.reason)
    return Finding(name, "fails" if answer else "holds", answer)


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
        longest = float(row_P.norm()) * (1 + _TOLERANCE)
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
    slack = _TOLERANCE * float(case.updates_KP.abs().max())
    low_P, high_P = case.updates_KP.min(dim=0).values - slack, case.updates_KP.max(dim=0).values + slack
    return "" if ((got_P >= low_P) & (got_P <= high_P)).all() else "leaves the range of the users' values at f = 0"


@check("one NaN sender")
def _nan_sender(case: Case) -> str:
    """The pipeline drops the row; the round is the same as if its sender had not answered."""
    k, p = case.updates_KP.shape
    rows_KP = case.updates_KP.numpy().copy()
    rows_KP[k // 2, p // 2] = np.nan
    nobody = np.empty(0, np.int64)
    reply = TrainReply(0, "spec", np.arange(k), rows_KP, np.ones(k, np.int64), nobody, nobody)
    usable = collect(
        [NodeAnswer("node", np.arange(k), reply)],
        round_=0,
        spec_hash="spec",
        num_parameters=p,
        clipping_norm=math.inf,
        buffer=RowBuffer(),
    )
    without_KP = case.updates_KP[torch.arange(k) != k // 2]
    return case.close(case.of(torch.from_numpy(usable.updates_KP)), case.of(without_KP))


@check("holds at f")
def _holds(case: Case) -> str | Skipped:
    """The worst of several colluders' rows, from usual to far, moves the result by no more than honest rows differ:
    together or to two sides, at two scales, in one coordinate that no honest user touches, and over rounds."""
    f = tolerates(case.rule, len(case.updates_KP))
    if not f:
        return Skipped(f"the rule withstands nobody at K={len(case.updates_KP)}")
    reach = 4 * _spread(case)
    ways = {"": _moved, ", at two scales,": _moved_at_two_scales, ", in one coordinate,": _moved_in_one_coordinate}
    ways |= {", over rounds,": _moved_over_rounds} if case.facts.stateful else {}
    for way, measure in ways.items():
        if not (moved := measure(case, f)) <= reach:
            return f"{f} of {len(case.updates_KP)} users{way} move it by {moved:.3g}, honest: {reach:.3g}"
    return ""


@check("holds at f, K = smallest")
def _holds_of_few(case: Case) -> str | Skipped:
    """Where the rule has no user to spare."""
    fewest = smallest_k(case.rule, getattr(case.rule, "num_byzantine", 0))
    return _holds(replace(case, updates_KP=case.updates_KP[:fewest]))


@check("breaks at f + 1")
def _breaks(case: Case) -> str | Skipped:
    """The declared point is the point: one more colluder moves a rule that declares tight = True anywhere."""
    if not case.facts.tight:
        return Skipped("the rule does not declare tight = True")
    f = tolerates(case.rule, len(case.updates_KP)) + 1
    moved = _moved(case, f)
    return "" if moved > FAR / 1e3 else f"declares tight = True, yet {f} users move it by {moved:.3g} only: claim more"


@check("bounded influence")
def _bounded(case: Case) -> str | Skipped:
    """A colluder ten times farther away does not move the result ten times farther."""
    f = tolerates(case.rule, len(case.updates_KP))
    if not f:
        return Skipped("the rule withstands nobody")
    near, far = _moved(case, f, (FAR,)), _moved(case, f, (10 * FAR,))
    return "" if far <= 2 * near + _spread(case) else f"moved by {near:.3g}, and by {far:.3g} from ten times farther"


def _spread(case: Case) -> float:
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


def failures(findings: list[Finding]) -> Mapping[str, str]:
    return {finding.check: finding.detail for finding in findings if finding.outcome == "fails"}
