"""Users per second: the client step, whole federations, and peers beside them, in one run.

    python -m experiments.benchmarks.throughput                     # everything, about ten minutes
    python -m experiments.benchmarks.throughput --only pfl          # a part; rows of the others stay

Every row is measured in a process of its own. ``users_per_s`` is by the clock on the wall, the best of several
repeats (federations: the median round, and beside it the best one); ``users_per_cpu_s`` is per second of processor
time, summed over threads. ``load`` says how busy the machine was with other things as well. What a headline ratio
compares is measured in turn, ``PAIRS`` times, and every one of these rows is kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from experiments.benchmarks.throughput_common import Row, in_child
from experiments.benchmarks.throughput_readme import update
from experiments.results import read_results, write_results

RESULTS = Path(__file__).with_suffix(".json")
README = Path(__file__).with_name("README.md")
KEY = ("step", "parts", "users_at_once", "users", "supernodes", "threads", "pair")
BATCHES = (1, 16, 64, 256, 1_024, 4_096)
FEDERATIONS = (1_000, 10_000, 100_000)
CORES = 2
PAIRS = 4


def client_steps() -> Iterator[Row]:
    for threads in (1, CORES):
        for users in BATCHES:
            yield from in_child("throughput_step", {"users": users}, threads)
        yield from in_child("throughput_step", {"users": 4_096, "parts": "bottleneck,item-bias"}, threads)


def step_and_loop() -> Iterator[Row]:
    for pair in range(1, PAIRS + 1):
        yield from paired(pair, in_child("throughput_step", {"users": 4_096}, CORES))
        for threads in (1, CORES):
            yield from paired(pair, in_child("throughput_step", {"users": 256, "loop": 1, "repeats": 3}, threads))


def federations() -> Iterator[Row]:
    for users in FEDERATIONS:
        yield from in_child("throughput_federation", {"users": users}, CORES)


def federation_and_ray() -> Iterator[Row]:
    for pair in range(1, PAIRS + 1):
        yield from paired(pair, in_child("throughput_federation", {"users": 10_000}, CORES))
        yield from paired(pair, in_child("throughput_ray", {"users": 32, "rounds": 40, "cores": CORES}, 1))


def paired(pair: int, rows: list[Row]) -> list[Row]:
    return [{**row, "pair": pair} for row in rows]


def pfl_task() -> Iterator[Row]:
    yield from in_child("throughput_pfl", {"users": 1_000, "rounds": 40}, 1)


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "step": client_steps,
    "loop": step_and_loop,
    "federation": federations,
    "ray": federation_and_ray,
    "pfl": pfl_task,
}


def headline(rows: list[Row]) -> dict[str, float]:
    """Speed: the best of the pairs. Ratios: the median over pairs, of both cores against the faster of the two loops,
    and of median rounds against Ray's median rounds.
    """
    figures: dict[str, float] = {}
    steps, loops = by_pair(rows, "client-step"), by_pair(rows, "loop")
    if steps:
        figures["users_per_s"] = max(steps.values())
    for name, ours, theirs in (
        ("speedup_vs_loop", steps, loops),
        ("speedup_vs_ray", by_pair(rows, "federation"), by_pair(rows, "ray")),
    ):
        if ratios := [ours[pair] / theirs[pair] for pair in ours if pair in theirs]:
            figures[name] = round(median(ratios), 1)
    for row in rows:
        if row["step"] == "pfl-task":
            figures["pfl_task_users_per_s_core"] = row["users_per_s"]
        if row["step"] == "federation" and row["users"] == 100_000:
            figures["peak_gb_100k_users"] = row["peak_gb"]
    return figures


def by_pair(rows: list[Row], step: str) -> dict[int, float]:
    """{pair: users per second}; where a pair has several rows of this step, the fastest."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["step"] == step and "pair" in row:
            found.setdefault(row["pair"], []).append(row["users_per_s"])
    return {pair: max(speeds) for pair, speeds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(PARTS), action="append", help="measure this part; may be repeated")
    given = parser.parse_args()
    for name in given.only or PARTS:
        for row in PARTS[name]():
            print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
            write_results(RESULTS, [row], headline, KEY)
    update(README)
    print(read_results(RESULTS)["headline"])


if __name__ == "__main__":
    main()
