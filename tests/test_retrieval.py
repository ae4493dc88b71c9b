"""Every kind of index: the same small interface, close to exact, honest about bad input."""

from __future__ import annotations

import json
import sys
import warnings

import numpy as np
import pytest
from safetensors.numpy import save

from fedquilt.errors import ConfigError, DataError, FedquiltError, RunError, UnknownNameError
from models.retrieval import FAISS_KINDS, FORMAT, KINDS, FaissMissing, build_index, load_index, read_facts, save_index

LEAST_RECALL = {"exact": 1.0, "lsh": 0.9, "hnsw": 0.95, "ivf-sq": 0.5, "weak-and": 0.9}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    if request.param in FAISS_KINDS:
        pytest.importorskip("faiss")
    return request.param


@pytest.fixture(scope="module")
def clusters():
    """3,000 unit vectors of width 16 around 40 centres, and 20 queries of the same law."""
    rng = np.random.default_rng(7)
    centres = rng.standard_normal((40, 16))
    points = centres[rng.integers(0, 40, 3020)] + 0.5 * rng.standard_normal((3020, 16))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    return points[:3000], points[3000:]


def brute_force(vectors, queries, k):
    products = queries @ vectors.T
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(products, order, 1)


def recall(found, expected):
    return np.mean([len(set(row) & set(wanted)) / len(wanted) for row, wanted in zip(found, expected, strict=True)])


# --- what a search returns ---


def test_an_index_finds_most_of_the_nearest_items(kind, clusters):
    vectors, queries = clusters
    items, _ = build_index(kind, vectors).search(queries, 10)
    assert recall(items, brute_force(vectors, queries, 10)[0]) >= LEAST_RECALL[kind]


def test_scores_are_inner_products_in_descending_order(kind, clusters):
    vectors, queries = clusters
    items, scores = build_index(kind, vectors).search(queries, 10)
    products = np.einsum("qkf,qf->qk", vectors[items], queries)
    assert items.dtype == np.int64
    assert scores.dtype == np.float32
    assert scores == pytest.approx(products, abs=0.02 if kind == "ivf-sq" else 1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_exact_search_is_brute_force_in_any_block_size(clusters, monkeypatch):
    vectors, queries = clusters
    monkeypatch.setattr("models.retrieval_exact.ITEMS", 700)
    monkeypatch.setattr("models.retrieval_exact.QUERIES", 3)
    items, scores = build_index("exact", vectors).search(queries, 25)
    expected, products = brute_force(vectors, queries, 25)
    assert (items == expected).all()
    assert scores == pytest.approx(products, abs=1e-6)


def test_of_equal_scores_exact_search_returns_the_first_items():
    items, _ = build_index("exact", np.ones((9, 2))).search(np.ones((1, 2)), 3)
    assert items.tolist() == [[0, 1, 2]]


def test_a_query_does_not_depend_on_the_queries_beside_it(kind, clusters):
    vectors, queries = clusters
    index = build_index(kind, vectors)
    together = index.search(queries, 5)[0]
    alone = np.concatenate([index.search(query[None], 5)[0] for query in queries])
    assert (together == alone).all()


def test_no_queries_give_no_rows(kind, clusters):
    items, scores = build_index(kind, clusters[0]).search(np.empty((0, 16)), 4)
    assert items.shape == scores.shape == (0, 4)


def test_more_neighbours_than_items_are_padded(kind):
    vectors = np.eye(3, 4, dtype=np.float32)
    items, scores = build_index(kind, vectors).search(np.array([[1.0, 0.5, 0.25, 0.0]]), 5)
    assert items.tolist() == [[0, 1, 2, -1, -1]]
    assert scores[0, 3:].tolist() == [-np.inf, -np.inf]


def test_one_item_is_an_index(kind):
    items, _ = build_index(kind, np.ones((1, 4))).search(np.ones((1, 4)), 1)
    assert items.tolist() == [[0]]


# --- what is refused ---


def test_rows_with_nan_are_named(kind):
    vectors = np.ones((8, 4))
    vectors[[2, 5], 1] = np.nan, np.inf
    with pytest.raises(DataError, match=r"2 of 8 rows hold NaN or infinity \(rows 2, 5\)"):
        build_index(kind, vectors)


def test_a_query_with_nan_is_named(kind):
    with pytest.raises(DataError, match=r"queries: 1 of 2 rows .*rows 1"):
        build_index(kind, np.eye(4)).search(np.array([[0.0] * 4, [np.nan] * 4]), 1)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (2, 2, 2)])
def test_an_index_of_nothing_is_refused(kind, shape):
    with pytest.raises(DataError, match="at least one of each"):
        build_index(kind, np.ones(shape))


@pytest.mark.parametrize("shape", [(1, 3), (4,), (1, 5)])
def test_queries_of_another_width_are_refused(kind, shape):
    with pytest.raises(DataError, match=r"expected \[queries, 4\]"):
        build_index(kind, np.eye(4)).search(np.ones(shape), 1)


def test_no_neighbours_cannot_be_asked_for(kind):
    with pytest.raises(ConfigError, match="at least 1"):
        build_index(kind, np.eye(4)).search(np.eye(4), 0)


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("hnws", {}, UnknownNameError),
        ("hnsw", {"link": 3}, ConfigError),
        ("hnsw", {"links": 0}, ConfigError),
        ("exact", {"links": 3}, ConfigError),
        ("weak-and", {"near": "two"}, ConfigError),
    ],
)
def test_an_unknown_kind_or_option_is_told(name, options, error):
    with pytest.raises(error, match=r"Known|must be a number"):
        build_index(name, np.eye(4), **options)


# --- without faiss ---


