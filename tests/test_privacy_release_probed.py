"""The sensitivity probe on the real release of rounds: from replies on, through ledger and gate, with noise of zero.

``Mute`` stands for the source of noise alone: rounds, rules, gate and ledger are those that ``open_rounds`` makes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import toy_task
from hypothesis import given, settings
from hypothesis import strategies as st
from private_toy import private

from client.app import make_client_app
from fedquilt.errors import PrivacyError
from fedquilt.privacy.clipping import clip_rows
from fedquilt.privacy.probe import probe, require_bounded
from fedquilt.privacy.randomness import Simulated
from fedquilt.privacy.terms import WITHIN
from fedquilt.runs import RunFolder
from fedquilt.wire import TrainReply
from server.in_process import InProcessGrid
from server.privacy import open_rounds
from strategies.pipeline import WEIGHTLESS, NodeAnswer, Rejection, RowBuffer, Usable, collect

USERS = 100 + np.arange(24)
C, P = 0.5, toy_task.SPEC.num_parameters
BOUNDED = {"aggregator": "norm-bounding", "aggregator_options": {"bound": 0.3}, "pre_rules": ("clipping",)}
HARD = (0.0, 1e-30, 1.0, 1e6, 1e30, 3e38, np.nan, np.inf, -np.inf)

KINDS = ("as drawn", "scaled", "alike", "as the first")


@dataclass(frozen=True)
class Mute(Simulated):
    """Draws users as its seed does, and no noise."""

    def normals(self, count: int, context: str) -> np.ndarray:
        return np.zeros(count)


def rounds_of(folder, mode: str, federation: dict | None = None, mute: bool = True, **privacy: object):
    """Real rounds over 24 users who are all asked each round, on a ledger in ``folder``."""
    config = private(mode, {"clipping_norm": C, "rounds": 20_000, **(federation or {})}, sampler="none", **privacy)
    grid = InProcessGrid(make_client_app(toy_task.toy_task), 1)
    rounds = open_rounds(config, RunFolder.create(folder, config), grid, USERS, 0, [], P)
    rounds.plan = replace(rounds.plan, source=Mute(config.seed) if mute else rounds.plan.source)
    return rounds


def arrived(rounds, rows_KP: np.ndarray, claims_K: np.ndarray) -> Usable:
    """What the cloud makes of a reply: claims are numbers of examples, and what devices say of having been cut."""
    ids_K, nobody = USERS[: len(rows_KP)], np.empty(0, np.int64)
    examples_K, told = claims_K.astype(np.int64), {WITHIN: claims_K.astype(np.float32)}
    reply = TrainReply(0, "spec", ids_K, rows_KP.astype(np.float32), examples_K, nobody, nobody, told)
    given_ = {"round_": 0, "spec_hash": "spec", "num_parameters": P, "clipping_norm": rounds.row_bound(P)}
    return collect([NodeAnswer("node", ids_K, reply)], buffer=RowBuffer(), **given_)


def unseen(rounds, rows_KP: np.ndarray, claims_K: np.ndarray) -> Usable:
    """Rows as they are, as if nothing before the release had looked at them."""
    k, claims_K = len(rows_KP), claims_K.astype(np.int64)
    rows_KP = rows_KP.astype(np.float32)
    return Usable(USERS[:k], rows_KP, claims_K, np.ones(k), {WITHIN: np.ones(k)}, np.zeros(k, np.int64))


class Sums:
    """``released_sum`` of one run: every call is a release of its own, on the ledger; dp-ftrl takes a step for each."""

    def __init__(self, rounds, usable_of: Callable[..., Usable] = arrived):
        self.rounds, self.usable_of, self.round_ = rounds, usable_of, 0

    def __call__(self, rows_KP: np.ndarray, claims_K: np.ndarray) -> np.ndarray:
        if self.round_ == 0 or self.rounds.terms(self.round_).mode == "dp-ftrl":
            self.round_ += 1
            self.rounds.begin(self.round_)
        released = self.rounds.release(self.round_, self.usable_of(self.rounds, rows_KP, claims_K))
        return released.update_P.astype(np.float64) * self.rounds.plan.expected_cohort


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """{(mode, rules): released sum}"""
    rules = {"mean": {}, "bounded": BOUNDED}
    cells = [(mode, name) for mode in ("central", "quantile", "norms", "dp-ftrl") for name in rules]
    return {cell: Sums(rounds_of(tmp_path_factory.mktemp("run"), cell[0], rules[cell[1]])) for cell in cells}


@st.composite
def cohorts(draw) -> np.ndarray:
    """One to five users: ordinary rows, duplicates, and rows of one hard value or scaled by it."""
    k, seed = draw(st.integers(1, 5)), draw(st.integers(0, 2**32))
    rows_KP = np.random.default_rng(seed).standard_normal((k, P))
    with np.errstate(invalid="ignore", over="ignore"):
        for user in range(k):
            kind, value = draw(st.sampled_from(KINDS)), draw(st.sampled_from(HARD))
            rows_KP[user] = {"scaled": rows_KP[user] * value, "alike": value, "as the first": rows_KP[0]}.get(
                kind, rows_KP[user]
            )
        return rows_KP.astype(np.float32)


@pytest.mark.parametrize("rule", ["mean", "bounded"])
@pytest.mark.parametrize("mode", ["central", "quantile", "norms", "dp-ftrl"])
@settings(max_examples=10, deadline=None)
@given(rows_KP=cohorts())
def test_no_user_moves_what_is_really_released_by_more_than_the_clipping_norm(sums, mode, rule, rows_KP):
    assert probe(sums[mode, rule], C, rows_KP, adversarial=False).bounded


@pytest.mark.parametrize("rule", ["mean", "bounded"])
@pytest.mark.parametrize("mode", ["central", "quantile", "norms", "dp-ftrl"])
def test_the_adversarial_rows_of_the_probe_move_it_no_further(sums, mode, rule):
    assert probe(sums[mode, rule], C, np.random.default_rng(1).standard_normal((5, P))).bounded


@pytest.mark.parametrize("mode", ["central", "dp-ftrl"])
def test_the_release_clips_by_itself_rows_that_nobody_clipped_before(mode, tmp_path):
    sums = Sums(rounds_of(tmp_path, mode), unseen)
    assert probe(sums, C, np.random.default_rng(2).standard_normal((5, P))).bounded


def test_the_probe_reaches_the_bound_so_it_measures_the_sum_itself(sums):
    rows_KP = 9 * np.random.default_rng(3).standard_normal((5, P))
    assert probe(sums["central", "mean"], C, rows_KP).ratio == pytest.approx(1, abs=1e-3)


def test_no_user_moves_the_count_that_moves_the_clipping_norm_by_more_than_a_half(tmp_path):
    released = Sums(rounds_of(tmp_path, "quantile"))
    clip, expected = released.rounds.adaptive.clip, released.rounds.plan.expected_cohort

    def count(rows_KP, claims_K):
        released(rows_KP, claims_K)
        following = released.rounds.norm_of(released.round_ + 1)
        return np.array([-np.log(following / C) / clip.rate * expected])

    found = require_bounded(count, 0.5, np.random.default_rng(4).standard_normal((5, P)))
    assert found.ratio == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("correlation", ["tree", "banded"])
def test_with_its_noise_a_step_of_dp_ftrl_moves_by_the_users_clipped_row_alone(correlation, tmp_path):
    rows_KP = np.array([[1e30] * P, [0.01] * P, [0.3] * P], np.float32)
    few = {"rounds": 4, "evaluate_every": 0}
    given_ = {"correlation": correlation, **({"bands": 1} if correlation == "banded" else {})}
    whole, without = (
        Sums(rounds_of(tmp_path / name, "dp-ftrl", few, mute=False, **given_))(kept_KP, np.ones(len(kept_KP)))
        for name, kept_KP in (("whole", rows_KP), ("without", rows_KP[1:]))
    )
    clipped_P = clip_rows(rows_KP, C)[0][0]
    assert np.linalg.norm(whole) > 2 * C  # there is noise
    assert whole - without == pytest.approx(clipped_P, abs=1e-5)


# --- claims of a device that does not keep to our code ---


def released_with(folder, mode: str, claims: list[int], kept=slice(None)) -> tuple[bytes, Usable]:
    """With its noise, of three users' rows; and what the cloud took of them."""
    rounds, rows_KP = rounds_of(folder, mode, {"rounds": 4}, mute=False), np.eye(3, P, dtype=np.float32)
    rounds.begin(1)
    usable = arrived(rounds, rows_KP[kept], np.array(claims, object)[kept])
    return rounds.release(1, usable).update_P.tobytes(), usable


