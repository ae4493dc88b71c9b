"""Users per second: the client step, whole federations, and peers beside them, in one run.

    python -m experiments.benchmarks.throughput                     # everything, about ten minutes
    python -m experiments.benchmarks.throughput --only pfl          # a part; rows of the others stay

Every row is measured in a process of its own. ``users_per_s`` is by the clock on the wall, the best of several
repeats (federations: the median round, and beside it the best one); ``users_per_cpu_s`` is per second of processor
time, summed over threads. ``load`` says how busy the machine was with other things as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments.benchmarks.throughput_common import Row, in_child
from experiments.benchmarks.throughput_readme import update
from experiments.results import read_results, write_results

RESULTS = Path(__file__).with_suffix(".json")
README = Path(__file__).with_name("README.md")
KEY = ("step", "parts", "users_at_once", "users", "supernodes", "threads")
BATCHES = (1, 16, 64, 256, 1_024, 4_096)
FEDERATIONS = (1_000, 10_000, 100_000)
CORES = 2


def client_steps() -> Iterator[Row]:
    for threads in (1, CORES):
        for users in BATCHES:
            yield from in_child("throughput_step", {"users": users}, threads)
        yield from in_child("throughput_step", {"users": 4_096, "parts": "bottleneck,item-bias"}, threads)


def loop() -> Iterator[Row]:
    for threads in (1, CORES):
        yield from in_child("throughput_step", {"users": 256, "loop": 1, "repeats": 3}, threads)


def federations() -> Iterator[Row]:
    for users in FEDERATIONS:
        yield from in_child("throughput_federation", {"users": users}, CORES)


def ray() -> Iterator[Row]:
    yield from in_child("throughput_ray", {"users": 32, "rounds": 8, "cores": CORES}, 1)


def pfl_task() -> Iterator[Row]:
    yield from in_child("throughput_pfl", {"users": 1_000, "rounds": 40}, 1)


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "step": client_steps,
    "loop": loop,
    "federation": federations,
    "ray": ray,
    "pfl": pfl_task,
}


def headline(rows: list[Row]) -> dict[str, float]:
    """Ratios compare what both cores give: the batched step with the loop, our federation's rounds with Ray's."""
    found = {
        (row["step"], row.get("users_at_once", row.get("users")), row["threads"]): row for row in rows if plain(row)
    }
    figures: dict[str, float] = {}
    step = found.get(("client-step", 4_096, CORES))
    loops = [row["users_per_s"] for (kind, *_), row in found.items() if kind == "loop"]
    rounds = found.get(("federation", 10_000, CORES))
    on_ray = next((row for row in rows if row["step"] == "ray"), None)
    if step:
        figures["users_per_s"] = step["users_per_s"]
    if step and loops:
        figures["speedup_vs_loop"] = round(step["users_per_s"] / max(loops), 1)
    if rounds and on_ray:
        figures["speedup_vs_ray"] = round(rounds["users_per_s"] / on_ray["users_per_s"], 1)
    if task := found.get(("pfl-task", 1_000, 1)):
        figures["pfl_task_users_per_s_core"] = task["users_per_s"]
    if largest := found.get(("federation", 100_000, CORES)):
        figures["peak_gb_100k_users"] = largest["peak_gb"]
    return figures


def plain(row: Row) -> bool:
    """With the patch that the aims are about."""
    return row.get("parts", "bottleneck") == "bottleneck"


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
