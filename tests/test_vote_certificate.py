"""The certified vote: within the radius no insertion moves an item out of the list, on ballots and on real kernels."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_recommender import CLICKED, GRAPH, ITEMS, random_patch, random_table, random_weights, spec_of

from client.vote import Voter
from fedquilt.certificate import (
    NEVER,
    certified_radii,
    count_votes,
    item_groups,
    split_history,
    vote_scores,
    worst_ranks,
)
from fedquilt.device_defences import VoteConfig
from fedquilt.errors import DataError
from fedquilt.graphs.subgraph import SubgraphBuilder

GROUPS, BALLOT, SHOWN = 6, 3, 4
seeds = st.integers(0, 10**6)


def rank_of(target: int, votes_I: np.ndarray, open_I: np.ndarray, order_I: np.ndarray) -> int:
    """By hand: how many open items come before it, and one."""
    keys = [(-votes_I[i], order_I[i]) for i in range(len(votes_I))]
    return 1 + sum(keys[i] < keys[target] for i in range(len(votes_I)) if open_I[i] and i != target)


def bound(votes_I, open_I, order_I, target, groups, ballot, insertions) -> int:
    one = worst_ranks(votes_I[None], open_I[None], order_I, np.array([[target]]), groups, ballot, insertions)
    return int(one[0, 0])


# --- the count of votes ---


def test_clicks_go_to_their_items_group_in_order():
    split = split_history(np.array([[4, 1, 2, 3, 1, -1]]), np.array([0, 1, 0, 1, 0]), 2)
    assert split[0].tolist() == [[4, 2, -1, -1, -1, -1], [1, 3, 1, -1, -1, -1]]


def test_a_group_votes_for_its_best_and_never_for_its_own_clicks():
    scores = np.array([[[9, 8, 7, 6], [1, 2, 3, 4], [5, 5, 5, 5.0]]])
    split = np.array([[[0, -1], [1, 3], [-1, -1]]])
    # Hand: group 0 without item 0 -> 1, 2; group 1 without 1 and 3 -> 2, 0; group 2 has no clicks and no vote.
    assert count_votes(scores, split, 2).tolist() == [[1, 1, 2, 0]]


def test_scores_of_a_vote_sort_by_votes_then_by_the_fixed_order():
    assert np.argsort(-vote_scores(np.array([[1, 2, 1]]), np.array([2, 1, 0])))[0].tolist() == [1, 2, 0]


def test_a_key_decides_the_groups_and_a_larger_catalogue_moves_nothing():
    assert np.array_equal(item_groups(50, 7, 3), item_groups(80, 7, 3)[:50])
    assert not np.array_equal(item_groups(50, 7, 3), item_groups(50, 7, 4))
    assert np.bincount(item_groups(7000, 7, 3)) == pytest.approx(1000, abs=150)


def test_a_vote_without_groups_is_refused():
    with pytest.raises(DataError, match=r"set vote\.groups"):
        item_groups(5, 0, 0)


# --- the theorem on ballots ---


def test_without_insertions_the_worst_rank_is_the_rank():
    rng = np.random.default_rng(0)
    votes_I, open_I, order_I = rng.integers(0, 4, 9), rng.random(9) < 0.7, rng.permutation(9)
    for target in np.flatnonzero(open_I):
        assert bound(votes_I, open_I, order_I, target, 5, 3, 0) == rank_of(target, votes_I, open_I, order_I)


def test_a_bound_by_hand():
    # 5 groups, 1 insertion, ballots of 2: the target keeps 3 of 4 votes. Item 1 (4) is ahead; item 2 (3, later in the
    # order) needs 1 and item 3 (2) needs 2 > 1. The budget of 2 votes lets item 2 pass: rank 3.
    votes_I, order_I = np.array([4, 4, 3, 2]), np.arange(4)
    assert bound(votes_I, np.ones(4, bool), order_I, 0, 5, 2, 1) == 3


@given(seeds, st.integers(0, 4))
def test_no_change_of_so_many_ballots_pushes_an_item_below_its_bound(seed, insertions):
    rng = np.random.default_rng(seed)
    ballots = np.array([rng.permutation(8)[:BALLOT] for _ in range(GROUPS)])
    order_I, open_I = rng.permutation(8), rng.random(8) < 0.8
    target = int(rng.integers(8))
    votes_I = np.bincount(ballots.ravel(), minlength=8)
    promised = bound(votes_I, open_I, order_I, target, GROUPS, BALLOT, insertions)
    for _ in range(30):
        forged = ballots.copy()
        rivals = np.delete(np.arange(8), target)
        for group in rng.permutation(GROUPS)[:insertions]:
            forged[group] = rng.permutation(rivals)[:BALLOT]
        now_I = np.bincount(forged.ravel(), minlength=8)
        assert rank_of(target, now_I, open_I, order_I) <= promised


def test_the_bound_is_reached_by_some_change_of_most_small_ballots():
    """3 groups of 2 votes over 5 items, one of them forged in every possible way: not only safe, mostly exact."""
    rng, exact = np.random.default_rng(1), []
    pairs = list(combinations(range(5), 2))
    for _ in range(60):
        ballots = [pairs[rng.integers(len(pairs))] for _ in range(3)]
        order_I, open_I = rng.permutation(5), np.ones(5, bool)
        votes_I = np.bincount(np.ravel(ballots), minlength=5)
        worst = 0
        for group, pair in product(range(3), pairs):
            forged = [pair if g == group else ballot for g, ballot in enumerate(ballots)]
            worst = max(worst, rank_of(0, np.bincount(np.ravel(forged), minlength=5), open_I, order_I))
        promised = bound(votes_I, open_I, order_I, 0, 3, 2, 1)
        assert worst <= promised
        exact.append(worst == promised)
    assert np.mean(exact) > 0.5


def test_a_radius_is_the_last_number_of_insertions_that_is_safe():
    votes_UI, order_I = np.array([[6, 2, 0, 0, 0]]), np.arange(5)
    everything = np.ones((1, 5), bool)
    radii = certified_radii(votes_UI, everything, order_I, np.array([[0, 1, 4]]), 6, 1, 1, 5)
    # Hand: item 0 with 6 - k votes against item 1 with 2 + k, which loses ties: safe while 6 - k >= 2 + k, k = 2.
    assert radii.tolist() == [[2, NEVER, NEVER]]


# --- the theorem on kernels ---


def voter(seed: int) -> Voter:
    subgraphs = SubgraphBuilder(*random_table(7), GRAPH.num_nodes, GRAPH.num_clicked, GRAPH.window)
    weights = random_weights(seed)
    # One taste that most users share, so that groups agree and there is something to certify.
    order = torch.from_numpy(np.random.default_rng(seed).permutation(ITEMS))
    weights.item_bias.add_(3 * torch.linspace(1, -1, ITEMS)[order])
    return Voter(weights, subgraphs, CLICKED, VoteConfig(groups=GROUPS, ballot=BALLOT, key=seed))


def shown(judge: Voter, votes_UI: np.ndarray, histories_UL: np.ndarray) -> np.ndarray:
    """int64 [U, SHOWN]: what is on the screen."""
    scores_UI = vote_scores(votes_UI, judge.order_I)
    users, places = np.nonzero(histories_UL >= 0)
    scores_UI[users, histories_UL[users, places]] = -np.inf
    return np.argsort(-scores_UI, axis=1)[:, :SHOWN]


def inserted(history: list[int], clicks: list[tuple[int, int]], length: int) -> np.ndarray:
    """The history with (place, item) clicks put in, latest first, -1 padded."""
    made = list(history)
    for place, item in clicks:
        made.insert(place, item)
    return np.array(made + [-1] * (length - len(made)), np.int32)


def certified(seed: int, histories_UL: np.ndarray) -> tuple[Voter, dict, np.ndarray, np.ndarray]:
    judge = voter(seed)
    patch = spec_of().views(torch.from_numpy(random_patch(spec_of(), seed, std=0.05)))
    votes_UI = judge.votes(histories_UL, patch)
    open_UI = ~np.stack([np.isin(np.arange(ITEMS), history) for history in histories_UL])
    list_UK = shown(judge, votes_UI, histories_UL)
    radii_UK = certified_radii(votes_UI, open_UI, judge.order_I, list_UK, GROUPS, BALLOT, SHOWN, 3)
    return judge, patch, list_UK, radii_UK


def some_history(seed: int) -> list[int]:
    return np.random.default_rng(seed).permutation(ITEMS)[:9].tolist()


@given(seeds, st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_within_the_radius_no_insertion_takes_an_item_off_the_list(seed, insertions):
    history, rng = some_history(seed), np.random.default_rng(seed)
    judge, patch, list_UK, radii_UK = certified(seed, np.array([history], np.int32))
    tries = [
        [(int(rng.integers(len(history) + 1)), int(rng.integers(ITEMS))) for _ in range(insertions)] for _ in range(40)
    ]
    forged = np.stack([inserted(history, clicks, len(history) + insertions) for clicks in tries])
    now = shown(judge, judge.votes(forged, patch), forged)
    for item, radius in zip(list_UK[0], radii_UK[0], strict=True):
        for clicks, list_K in zip(tries, now, strict=True):
            if radius >= insertions and item not in [clicked for _, clicked in clicks]:
                assert item in list_K


def test_no_single_click_at_any_place_takes_an_item_of_radius_one_off_the_list():
    num_safe = 0
    for seed in range(4):
        history = some_history(seed)
        judge, patch, list_UK, radii_UK = certified(seed, np.array([history], np.int32))
        every = [(place, item) for place in range(len(history) + 1) for item in range(ITEMS)]
        forged = np.stack([inserted(history, [click], len(history) + 1) for click in every])
        now = shown(judge, judge.votes(forged, patch), forged)
        safe = set(list_UK[0][radii_UK[0] >= 1].tolist())
        num_safe += len(safe)
        for (_, clicked), list_K in zip(every, now, strict=True):
            assert safe - {clicked} <= set(list_K.tolist())
    assert num_safe >= 3


def test_beyond_the_radius_some_single_click_does_take_an_item_off_the_list():
    """The certificate says something: items of radius 0 exist that one click removes."""
    removed = False
    for seed in range(5):
        history = some_history(seed)
        judge, patch, list_UK, radii_UK = certified(seed, np.array([history], np.int32))
        every = [(place, item) for place in (0, 4) for item in range(ITEMS)]
        forged = np.stack([inserted(history, [click], len(history) + 1) for click in every])
        now = shown(judge, judge.votes(forged, patch), forged)
        weak = set(list_UK[0][radii_UK[0] == 0].tolist())
        removed |= any(weak - {click[1]} - set(row.tolist()) for click, row in zip(every, now, strict=True))
    assert removed


def test_a_click_reaches_one_group_only_however_long_the_history():
    history = np.arange(ITEMS, dtype=np.int32)[None]
    group_I = item_groups(ITEMS, GROUPS, 0)
    longer = np.concatenate([[[5]], history], axis=1)
    before, after = (split_history(h, group_I, GROUPS)[0] for h in (history, longer))
    changed = [g for g in range(GROUPS) if before[g][before[g] >= 0].tolist() != after[g][after[g] >= 0].tolist()]
    assert changed == [group_I[5]]
