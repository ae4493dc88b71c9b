"""A round that is asked again: each user pays for other bytes, not for the same, and whatever the others do."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from charge_toy import DELTA, FULL, HALF, TINY, C, P, Rows, limit_of, node, order, restarted, spent_by
from hypothesis import given, settings
from hypothesis import strategies as st

from client.charge import charged_sum, only
from client.device_ledger import DeviceLedger, device_event
from client.noise import Sent, row_digests, sum_of
from client.privatise import OVER_LIMIT
from fedquilt.privacy.gaussian import gaussian_epsilon
from fedquilt.privacy.terms import Terms
from fedquilt.privacy.verify import verify
from fedquilt.wire_shares import SharesReply


class Negated(Rows):
    """Other bytes than ``Rows``, of the same norms, for those of ``others``."""

    others = (FULL, HALF, TINY)

    def train(self, *arguments):
        local = super().train(*arguments)
        mask_K = np.isin(arguments[0], self.others)
        local.updates_KP[mask_K] = -np.roll(local.updates_KP[mask_K], 1, axis=1)
        return local


class FullNegated(Negated):
    others = (FULL,)


@pytest.mark.parametrize("by_norms", [True, False])
def test_other_rows_of_a_round_that_was_sent_are_charged_again(tmp_path, by_norms):
    node(tmp_path, by_norms, limit_of(1)).train(order(1))
    reply = node(tmp_path, by_norms, limit_of(2), FullNegated).train(order(1))
    assert reply.client_ids_K.tolist() == [FULL, HALF, TINY]
    spent = spent_by(tmp_path / "device.sqlite")
    assert spent[FULL] == pytest.approx(gaussian_epsilon(2**0.5, DELTA))
    assert spent[HALF] == pytest.approx(gaussian_epsilon(0.5 if by_norms else 1, DELTA))  # the same bytes as before


@pytest.mark.parametrize("by_norms", [True, False])
def test_a_user_without_room_for_other_rows_does_not_silence_the_others_of_the_node(tmp_path, by_norms):
    node(tmp_path, by_norms, limit_of(1)).train(order(1))
    before = spent_by(tmp_path / "device.sqlite")
    device = node(tmp_path, by_norms, limit_of(1), FullNegated)
    reply = device.train(order(1))
    assert reply.client_ids_K.tolist() == [HALF, TINY]
    assert (reply.declined_D.tolist(), reply.declined_why_D.tolist()) == ([FULL], [OVER_LIMIT])
    assert spent_by(tmp_path / "device.sqlite") == before


@settings(max_examples=25, deadline=None)
@given(
    by_norms=st.booleans(),
    gone=st.sampled_from([FULL, HALF, TINY]),
    others=st.sets(st.sampled_from([FULL, HALF, TINY])),
    mu2=st.sampled_from([0.2, 1.0, 2.0]),
    asked=st.lists(st.integers(1, 3), min_size=1, max_size=4).map(sorted),
)
def test_without_one_user_in_an_order_all_others_send_and_are_charged_the_same(by_norms, gone, others, mu2, asked):
    """``others``: whose rows are other bytes when a round is asked again. All orders, or those after the first."""
    told = []
    for users in ((FULL, HALF, TINY), tuple({FULL, HALF, TINY} - {gone})):
        with TemporaryDirectory() as folder:
            rows = set()
            for place, round_ in enumerate(asked):
                task = type("Again", (Negated,), {"others": tuple(others) if round_ in asked[:place] else ()})
                reply = node(Path(folder), by_norms, limit_of(mu2), task).train(order(round_, users))
                pairs = zip(reply.client_ids_K.tolist(), reply.updates_KP, strict=True)
                rows |= {(place, user, row.tobytes()) for user, row in pairs if user != gone}
            spent = spent_by(Path(folder) / "device.sqlite") if (Path(folder) / "device.sqlite").exists() else {}
            told.append((rows, {user: epsilon for user, epsilon in spent.items() if user != gone}))
            restarted()
    assert told[0] == told[1]


def test_a_round_that_is_asked_again_of_other_users_is_another_release(tmp_path):
    """The cloud would noise another sum of the same rows."""
    device = node(tmp_path, by_norms=False, limit=limit_of(2))
    answered = [device.train(order(1, users)).client_ids_K.tolist() for users in ((FULL, HALF), (HALF, TINY), (HALF,))]
    assert answered == [[FULL, HALF], [HALF, TINY], []]
    assert spent_by(device.ledger.path)[TINY] == pytest.approx(gaussian_epsilon(1.0, DELTA))


def test_a_sum_is_made_again_without_users_who_have_no_room_for_another_one(tmp_path):
    ledger, ids_K = DeviceLedger(tmp_path / "device.sqlite", limit_of(2), DELTA), np.array([7, 8])

    def in_round(run: str, users_K: np.ndarray, digest: str):
        return device_event(Terms(run, "central", C, 1.0, DELTA, "1:a"), 1, users_K, P, digest)

    ledger.record([(in_round("r", ids_K, "first"), ids_K)])
    ledger.record([(in_round("other", ids_K[:1], "d"), ids_K[:1])])
    made, kept_K = charged_sum(ledger, ids_K, lambda users_K: (users_K.sum(), in_round("r", users_K, str(users_K))))
    assert (made, kept_K.tolist()) == (8, [8])
    assert spent_by(ledger.path) == {user: pytest.approx(gaussian_epsilon(2**0.5, DELTA)) for user in (7, 8)}


def test_no_share_of_who_has_no_room_is_in_a_nodes_sum():
    shares_KP, ids_K, none_D = np.array([[1, 2], [2**32 - 1, 5]], np.uint32), np.array([7, 8]), np.empty(0, np.int64)
    reply = SharesReply(1, "s", ids_K, sum_of(shares_KP), none_D, none_D)
    sent = Sent(reply, row_digests(ids_K, shares_KP, "1"), np.ones(2, bool), shares_KP)
    kept = only(sent, np.array([False, True]))
    assert (sent.reply.sum_P.tolist(), kept.reply.sum_P.tolist()) == ([0, 7], [2**32 - 1, 5])
    assert (kept.reply.client_ids_K.tolist(), kept.digests_K.tolist()) == ([8], sent.digests_K[1:].tolist())


def test_the_same_bytes_under_less_noise_are_charged_again(tmp_path):
    device = node(tmp_path, by_norms=False)
    for noise in (4.0, 1.0, 4.0):
        device.train(order(1, (FULL,), noise=noise))
    expected = gaussian_epsilon((1 + 1 / 16) ** 0.5, DELTA)
    assert spent_by(device.ledger.path) == {FULL: pytest.approx(expected)}
    verdict = verify(device.ledger.path)
    assert verdict.epsilons["pld"] == {DELTA: pytest.approx(expected, rel=1e-3)}


def test_equal_rows_in_two_rounds_are_no_noise_that_was_used_twice(tmp_path):
    for by_norms in (False, True):
        device = node(tmp_path / str(by_norms), by_norms)
        for round_ in (1, 2):
            device.train(order(round_, (TINY,)))  # zeros
        assert verify(device.ledger.path).holds
