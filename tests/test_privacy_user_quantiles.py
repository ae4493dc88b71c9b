"""What users spent by the rounds they took part in: by each mode's own accounting, or why it is not told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from private_toy import federate, private

from fedquilt.privacy.accountants import ACCOUNTANTS, atom_of
from fedquilt.privacy.book import read_book
from fedquilt.privacy.distributed import DistributedNoise
from fedquilt.privacy.events import (
    DistributedRelease,
    FixedOrder,
    GraphRelease,
    LocalRelease,
    MatrixOpened,
    RunOpened,
    TreeRelease,
    ids_hash,
)
from fedquilt.privacy.gaussian import gaussian_epsilon
from fedquilt.privacy.ledger import Ledger
from fedquilt.privacy.matrix import sensitivity_of
from fedquilt.privacy.randomness import Simulated
from fedquilt.privacy.statement import statement
from fedquilt.privacy.user_quantiles import user_quantiles

USERS = np.arange(20)
FIRST, SECOND = USERS[::2], USERS[1::2]
TURNS = FixedOrder(2)
DELTA = 1e-3


def quantiles(tmp_path, mode, *events):
    """Of a ledger of (event, its users); -> (quantile → epsilon or None, why not)."""
    ledger = Ledger.create(tmp_path / "privacy.sqlite")
    opening = RunOpened("r", 0, 20, ids_hash(USERS), TURNS, 4.0, 1.0, 10.0, DELTA, mechanism=mode)
    ledger.append(opening, USERS)
    for event, users in events:
        ledger.append(event, users)
    book, findings = read_book(ledger.path)
    assert findings == []
    return user_quantiles(book, opening)


def shares(round_, users, digest, noise=4.0) -> tuple[DistributedRelease, np.ndarray]:
    event = DistributedNoise("skellam", noise, 1.0, 10, 50, 0.1).event("r", round_, users, Simulated(0))
    return replace(event, sampler=TURNS, release_digest=digest, participations=round_), users


def charged(event, times) -> float:
    return ACCOUNTANTS["rdp"].epsilon({atom_of(event): times}, DELTA)


MATRIX = MatrixOpened("r", 1, "m", "tree", 4, 4.0, 1.0, 1.0, 2, 2)
MATRIX = replace(MATRIX, sensitivity=sensitivity_of(MATRIX))


def step(number, users, digest="") -> tuple[TreeRelease, np.ndarray]:
    event = TreeRelease("r", number + 1, "m", number, len(users), ids_hash(users), digest or f"d{number}")
    return event, users


def correlated(times) -> float:
    return gaussian_epsilon(sensitivity_of(replace(MATRIX, max_participations=times)) / 4.0, DELTA)


@pytest.mark.parametrize("mode", ["distributed", "dp-ftrl", "local"])
def test_the_busiest_user_of_a_whole_run_has_spent_what_the_run_claims(mode, tmp_path):
    _, run = federate(tmp_path, private(mode, {"evaluate_every": 0}))
    facts = statement(run.path)
    assert facts["epsilon_by_user_quantile"]["1"] == pytest.approx(facts["epsilon"], rel=1e-3)


def test_shares_cost_a_user_the_rounds_that_user_was_in(tmp_path):
    events = [shares(1, FIRST, "a"), shares(2, SECOND, "b"), shares(3, FIRST, "c")]
    told, _ = quantiles(tmp_path, "distributed", *events)
    event = events[0][0]
    assert told["0"] == pytest.approx(charged(event, 1))
    assert told["1"] == pytest.approx(charged(event, 2))


def test_a_sum_of_shares_that_is_sent_again_costs_once(tmp_path):
    told, _ = quantiles(tmp_path, "distributed", shares(1, FIRST, "a"), shares(1, FIRST, "a"))
    assert told["1"] == pytest.approx(charged(shares(1, FIRST, "a")[0], 1))


def test_shares_of_two_sizes_add_up(tmp_path):
    events = [shares(1, FIRST, "a"), shares(2, FIRST, "b", noise=8.0)]
    told, _ = quantiles(tmp_path, "distributed", *events)
    counts = {atom_of(event): 1 for event, _ in events}
    assert told["1"] == pytest.approx(ACCOUNTANTS["rdp"].epsilon(counts, DELTA))


def test_a_graph_of_shares_is_charged_to_its_users_too(tmp_path):
    one, users = shares(1, FIRST, "a")
    graph = GraphRelease(
        "r", 1, 4.0, 1.0, 20, ids_hash(USERS), 100, 5, noise="skellam", variance=one.variance, l2=one.l2, l1=one.l1,
        dimension=5, release_digest="g",
    )  # fmt: skip
    told, _ = quantiles(tmp_path, "distributed", (one, users), (graph, USERS))
    assert told["0"] == pytest.approx(charged(graph, 1))
    assert told["1"] == pytest.approx(charged(graph, 2))


def test_a_user_in_fewer_steps_of_a_correlated_mechanism_has_spent_less(tmp_path):
    told, _ = quantiles(tmp_path, "dp-ftrl", (MATRIX, None), step(0, FIRST), step(1, SECOND), step(2, FIRST))
    assert told["0"] == pytest.approx(correlated(1))
    assert told["1"] == pytest.approx(correlated(2))


def test_a_user_in_no_step_has_spent_nothing(tmp_path):
    told, _ = quantiles(tmp_path, "dp-ftrl", (MATRIX, None), step(0, FIRST))
    assert told["0"] == 0.0


def test_a_step_that_is_sent_again_is_one_step(tmp_path):
    told, _ = quantiles(tmp_path, "dp-ftrl", (MATRIX, None), step(0, FIRST), step(0, FIRST))
    assert told["1"] == pytest.approx(correlated(1))


def test_a_graph_under_gaussian_noise_adds_up_with_steps(tmp_path):
    graph = GraphRelease("r", 1, 2.0, 1.0, 20, ids_hash(USERS), 100, 5, release_digest="g")
    told, _ = quantiles(tmp_path, "dp-ftrl", (MATRIX, None), (graph, USERS), step(0, FIRST))
    mu2 = (sensitivity_of(replace(MATRIX, max_participations=1)) / 4.0) ** 2 + 1 / 4
    assert told["1"] == pytest.approx(gaussian_epsilon(mu2**0.5, DELTA))
    assert told["0"] == pytest.approx(gaussian_epsilon(0.5, DELTA))


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ([], "nothing was released"),
        ([step(0, FIRST)], "was not opened"),
        ([(MATRIX, None), (step(0, FIRST)[0], None)], "not all who took part"),
        ([(MATRIX, None), step(0, FIRST), shares(2, FIRST, "a")], "no way that is proven here"),
        ([(LocalRelease("r", 1, 3, 1.0, 1.0), None)], "not all who took part"),
        ([(GraphRelease("r", 1, 0.0, 1.0, 20, ids_hash(USERS), 100, 5), USERS)], "a release had no noise"),
    ],
    ids=["nothing", "unopened", "unrecorded", "mixed", "nobody's cohort", "no noise"],
)
def test_what_is_not_told_says_why(tmp_path, events, why):
    told, said = quantiles(tmp_path, "dp-ftrl", *events)
    assert told is None
    assert why in said
