"""Users charged by the norms of what they sent: less for short rows, exactly, and for the device alone to know."""

from __future__ import annotations

import numpy as np
import pytest
import toy_task
from charge_toy import DELTA, FULL, HALF, TINY, C, P, limit_of, node, order, restarted, sent
from hypothesis import given
from hypothesis import strategies as st
from private_toy import MODES, device_ledgers, events, federate, private, sendings
from typer.testing import CliRunner

import client.device_ledger as module
import server.privacy
from cli.main import app
from client.charge import norm_shares, normed
from client.device_ledger import device_event
from client.noise import row_digests
from client.privatise import OVER_LIMIT, privatise
from client.promises import require_terms
from client.task import LocalUpdates
from fedquilt.errors import FederationError, LedgerError, PrivacyError
from fedquilt.privacy.events import NormedDeviceRound, from_json, to_json
from fedquilt.privacy.gaussian import gaussian_epsilon
from fedquilt.privacy.individual import device_epsilons
from fedquilt.privacy.statement import statement
from fedquilt.privacy.terms import Terms
from fedquilt.privacy.verify import verify
from fedquilt.wire import read_train_reply, write_train_reply

# --- what a row costs ---


def test_rows_of_half_the_norm_may_be_sent_four_times_as_often(tmp_path):
    device = node(tmp_path, limit=limit_of(4))  # of four full rows under noise of std C: mu² = 1 each
    answered = [device.train(order(round_)).client_ids_K.tolist() for round_ in range(1, 21)]
    assert [sum(user in ids for ids in answered) for user in (FULL, HALF, TINY)] == [4, 16, 20]


def test_by_the_clipping_norm_all_rows_cost_the_same(tmp_path):
    device = node(tmp_path, by_norms=False, limit=limit_of(4))
    answered = [len(device.train(order(round_)).client_ids_K) for round_ in range(1, 7)]
    assert answered == [3, 3, 3, 3, 0, 0]


def test_a_users_epsilon_is_that_of_one_gaussian_with_the_squared_shares_added_up(tmp_path):
    device = node(tmp_path)
    for round_ in (1, 2, 3):
        device.train(order(round_))
    account = module.read_book(device.ledger.path)[0]
    spent = device_epsilons(account.events, account.cohorts, DELTA)
    expected = {FULL: 3**0.5, HALF: (3 / 4) ** 0.5, TINY: 3**0.5 / 16}
    assert spent == {user: pytest.approx(gaussian_epsilon(mu, DELTA)) for user, mu in expected.items()}


@given(norm=st.floats(0, 4), clip=st.floats(1e-3, 1e3), seed=st.integers(0, 9))
def test_shares_round_up_to_the_next_sixteenth(norm, clip, seed):
    direction_P = np.random.default_rng(seed).normal(size=1500)
    rows_1P = (norm * clip * direction_P / np.linalg.norm(direction_P))[None].astype(np.float32)
    reply, _ = privatise(LocalUpdates(rows_1P, np.ones(1)), np.array([7]), clip, 1, "s")
    (share,) = norm_shares(reply, clip)
    exact = np.linalg.norm(reply.updates_KP[0].astype(np.float64)) / clip
    assert exact <= share <= 1
    assert (16 * share).is_integer()
    assert share == 1 / 16 or share - 1 / 16 <= exact * (1 + 2.0**-15)


def test_a_row_longer_than_the_clipping_norm_counts_whole(tmp_path):
    device = node(tmp_path)
    reply = device.train(order(1, (FULL,)))
    assert np.linalg.norm(reply.updates_KP) == pytest.approx(C, rel=1e-4)
    assert [event.norm_share for event in events(device.ledger.path)] == [1.0]


def test_an_order_with_a_huge_clipping_norm_gets_no_rows_for_a_sixteenth_of_their_price(tmp_path):
    device = node(tmp_path)
    with pytest.raises(PrivacyError, match=r"rows of norm 1e\+06, the deployment for 0.5"):
        device.train(order(1, norm=1e6))
    assert not device.ledger.path.exists()


