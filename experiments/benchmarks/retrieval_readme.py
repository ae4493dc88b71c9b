"""The README's tables of retrieval, made from ``cloud.json``."""

from __future__ import annotations

from pathlib import Path

from experiments import results
from experiments.benchmarks.throughput_readme import number
from experiments.results import Row


def update(readme: Path) -> None:
    """Errors: RunError where the results file or a place in the README is missing."""
    measured = results.read_results(readme.with_name("cloud.json"))
    rows = [row for row in measured["rows"] if row.get("benchmark") == "retrieval"]
    results.replace_block(readme, "retrieval", kinds_table(rows))
    results.replace_block(readme, "weak-and", weak_and_table(rows))


def kinds_table(rows: list[Row]) -> str:
    header = [
        "index",
        "items",
        "setting",
        "recall@100",
        "µs a query, 200 at once",
        "µs a query, one by one",
        "bytes an item",
        "build, s",
        "load",
    ]
    return results.markdown_table(
        header,
        [
            [
                row["index"],
                f"{row['items']:,}",
                row["kind"],
                f"{row['recall100']:.3f}",
                number(row["us_a_query"]),
                number(row["us_alone"]),
                number(row["bytes_per_item"]),
                number(row["build_s"]),
                row["load"],
            ]
            for row in rows
        ],
    )


def weak_and_table(rows: list[Row]) -> str:
    header = [
        "Weak AND",
        "candidates",
        "postings in the index",
        "in a query's lists",
        "read by WAND",
        "skipped",
        "items scored",
        "first level, µs",
    ]
    return results.markdown_table(
        header,
        [
            [
                f"{row['items']:,} items",
                row["kind"].partition("=")[2],
                f"{row['postings_in_index']:,}",
                number(row["postings_of_query"]),
                number(row["postings_read"]),
                f"{row['postings_skipped']:.1%}",
                number(row["items_scored"]),
                number(row["us_first_level"]),
            ]
            for row in rows
            if row["index"] == "weak-and"
        ],
    )
