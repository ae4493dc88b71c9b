"""Item features: standardised columns, log degree, missing vectors named or masked, texts as vectors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import sparse

from fedquilt.config import DataConfig
from fedquilt.errors import ConfigError, DataError
from fedquilt.graphs.assemble import assemble
from fedquilt.graphs.coclick import build_coclick
from fedquilt.graphs.datasets import load_log
from fedquilt.graphs.features import Features, GivenVectors, item_features, vectors_by_id
from fedquilt.graphs.loaders.citeulike_t import abstract_counts
from fedquilt.graphs.text import text_features, tf_idf, word_counts

# Item 30 has no click. Degrees in the co-click graph of window 1: 1, 2, 1, 0.
USERS, CLICKS, IDS = [0, 0, 1, 1], [10, 20, 20, 25], [10, 20, 25, 30]
TITLES = ("Alien", "Brazil", "Alien Brazil", "")
TEXT = np.array([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0], [7.0, 5.0]])


def log_of():
    log = assemble("tiny", np.array(USERS), np.array(CLICKS), item_ids=np.array(IDS))
    return dataclasses.replace(log, item_titles=TITLES)


LOG = log_of()
GRAPH = build_coclick(LOG, window=1, top_neighbours=5)


def with_own(features_IF: np.ndarray):
    return dataclasses.replace(LOG, item_features_IF=features_IF, feature_names=("horror", "year"))


def test_columns_have_mean_0_and_deviation_1_and_a_constant_one_is_0():
    features = item_features(LOG, given=[GivenVectors("text", TEXT)])
    # 1, 3, 5, 7: mean 4, deviation sqrt(5)
    np.testing.assert_allclose(features.values_IF[:, 0], np.array([-3, -1, 1, 3]) / np.sqrt(5), rtol=1e-6)
    assert not features.values_IF[:, 1].any()
    assert features.values_IF.dtype == np.float32
    assert features.mask_I is None


def test_a_constant_column_stays_0_however_its_sum_rounds():
    features = item_features(LOG, given=[GivenVectors("text", np.full((4, 1), 0.1) * 1e6)])
    assert not features.values_IF.any()


def test_given_vectors_own_features_and_log_degree_stand_side_by_side_under_their_names():
    given = [GivenVectors("text", TEXT), GivenVectors("price", TEXT[:, :1])]
    features = item_features(with_own(TEXT), GRAPH, given)
    assert features.names == ("text-0", "text-1", "price", "horror", "year", "log-degree")
    assert features.values_IF.shape == (4, 6)
    assert item_features(with_own(TEXT), GRAPH, own=False).names == ("log-degree",)


def test_the_log_degree_counts_neighbours_and_an_isolated_item_has_the_lowest():
    logs = np.log([2, 3, 2, 1])
    expected = (logs - logs.mean()) / logs.std()
    np.testing.assert_allclose(item_features(LOG, GRAPH).values_IF[:, 0], expected, rtol=1e-6)


def test_items_held_out_are_scaled_by_the_others():
    known_I = np.array([True, True, True, False])
    features = item_features(LOG, given=[GivenVectors("text", TEXT)], fitted_on_I=known_I)
    # 1, 3, 5: mean 3, deviation sqrt(8 / 3); 7 is 4 above
    np.testing.assert_allclose(features.values_IF[:, 0], np.array([-2, 0, 2, 4]) / np.sqrt(8 / 3), rtol=1e-6)
    moved = TEXT.copy()
    moved[3] = 1e6
    again = item_features(LOG, given=[GivenVectors("text", moved)], fitted_on_I=known_I)
    np.testing.assert_array_equal(again.values_IF[:3], features.values_IF[:3])


def missing_some(has_I: list[bool]) -> GivenVectors:
    return GivenVectors("text", np.where(np.array(has_I)[:, None], TEXT, np.nan), np.array(has_I))


def test_missing_vectors_are_an_error_that_names_the_items():
    with pytest.raises(DataError, match=r"text: no vector for 2 of 4 items: 20 \(Brazil\), 30; .* 'mask'"):
        item_features(LOG, given=[missing_some([True, False, True, False])])


def test_a_long_list_of_missing_items_is_cut():
    log = assemble("long", np.zeros(9, int), np.arange(9))
    with pytest.raises(DataError, match=r"9 of 9 items: 0, 1, 2, 3, 4, …; give"):
        item_features(log, given=[GivenVectors("text", np.zeros((9, 2)), np.zeros(9, bool))])


def masked(has_I: list[bool]) -> Features:
    return item_features(LOG, given=[missing_some(has_I)], missing="mask")


def test_where_allowed_missing_vectors_are_the_mean_and_a_mask_column():
    features = masked([True, False, True, True])
    assert features.names == ("text-0", "text-1", "text-missing")
    assert features.mask_I.tolist() == [False, True, False, False]
    assert features.values_IF[:, 2].tolist() == [0, 1, 0, 0]
    assert features.values_IF[1, :2].tolist() == [0, 0]
    # 1, 5, 7 alone: mean 13/3
    assert features.values_IF[[0, 2, 3], 0].mean() == pytest.approx(0, abs=1e-6)
    assert features.values_IF[[0, 2, 3], 0].std() == pytest.approx(1, abs=1e-6)


def test_the_width_does_not_depend_on_whether_a_vector_is_missing_today():
    assert masked([True] * 4).names == masked([False] * 4).names
    assert not masked([True] * 4).mask_I.any()
    assert not masked([False] * 4).values_IF[:, :2].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("missing", ["error", "mask"])
def test_nan_and_infinite_values_are_errors_that_name_the_items(bad, missing):
    values = TEXT.copy()
    values[2, 1] = bad
    with pytest.raises(DataError, match=r"text: NaN or infinite values for 1 of 4 items: 25 \(Alien Brazil\)"):
        item_features(LOG, given=[GivenVectors("text", values)], missing=missing)
    with pytest.raises(DataError, match=r"item features: NaN or infinite"):
        item_features(with_own(values), missing=missing)


def test_vectors_of_the_wrong_length_are_errors():
    with pytest.raises(DataError, match=r"text: shape \(3, 2\), but log tiny has 4 items"):
        item_features(LOG, given=[GivenVectors("text", TEXT[:3])])
    with pytest.raises(DataError, match=r"text: shape \(4,\)"):
        item_features(LOG, given=[GivenVectors("text", TEXT[:, 0])])
    with pytest.raises(DataError, match="one flag an item"):
        item_features(LOG, given=[GivenVectors("text", TEXT, np.ones(3, bool))])
    other = build_coclick(assemble("other", np.zeros(2, int), np.arange(2)), 1, 5)
    with pytest.raises(DataError, match="4 items, its graph 2"):
        item_features(LOG, other)


def test_nothing_to_make_features_of_is_an_error():
    with pytest.raises(DataError, match="no item features and no graph"):
        item_features(LOG)
    with pytest.raises(ConfigError, match="expected error or mask"):
        item_features(LOG, GRAPH, missing="zero")


def test_vectors_with_ids_come_into_the_logs_order():
    given = vectors_by_id(LOG, "text", np.array([30, 10, 99, 20]), np.array([[3.0], [1.0], [9.0], [2.0]]))
    assert given.has_I.tolist() == [True, True, False, True]
    assert given.values_IF[given.has_I].tolist() == [[1.0], [2.0], [3.0]]


def test_vectors_with_ids_that_cannot_be_right_are_errors():
    with pytest.raises(DataError, match="item id 10 has two vectors"):
        vectors_by_id(LOG, "text", np.array([10, 10]), np.zeros((2, 1)))
    with pytest.raises(DataError, match="2 ids for values of shape"):
        vectors_by_id(LOG, "text", np.array([10, 20]), np.zeros((3, 1)))
    with pytest.raises(DataError, match="no item ids"):
        vectors_by_id(dataclasses.replace(LOG, item_ids=None), "text", np.array([10]), np.zeros((1, 1)))


def test_words_of_titles_are_counted_by_hand():
    counts = word_counts(["Alien, alien!", "Brazil", "", "alien BRAZIL 2"])
    # columns: 2, alien, brazil
    assert counts.toarray().tolist() == [[0, 2, 0], [0, 0, 1], [0, 0, 0], [1, 1, 1]]


def test_tf_idf_by_hand():
    # Word 0 in both items: log(2 / 2) = 0. Word 1 only in the first: log 2 · log(1 + 3), then to length 1.
    assert tf_idf(sparse.csr_matrix([[1, 3], [1, 0]])).toarray() == pytest.approx(np.array([[0, 1], [0, 0]]))


def bags(seed: int = 0) -> sparse.csr_matrix:
    """30 items of two topics: words 0 to 19 or 20 to 39; the last item has no words."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.1, (30, 40))
    counts[:15, :20] += rng.poisson(1, (15, 20))
    counts[15:, 20:] += rng.poisson(1, (15, 20))
    counts[-1] = 0
    return sparse.csr_matrix(counts)