@pytest.mark.parametrize("upload_entries", [0, 2])
def test_the_share_is_that_of_the_row_which_the_cloud_reads(tmp_path, upload_entries):
    device = node(tmp_path, task=toy_task.ToyTask, upload_entries=upload_entries)
    reply = device.train(order(1))
    read = read_train_reply(write_train_reply(reply), P)
    norms_K = np.linalg.norm(read.updates_KP.astype(np.float64), axis=1) / C
    told = {event.norm_share for event in events(device.ledger.path)}
    assert told == set((np.ceil(16 * norms_K) / 16).tolist())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0625, float("nan"), "1"])
def test_a_share_that_is_none_is_refused(share):
    event = device_event(Terms("r", "central", C, 1.0, DELTA, "1:a"), 1, np.array([7]), P)
    with pytest.raises(PrivacyError, match="norm_share must be"):
        normed(event, share)


def test_a_share_is_charged_under_gaussian_noise_and_for_users_added_or_removed_only():
    event = device_event(Terms("r", "local", C, 1.0, DELTA, "1:a"), 1, np.array([7]), P)
    with pytest.raises(PrivacyError, match="add-or-remove neighbours only"):
        normed(event, 0.5)


# --- what the cloud sees ---


def test_a_user_whose_row_turns_out_too_long_declines_like_one_without_room_for_any(tmp_path):
    """FULL has room for nothing, HALF for the shortest row; by the clipping norm neither has any."""
    told = {}
    for by_norms in (False, True):
        folder = tmp_path / str(by_norms)
        device = node(folder, by_norms, limit_of(1))
        for user, share in ((FULL, 1.0), (HALF, 14 / 16)):
            ids_K = np.array([user])
            before = device_event(Terms("other", "central", C, 1.0, DELTA, "1:a"), 1, ids_K, P, f"d{user}")
            device.ledger.record([(normed(before, share), ids_K)])
        reply = device.train(order(1, (HALF, FULL, TINY)))
        told[by_norms] = sent(reply)
        assert reply.client_ids_K.tolist() == [TINY]
        assert reply.declined_D.tolist() == [HALF, FULL]
        assert reply.declined_why_D.tolist() == [OVER_LIMIT, OVER_LIMIT]
        kept_KR = device.store.read(np.array([HALF, FULL, TINY]), before_round=2)
        assert kept_KR[:, 0].tolist() == [0, 0, 1]  # who sends nothing keeps the personal patch
    assert told[True] == told[False]


@pytest.mark.parametrize("upload_entries", [0, 2])
def test_replies_are_the_same_bytes_while_nobody_reaches_the_limit(tmp_path, upload_entries):
    by_norm, by_clip = (
        node(tmp_path / str(way), way, 100.0, toy_task.ToyTask, upload_entries) for way in (True, False)
    )
    for round_ in (1, 2):
        assert sent(by_norm.train(order(round_))) == sent(by_clip.train(order(round_)))


def test_ledger_records_and_patch_of_the_cloud_are_the_same_while_nobody_reaches_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(server.privacy, "_name", lambda config, source: "r")  # else the configuration's hash is in it
    seen = []
    for by_norms in (True, False):
        result, run = federate(
            tmp_path / str(by_norms), private("central", device_norms=by_norms, device_epsilon=100.0)
        )
        told = [event for event in events(run.path) if "device_norms is on" not in getattr(event, "text", "")]
        ledger = [to_json(event).replace(run.config.hash(), "") for event in told]
        heads = ("seconds", "privacy_head")  # of a ledger with times and a name of its own
        records = [{k: v for k, v in record.items() if k not in heads} for record in run.records("round")]
        seen.append((result.patch_P.tobytes(), ledger, records))
    assert seen[0] == seen[1]