@pytest.mark.parametrize("claim", [2, 2**40, 2**63 - 1])
@pytest.mark.parametrize("mode", ["central", "dp-ftrl"])
def test_on_the_wire_a_huge_claim_releases_the_bits_of_a_claim_of_one(mode, claim, tmp_path):
    huge, usable = released_with(tmp_path / "huge", mode, [1, 1, claim])
    assert usable.num_examples_K[2] == claim
    assert huge == released_with(tmp_path / "one", mode, [1, 1, 1])[0]


@pytest.mark.parametrize("claim", [0, -5, -(2**40), -(2**63)])
@pytest.mark.parametrize("mode", ["central", "dp-ftrl"])
def test_on_the_wire_a_claim_of_none_or_less_is_rejected_by_name_and_moves_nothing(mode, claim, tmp_path):
    without, usable = released_with(tmp_path / "none", mode, [1, 1, claim])
    assert usable.rejected == (Rejection(int(USERS[2]), f"node: {WEIGHTLESS}"),)
    assert without == released_with(tmp_path / "gone", mode, [1, 1, 1], slice(0, 2))[0]


# --- the probe finds what is planted in the release ---


def scaled(rows_KP: np.ndarray, own_rows, clipping_norm: float) -> np.ndarray:
    return 2 * clip_rows(rows_KP, clipping_norm)[0]