@pytest.mark.parametrize("name", FAISS_KINDS)
def test_without_faiss_search_is_exact_and_says_so(name, monkeypatch, clusters):
    vectors, queries = clusters
    monkeypatch.setitem(sys.modules, "faiss", None)  # import faiss now fails as if it were not installed
    with pytest.warns(FaissMissing, match="exact search instead"):
        index = build_index(name, vectors)
    assert (index.search(queries, 3)[0] == brute_force(vectors, queries, 3)[0]).all()


def test_a_faiss_index_on_disk_says_what_to_install(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    save_index(build_index("hnsw", np.eye(4)), tmp_path / "index")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(RunError, match="pip install"):
        load_index(tmp_path / "index")


def test_kinds_of_ours_do_not_need_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [build_index(name, np.eye(4)).kind for name in ("exact", "weak-and")] == ["exact", "weak-and"]


# --- on disk ---


def test_a_saved_index_answers_alike(kind, clusters, tmp_path):
    vectors, queries = clusters
    index = build_index(kind, vectors)
    save_index(index, tmp_path / "index", {"vectors": "abc"})
    loaded = load_index(tmp_path / "index")
    assert (loaded.kind, loaded.num_items, loaded.dim) == (kind, 3000, 16)
    assert loaded.bytes_per_item == index.bytes_per_item
    for before, after in zip(index.search(queries, 10), loaded.search(queries, 10), strict=True):
        assert (before == after).all()
    assert read_facts(tmp_path / "index") == {"vectors": "abc"}


def test_bytes_an_item_are_those_of_the_file(kind, clusters, tmp_path):
    index = build_index(kind, clusters[0])
    save_index(index, tmp_path / "index")
    assert index.bytes_per_item == pytest.approx((tmp_path / "index").stat().st_size / 3000, rel=0.02)


def test_a_missing_or_damaged_file_is_named(kind, clusters, tmp_path):
    path = tmp_path / "index"
    with pytest.raises(RunError, match="no index at"):
        load_index(path)
    save_index(build_index(kind, clusters[0]), path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", whole.replace(b"fedquilt-index-1", b"fedquilt-index-9", 1)):
        path.write_bytes(content)
        with pytest.raises(FedquiltError, match="index"):
            load_index(path)


GOOD = {"format": FORMAT, "kind": "exact", "settings": {}, "facts": {}}


@pytest.mark.parametrize(
    "about",
    [
        [],
        {"format": FORMAT, "kind": "exact"},
        {**GOOD, "settings": []},
        {**GOOD, "facts": "none"},
        {**GOOD, "kind": ["exact"]},
    ],
)
def test_a_header_that_says_too_little_is_an_error_of_ours(about, tmp_path):
    path = tmp_path / "index"
    path.write_bytes(save({"vectors": np.eye(3, dtype=np.float32)}, {"fedquilt": json.dumps(GOOD)}))
    assert load_index(path).num_items == 3
    path.write_bytes(save({"vectors": np.eye(3, dtype=np.float32)}, {"fedquilt": json.dumps(about)}))
    for read in (load_index, read_facts):
        with pytest.raises(RunError, match="index"):
            read(path)


def test_codebooks_of_another_width_are_refused_when_read(clusters, tmp_path):
    index = build_index("weak-and", clusters[0])
    index.codebooks[0] = index.codebooks[0][:, :7]
    save_index(index, tmp_path / "index")
    with pytest.raises(RunError, match="differ in width"):
        load_index(tmp_path / "index")


def test_a_build_is_repeatable(kind, clusters):
    vectors, queries = clusters
    first, second = (build_index(kind, vectors, seed=3).search(queries, 10) for _ in range(2))
    assert (first[0] == second[0]).all()


# --- weak and ---


def test_the_second_level_reranks_what_the_first_found(clusters):
    vectors, queries = clusters
    index = build_index("weak-and", vectors, candidates=50)
    found = index.order_I[index.first_level(queries, 50).items_QN]
    items, _ = index.search(queries, 10)
    for query, candidates, row in zip(queries, found, items, strict=True):
        candidates = np.sort(candidates)
        assert row.tolist() == candidates[np.argsort(-(vectors[candidates] @ query), kind="stable")][:10].tolist()


def test_tags_bring_an_item_into_the_candidates(clusters):
    vectors, queries = clusters
    far = int(np.argmin(vectors @ queries[0]))
    tags = [["rare"] if item == far else ["common", "common"] for item in range(3000)]
    index = build_index("weak-and", vectors, tags=tags, candidates=20)

    def candidates(words):
        return index.order_I[index.first_level(queries[:1], 200, words).items_QN[0]].tolist()

    assert far in candidates([["rare", "never seen"]])
    assert far not in candidates([["never seen"]])


def test_tags_survive_the_disk(clusters, tmp_path):
    vectors, queries = clusters
    index = build_index("weak-and", vectors, tags=[[f"tag {item % 7}"] for item in range(3000)], candidates=20)
    save_index(index, tmp_path / "index")
    words = [["tag 3", "tag 5"]] * len(queries)
    assert (load_index(tmp_path / "index").search(queries, 5, words)[0] == index.search(queries, 5, words)[0]).all()


@pytest.mark.parametrize("rows", [2, 4])
def test_tags_for_another_number_of_items_are_refused(rows):
    with pytest.raises(DataError, match="tags"):
        build_index("weak-and", np.eye(3), tags=[["a"]] * rows)


def test_an_item_without_direction_is_found_only_where_all_are_considered(clusters):
    vectors = clusters[0].copy()
    vectors[17] = 0
    assert 17 not in build_index("weak-and", vectors, candidates=100).search(clusters[1], 50)[0]
    assert 17 in build_index("weak-and", vectors, candidates=3000).search(clusters[1][:1], 3000)[0]
