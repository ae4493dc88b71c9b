"""The README's table of embedding, made from ``cloud.json``."""

from __future__ import annotations

from pathlib import Path

from experiments import results
from experiments.benchmarks.throughput_readme import number
from experiments.results import Row

HEADER = (
    "items",
    "engine",
    "threads or workers",
    "items/s",
    "items per processor second",
    "s",
    "peak GiB",
    "projections",
    "of those item by item, repeated",
    "items/s, item by item",
    "load",
)


def update(readme: Path, cores: int = 2) -> None:
    """Errors: RunError where the results file or a place in the README is missing."""
    measured = results.read_results(readme.with_name("cloud.json"))
    rows = [row for row in measured["rows"] if row.get("benchmark") == "embed"]
    results.replace_block(readme, "embed", table(rows, cores))


def table(rows: list[Row], cores: int) -> str:
    return results.markdown_table(HEADER, [line(row, cores) for row in rows])


def line(row: Row, cores: int) -> list[str]:
    ray, exact = row["engine"] == "ray", row["projections_counted_items"] == row["items"]
    repeated = f"{row['projections_repeated']:,}" if exact else f"about {row['projections_repeated']:,}"
    return [
        f"{row['items']:,}",
        "Ray" if ray else "in process",
        str(cores if ray else row["threads"]),
        number(row["items_per_s"]),
        "–" if ray else number(row["items_per_cpu_s"]),
        number(row["seconds"]),
        f"{row['peak_gb']:.2f}",
        f"{row['projections']:,}",
        repeated,
        number(row["naive_items_per_s"]),
        str(row["load"]),
    ]
