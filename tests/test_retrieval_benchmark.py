"""The retrieval benchmark measures what it says, and its headline is of the most items."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.benchmarks.retrieval import clustered, headline, measure
from experiments.benchmarks.retrieval_readme import kinds_table, weak_and_table


def row(items, index, kind, recall, **more):
    return {"items": items, "index": index, "kind": kind, "recall100": recall} | more


def test_the_headline_is_of_the_most_items_and_leaves_exact_search_out():
    rows = [
        row(100, "hnsw", "a", 0.99),
        row(900, "exact", "–", 1.0),
        row(900, "hnsw", "a", 0.7),
        row(900, "ivf-sq", "b", 0.8),
        row(900, "weak-and", "candidates=1000", 0.6, postings_skipped=0.25),
        row(900, "weak-and", "candidates=500", 0.5, postings_skipped=0.5),
    ]
    assert headline(rows) == {"recall100_best_ann": 0.8, "wand_postings_skipped": 0.25}


def test_synthetic_vectors_have_length_one_and_come_in_clusters():
    vectors, queries = clustered(2500)
    assert vectors.shape == (2500, 64)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    nearest = np.sort(queries @ vectors.T, axis=1)[:, -1].mean()
    shuffled = np.random.default_rng(0).permuted(vectors, axis=1)  # no clusters are left
    assert nearest > np.sort(queries @ shuffled.T, axis=1)[:, -1].mean() + 0.1


@pytest.mark.slow
def test_every_kind_is_measured_and_fits_the_tables():
    pytest.importorskip("faiss")
    rows = [{**found, "load": 0.0, "threads": 1} for found in measure(3000)]
    assert {found["index"] for found in rows} == {"exact", "lsh", "hnsw", "ivf-sq", "weak-and"}
    assert rows[0]["recall100"] == 1
    assert all(found["recall100"] > 0.5 for found in rows)
    assert kinds_table(rows).count("\n") == len(rows) + 1
    assert weak_and_table(rows).count("3,000 items") == 3
