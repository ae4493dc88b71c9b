"""Walk steps a second on one core, visit counts and top-T included, and the memory, on a graph of web size.

    OMP_NUM_THREADS=1 python -m experiments.benchmarks.walks

A million items and twenty million (directed) edges with power-law degrees, in two shapes. *random*: an edge ends at a
random edge's other end, so that no cache helps: the hard one, and with weights the headline. *clustered*: an edge ends
within a neighbourhood of 2,000 items, as co-clicks do. One thread; rates are per second of processor time, the best of
``--repeats`` (the middle one is beside it, and the load of the machine). Tables are made once a graph, apart from the
walks. Compiling is not counted.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from experiments.benchmarks.graphs import reset_peak_mb, status_mb
from fedquilt.graphs.coclick import CoClickGraph
from fedquilt.graphs.importance import visit_counts
from fedquilt.graphs.walks import walk_tables
from fedquilt.seeds import generator_for

SETTINGS = ((64, 16, 0.0), (64, 16, 0.3), (200, 5, 0.3))  # walks, hops, restart
HEADLINE = {"graph": "random", "weights": "any", "num_walks": 64, "walk_length": 16, "restart": 0.3}
CLUSTER = 2_000
TOP = 50
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--edges", type=int, default=20_000_000)
    parser.add_argument("--seeds", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    rows = []
    for shape in ("random", "clustered"):
        for weights in ("any", "equal"):
            graph = power_law_graph(arguments.items, arguments.edges, shape, weights)
            rows += measure(graph, arguments.seeds, arguments.repeats, {"graph": shape, "weights": weights})
    # torch comes with these imports, and would stand in the memory figures.
    from experiments.benchmarks.cloud_results import write
    from experiments.results import replace_block

    measured = write("walks", rows, headline)
    kept = [row for row in measured["rows"] if row.get("benchmark") == "walks"]
    replace_block(Path(__file__).with_name("README.md"), "walks", table(kept))
    print(measured["headline"])


def power_law_graph(num_items: int, num_edges: int, shape: str, weights: str, seed: int = 0) -> CoClickGraph:
    """Pareto degrees (exponent 1.5, at least 1, at most 100,000), ends in proportion to degree."""
    generator = np.random.default_rng(seed)
    degrees_I = np.minimum((generator.pareto(1.5, num_items) + 1) * num_edges / num_items / 3, 1e5)
    degrees_I = np.maximum((degrees_I * (num_edges / degrees_I.sum())).astype(np.int64), 1)
    degrees_I[: max(0, num_edges - degrees_I.sum())] += 1
    indptr = np.concatenate([[0], np.cumsum(degrees_I)])
    ends_E = np.repeat(np.arange(num_items, dtype=np.int32), degrees_I)
    if shape == "clustered":
        parts = np.array_split(ends_E, num_items // CLUSTER)
        for part in parts:
            generator.shuffle(part)
    else:
        generator.shuffle(ends_E)
    size = len(ends_E)
    weights_E = np.ones(size, np.float32)
    if weights == "any":
        weights_E = generator.random(size, np.float32) + np.float32(0.1)
    return CoClickGraph(indptr, ends_E, weights_E, num_items)


def measure(graph: CoClickGraph, num_seeds: int, repeats: int, names: Row) -> list[Row]:
    common = names | {"num_items": graph.num_items, "edges": graph.num_edges, "top": TOP}
    walk_tables(tiny())
    tables, seconds, _ = timed(lambda: walk_tables(graph))
    memory = {"graph_mb": megabytes(graph.indptr.nbytes + graph.indices.nbytes + graph.weights.nbytes)}
    memory |= {"tables_mb": megabytes(tables.nbytes), "tables_s": round(seconds, 2)}
    seeds = np.random.default_rng(1).permutation(graph.num_items)[:num_seeds]
    rows = []
    for num_walks, walk_length, restart in SETTINGS:

        def walk(seeds: np.ndarray, walks: int = num_walks, length: int = walk_length, back: float = restart) -> Any:
            return visit_counts(graph, seeds, walks, length, generator_for(0, use="walks"), TOP, back)

        walk(seeds[:100])
        runs = [timed(lambda: walk(seeds)) for _ in range(repeats)]
        rates = [num_seeds * num_walks * walk_length / seconds for _, seconds, _ in runs]
        kind = f"{names['weights']} weights, {num_walks} x {walk_length}, restart {restart}"
        settings = {
            "step": "walk",
            "kind": kind,
            "num_walks": num_walks,
            "walk_length": walk_length,
            "restart": restart,
        }
        speed = {"steps_per_s": round(max(rates)), "middle_steps_per_s": round(median(rates)), "seeds": num_seeds}
        added = {"added_mb": round(max(added for *_, added in runs)), "load": round(os.getloadavg()[0], 1)}
        rows.append(common | settings | {"restart": restart} | speed | memory | added)
        print(rows[-1], flush=True)
    return rows


def tiny() -> CoClickGraph:
    """Two joined items: compiles, so that compiling stands in no figure."""
    return CoClickGraph(np.array([0, 1, 2]), np.array([1, 0], np.int32), np.ones(2, np.float32), 2)


def timed(call: Any) -> tuple[Any, float, float]:
    """Result, seconds of processor time, and MiB that the peak rose above what was held before."""
    before, start = reset_peak_mb(), time.process_time()
    result = call()
    return result, time.process_time() - start, status_mb("VmHWM") - before


def megabytes(size: int) -> float:
    return round(size / 1e6, 1)


def table(rows: list[Row]) -> str:
    from experiments.results import markdown_table

    names = ("M steps/s, best", "middle", "graph, MB", "tables, MB", "making tables, s", "a call adds, MiB", "load")
    return markdown_table(
        ("graph", "weights", "walks x hops, restart", *names),
        [
            [
                row["graph"],
                row["weights"],
                f"{row['num_walks']} x {row['walk_length']}, {row['restart']}",
                f"{row['steps_per_s'] / 1e6:.1f}",
                f"{row['middle_steps_per_s'] / 1e6:.1f}",
                f"{row['graph_mb']:.0f}",
                f"{row['tables_mb']:.0f}",
                row["tables_s"],
                row["added_mb"],
                row["load"],
            ]
            for row in rows
        ],
    )


def headline(rows: list[Row]) -> dict[str, float]:
    chosen = [row for row in rows if all(row[name] == value for name, value in HEADLINE.items())]
    return {"walk_steps_per_s": max(row["steps_per_s"] for row in chosen)} if chosen else {}


if __name__ == "__main__":
    main()
