"""``cloud.json``, which the benchmarks of the cloud's graph model share: walks, producers, embedding, retrieval.

Each of them writes its own rows and headline figures through ``write`` and leaves those of the others as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.results import Row, read_results, write_results

RESULTS = Path(__file__).with_name("cloud.json")
# What tells two rows apart, for all of these benchmarks together; a row has the ones that it needs.
KEY = (
    "benchmark",
    "step",
    "graph",
    "nodes",
    "edges",
    "items",
    "kind",
    "index",
    "engine",
    "producers",
    "num_producers",
    "batch_size",
    "threads",
    "pair",
    "seed",
)


def write(
    benchmark: str,
    rows: Iterable[Mapping[str, Any]],
    headline: Callable[[list[Row]], Mapping[str, float]],
    path: Path = RESULTS,
) -> dict[str, Any]:
    """Merge rows, each marked with ``benchmark``; ``headline`` sees the rows of this benchmark after the merge."""

    def figures(kept: list[Row]) -> dict[str, float]:
        others = read_results(path)["headline"] if path.exists() else {}
        return {**others, **headline([row for row in kept if row.get("benchmark") == benchmark])}

    return write_results(path, [{"benchmark": benchmark, **row} for row in rows], figures, KEY)
