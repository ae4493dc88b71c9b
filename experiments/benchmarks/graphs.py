"""How fast the graphs are on one core, and how large: co-click graph, visit counts, subgraphs.

    OMP_NUM_THREADS=1 python -m experiments.benchmarks.graphs

The log is a bazaar of about a million clicks. Everything here runs on one thread, so ``cpu_s`` is the time on one core;
rates are per second of it. ``wall_s`` beside it says how busy the machine was with other things. Both are the best of
``--repeats``. Memory is the peak of the process during the step, all input included, and what the step added.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedquilt.config import CloudConfig, GraphConfig
from fedquilt.graphs.bazaar import Bazaar, generate
from fedquilt.graphs.coclick import build_coclick
from fedquilt.graphs.importance import ppr, visit_counts
from fedquilt.graphs.subgraph import SubgraphBuilder, latest_clicks, subgraph_bytes
from fedquilt.seeds import generator_for

RESULTS = Path(__file__).with_suffix(".json")
CONTEXT = 64  # L, clicks that a device looks back on
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=22_000)
    parser.add_argument("--items", type=int, default=3_700)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rows = measure(Bazaar(arguments.users, arguments.items), arguments.repeats)
    # torch comes with this import, and would stand in the memory figures.
    from experiments.results import write_results

    results = write_results(RESULTS, rows, headline, key=("step", "items", "users_at_once"))
    for row in results["rows"]:
        print("  ".join(f"{name}={value}" for name, value in row.items()))
    print(results["headline"])


def measure(bazaar: Bazaar, repeats: int) -> list[Row]:
    graph_config = GraphConfig()
    log = generate(bazaar)
    common = {"items": log.num_items, "interactions": len(log)}
    graph, coclick = timed(lambda: build_coclick(log, graph_config.window, graph_config.top_neighbours), repeats)
    coclick |= {"edges": graph.num_edges, "bytes_per_edge": round(graph.bytes_per_edge, 3)}
    everything = np.arange(log.num_items)
    walks, length, top = graph_config.num_walks, graph_config.walk_length, graph_config.top_neighbours
    table, walked = timed(
        lambda: visit_counts(graph, everything, walks, length, generator_for(0, use="walks"), top), repeats
    )
    walked |= {"steps_per_s": round(log.num_items * walks * length / walked["cpu_s"])}
    _, ranked = timed(lambda: ppr(graph, everything, 0.2, top), 1)
    ranked |= {"seeds_per_s": round(log.num_items / ranked["cpu_s"])}
    builder = SubgraphBuilder(
        table.items_ST, table.weights_ST, graph_config.num_nodes, graph_config.num_clicked, graph_config.window
    )
    contexts_UL = latest_clicks(log, np.arange(log.num_users), CONTEXT)
    rows = [{"step": "coclick"} | coclick, {"step": "visit-counts"} | walked, {"step": "ppr-2-hops"} | ranked]
    rows += [subgraph_row(builder, contexts_UL[:count], repeats) for count in (1, 256, 4096)]
    return [common | row for row in rows]


def subgraph_row(builder: SubgraphBuilder, contexts_UL: np.ndarray, repeats: int) -> Row:
    users = len(contexts_UL)
    calls = max(1, 4096 // users)
    builder(contexts_UL[:1])  # the tables are made once and kept

    def call() -> Any:
        for _ in range(calls - 1):
            builder(contexts_UL)
        return builder(contexts_UL)

    graphs, row = timed(call, repeats)
    clicked = float((graphs.recency_UN >= 0).sum(axis=1).mean())
    rate = {"users_per_s": round(calls * users / row["cpu_s"]), "mean_clicked_nodes": round(clicked, 1)}
    sizes = {f"bytes_{name}": round(size) for name, size in subgraph_bytes(graphs, CloudConfig().dim).items()}
    return {"step": "subgraphs", "users_at_once": users} | row | rate | sizes


def timed(call: Callable[[], Any], repeats: int) -> tuple[Any, Row]:
    """The last result, and the best time of ``repeats`` with the peak memory over all of them."""
    before = reset_peak_mb()
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = (min(column) for column in zip(*times, strict=True))
    peak = status_mb("VmHWM")
    row = {
        "wall_s": round(wall, 4),
        "cpu_s": round(cpu, 4),
        "peak_rss_mb": round(peak),
        "added_mb": round(peak - before),
    }
    return result, row


def reset_peak_mb() -> float:
    """Sets the process's peak memory to what it holds now (Linux), which is returned in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_mb("VmRSS")


def status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def headline(rows: list[Row]) -> dict[str, float]:
    by_step = {(row["step"], row.get("users_at_once")): row for row in rows}
    cohort = by_step["subgraphs", 4096]
    return {
        "coclick_interactions": by_step["coclick", None]["interactions"],
        "coclick_seconds": by_step["coclick", None]["cpu_s"],
        "coclick_wall_seconds": by_step["coclick", None]["wall_s"],
        "coclick_bytes_per_edge": by_step["coclick", None]["bytes_per_edge"],
        "visit_steps_per_s": by_step["visit-counts", None]["steps_per_s"],
        "subgraph_users_per_s": cohort["users_per_s"],
        "subgraph_bytes_fp32": cohort["bytes_fp32_mean"],
        "subgraph_bytes_int8": cohort["bytes_int8_mean"],
        "peak_rss_mb": max(row["peak_rss_mb"] for row in rows),
    }


if __name__ == "__main__":
    main()