def test_every_statement_tells_that_users_are_charged_by_norms(tmp_path):
    told = {}
    for by_norms in (False, True):
        _, run = federate(tmp_path / str(by_norms), private("central", {"rounds": 1}, device_norms=by_norms))
        told[by_norms] = " ".join(statement(run.path)["deviations"])
    assert "who declines, and when, depends on users' data" in told[True]
    assert "device_norms" not in told[False]


def test_shares_lie_nowhere_but_in_the_devices_own_ledgers(tmp_path):
    _, run = federate(tmp_path, private("norms"))
    holding = [path for path in run.path.rglob("*") if path.is_file() and b"norm_share" in path.read_bytes()]
    assert sorted(holding) == device_ledgers(run)


# --- the ledger of the device ---


def test_a_ledger_that_is_read_again_holds_the_same_accounts(tmp_path):
    device = node(tmp_path)
    for round_ in (1, 2):
        device.train(order(round_))
    before = device.ledger._account()
    again = module._read(device.ledger.path)
    assert (again.spent, again.rounds, again.sent) == (before.spent, before.rounds, before.sent)
    assert len(again.spent) == 3  # atoms, one a share


def test_an_event_reads_back_as_it_was_written(tmp_path):
    device = node(tmp_path)
    device.train(order(1))
    held = events(device.ledger.path)
    assert [type(event) for event in held] == [NormedDeviceRound] * 3
    assert [from_json(to_json(event)) for event in held] == held


def test_a_round_that_is_asked_again_is_charged_once(tmp_path):
    device = node(tmp_path, limit=limit_of(1))
    first = sent(device.train(order(1)))
    restarted()
    assert sent(device.train(order(1))) == first
    assert len(sendings(device.ledger.path)) == 3


@pytest.mark.parametrize("written", [1, 2, 3])
def test_a_device_killed_between_ledger_and_reply_sends_the_same_afterwards_and_is_charged_once(
    tmp_path, monkeypatch, written
):
    device = node(tmp_path, limit=limit_of(1))
    append = module.Ledger.append

    def then_killed(ledger, event, ids_K):
        entry = append(ledger, event, ids_K)
        if entry.seq == written + 1:  # after the device's limit
            raise KeyboardInterrupt
        return entry

    monkeypatch.setattr(module.Ledger, "append", then_killed)
    with pytest.raises(KeyboardInterrupt):
        device.train(order(1))
    monkeypatch.undo()
    restarted()
    assert device.train(order(1)).client_ids_K.tolist() == [FULL, HALF, TINY]
    assert sorted(event.norm_share for event in sendings(device.ledger.path)) == [1 / 16, 1 / 2, 1]


def test_a_ledger_that_cannot_be_written_sends_nothing(tmp_path, monkeypatch):
    def full(self, event, ids_K):
        raise LedgerError("disk is full")

    monkeypatch.setattr(module.Ledger, "append", full)
    with pytest.raises(LedgerError, match="disk is full"):
        node(tmp_path).train(order(1))


def test_verify_holds_and_tells_the_user_who_has_spent_most(tmp_path):
    device = node(tmp_path)
    for round_ in (1, 2):
        device.train(order(round_, (HALF, TINY)))
    verdict = verify(device.ledger.path)
    assert verdict.holds
    assert verdict.worst_user == {DELTA: pytest.approx(gaussian_epsilon(0.5**0.5, DELTA))}
    assert verdict.worst_user[DELTA] <= min(by_delta[DELTA] for by_delta in verdict.epsilons.values())
    printed = CliRunner().invoke(app, ["privacy", "verify", str(device.ledger.path)])
    assert printed.exit_code == 0
    assert f"most spent by a single user of this device: epsilon {verdict.worst_user[DELTA]:.4f}" in printed.output


def shares_round(round_: int):
    terms = Terms("r", "distributed", C, 1.0, DELTA, f"{round_}:a", shares=10, noise="skellam")
    return device_event(terms, round_, np.array([FULL]), P, f"d{round_}")


