"""The rank count and the metrics made from it, against hand-computed values, brute force and invariants."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.metrics import MetricError, rank_counts, rank_counts_sampled, ranking_metrics

# --- the count ---


def test_the_target_itself_is_not_counted():
    greater, ties = rank_counts(np.array([[3.0, 1.0, 2.0, 1.0]]), [1])
    assert (greater[0], ties[0]) == (2, 1)  # 3 and 2 are above, the other 1 ties


def test_seen_items_do_not_compete():
    scores = np.array([[3.0, 1.0, 2.0, 1.0]])
    greater, ties = rank_counts(scores, [1], seen=(np.array([0, 2]), np.array([0, 3])))
    assert (greater[0], ties[0]) == (1, 0)


def test_a_seen_item_that_is_named_twice_is_left_out_once():
    greater, _ = rank_counts(np.array([[3.0, 1.0, 2.0]]), [1], seen=(np.array([0, 3]), np.array([0, 0, 0])))
    assert greater[0] == 1


def test_a_target_that_was_seen_before_still_competes():
    greater, ties = rank_counts(np.array([[3.0, 1.0]]), [1], seen=np.array([[False, True]]))
    assert (greater[0], ties[0]) == (1, 0)


def test_mask_and_csr_name_the_same_candidates():
    rng = np.random.default_rng(0)
    seen = rng.random((40, 30)) < 0.3
    scores = rng.integers(0, 5, (40, 30)).astype(float)
    targets, rows = rng.integers(0, 30, 90), rng.integers(0, 40, 90)
    csr = (np.concatenate(([0], seen.sum(1).cumsum())), np.nonzero(seen)[1])
    for by_mask, by_csr in zip(
        rank_counts(scores, targets, rows, seen), rank_counts(scores, targets, rows, csr), strict=True
    ):
        np.testing.assert_array_equal(by_mask, by_csr)


def test_the_count_agrees_with_a_loop_across_block_borders():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 9, (700, 1000))  # 262 rows a block
    targets = rng.integers(0, 1000, 700)
    greater, ties = rank_counts(scores, targets)
    for h in (0, 261, 262, 523, 524, 699):
        assert greater[h] == (scores[h] > scores[h, targets[h]]).sum()
        assert ties[h] == (scores[h] == scores[h, targets[h]]).sum() - 1


def test_torch_scores_count_as_numpy_ones():
    torch = pytest.importorskip("torch")
    scores = torch.tensor([[0.5, 2.0, 1.0]], requires_grad=True)
    assert rank_counts(scores, torch.tensor([2]))[0][0] == 1


def test_sampled_negatives_compete_alone():
    greater, ties = rank_counts_sampled(np.array([0.5]), np.array([[0.9, 0.5, 0.1]]))
    assert (greater[0], ties[0]) == (1, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused_with_its_place(bad):
    scores = np.zeros((2, 3))
    scores[1, 2] = bad
    with pytest.raises(MetricError, match="held-out click 1, column 2"):
        rank_counts(scores, [0, 0])


def test_a_missing_row_index_is_named():
    with pytest.raises(MetricError, match="3 targets for 2 rows"):
        rank_counts(np.zeros((2, 3)), [0, 0, 0])


def test_a_target_outside_the_items_is_refused():
    with pytest.raises(MetricError, match=r"0 \.\. 2"):
        rank_counts(np.zeros((1, 3)), [3])


# --- golden values, by hand ---


def test_rank_two_of_three():
    values = ranking_metrics([1], [0], ks=[3])
    assert values["NDCG@3"][0] == pytest.approx(0.63093, abs=1e-5)  # 1 / log2(3)
    assert values["MRR@3"][0] == pytest.approx(0.5)
    assert values["HR@3"][0] == values["Recall@3"][0] == 1


def test_a_rank_beyond_k_is_worth_nothing():
    values = ranking_metrics([10], [0], ks=[10])
    assert {name: float(value[0]) for name, value in values.items()} == {
        "HR@10": 0,
        "NDCG@10": 0,
        "Recall@10": 0,
        "MRR@10": 0,
    }


def test_a_tie_over_the_border_of_the_list_counts_in_part():
    # above 1, tied with 2 others: rank 2, 3 or 4; K = 3 reaches the first two.
    values = ranking_metrics([1], [2], ks=[3])
    assert values["HR@3"][0] == pytest.approx(2 / 3)
    assert values["NDCG@3"][0] == pytest.approx((1 / np.log2(3) + 1 / np.log2(4)) / 3)
    assert values["MRR@3"][0] == pytest.approx((1 / 2 + 1 / 3) / 3)


def test_two_relevant_items_of_one_user():
    # relevant at ranks 1 and 4, K = 3: DCG = 1, IDCG = 1 + 1/log2(3) = 1.63093
    values = ranking_metrics([0, 3], [0, 0], ks=[3], users_H=[7, 7])
    assert values["Recall@3"][0] == pytest.approx(0.5)
    assert values["NDCG@3"][0] == pytest.approx(1 / 1.63093, abs=1e-5)
    assert values["HR@3"][0] == values["MRR@3"][0] == 1


def test_users_come_in_the_order_of_their_ids():
    values = ranking_metrics([0, 50, 50], [0, 0, 0], ks=[5], users_H=[9, 2, 2])
    assert values["HR@5"].tolist() == [0, 1]


# --- against brute force over all ways of breaking ties ---


@settings(max_examples=60, deadline=None)
@given(scores=st.lists(st.integers(0, 2), min_size=3, max_size=6), data=st.data())
def test_expectations_equal_the_mean_over_all_tie_breakings(scores, data):
    relevant = data.draw(st.lists(st.sampled_from(range(len(scores))), min_size=1, max_size=3, unique=True))
    k = data.draw(st.integers(1, 5))
    greater, ties = rank_counts(np.array([scores]), relevant, np.zeros(len(relevant), int))
    expected = ranking_metrics(greater, ties, [k], users_H=np.zeros(len(relevant), int))
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    for name in ("HR", "NDCG", "Recall", "MRR"):
        by_order = [of_list(order[:k], set(relevant), k)[name] for order in orders]
        assert expected[f"{name}@{k}"][0] == pytest.approx(np.mean(by_order), abs=1e-12), name


def of_list(shown: tuple[int, ...], relevant: set[int], k: int) -> dict[str, float]:
    """The metrics of one list as it is shown, by their definitions."""
    places = [place for place, item in enumerate(shown) if item in relevant]
    best = sum(1 / math.log2(place + 2) for place in range(min(k, len(relevant))))
    return {
        "HR": float(bool(places)),
        "Recall": len(places) / len(relevant),
        "MRR": 1 / (places[0] + 1) if places else 0.0,
        "NDCG": sum(1 / math.log2(place + 2) for place in places) / best,
    }


# --- invariants ---

counts = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=20)


@given(counts)
def test_with_one_relevant_item_every_metric_grows_with_k(pairs):
    greater, ties = np.array(pairs).T
    values = ranking_metrics(greater, ties, [5, 10, 20])
    for name in ("HR", "NDCG", "Recall", "MRR"):
        assert (values[f"{name}@5"] <= values[f"{name}@10"] + 1e-12).all()
        assert (values[f"{name}@10"] <= values[f"{name}@20"] + 1e-12).all()


@given(counts)
def test_with_one_relevant_item_the_hit_rate_is_the_recall(pairs):
    greater, ties = np.array(pairs).T
    values = ranking_metrics(greater, ties, [10])
    np.testing.assert_allclose(values["HR@10"], values["Recall@10"], atol=1e-12)


@given(counts, st.randoms(use_true_random=False))
def test_the_order_of_held_out_clicks_does_not_matter(pairs, random):
    greater = np.array(pairs)[:, 0]
    ties = greater % 3 + 2  # equally ranked items of one user tie with equally many
    users = np.arange(len(greater)) // 3
    order = np.array(random.sample(range(len(greater)), len(greater)))
    before = ranking_metrics(greater, ties, [10], users)
    after = ranking_metrics(greater[order], ties[order], [10], users[order])
    for name in before:
        np.testing.assert_allclose(before[name], after[name], atol=1e-12)


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=30), st.data())
def test_a_strictly_increasing_transform_of_scores_changes_nothing(scores, data):
    target = data.draw(st.integers(0, len(scores) - 1))
    before = rank_counts(np.array([scores], float), [target])
    after = rank_counts(np.exp(np.array([scores], float) / 10) * 3 - 7, [target])
    assert (before[0][0], before[1][0]) == (after[0][0], after[1][0])


@given(st.lists(st.integers(0, 9), min_size=2, max_size=30), st.data())
def test_renaming_items_changes_nothing(scores, data):
    order = data.draw(st.permutations(range(len(scores))))
    target = data.draw(st.integers(0, len(scores) - 1))
    before = rank_counts(np.array([scores]), [target])
    after = rank_counts(np.array([[scores[i] for i in order]]), [order.index(target)])
    assert (before[0][0], before[1][0]) == (after[0][0], after[1][0])
