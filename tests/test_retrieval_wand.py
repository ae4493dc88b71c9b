"""The first level of Weak AND finds exactly what a scan of every posting finds, and reads less."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.errors import DataError
from models.wand import BLOCK, build_postings, checked_postings, scan, weak_and
from models.wand_tokens import nearest, train_codebooks, unit, whole_weights


def postings_of(triples, num_items, num_tokens):
    items, tokens, weights = np.array(list(triples), np.int64).reshape(-1, 3).T
    return build_postings(items, tokens, weights, num_items, num_tokens)


def best(postings, tokens, weights, top):
    level = weak_and(postings, np.array([tokens]), np.array([weights]), top)
    return level.items_QN[0].tolist(), level.scores_QN[0].tolist()


@st.composite
def searches(draw):
    """Lists over few items with few weights (many ties), or over many items (several blocks)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_items, num_tokens = draw(st.sampled_from([1, 5, 40, 6 * BLOCK])), draw(st.integers(1, 9))
    heaviest = draw(st.sampled_from([1, 3, 255]))
    count = draw(st.integers(0, 4 * num_items))
    triples = np.stack(
        [rng.integers(0, high, count) for high in (num_items, num_tokens)] + [rng.integers(1, heaviest + 1, count)], 1
    )
    tokens = rng.permutation(num_tokens)[: draw(st.integers(1, num_tokens))]
    weights = rng.integers(0, heaviest + 1, len(tokens))
    return postings_of(triples, num_items, num_tokens), tokens, weights, draw(st.integers(1, 60))


@settings(max_examples=300)
@given(searches())
def test_weak_and_returns_the_list_that_a_full_scan_returns(search):
    postings, tokens, weights, top = search
    items, scores = scan(postings, tokens, weights, top)
    found, found_scores = best(postings, tokens, weights, top)
    padding = top - len(items)
    assert found == items.tolist() + [-1] * padding
    assert found_scores == scores.tolist() + [0] * padding


@given(searches())
def test_no_more_is_read_than_a_full_scan_reads(search):
    postings, tokens, weights, top = search
    level = weak_and(postings, tokens[None], weights[None], top)
    assert level.postings_read_Q[0] <= level.postings_total_Q[0]
    assert level.postings_total_Q[0] == sum(len(postings.row(t)[0]) for t, w in zip(tokens, weights, strict=True) if w)


def test_scores_are_summed_over_shared_tokens():
    # item 0: 2·10, item 1: 2·20 + 3·1, item 2 shares nothing
    postings = postings_of([(0, 0, 10), (1, 0, 20), (1, 1, 1), (2, 2, 9)], num_items=3, num_tokens=3)
    assert best(postings, [0, 1], [2, 3], top=3) == ([1, 0, -1], [43, 20, 0])


def test_of_equal_scores_the_smaller_item_comes_first_and_stays():
    postings = postings_of([(item, 0, 7) for item in range(10)], num_items=10, num_tokens=1)
    assert best(postings, [0], [1], top=3)[0] == [0, 1, 2]


def test_a_late_better_item_replaces_the_last_of_equals():
    postings = postings_of([*((item, 0, 7) for item in range(9)), (9, 0, 8)], num_items=10, num_tokens=1)
    assert best(postings, [0], [1], top=3)[0] == [9, 0, 1]


def test_lists_that_cannot_reach_the_best_are_skipped():
    # One heavy rare word and one light common one: after the first item, the common word alone is not enough.
    common = [(item, 0, 1) for item in range(10_000)]
    rare = [(item, 1, 255) for item in range(0, 10_000, 1000)]
    postings = postings_of(common + rare, num_items=10_000, num_tokens=2)
    level = weak_and(postings, np.array([[0, 1]]), np.array([[1, 1]]), 5)
    assert level.items_QN[0].tolist() == [0, 1000, 2000, 3000, 4000]
    assert level.postings_total_Q[0] == 10_010
    assert level.share_skipped > 0.99


def test_block_bounds_skip_within_a_single_list():
    weights = np.ones(100 * BLOCK, np.int64)
    weights[:BLOCK] = 200
    triples = np.stack([np.arange(len(weights)), np.zeros_like(weights), weights], 1)
    level = weak_and(postings_of(triples, len(weights), 1), np.array([[0]]), np.array([[1]]), 10)
    assert level.postings_read_Q[0] < 2 * BLOCK


def test_a_token_given_twice_counts_once_with_its_larger_weight():
    postings = postings_of([(0, 0, 3), (0, 0, 9), (0, 0, 5)], num_items=1, num_tokens=1)
    assert best(postings, [0], [1], top=1) == ([0], [9])


@pytest.mark.parametrize("triple", [(5, 0, 1), (0, 5, 1), (0, 0, 0), (0, 0, 256), (-1, 0, 1)])
def test_a_posting_out_of_range_is_refused(triple):
    with pytest.raises(DataError, match="outside"):
        postings_of([triple], num_items=2, num_tokens=2)


@pytest.mark.parametrize(
    ("name", "values"), [("items", [1, 0, 1]), ("items", [0, 1, 9]), ("indptr", [0, 4, 3]), ("indptr", [1, 2, 3])]
)
def test_lists_that_would_lead_the_search_astray_are_refused(name, values):
    postings = postings_of([(0, 0, 1), (1, 0, 1), (1, 1, 1)], num_items=2, num_tokens=2)
    assert checked_postings(2, postings.arrays()).items.tolist() == [0, 1, 1]
    with pytest.raises(DataError, match="postings"):
        checked_postings(2, {**postings.arrays(), name: np.array(values)})


# --- tokens ---


def test_nearest_centroids_come_best_first():
    codes, products = nearest(np.array([[1.0, 0.2]], np.float32), np.eye(2, dtype=np.float32), 2)
    assert codes.tolist() == [[0, 1]]
    assert products[0] == pytest.approx([1.0, 0.2])


def test_codebooks_find_separate_clusters():
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(4, dtype=np.float32), 50, axis=0)
    vectors = unit(centres + 0.05 * rng.standard_normal(centres.shape))
    (codes_CF,) = train_codebooks(vectors, [16], rng)
    of_items = nearest(vectors, codes_CF, 1)[0][:, 0]
    clusters_of_code = [set(np.flatnonzero(of_items == code) // 50) for code in range(16)]
    assert all(len(clusters) <= 1 for clusters in clusters_of_code)
    assert np.allclose(np.linalg.norm(codes_CF, axis=1), 1, atol=1e-5)


def test_weights_fill_one_byte_and_negatives_are_no_tokens():
    # 255 · (1/2)² = 63.75
    assert whole_weights(np.array([[2.0, 1.0, 0.5, 0.0, -1.0]]), 1.0, 2.0).tolist() == [[255, 255, 64, 0, 0]]
    assert whole_weights(np.zeros((1, 2)), 0.0, 2.0).tolist() == [[0, 0]]
