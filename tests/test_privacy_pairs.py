"""The private co-click graph's parts: pairs in cells, rows of bounded length whoever clicks, and what is read back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedquilt.errors import PrivacyError
from fedquilt.privacy.pair_decode import graph_of, heavy_pairs, spectral_pairs
from fedquilt.privacy.pair_rows import pair_rows
from fedquilt.privacy.pair_table import PairTable, items_of, key_of, table_for
from fedquilt.privacy.probe import probe

ITEMS = 12
EXACT = PairTable(ITEMS)
HASHED = PairTable(ITEMS, width=8, depth=3, shifts=(1, 0))  # many pairs share a cell
clicks = hnp.arrays(np.int64, st.integers(0, 40), elements=st.integers(0, ITEMS - 1))


def rows_of(table, *users, ids=None, max_pairs=512, window=3):
    """Rows of users 0, 1, ... unless ``ids`` names them."""
    users_C = np.repeat(np.arange(len(users)) if ids is None else ids, [len(items) for items in users])
    return pair_rows(table, users_C, np.concatenate([*users, []]).astype(np.int64), window, max_pairs, 1.0)


def test_keys_number_all_pairs_and_lead_back():
    keys = np.concatenate([np.arange(5000), key_of(np.array([0, 2**31 - 2]), np.array([2**31 - 2, 2**31 - 2]))])
    lows, highs = items_of(keys)
    assert (lows <= highs).all()
    assert (key_of(lows, highs) == keys).all()


def test_a_large_catalogue_gets_levels_of_groups():
    assert table_for(1000, 1 << 20, 5).shifts == (0,)
    shifts = table_for(100_000, 1 << 16, 5, beam=10_000).shifts
    assert shifts[-1] == 0
    assert len(shifts) > 2
    assert table_for(100_000, 1 << 16, 5, beam=10_000).pairs(0) <= 10_000


# --- sensitivity ---


@settings(max_examples=60, deadline=None)
@given(st.lists(clicks, min_size=1, max_size=4), st.sampled_from([EXACT, HASHED]), st.integers(1, 8))
def test_removing_any_user_moves_the_sum_by_at_most_the_clipping_norm(users, table, max_pairs):
    whole = rows_of(table, *users, max_pairs=max_pairs).sum(table.cells)
    for gone in range(len(users)):
        left = {user: items for user, items in enumerate(users) if user != gone}
        without = rows_of(table, *left.values(), ids=list(left), max_pairs=max_pairs).sum(table.cells) if left else 0
        assert np.linalg.norm(whole - without) <= 1 + 1e-12


@pytest.mark.parametrize("table", [EXACT, HASHED])
def test_the_probe_finds_no_user_beyond_the_norm(table):
    """The probe's rows, read as clicks: huge, equal, opposed, and all on one item."""

    def released(rows_KP, weights_K):
        clicks_KP = (np.nan_to_num(np.abs(rows_KP)) * 7 % ITEMS).astype(np.int64)
        return rows_of(table, *clicks_KP).sum(table.cells) if len(rows_KP) else np.zeros(table.cells)

    updates_KP = np.random.default_rng(0).normal(size=(6, 30)).astype(np.float32)
    assert probe(released, 1.0, updates_KP).bounded


def test_the_probe_would_find_rows_that_are_clipped_before_they_are_hashed():
    """Planted: pairs are scaled to norm 1, then collide in one cell, where they add up."""

    def released(rows_KP, weights_K):
        rows = rows_of(EXACT, *(np.abs(rows_KP) * 7).astype(np.int64) % ITEMS) if len(rows_KP) else None
        return np.array([rows.values_Z.sum() if rows else 0.0])

    updates_KP = np.random.default_rng(0).normal(size=(6, 30)).astype(np.float32)
    assert not probe(released, 1.0, updates_KP, adversarial=False).bounded


def test_a_user_adds_at_most_so_many_pairs():
    rows = rows_of(EXACT, np.arange(ITEMS), max_pairs=4)
    assert len(rows.cells_Z) == 4
    np.testing.assert_allclose(rows.values_Z, 0.5, rtol=1e-8)  # the four kept are neighbours, of weight 1 each


def test_a_row_does_not_depend_on_other_users():
    mine, other = np.array([1, 2, 3, 2]), np.array([4, 5, 1])
    alone, beside = rows_of(HASHED, mine), rows_of(HASHED, mine, other)
    np.testing.assert_array_equal(alone.values_Z, beside.values_Z[beside.users_Z == 0])


def test_clicks_on_unknown_items_are_refused():
    with pytest.raises(PrivacyError, match="the table has 12"):
        rows_of(EXACT, np.array([1, 12]))


# --- reading back ---

STARS = [np.array([0, 1]), np.array([1, 0]), np.array([0, 1]), np.array([2, 5]), np.array([5, 2]), np.array([7, 8])]


@pytest.mark.parametrize("table", [EXACT, PairTable(ITEMS, 64, 5), PairTable(ITEMS, 64, 5, (2, 0))])
def test_without_noise_the_heaviest_pairs_come_back_in_order(table):
    found = heavy_pairs(table, rows_of(table, *STARS).sum(table.cells), 0.0, 0.0)
    assert items_of(found.keys_M[:3])[0].tolist() == [0, 2, 7]
    np.testing.assert_allclose(found.estimates_M[:3], [3, 2, 1], rtol=1e-6)


def test_pairs_survive_above_a_threshold():
    found = heavy_pairs(EXACT, rows_of(EXACT, *STARS).sum(EXACT.cells), std=0.5, threshold=3.0)
    assert items_of(found.keys_M)[1].tolist() == [1, 5]


def test_noise_alone_leaves_the_share_of_pairs_that_the_threshold_says():
    table = PairTable(300)
    noise = np.random.default_rng(0).standard_normal(table.cells)
    found = heavy_pairs(table, noise, 1.0, 2.0)
    assert 0.018 < len(found.keys_M) / table.cells < 0.028  # 2.28 % of a normal lie above 2 std


def test_leading_eigenvectors_find_what_single_cells_do_not():
    """Two blocks of 40 items, each pair of a block 1 heavy, under noise of std 2."""
    table, generator = PairTable(80), np.random.default_rng(1)
    lows, highs = items_of(np.arange(table.cells))
    truth = ((lows < 40) == (highs < 40)).astype(float)
    noisy = truth + 2 * generator.standard_normal(table.cells)

    def right(pairs):
        first = pairs.keys_M[:500]
        return truth[first].mean()

    assert right(spectral_pairs(table, noisy, 2.0, 0.0)) > 0.95 > 0.85 > right(heavy_pairs(table, noisy, 2.0, 0.0))


def test_spectral_reading_needs_a_cell_for_each_pair():
    with pytest.raises(PrivacyError, match="one cell for each pair"):
        spectral_pairs(HASHED, np.zeros(HASHED.cells), 1.0, 1.0)


def test_the_graph_is_symmetric_and_holds_each_items_heaviest():
    graph = graph_of(heavy_pairs(EXACT, rows_of(EXACT, *STARS).sum(EXACT.cells), 0.0, 0.0), ITEMS, 1)
    assert graph.row(0)[0].tolist() == [1]
    assert graph.row(1)[0].tolist() == [0]
    assert graph.num_edges == 6


def test_a_table_that_is_not_finite_is_not_read():
    with pytest.raises(PrivacyError, match="not finite"):
        heavy_pairs(EXACT, np.full(EXACT.cells, np.nan), 1.0, 1.0)