def test_charges_by_norms_are_refused_on_a_ledger_of_noise_that_is_not_gaussian(tmp_path):
    device = node(tmp_path)
    device.ledger.record([(shares_round(1), np.array([FULL]))])
    restarted()
    with pytest.raises(PrivacyError, match="holds rounds of noise that is not Gaussian"):
        device.train(order(2))
    assert len(events(device.ledger.path)) == 1


def test_noise_that_is_not_gaussian_is_refused_on_a_ledger_of_charges_by_norms(tmp_path):
    device = node(tmp_path)
    device.train(order(1))
    restarted()
    with pytest.raises(PrivacyError, match="holds rounds of charges by norms"):
        device.ledger.admit(shares_round(2), np.array([FULL]))


def test_by_the_clipping_norm_a_ledger_may_hold_both_kinds_of_noise(tmp_path):
    device = node(tmp_path, by_norms=False)
    device.ledger.record([(shares_round(1), np.array([FULL]))])
    assert len(device.train(order(2)).client_ids_K) == 3


# --- whole runs ---


def test_in_a_run_users_with_short_rows_answer_more_often_and_nobody_exceeds_the_limit(tmp_path):
    replies, limit = {}, limit_of(2)
    for by_norms in (False, True):
        federation = {"clipping_norm": 2.0, "rounds": 8, "evaluate_every": 0}  # rows of the toy are about 1 long
        privacy = {"sampler": "none", "device_norms": by_norms, "device_epsilon": limit}
        _, run = federate(tmp_path / str(by_norms), private("central", federation, **privacy))
        replies[by_norms] = sum(record["replies"] for record in run.records("round"))
        assert verify(run.path).holds
        worst = [verify(path).worst_user for path in device_ledgers(run)]
        assert all(by_delta[DELTA] <= limit for by_delta in worst)
    assert replies[False] == 2 * 24
    assert replies[True] > 1.5 * replies[False]


@pytest.mark.parametrize(
    ("privacy", "adaptive", "words"),
    [
        (MODES["dp-ftrl"], False, "for mode 'central'"),
        (MODES["quantile"], False, "clipping norm that stays"),
        (MODES["central"], True, "the clipping norm moves"),
        ({"mode": "central", "sampler": "fixed"}, False, "cohorts of fixed size"),
    ],
)
def test_a_device_refuses_orders_for_which_norms_prove_nothing(privacy, adaptive, words):
    config = private("central").privacy.model_copy(update={**privacy, "device_norms": True})
    terms = Terms("r", config.mode, C, 1.0, DELTA, "1:a", adaptive=adaptive)
    with pytest.raises(PrivacyError, match=words):
        require_terms(terms, config, own=False)


# --- what tells replies apart ---


def told_apart(reply) -> str:
    return str(row_digests(reply.client_ids_K, reply.updates_KP, str(reply.round_)))


@pytest.mark.parametrize("changed", [lambda row_P: row_P[::-1], lambda row_P: -row_P], ids=["turned", "negated"])
def test_the_same_numbers_in_another_order_or_with_other_signs_are_other_bytes(changed):
    row_P = np.arange(1, 9, dtype=np.float32) / 16
    replies = [
        privatise(LocalUpdates(row_1P, np.ones(1)), np.array([7]), 9.0, 1, "s")[0]
        for row_1P in (row_P[None].copy(), changed(row_P)[None].copy())
    ]
    assert len({told_apart(reply) for reply in replies}) == 2


def test_the_same_bytes_are_known_again():
    row_P = np.arange(1, 9, dtype=np.float32) / 16
    replies = [privatise(LocalUpdates(row_P[None].copy(), np.ones(1)), np.array([7]), 9.0, 1, "s")[0] for _ in "ab"]
    assert len({told_apart(reply) for reply in replies}) == 1


def test_an_order_that_names_a_client_twice_is_refused(tmp_path):
    with pytest.raises(FederationError, match="names a client twice"):
        node(tmp_path).train(order(1, users=(FULL, FULL)))
