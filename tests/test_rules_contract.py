"""Every rule keeps the contract, and the contract suite rejects rules that do not."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest
import torch

from fedquilt.errors import FederationError, TooManyByzantineError
from strategies.aggregators.dnc import DivideAndConquer
from strategies.aggregators.item_wise import ItemWise
from strategies.aggregators.median import Median
from strategies.conformance import CHECKS, check_rule, require_rule
from strategies.conformance_cases import failures
from strategies.conformance_cost import costs_of
from strategies.facts import facts_of, needed_text, tolerates
from strategies.rules import AGGREGATORS, PRE_RULES, RoundContext, apply_rule

RULES = sorted(AGGREGATORS)
QUICK = tuple(name for name in CHECKS if name != "time and memory")  # a process each time
WITH_F = [name for name in RULES if "num_byzantine" in {field.name for field in fields(AGGREGATORS[name])}]


@pytest.mark.parametrize("name", RULES)
def test_a_rule_keeps_the_contract(name):
    assert failures(check_rule(AGGREGATORS[name](), only=QUICK)) == {}


@pytest.mark.parametrize("num_byzantine", [0, 3])
@pytest.mark.parametrize("name", WITH_F)
def test_a_rule_keeps_the_contract_for_other_numbers_of_liars(name, num_byzantine):
    assert failures(check_rule(AGGREGATORS[name](num_byzantine=num_byzantine), seed=7, only=QUICK)) == {}


def test_every_rule_keeps_to_the_time_and_memory_of_the_contract():
    rules = [AGGREGATORS[name]() for name in RULES]
    assert {type(rule).__name__: c.fault for rule, c in zip(rules, costs_of(rules), strict=True) if c.fault} == {}


@dataclass(frozen=True)
class AllPairs:
    """A mean, from all differences of two users at once."""

    sensitivity, breakdown = None, 0.0

    def __call__(self, updates_KP, weights_K, state):
        return updates_KP.mean(0) + 0 * (updates_KP[:, None] - updates_KP[None]).sum(dim=(0, 1))


def test_users_by_users_by_parameters_are_too_much_memory():
    found = failures(check_rule(AllPairs(), only=("time and memory",)))
    assert "MiB for 300 users of 1,000 parameters" in found["time and memory"]


@pytest.mark.parametrize("name", RULES)
def test_a_rule_says_where_it_comes_from_and_what_it_costs(name):
    facts = facts_of(AGGREGATORS[name]())
    assert "not declared" not in (facts.source, facts.cost)
    assert 0 <= facts.breakdown <= 1


@pytest.mark.parametrize(
    ("name", "needed"),
    [("krum", "2f + 3"), ("multi-krum", "2f + 3"), ("bulyan", "4f + 3"), ("trimmed-mean", "2f + 1"), ("median", "1")],
)
def test_the_users_that_a_rule_needs_are_the_papers(name, needed):
    assert needed_text(AGGREGATORS[name]()) == needed


def test_too_few_users_are_told_with_both_numbers():
    krum = AGGREGATORS["krum"](num_byzantine=2)
    with pytest.raises(TooManyByzantineError, match=r"Krum needs K >= 7 .* got K=6, f=2: raise federation.cohort_size"):
        krum(torch.ones(6, 3), torch.ones(6) / 6, {})


def test_a_half_is_not_withstood():
    median = AGGREGATORS["median"]()
    assert [tolerates(median, k) for k in (1, 2, 3, 4, 5, 10)] == [0, 0, 1, 1, 2, 4]


@pytest.mark.parametrize("name", RULES)
def test_whole_numbers_are_refused_in_words(name):
    with pytest.raises(FederationError, match=r"takes float32 or float64 \[K, P\]; got torch.int64"):
        AGGREGATORS[name]()(torch.ones(12, 3, dtype=torch.int64), torch.ones(12) / 12, {})


@pytest.mark.parametrize("name", RULES)
def test_no_users_are_refused_in_words(name):
    with pytest.raises(FederationError, match="K=0"):
        AGGREGATORS[name]()(torch.ones(0, 3), torch.ones(0), {})


@dataclass(frozen=True)
class Faulty:
    """A rule whose fault is named by ``kind``; it claims to be a median of sorts."""

    kind: str
    sensitivity = None
    translation = scale = tight = True

    @property
    def breakdown(self) -> float:
        return 0.5 if self.kind == "mean that claims a half" else 0.0

    def needs(self, num_byzantine):
        return 5 if self.kind == "takes fewer than it says" else 1

    def __call__(self, updates_KP, weights_K, state):
        kind = self.kind
        if kind == "writes":
            updates_KP *= 2
        if kind == "draws":
            return updates_KP.mean(0) + torch.rand(())
        if kind == "first":
            return updates_KP[0].clone()
        if kind == "offset":
            return updates_KP.mean(0) + 1
        if kind == "weighted":
            return weights_K @ updates_KP
        if kind == "bounded":
            return updates_KP.mean(0).clamp(-50, 50)
        if kind == "squares":
            return updates_KP.mean(0) * updates_KP.norm()
        return updates_KP.mean(0)


@pytest.mark.parametrize(
    ("kind", "caught_by"),
    [
        ("writes", "no mutation"),
        ("draws", "determinism"),
        ("first", "permutation"),
        ("offset", "zero updates"),
        ("weighted", "weights, as declared"),
        ("bounded", "breaks at f + 1"),
        ("squares", "scale, as declared"),
        ("squares", "translation, as declared"),
        ("mean that claims a half", "holds at f"),
        ("mean that claims a half", "bounded influence"),
        ("takes fewer than it says", "K = 1"),
    ],
)
def test_a_faulty_rule_is_caught(kind, caught_by):
    assert caught_by in failures(check_rule(Faulty(kind), only=(caught_by,)))


class ItemWiseClaims(ItemWise):
    """What it declared until a liar was put on an item that nobody else has."""

    breakdown = 0.5


class DncClaims(DivideAndConquer):
    breakdown = 0.5


@dataclass(frozen=True)
class Remembers(Median):
    """A median in each round, to which the mean of the rounds before is added."""

    def step(self, updates_KP, weights_K, state):
        past_P = torch.from_numpy(state["mean"]) if state else 0
        return self(updates_KP, weights_K, {}) + past_P, {"mean": updates_KP.mean(0).numpy()}


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (ItemWiseClaims(), "in one coordinate"),
        (DncClaims(num_byzantine=3), "at two scales"),
        (Remembers(), "over rounds"),
    ],
)
def test_a_claim_that_other_liars_break_is_caught(rule, words):
    assert words in failures(check_rule(rule, only=("holds at f",)))["holds at f"]


@dataclass(frozen=True)
class MeanOfFew:
    """A median of f = 3 that has nobody to spare at K = 7, and is a mean there."""

    num_byzantine: int = 3
    sensitivity, breakdown = None, 0.5

    def needs(self, num_byzantine):
        return 2 * num_byzantine + 1

    def __call__(self, updates_KP, weights_K, state):
        spare = len(updates_KP) - self.needs(self.num_byzantine)
        return updates_KP.quantile(0.5, dim=0) if spare else updates_KP.mean(0)


def test_a_claim_that_holds_with_users_to_spare_is_tried_without():
    few = "holds at f, K = smallest"
    assert failures(check_rule(MeanOfFew(), only=("holds at f",))) == {}
    assert "3 of 7 users move it" in failures(check_rule(MeanOfFew(), only=(few,)))[few]


def test_what_is_withstood_follows_from_the_parameters():
    multi_krum, krum, mixing = AGGREGATORS["multi-krum"], AGGREGATORS["krum"], PRE_RULES["nearest-neighbour-mixing"]
    with pytest.raises(TooManyByzantineError, match="needs K >= 23"):  # with K = 20 it would be the mean
        multi_krum(num_byzantine=3, num_selected=20)(torch.ones(20, 2), torch.full((20,), 0.05), {})
    assert [tolerates(krum(num_byzantine=4, num_neighbours=n), 20) for n in (1, 3, 10, 18)] == [1, 3, 4, 1]
    assert tolerates(AGGREGATORS["secant-screening"](num_byzantine=9), 20) == 9  # K > 2f
    with pytest.raises(TooManyByzantineError, match="needs K >= 5 users to withstand f=2"):
        mixing(num_byzantine=2)(torch.ones(3, 2), torch.full((3,), 1 / 3), RoundContext())


@dataclass(frozen=True)
class OwnRows:
    """A mean whose ``own_rows`` have the fault ``kind``."""

    kind: str
    sensitivity, breakdown = 2.0, 0.0

    def __call__(self, updates_KP, weights_K, state):
        return updates_KP.mean(0) * (0.5 if self.kind == "of another result" else 1)

    def own_rows(self, updates_KP):
        if self.kind == "mixing" and len(updates_KP):
            return 2 * updates_KP.mean(0) - updates_KP
        return updates_KP * (2 if self.kind == "longer" else 1)


OWN = "own rows are each user's own"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("mixing", "own_rows mixes users: user 0 gets another row"),
        ("longer", "makes the row of user 0 longer than it was"),
        ("of another result", "of the largest value from the mean of own_rows"),
    ],
)
def test_own_rows_that_are_not_what_they_declare_are_caught(kind, words):
    assert words in failures(check_rule(OwnRows(kind), only=(OWN,)))[OWN]


def test_own_rows_that_are_what_they_declare_hold():
    assert [found.outcome for found in check_rule(OwnRows("none"), only=(OWN,))] == ["holds"]


def test_norm_bounding_with_a_given_bound_keeps_what_it_tells_privacy():
    found = check_rule(AGGREGATORS["norm-bounding"](bound=0.3), only=(OWN, "sensitivity, as declared"))
    assert [one.outcome for one in found] == ["holds", "holds"]


def test_a_rule_without_own_rows_is_not_asked_for_them():
    assert [found.outcome for found in check_rule(AllPairs(), only=(OWN,))] == ["skipped"]


@dataclass(frozen=True)
class Claims:
    """Of a mean, its coordinates' median, or its direction alone."""

    kind: str
    sensitivity: float
    breakdown = 0.0

    def __call__(self, updates_KP, weights_K, state):
        if self.kind == "median":
            return updates_KP.median(dim=0).values
        mean_P = updates_KP.mean(0)
        return mean_P / mean_P.norm().clamp(min=1e-9) if self.kind == "direction" else mean_P


@pytest.mark.parametrize(("kind", "sensitivity"), [("mean", 1.0), ("median", 2.0), ("direction", 2.0)])
def test_a_sensitivity_that_one_user_exceeds_is_caught(kind, sensitivity):
    name = "sensitivity, as declared"
    told = failures(check_rule(Claims(kind, sensitivity), only=(name,)))[name]
    assert "moves the result by" in told
    assert f"declares sensitivity = {sensitivity:g}" in told


def test_the_sensitivity_of_a_mean_holds():
    assert failures(check_rule(Claims("mean", 2.0), only=("sensitivity, as declared",))) == {}


def test_the_suite_does_not_catch_a_plain_mean():
    assert failures(check_rule(Faulty("none"), only=QUICK)) == {}


def test_what_is_no_rule_is_refused_in_words():
    with pytest.raises(
        FederationError, match=r"OrderedDict is not a rule: it declares no sensitivity and no breakdown"
    ):
        require_rule(__import__("collections").OrderedDict())


def test_every_check_has_a_reason_to_be_there():
    assert len(CHECKS) >= 18
    assert apply_rule(Faulty("none"), torch.ones(2, 3), torch.ones(2) / 2, {})[0].tolist() == [1, 1, 1]