def unclipped(rows_KP: np.ndarray, own_rows, clipping_norm: float) -> np.ndarray:
    return np.nan_to_num(rows_KP)


def led_by_the_first(rows_KP: np.ndarray, own_rows, clipping_norm: float) -> np.ndarray:
    """Each row is short enough, and one user decides all of them."""
    rows_KP = clip_rows(rows_KP, clipping_norm)[0]
    return np.repeat(rows_KP[:1], len(rows_KP), axis=0)


@pytest.mark.parametrize(
    ("mode", "planted"),
    [("dp-ftrl", scaled), ("dp-ftrl", unclipped), ("dp-ftrl", led_by_the_first), ("central", led_by_the_first)],
)
def test_a_bug_planted_in_the_release_is_found(mode, planted, tmp_path, monkeypatch):
    released = Sums(rounds_of(tmp_path, mode), unseen)
    monkeypatch.setattr(f"strategies.{'central' if mode == 'central' else 'correlated'}.own_clipped", planted)
    with pytest.raises(PrivacyError, match=r"without user 0 the sum moves by .* times the clipping norm"):
        require_bounded(released, C, np.random.default_rng(5).standard_normal((5, P)))


@pytest.mark.parametrize("planted", [scaled, unclipped])
def test_a_release_of_central_noise_refuses_rows_that_a_bug_leaves_too_long(planted, tmp_path, monkeypatch):
    released = Sums(rounds_of(tmp_path, "central"), unseen)
    monkeypatch.setattr("strategies.central.own_clipped", planted)
    with pytest.raises(PrivacyError, match="clip rows before they are summed; nothing is released"):
        require_bounded(released, C, np.ones((5, P)))