@pytest.mark.parametrize("method", ["svd", "hash"])
def test_texts_become_vectors_of_the_asked_width_in_which_like_texts_are_close(method):
    vectors = text_features(bags(), 16, method)
    assert vectors.shape == (30, 16)
    assert vectors.dtype == np.float32
    assert (vectors**2).mean() == pytest.approx(1, rel=1e-5)
    assert not np.abs(vectors[-1]).max() > 1e-6
    unit = vectors[:29] / np.linalg.norm(vectors[:29], axis=1, keepdims=True)
    cosine = unit @ unit.T
    within = (cosine[:15, :15].sum() - 15) / (15 * 14)
    assert within > cosine[:15, 15:].mean() + 0.2
    np.testing.assert_array_equal(vectors, text_features(bags(), 16, method))


def test_svd_keeps_the_inner_products_of_a_low_rank_matrix():
    # Topics without a shared word: rank 2 of the TF-IDF matrix, whose rows have length 1, so all but scale is kept.
    counts = sparse.csr_matrix(np.kron(np.eye(2), np.ones((3, 4))))
    vectors = text_features(counts, 2)
    expected = np.kron(np.eye(2), np.ones((3, 3)))
    np.testing.assert_allclose(vectors @ vectors.T / (vectors @ vectors.T)[0, 0], expected, atol=1e-5)


