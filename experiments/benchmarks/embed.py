"""How fast the vectors of all items are made, and in how much memory: 10 k, 100 k, 1 M items.

    python -m experiments.benchmarks.embed                          # all rows, each in a process of its own
    python -m experiments.benchmarks.embed --items 1000000          # one of them, printed only

PinSage with random weights: features 64 wide, 2 layers, hidden 128, vectors of 64, T = 20 neighbours drawn evenly from
all items, which is the hardest table for caches and memory. ``peak_gb`` is the peak resident memory of the process, the
features, the neighbour table and the mapped pages of files included; on Ray, of this process and all of Ray's, pages
that several of them map counted several times. ``seconds`` begin with features and table in memory and end with the
manifest on disk; Ray's start stands beside them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from experiments.benchmarks import cloud_results, embed_readme
from experiments.benchmarks.throughput_common import Row, in_child, peak_gb, report
from fedquilt.graphs.importance import Neighbourhoods
from models.graph_model import GraphModel, build_graph_model
from server.embed import Executor, embed_all, in_process
from server.embed_naive import count_projections, naive_vectors
from server.embed_ray import on_ray
from server.shards import Shards

README = Path(__file__).with_name("README.md")
FEATURES, HIDDEN, DIM, TOP, LAYERS = 64, 128, 64, 20, 2
ITEMS = (10_000, 100_000, 1_000_000)
COMPARED = 100_000  # items at which engines are compared, in turn
NAIVE = 300  # items that are also computed one by one
CORES = 2


def sizes() -> Iterator[Row]:
    for items in ITEMS:
        yield from in_child("embed", {"items": items}, 1)


def engines() -> Iterator[Row]:
    """Beside the row of ``sizes`` for as many items: Ray on both cores."""
    yield from in_child("embed", {"items": COMPARED, "engine": "ray"}, 1)


PARTS: dict[str, Callable[[], Iterator[Row]]] = {"sizes": sizes, "engines": engines}


def measure(items: int, engine: str = "in-process") -> Row:
    """One embedding in this process (and Ray's)."""
    model, (features_IF, table) = a_model(), a_catalogue(items)
    folder = Path(tempfile.mkdtemp())
    started = time.perf_counter()
    try:
        with executor_of(engine) as executor:
            engine_s = time.perf_counter() - started
            cpu = time.process_time()
            embedded = embed_all(model, features_IF, table, folder / "vectors", executor)
            cpu_s, memory = time.process_time() - cpu, peak_gb() + (children_gb() if engine == "ray" else 0.0)
            same = largest_difference(model, features_IF, table, embedded.vectors)
    finally:
        shutil.rmtree(folder)
    projections = count_projections(table, LAYERS)
    return {
        "step": "embed",
        "engine": engine,
        "items": items,
        "items_per_s": round(items / embedded.seconds),
        "seconds": round(embedded.seconds, 2),
        **({"items_per_cpu_s": round(items / cpu_s)} if engine == "in-process" else {"start_s": round(engine_s, 2)}),
        "peak_gb": round(memory, 3),
        "step_seconds": {name: round(seconds, 2) for name, seconds in embedded.step_seconds.items()},
        "projections": projections.needed,
        "projections_naive": projections.naive,
        "projections_repeated": projections.repeated,
        "projections_counted_items": projections.counted,
        **same,
    }


@contextmanager
def executor_of(engine: str) -> Iterator[Executor]:
    if engine == "in-process":
        yield in_process
    else:
        with on_ray("local", num_cpus=CORES) as executor:
            yield executor


def a_model() -> GraphModel:
    return build_graph_model(
        convolution="pinsage",
        num_layers=LAYERS,
        in_dim=FEATURES,
        hidden=HIDDEN,
        dim=DIM,
        head=True,
        generator=torch.Generator().manual_seed(0),
    )


def a_catalogue(items: int) -> tuple[np.ndarray, Neighbourhoods]:
    rng = np.random.default_rng(0)
    weights_IT = rng.random((items, TOP), dtype=np.float32)
    weights_IT /= weights_IT.sum(1, keepdims=True)
    items_IT = rng.integers(0, items, (items, TOP), dtype=np.int32)
    return rng.standard_normal((items, FEATURES), dtype=np.float32), Neighbourhoods(items_IT, weights_IT)


def largest_difference(model: GraphModel, features_IF: np.ndarray, table: Neighbourhoods, vectors: Shards) -> Row:
    """Against some items computed one by one, and how fast that is."""
    items_S = np.linspace(0, len(features_IF) - 1, NAIVE).astype(np.int64)
    naive_vectors(model, features_IF, table, items_S[:1])  # compiles
    started = time.perf_counter()
    alone_SF = naive_vectors(model, features_IF, table, items_S)
    naive_s = time.perf_counter() - started
    difference = float(np.abs(vectors[items_S] - alone_SF).max())
    return {"naive_items_per_s": round(NAIVE / naive_s), "largest_difference": difference}


def children_gb() -> float:
    """Peak memory of the processes that this one started, added up, GiB."""
    waiting, total_kb = children(os.getpid()), 0
    while waiting:
        process = waiting.pop()
        waiting += children(process)
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        total_kb += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return total_kb / 2**20


def children(process: int) -> list[int]:
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for path in lists for child in path.read_text().split()]


def headline(rows: list[Row]) -> dict[str, float]:
    """Of the largest catalogue in process: items a second of one core's time (waiting for a busy machine or for the
    disk is not in it) and by the clock on the wall, the fastest row; the memory of the greediest row.
    """
    largest = [row for row in rows if row["engine"] == "in-process" and row["items"] == ITEMS[-1]]
    one_core = [row for row in largest if row["threads"] == 1]
    if not one_core:
        return {}
    return {
        "embed_items_per_s": max(row["items_per_cpu_s"] for row in one_core),
        "embed_items_per_s_wall": max(row["items_per_s"] for row in largest),
        "embed_peak_gb_1m_items": max(row["peak_gb"] for row in largest),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, help="measure this many in this process, and write nothing")
    parser.add_argument("--engine", choices=("in-process", "ray"), default="in-process")
    parser.add_argument("--only", choices=sorted(PARTS), action="append", help="measure this part; may be repeated")
    given = parser.parse_args()
    if given.items:
        report(measure(given.items, given.engine))
        return
    for name in given.only or PARTS:
        for row in PARTS[name]():
            print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
            cloud_results.write("embed", [row], headline)
    embed_readme.update(README, CORES)


if __name__ == "__main__":
    main()
