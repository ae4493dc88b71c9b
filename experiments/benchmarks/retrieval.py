"""Kinds of index against exact search: recall@100, time a query, bytes an item, and what Weak AND leaves unread.

    python -m experiments.benchmarks.retrieval                    # 10,000, 100,000 and 1,000,000 items, a process each
    python -m experiments.benchmarks.retrieval --only 10000

Vectors are synthetic: 4 √I centres, standard normal in 64 dimensions; a vector is a centre plus 0.9 times standard
normal noise, scaled to length 1; the n-th centre is drawn in proportion to 1 / √n. Queries are 200 further draws. One
thread; times are of the processor, the best of two repeats, and so are build times (of one). Every kind is searched
with several settings, built once.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.cloud_results import write
from experiments.benchmarks.retrieval_readme import update
from experiments.benchmarks.throughput_common import best_time, in_child, report
from fedquilt.seeds import generator_for
from models.retrieval import build_index
from models.wand import scan

Row = dict[str, Any]
SIZES, WIDTH, NOISE, NUM_QUERIES, ALONE, K = (10_000, 100_000, 1_000_000), 64, 0.9, 200, 50, 100
CHECKED = 5  # queries for which the first level is compared with a full scan, as in the tests
# The option that trades time for recall, and its values; the first is the kind's default.
SETTINGS: dict[str, tuple[str, tuple[int, ...]]] = {
    "lsh": ("candidates", (20, 5, 50)),
    "hnsw": ("ef_search", (256, 128, 512)),
    "ivf-sq": ("probes", (0, 256)),
    "weak-and": ("candidates", (1000, 500, 2000)),
}


def clustered(num_items: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [I, 64] and queries [200, 64], float32."""
    rng = generator_for(seed, use="retrieval-benchmark")
    centres_CF = rng.standard_normal((4 * int(num_items**0.5), WIDTH), np.float32)
    share_C = 1 / np.sqrt(np.arange(1, len(centres_CF) + 1))
    drawn = rng.choice(len(centres_CF), num_items + NUM_QUERIES, p=share_C / share_C.sum())
    points = centres_CF[drawn] + np.float32(NOISE) * rng.standard_normal((len(drawn), WIDTH), np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points[:num_items].copy(), points[num_items:].copy()


def measure(num_items: int) -> Iterator[Row]:
    vectors_IF, queries_QF = clustered(num_items)
    exact = build_index("exact", vectors_IF)
    truth_QK = exact.search(queries_QF, K)[0]
    yield searched("exact", "–", exact, queries_QF, truth_QK, 0.0)
    for kind, (option, values) in SETTINGS.items():
        began = time.process_time()
        index: Any = build_index(kind, vectors_IF)  # each kind has options of its own
        build_s = time.process_time() - began
        for value in values:
            index.options[option] = value
            row = searched(kind, f"{option}={value or 'default'}", index, queries_QF, truth_QK, build_s)
            yield row | (unread(index, queries_QF, value) if kind == "weak-and" else {})
        del index
        gc.collect()


def searched(kind: str, setting: str, index: Any, queries_QF: np.ndarray, truth_QK: np.ndarray, build_s: float) -> Row:
    found_QK = index.search(queries_QF, K)[0]
    hits = [len(np.intersect1d(found, truth)) for found, truth in zip(found_QK, truth_QK, strict=True)]
    _, together_s = best_time(lambda: index.search(queries_QF, K), 2)
    _, alone_s = best_time(lambda: [index.search(query_F[None], K) for query_F in queries_QF[:ALONE]], 2)
    return {
        "step": "retrieval",
        "items": index.num_items,
        "index": kind,
        "kind": setting,
        "recall100": round(float(np.mean(hits)) / K, 4),
        "us_a_query": round(together_s / len(queries_QF) * 1e6, 1),
        "us_alone": round(alone_s / ALONE * 1e6, 1),
        "bytes_per_item": round(index.bytes_per_item, 1),
        "build_s": round(build_s, 2),
    }


def unread(index: Any, queries_QF: np.ndarray, candidates: int) -> Row:
    """What the first level read of the lists of the query's tokens. The first queries are checked against a scan."""
    level = index.first_level(queries_QF, candidates)
    for place, (tokens, weights) in enumerate(zip(*index.query_tokens(queries_QF[:CHECKED]), strict=True)):
        items, scores = scan(index.postings, tokens, weights, candidates)
        assert (level.items_QN[place][: len(items)] == items).all()
        assert (level.scores_QN[place][: len(items)] == scores).all()
    _, first_s = best_time(lambda: index.first_level(queries_QF, candidates), 2)
    return {
        "postings_of_query": round(float(level.postings_total_Q.mean()), 1),
        "postings_read": round(float(level.postings_read_Q.mean()), 1),
        "postings_skipped": round(level.share_skipped, 4),
        "postings_in_index": len(index.postings.items),
        "items_scored": round(float(level.items_scored_Q.mean()), 1),
        "us_first_level": round(first_s / len(queries_QF) * 1e6, 1),
    }


def headline(rows: list[Row]) -> dict[str, float]:
    """At the most items measured: what Weak AND skips at its default; the best recall of an approximate index."""
    most = max(row["items"] for row in rows)
    at_most = [row for row in rows if row["items"] == most and row["index"] != "exact"]
    default = f"candidates={SETTINGS['weak-and'][1][0]}"
    skipped = [row["postings_skipped"] for row in at_most if row["index"] == "weak-and" and row["kind"] == default]
    return {
        "recall100_best_ann": max(row["recall100"] for row in at_most),
        **({"wand_postings_skipped": skipped[0]} if skipped else {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, action="append", help="this many items; may be repeated")
    parser.add_argument("--items", type=int, help="measure here and print rows; what the processes are started with")
    given = parser.parse_args()
    if given.items:
        for row in measure(given.items):
            report(row)
        return
    for size in given.only or SIZES:
        results = write("retrieval", in_child("retrieval", {"items": size}, threads=1), headline)
        print(size, results["headline"], flush=True)
    update(Path(__file__).with_name("README.md"))


if __name__ == "__main__":
    main()