def test_hashing_gives_an_item_the_same_vector_up_to_scale_whatever_columns_follow():
    wide = sparse.hstack([bags(), sparse.csr_matrix((30, 25))]).tocsr()
    np.testing.assert_allclose(text_features(wide, 8, "hash"), text_features(bags(), 8, "hash"), atol=1e-6)


def test_texts_that_cannot_be_reduced_are_errors():
    with pytest.raises(ConfigError, match="gives 1 to 29 columns; asked for 30"):
        text_features(bags(), 30)
    with pytest.raises(ConfigError, match="expected svd or hash"):
        text_features(bags(), 8, "lda")
    with pytest.raises(ConfigError, match="at least 1 column"):
        text_features(bags(), 0, "hash")
    with pytest.raises(DataError, match="finite and at least 0"):
        text_features(sparse.csr_matrix([[-1.0, 2.0], [1.0, 0.0]]), 1)


def test_titles_are_a_given_vector_like_any_other():
    log = dataclasses.replace(LOG, item_titles=("Alien", "Brazil", "Alien Brazil", "Star Wars"))
    titles = GivenVectors("title", text_features(word_counts(log.item_titles), 3))
    assert item_features(log, GRAPH, [titles]).names == ("title-0", "title-1", "title-2", "log-degree")


@pytest.mark.slow
def test_the_abstracts_of_citeulike_reach_its_size_and_place_a_citing_pair_close(shared_data):
    folder = shared_data / "citeulike-t"
    counts = abstract_counts(folder / "mult.dat")
    assert counts.shape[0] == 25_975  # the data's README
    vectors = text_features(counts, 128, "hash")
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cited = [list(map(int, line.split()))[1:] for line in (folder / "citations.dat").read_text().splitlines()]
    pairs = np.array([(item, row[0]) for item, row in enumerate(cited) if row])
    others = np.random.default_rng(0).permutation(pairs[:, 1])
    close, far = ((unit[pairs[:, 0]] * unit[them]).sum(1).mean() for them in (pairs[:, 1], others))
    assert close > far + 0.1


@pytest.mark.slow
def test_movielens_has_genres_year_and_title_words(shared_data):
    log = load_log(DataConfig(dataset="ml-1m", path=str(shared_data / "ml-1m")))
    titles = GivenVectors("title", text_features(word_counts(log.item_titles), 32))
    features = item_features(log, build_coclick(log, 1, 10), [titles])
    assert features.names[-2:] == ("year", "log-degree")
    assert features.values_IF.shape == (log.num_items, 32 + len(log.feature_names) + 1)
    assert np.isfinite(features.values_IF).all()
