"""Rules that keep a history by client id, behind pre-rules whose rows are no single user's."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from toy_task import federate

from fedquilt.config import FederationConfig
from fedquilt.errors import ConfigError, MissingContextError
from strategies.aggregation import Aggregation, aggregate, counted, make_aggregation
from strategies.aggregators.foolsgold import FoolsGold
from strategies.aggregators.krum import Krum
from strategies.aggregators.secant_screening import SecantScreening
from strategies.conformance import check_rule
from strategies.conformance_cases import failures
from strategies.pre_rules.nearest_neighbour_mixing import NearestNeighbourMixing
from strategies.rules import PRE_RULES, RoundContext

K, P = 9, 6
ROWS = torch.randn(K, P, generator=torch.Generator().manual_seed(0))
EVEN = torch.full((K,), 1 / K)
KNOWN = RoundContext(client_ids_K=np.arange(10, 10 + K), nodes_K=np.zeros(K, int))


@dataclass(frozen=True)
class Pairs:
    """A plug-in that mixes, and does not declare it."""

    def __call__(self, updates_KP, weights_K, context):
        return (updates_KP + updates_KP.flip(0)) / 2, weights_K, replace(context, client_ids_K=None, nodes_K=None)


@dataclass(frozen=True)
class EveryOther:
    def __call__(self, updates_KP, weights_K, context):
        return updates_KP[::2], weights_K[::2] * K / 5, replace(context, client_ids_K=context.client_ids_K[::2])


@dataclass(frozen=True)
class FirstMet:
    """The mean of what each client sent when it was met first; says nothing of ids."""

    client_ids_K: np.ndarray | None = field(default=None, repr=False, compare=False)
    sensitivity, breakdown = None, 0.0

    def in_round(self, context):
        return replace(self, client_ids_K=context.client_ids_K)

    def step(self, updates_KP, weights_K, state):
        sent = {f"{i}": row for i, row in zip(self.client_ids_K, updates_KP.numpy(), strict=True)}
        held = {**sent, **state}
        first_KP = np.stack([held[f"{i}"] for i in self.client_ids_K])
        return torch.from_numpy((np.arange(1, len(first_KP) + 1) @ first_KP).astype(np.float32)), held

    def __call__(self, updates_KP, weights_K, state):
        return self.step(updates_KP, weights_K, state)[0]


@pytest.mark.parametrize("mixing", ["bucketing", "nearest-neighbour-mixing"])
@pytest.mark.parametrize(
    ("key", "rule", "options"),
    [
        ("aggregator", "secant-screening", {}),
        ("aggregator", "foolsgold", {"memory": True}),
        ("fallback_aggregator", "secant-screening", {}),
    ],
)
def test_a_history_behind_a_pre_rule_that_mixes_is_refused_before_a_run(mixing, key, rule, options):
    told = {key: rule, "aggregator_options" if key == "aggregator" else "fallback_options": options}
    with pytest.raises(ConfigError) as error:
        make_aggregation(FederationConfig(**told, pre_rules=("clipping", mixing)))
    assert f"federation.{key} = '{rule}' keeps a history by client id" in str(error.value)
    assert f"take '{mixing}' out of federation.pre_rules" in str(error.value)


def test_a_run_is_refused_before_its_first_round(tmp_path):
    with pytest.raises(ConfigError, match="keeps a history by client id"):
        federate(tmp_path, aggregator="secant-screening", pre_rules=["bucketing"])


def test_foolsgold_that_remembers_nobody_goes_behind_buckets():
    made = make_aggregation(FederationConfig(aggregator="foolsgold", pre_rules=("bucketing",)))
    assert aggregate(made, ROWS, EVEN, {}, KNOWN).update_P.shape == (P,)


@pytest.mark.parametrize("rule", [SecantScreening(), FoolsGold(memory=True)])
def test_a_plug_in_that_mixes_without_a_word_is_found_in_the_first_round(rule):
    with pytest.raises(MissingContextError, match=r"needs to know whose each row is.*pre-rule that mixes users"):
        aggregate(Aggregation(rule, (Pairs(),)), ROWS, EVEN, {}, KNOWN)


def test_who_is_left_out_by_a_pre_rule_has_no_part_in_the_history_and_the_others_keep_their_ids():
    done = aggregate(Aggregation(FoolsGold(memory=True), (EveryOther(),)), ROWS, EVEN, {}, KNOWN)
    assert done.state["client_ids"].tolist() == [10, 12, 14, 16, 18]
    assert done.state["sums"] == pytest.approx(ROWS[::2].numpy())


@pytest.mark.parametrize("name", [name for name in sorted(PRE_RULES) if getattr(PRE_RULES[name], "mixes", False)])
def test_a_pre_rule_that_mixes_names_nobody_and_no_supernode(name):
    _, _, after = PRE_RULES[name]()(ROWS, EVEN, KNOWN)
    assert after.client_ids_K is None
    assert after.nodes_K is None


def test_nobody_is_charged_with_what_a_mixture_of_several_users_is_worth():
    assert counted(Aggregation(Krum(1)), ROWS, EVEN, {}, KNOWN) is not None
    assert counted(Aggregation(Krum(1), (NearestNeighbourMixing(1),)), ROWS, EVEN, {}, KNOWN) is None


def test_a_history_that_is_not_declared_is_found_by_the_contract():
    declared = "history by client id, as declared"
    assert "declare needs_ids" in failures(check_rule(FirstMet(), only=(declared,)))[declared]
    assert failures(check_rule(FoolsGold(memory=True), only=(declared,))) == {}
