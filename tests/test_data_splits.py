"""Splits: what is held out, what the cloud sees, and that training never contains a held-out click."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.config import DataConfig, SplitConfig
from fedquilt.errors import DataError
from fedquilt.graphs import groups
from fedquilt.graphs.assemble import assemble
from fedquilt.graphs.bazaar import Bazaar, generate
from fedquilt.graphs.datasets import load_log
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.splits import HeldOut, Split, after_cut, new_to_cloud, split_log

PROTOCOLS = ("loo-full", "loo99", "rand-60-20-20")


def log_of(*histories: str, times: list[float] | None = None) -> InteractionLog:
    """One word a user, one letter an item, in click order; 26 items plus 120 that nobody clicks."""
    users = np.array([user for user, word in enumerate(histories) for _ in word])
    items = np.array([ord(letter) - ord("a") for word in histories for letter in word])
    clock = None if times is None else np.array(times, float)
    return assemble("tiny", users, items, clock, user_ids=np.arange(len(histories)), item_ids=np.arange(146))


def pairs(part: InteractionLog | HeldOut) -> set[tuple[int, int]]:
    users, items = (part.users_C, part.items_C) if isinstance(part, InteractionLog) else (part.users_H, part.items_H)
    return set(zip(users.tolist(), items.tolist(), strict=True))


def split(log: InteractionLog, protocol: str = "loo-full", cloud_share: float = 1.0, seed: int = 0) -> Split:
    return split_log(log, SplitConfig(protocol=protocol, cloud_share=cloud_share, seed=seed))


logs = st.builds(
    lambda words, timed: log_of(*words, times=[float(n % 7) for n in range(sum(map(len, words)))] if timed else None),
    st.lists(st.text("abcdefghijklm", min_size=0, max_size=12), min_size=1, max_size=6).filter(lambda w: any(w)),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(logs, st.sampled_from(PROTOCOLS), st.floats(0, 1))
def test_every_click_is_in_exactly_one_part_and_the_cloud_sees_training_clicks_only(log, protocol, share):
    parts = split(log, protocol, share)
    train, valid, test = (pairs(part) for part in (parts.train, parts.valid, parts.test))
    assert len(train) + len(valid) + len(test) == len(log)
    assert train | valid | test == pairs(log)
    assert pairs(parts.cloud) <= train


@settings(max_examples=40, deadline=None)
@given(logs, st.sampled_from(PROTOCOLS))
def test_users_with_fewer_than_three_clicks_train_and_are_not_evaluated(log, protocol):
    parts = split(log, protocol)
    evaluated = set(np.flatnonzero(np.diff(log.offsets) >= 3).tolist())
    assert set(parts.test.users_H.tolist()) == set(parts.valid.users_H.tolist()) == evaluated


@settings(max_examples=40, deadline=None)
@given(logs)
def test_negatives_are_99_different_items_that_the_user_never_clicked(log):
    parts = split(log, "loo99")
    for part in (parts.valid, parts.test):
        assert part.negatives_HM.shape == (len(part), 99)
        for user, negatives in zip(part.users_H, part.negatives_HM, strict=True):
            assert len(set(negatives)) == 99
            assert not set(negatives) & set(log.items_of(user))


def test_leave_one_out_holds_out_the_last_two_clicks():
    parts = split(log_of("abcd", "ab"))
    assert pairs(parts.test) == {(0, 3)}
    assert pairs(parts.valid) == {(0, 2)}
    assert pairs(parts.train) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_loo99_holds_out_the_clicks_of_loo_full():
    log = log_of("abcd", "xyz")
    assert pairs(split(log, "loo99").test) == pairs(split(log).test)


def test_the_random_split_holds_out_two_fifths():
    parts = split(log_of("abcdefghijklmnopqrstuvwxy"), "rand-60-20-20")
    assert (len(parts.train), len(parts.valid), len(parts.test)) == (15, 5, 5)


def test_the_stale_cloud_sees_training_clicks_up_to_the_quantile_of_time():
    # Times 0..7: the median is 3.5. User 1 comes later and is new to the cloud.
    log = log_of("abcd", "efgh", times=[0, 1, 2, 3, 4, 5, 6, 7])
    parts = split(log, cloud_share=0.5)
    assert parts.cut == 3.5
    assert pairs(parts.cloud) == {(0, 0), (0, 1)}
    assert new_to_cloud(parts).tolist() == [False, True]
    assert after_cut(log, parts).tolist() == [False, True]


def test_a_share_of_one_is_all_of_training_and_of_zero_is_nothing():
    log = log_of("abcd", times=[0, 1, 2, 3])
    warm, pure = split(log, cloud_share=1.0), split(log, cloud_share=0.0)
    assert pairs(warm.cloud) == pairs(warm.train)
    assert len(pure.cloud) == 0
    assert not after_cut(log, warm).any()
    assert after_cut(log, pure).all()


def test_without_time_the_cloud_sees_the_first_share_of_each_users_row_order():
    log = log_of("abcdef", "uvwx")
    assert pairs(split(log, cloud_share=0.5).cloud) == {(0, 0), (0, 1), (1, 20)}
    assert pairs(split(log, cloud_share=1.0).cloud) == pairs(split(log).train)


def test_the_hash_changes_with_all_that_changes_the_split():
    log, longer = log_of("abcd", "efgh"), log_of("abcde", "efgh")
    timed = log_of("abcd", "efgh", times=[0, 1, 2, 3, 4, 5, 6, 7])
    splits = [split(log), split(longer), split(timed), split(log, seed=1)]
    splits += [split(log, "loo99"), split(log, "loo99", seed=1), split(log, "rand-60-20-20")]
    assert len({parts.hash for parts in splits}) == len(splits)
    assert split(log).hash == split(log_of("abcd", "efgh")).hash


def test_the_hash_is_that_of_the_questions_whatever_the_cloud_may_see():
    timed = log_of("abcd", "efgh", times=[0, 1, 2, 3, 4, 5, 6, 7])
    assert split(timed, cloud_share=0.5).hash == split(timed).hash


def test_drawn_negatives_depend_on_the_seed_only():
    log = log_of("abcd", "efgh")
    same, other = split(log, "loo99"), split(log, "loo99", seed=1)
    assert np.array_equal(split(log, "loo99").test.negatives_HM, same.test.negatives_HM)
    assert not np.array_equal(other.test.negatives_HM, same.test.negatives_HM)


def test_too_few_items_for_99_negatives_are_refused():
    log = assemble("tiny", np.zeros(5, int), np.arange(5))
    with pytest.raises(DataError, match="loo99 needs 99 unclicked items"):
        split(log, "loo99")


def test_a_frozen_file_for_another_log_is_refused(shared_data, tmp_path):
    source = shared_data / "ml-100k"
    for name in ("ml-100k.inter", "loo99_pfedrec_seed0.tsv"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    log = load_log(DataConfig(dataset="ml-100k", path=str(tmp_path)))
    with pytest.raises(DataError, match=r"ratings\.pfedrec\.dat"):
        split(log, "loo99")


@pytest.fixture(scope="module")
def ml_100k(shared_data: Path) -> InteractionLog:
    return load_log(DataConfig(dataset="ml-100k", path=str(shared_data / "ml-100k")))


def test_the_frozen_clicks_are_the_last_two_of_all_943_users(ml_100k):
    parts = split(ml_100k, "loo99")
    assert len(parts.test) == len(parts.valid) == 943
    # First row of loo99_pfedrec_seed0.tsv: user 1, validation item 74, test item 102, negatives from 1059.
    assert ml_100k.item_ids[[parts.valid.items_H[0], parts.test.items_H[0]]].tolist() == [74, 102]
    assert ml_100k.item_ids[parts.valid.negatives_HM[0, :3]].tolist() == [1059, 1132, 353]


def test_popularity_under_the_frozen_split_has_its_known_hit_rate(ml_100k):
    # Measured for the log's README: popularity, loo99, HR@10 .419.
    parts = split(ml_100k, "loo99")
    popularity_I = parts.train.popularity_I
    ranks_H = (popularity_I[parts.test.negatives_HM] > popularity_I[parts.test.items_H][:, None]).sum(axis=1)
    assert (ranks_H < 10).mean() == pytest.approx(0.419, abs=0.006)


def test_the_freshness_cut_leaves_493_test_users_of_whom_353_are_new(ml_100k):
    # Counts of the prototype that the freshness study is measured against: cut at the 60 % quantile of click times.
    parts = split(ml_100k, cloud_share=0.6)
    late = parts.test.users_H[after_cut(ml_100k, parts)]
    assert (len(late), int(new_to_cloud(parts)[late].sum())) == (493, 353)


def test_the_hetcomp_split_has_its_published_sizes(shared_data):
    log = load_log(DataConfig(dataset="citeulike-t", path=str(shared_data / "citeulike-t")))
    parts = split(log, "rand-60-20-20")
    assert (len(parts.train), len(parts.valid), len(parts.test)) == (78_958, 20_823, 20_823)
    assert len(np.unique(parts.train.users_C)) == 5_219
    assert len(np.unique(parts.test.users_H)) == 4_719
    # hetcomp_seed0_test.txt, first line: user 0 holds out 11 10 22 14 of the second line of users.dat (the first user
    # has 4 articles and is left out), whose 11th, 12th, 15th and 23rd articles are these.
    assert sorted(parts.test.items_H[parts.test.users_H == 1]) == [15716, 16351, 19590, 25131]


def test_item_groups_hold_a_fifth_three_fifths_and_a_fifth_of_the_clicks():
    log = generate(Bazaar(num_users=500, num_items=400))
    groups_I = groups.item_groups(log)
    clicks = np.bincount(groups_I, weights=log.popularity_I) / len(log)
    assert clicks == pytest.approx([0.2, 0.6, 0.2], abs=0.02)
    assert log.popularity_I[groups_I == groups.HEAD].min() >= log.popularity_I[groups_I == groups.MID].max()
    assert log.popularity_I[groups_I == groups.MID].min() >= log.popularity_I[groups_I == groups.TAIL].max()


def test_an_item_without_a_training_click_is_tail():
    assert groups.item_groups(log_of("abcabd"))[25] == groups.TAIL


def test_user_groups_are_thirds_by_activity():
    assert groups.user_groups(log_of("ab", "abcdef", "abc")).tolist() == [groups.TAIL, groups.HEAD, groups.MID]
