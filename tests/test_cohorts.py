"""Moments of users' histories: what the device knew comes before what it is to predict, whatever the log."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_recommender import CLICKED, GRAPH, ITEMS, cohorts_of, log_of, meta_config, random_log

from fedquilt.config import MetaConfig
from fedquilt.graphs.cohorts import MIN_CLICKS, CohortBuilder
from fedquilt.types import Cohort

FIELDS = ("client_ids_U", "nodes_UGN", "node_mask_UGN", "recency_UGN", "edges_UGNN", "targets_UGT", "negatives_UGTM")

histories = st.lists(
    st.integers(0, 18).flatmap(lambda n: st.permutations(range(ITEMS)).map(lambda items: list(items[:n]))),
    min_size=1,
    max_size=6,
)
metas = st.builds(
    meta_config,
    num_contexts=st.integers(1, 3),
    num_support=st.integers(1, 5),
    num_query=st.integers(1, 5),
    num_negatives=st.sampled_from([0, 2]),
)
seeds = st.integers(0, 2**40)


def clicks(cohort: Cohort, user: int, graph: int) -> list[int]:
    """Items of the subgraph that the user has clicked, oldest first."""
    recency = cohort.recency_UGN[user, graph]
    order = np.argsort(-recency)
    return cohort.nodes_UGN[user, graph][order][recency[order] >= 0].tolist()


def targets(cohort: Cohort, user: int, graph: int) -> list[int]:
    return [item for item in cohort.targets_UGT[user, graph].tolist() if item >= 0]


def places(history: list[int], items: list[int]) -> list[int]:
    return [history.index(item) for item in items]


def same_rows(left: Cohort, right: Cohort, rows_left, rows_right) -> bool:
    pairs = [(getattr(left, name), getattr(right, name)) for name in FIELDS if getattr(left, name) is not None]
    return all(np.array_equal(a[rows_left], b[rows_right]) for a, b in pairs)


# --- training moments ---


@settings(deadline=None, max_examples=60)
@given(histories, metas, seeds, st.integers(0, 99))
def test_a_moment_holds_the_latest_clicks_before_its_cut_and_targets_follow_at_once(given_, meta, seed, round_):
    cohort = cohorts_of(log_of(given_), meta).training_cohort(np.arange(len(given_)), round_, seed)
    for user, history in enumerate(given_):
        for graph in range(2 * meta.num_contexts):
            known, wanted = clicks(cohort, user, graph), targets(cohort, user, graph)
            if not wanted:
                continue
            cut = history.index(wanted[0])
            assert known == history[max(cut - CLICKED, 0) : cut]
            assert wanted == history[cut : cut + len(wanted)]
            assert known
            limit = meta.num_support if graph < meta.num_contexts else meta.num_query
            assert len(wanted) <= limit


@settings(deadline=None, max_examples=60)
@given(histories, metas, seeds)
def test_support_targets_come_strictly_before_query_targets(given_, meta, seed):
    cohort = cohorts_of(log_of(given_), meta).training_cohort(np.arange(len(given_)), 1, seed)
    assert cohort.num_support == meta.num_contexts
    for user, history in enumerate(given_):
        support = [p for g in range(meta.num_contexts) for p in places(history, targets(cohort, user, g))]
        query = [
            p
            for g in range(meta.num_contexts, 2 * meta.num_contexts)
            for p in places(history, targets(cohort, user, g))
        ]
        assert bool(support) == bool(query) == (len(history) >= MIN_CLICKS)
        if support:
            assert max(support) < min(query)


@settings(deadline=None, max_examples=60)
@given(histories, metas, seeds)
def test_a_target_never_stands_among_the_clicks_of_its_own_subgraph(given_, meta, seed):
    cohort = cohorts_of(log_of(given_), meta).training_cohort(np.arange(len(given_)), 1, seed)
    for user in range(len(given_)):
        for graph in range(2 * meta.num_contexts):
            assert not set(targets(cohort, user, graph)) & set(clicks(cohort, user, graph))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_user_with_fewer_than_three_clicks_gets_no_targets(count):
    cohort = cohorts_of(log_of([list(range(count)), [1, 2, 3]])).training_cohort(np.arange(2), 1, 0)
    assert (cohort.targets_UGT[0] == -1).all()
    assert (cohort.targets_UGT[1] >= 0).any()


def test_three_clicks_have_one_way_to_be_cut():
    cohorts = cohorts_of(log_of([[7, 8, 9]]), meta_config(num_contexts=1))
    for round_ in range(5):
        cohort = cohorts.training_cohort(np.array([0]), round_, 0)
        assert [clicks(cohort, 0, g) for g in (0, 1)] == [[7], [7, 8]]
        assert [targets(cohort, 0, g) for g in (0, 1)] == [[8], [9]]


def test_every_split_and_every_cut_of_a_history_comes_up():
    cohorts = cohorts_of(log_of([list(range(6))]), meta_config(num_contexts=1))
    cuts = set()
    for round_ in range(300):
        cohort = cohorts.training_cohort(np.array([0]), round_, 0)
        cuts.add((targets(cohort, 0, 0)[0], targets(cohort, 0, 1)[0]))
    assert cuts == {(s, q) for q in range(2, 6) for s in range(1, q)}


# --- what a row depends on ---


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**30), st.permutations(range(8)), st.integers(1, 8), metas, seeds)
def test_a_row_does_not_depend_on_the_batch_that_it_comes_in(log_seed, order, count, meta, seed):
    cohorts = cohorts_of(random_log(log_seed), meta)
    some = np.array(order[:count])
    whole, part = cohorts.training_cohort(np.arange(8), 3, seed), cohorts.training_cohort(some, 3, seed)
    assert same_rows(whole, part, some, np.arange(count))
    whole, part = cohorts.serving_cohort(np.arange(8)), cohorts.serving_cohort(some)
    assert same_rows(whole, part, some, np.arange(count))


@pytest.mark.parametrize("num_negatives", [0, 2])
def test_a_row_depends_on_seed_round_and_client_id_alone(num_negatives):
    same = list(range(16))
    cohorts = cohorts_of(log_of([same, same]), meta_config(num_negatives=num_negatives))
    both, again = (cohorts.training_cohort(np.arange(2), 1, 5) for _ in range(2))
    assert same_rows(both, again, slice(None), slice(None))
    others = [cohorts.training_cohort(np.arange(2), *key) for key in ((2, 5), (1, 6))]
    assert not any(np.array_equal(both.targets_UGT, other.targets_UGT) for other in others)
    assert not np.array_equal(both.targets_UGT[0], both.targets_UGT[1])  # two users with one history


def test_other_users_histories_do_not_change_a_row():
    log, meta = random_log(5, fewest=3), meta_config(num_negatives=2)
    mine = log.items_of(4).tolist()
    others = [list(range(user + 3)) for user in range(4)]
    left = cohorts_of(log, meta).training_cohort(np.array([4]), 1, 0)
    right = cohorts_of(log_of([*others, mine]), meta).training_cohort(np.array([4]), 1, 0)
    assert same_rows(left, right, slice(None), slice(None))


# --- negatives ---


@settings(deadline=None, max_examples=40)
@given(histories, seeds, st.integers(1, 4))
def test_negatives_are_never_items_that_the_user_has_clicked(given_, seed, each):
    meta = meta_config(num_negatives=each)
    cohort = cohorts_of(log_of(given_), meta).training_cohort(np.arange(len(given_)), 1, seed)
    assert cohort.negatives_UGTM.shape == (*cohort.targets_UGT.shape, each)
    for user, history in enumerate(given_):
        drawn = set(cohort.negatives_UGTM[user].reshape(-1).tolist())
        assert not drawn & set(history)
        assert drawn <= {-1, *range(ITEMS)}


def test_negatives_are_uniform_over_the_unseen_items():
    meta = meta_config(num_negatives=4)
    cohorts = cohorts_of(log_of([list(range(5))] * 400), meta)
    drawn = cohorts.training_cohort(np.arange(400), 1, 0).negatives_UGTM
    counts = np.bincount(drawn[drawn >= 0], minlength=ITEMS)[5:]
    expected = counts.sum() / 15
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 36.1  # 99.9 % point of 14 degrees of freedom
    skewed = counts * np.linspace(0.9, 1.1, 15)
    assert ((skewed - expected) ** 2 / expected).sum() > 36.1  # and 10 % more or less would show


def test_few_negatives_are_left_out_when_much_is_seen():
    # 5 of 20 items clicked: all four tries hit one with probability 1/256
    cohort = cohorts_of(log_of([list(range(5))] * 400), meta_config(num_negatives=4)).training_cohort(
        np.arange(400), 1, 0
    )
    assert 0.5 / 256 < (cohort.negatives_UGTM < 0).mean() < 2 / 256


def test_a_user_who_has_seen_everything_gets_no_negatives():
    cohort = cohorts_of(log_of([list(range(ITEMS))]), meta_config(num_negatives=2)).training_cohort(np.array([0]), 1, 0)
    assert (cohort.negatives_UGTM == -1).all()


# --- the present ---


@settings(deadline=None, max_examples=40)
@given(histories, metas)
def test_the_last_subgraph_of_a_serving_cohort_holds_the_latest_clicks_and_has_no_targets(given_, meta):
    cohort = cohorts_of(log_of(given_), meta).serving_cohort(np.arange(len(given_)))
    assert cohort.num_support == meta.num_contexts == cohort.nodes_UGN.shape[1] - 1
    for user, history in enumerate(given_):
        assert clicks(cohort, user, -1) == history[-CLICKED:]
        assert targets(cohort, user, -1) == []


@settings(deadline=None, max_examples=40)
@given(histories, metas)
def test_serving_support_is_the_latest_clicks_cut_into_blocks(given_, meta):
    cohort = cohorts_of(log_of(given_), meta).serving_cohort(np.arange(len(given_)))
    for user, history in enumerate(given_):
        learned = [item for g in range(meta.num_contexts) for item in targets(cohort, user, g)]
        reach = max(len(history) - meta.num_contexts * meta.num_support, 1)
        assert learned == history[reach:]
        for graph in range(meta.num_contexts):
            wanted = targets(cohort, user, graph)
            if wanted:
                cut = history.index(wanted[0])
                assert clicks(cohort, user, graph) == history[max(cut - CLICKED, 0) : cut]


# --- edges of the possible ---


@pytest.mark.parametrize("num_negatives", [0, 2])
def test_an_empty_log_makes_empty_subgraphs(num_negatives):
    cohorts = cohorts_of(log_of([[], [], []]), meta_config(num_negatives=num_negatives))
    for cohort in (cohorts.serving_cohort(np.arange(3)), cohorts.training_cohort(np.arange(3), 1, 0)):
        assert not cohort.node_mask_UGN.any()
        assert (cohort.targets_UGT == -1).all()
        assert len(cohort.seen[0]) == 0


def test_no_users_make_an_empty_cohort():
    cohort = cohorts_of(log_of([[1, 2, 3]]), meta_config(num_negatives=2)).training_cohort(np.zeros(0, np.int64), 1, 0)
    assert len(cohort) == 0
    assert cohort.targets_UGT.shape[0] == 0


def test_seen_pairs_are_the_rows_training_clicks():
    cohort = cohorts_of(log_of([[3, 1], [], [2]])).serving_cohort(np.array([2, 1, 0]))
    assert sorted(zip(*(part.tolist() for part in cohort.seen), strict=True)) == [(0, 2), (2, 1), (2, 3)]


def test_clicks_that_a_subgraph_has_no_room_for_may_come_back_as_neighbours_only():
    log = log_of([list(range(15))])
    cohort = cohorts_of(log).serving_cohort(np.array([0]))
    assert clicks(cohort, 0, -1) == list(range(15 - CLICKED, 15))


def test_the_order_of_clicks_and_not_their_time_decides():
    log = random_log(1)
    timeless = dataclasses.replace(log, times_C=None)
    left, right = (cohorts_of(some).training_cohort(np.arange(8), 1, 0) for some in (log, timeless))
    assert same_rows(left, right, slice(None), slice(None))


def test_a_subgraph_may_be_as_small_as_one_click_and_one_neighbour():
    narrow = GRAPH.model_copy(update={"num_clicked": 1, "num_nodes": 2})
    cohorts: CohortBuilder = cohorts_of(random_log(2), MetaConfig(num_contexts=1, num_support=2, num_query=2), narrow)
    cohort = cohorts.training_cohort(np.arange(8), 1, 0)
    assert cohort.nodes_UGN.shape == (8, 2, 2)
    assert ((cohort.recency_UGN >= 0).sum(2) <= 1).all()
