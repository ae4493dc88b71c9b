"""Every rule of ours at several K and P beside byzfl, Flower and plain torch: time, peak memory, equal results.

    python -m experiments.benchmarks.aggregators --byzfl-python PATH --sizes 100x4000,1000x4000

PATH is the interpreter of an environment with ``byzfl==0.0.11 torch==2.13.0``. Every cell is a process of its own; the
implementations of one rule and size take turns, ``--turns`` times, and the best of each counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.results import ROOT, write_results

OUT = Path(__file__).with_name("aggregators.json")
KEY = ("rule", "who", "k", "p", "threads")
CELL = Path(__file__).with_name("aggregators_cells.py")
PEERS = ("byzfl", "flower", "torch")
DEFINED_ALIKE = {  # (rule, peer): what both define in the same way, so that results must agree to 1e-5
    *((rule, "byzfl") for rule in ("mean", "median", "trimmed-mean", "mean-of-medians", "krum", "multi-krum")),
    *((rule, "byzfl") for rule in ("geometric-median", "centered-clipping", "mda", "nearest-neighbour-mixing")),
    *((rule, "byzfl") for rule in ("clipping", "adaptive-clipping")),
    *((rule, "flower") for rule in ("mean", "median", "trimmed-mean")),
}
Row = dict[str, Any]


def main() -> None:
    given = _arguments()
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "PYTHONPATH": str(ROOT)}
    for size in given.sizes.split(","):
        k, p = map(int, size.split("x"))
        for rule in given.rules.split(",") if given.rules else _all_rules():
            rows = list(_compare(given, environment, rule, k, p))
            write_results(given.json, rows, headline, KEY)
            for row in rows:
                print(_line(row), flush=True)


def _compare(given: argparse.Namespace, environment: Mapping[str, str], rule: str, k: int, p: int) -> Iterator[Row]:
    """Turns of all implementations; a peer that failed or took too long once does not get another turn."""
    best: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.turns):
            for who in ("ours", *PEERS):
                if best.get(who, {"status": "ok"})["status"] == "ok" and (who != "byzfl" or given.byzfl_python):
                    row = _cell(given, environment, who, rule, k, p, Path(folder) / f"{who}.npy")
                    if row.get("cpu_seconds", 0) < best.get(who, row).get("cpu_seconds", 1e9) or who not in best:
                        best[who] = row
        for who, row in best.items():
            if row["status"] != "has none":
                same = _difference(Path(folder), who) if (rule, who) in DEFINED_ALIKE else None
                told = {} if same is None else {"relative_difference": same}
                yield {"rule": rule, "who": who, "k": k, "p": p, "threads": given.threads, **row, **told}


def _cell(
    given: argparse.Namespace, environment: Mapping[str, str], who: str, rule: str, k: int, p: int, save: Path
) -> Row:
    python = given.byzfl_python if who == "byzfl" else sys.executable
    numbers = {"k": k, "p": p, "f": k // 10, "repeats": given.repeats, "threads": given.threads}
    told = [part for name, value in numbers.items() for part in (f"--{name}", str(value))]
    command = [python, str(CELL), "--who", who, "--rule", rule, "--save", str(save), *told]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=given.timeout, check=False, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        return {"status": "too slow", "detail": f"over {given.timeout:g} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return {"status": "died", "detail": (done.stderr.strip().splitlines() or [""])[-1][:120]}
    return {**json.loads(lines[-1]), "load": round(os.getloadavg()[0], 1)}


def _difference(folder: Path, who: str) -> float | None:
    ours, theirs = folder / "ours.npy", folder / f"{who}.npy"
    if not (ours.exists() and theirs.exists()):
        return None
    a, b = np.load(ours, mmap_mode="r"), np.load(theirs, mmap_mode="r")
    return float(f"{np.abs(a - b).max() / np.abs(b).max():.2e}") if a.shape == b.shape else None


def headline(rows: list[Row]) -> dict[str, float]:
    """Of processor seconds, as the machine may be shared; only cells that both finished."""
    cells = {(row["rule"], row["k"], row["p"], row["who"]): row for row in rows if row["status"] == "ok"}

    def speedups(peer: str) -> list[float]:
        return [
            cells[rule, k, p, peer]["cpu_seconds"] / max(row["cpu_seconds"], 1e-6)
            for (rule, k, p, who), row in cells.items()
            if who == "ours" and (rule, k, p, peer) in cells
        ]

    figures = {f"min_speedup_vs_{peer}": min(found) for peer in ("byzfl", "flower") if (found := speedups(peer))}
    peers = [cells["median", 1000, 100_000, who] for who in PEERS if ("median", 1000, 100_000, who) in cells]
    if peers and (mine := cells.get(("median", 1000, 100_000, "ours"))):
        figures["median_speedup_vs_best"] = min(peer["cpu_seconds"] for peer in peers) / mine["cpu_seconds"]
    if mixing := cells.get(("nearest-neighbour-mixing", 1000, 100_000, "ours")):
        figures["mixing_peak_gb"] = mixing["peak_gb"]
    return {name: round(value, 3) for name, value in figures.items()}


def _all_rules() -> list[str]:
    from strategies.rules import AGGREGATORS, PRE_RULES

    return [*AGGREGATORS, *(name for name in PRE_RULES if name != "supernode-cap")]


def _line(row: Row) -> str:
    size = f"{row['k']}x{row['p']}"
    if row["status"] != "ok":
        return f"{size:>12} {row['rule']:26} {row['who']:7} {row['status']} {row.get('detail', '')}"
    same = f" differs by {row['relative_difference']:.0e}" if "relative_difference" in row else ""
    times = f"{1000 * row['seconds']:10.2f} ms {1000 * row['cpu_seconds']:10.2f} ms cpu"
    return f"{size:>12} {row['rule']:26} {row['who']:7} {times} {row['peak_gb']:6.2f} GB{same}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--byzfl-python", default="", help="an interpreter that has byzfl; empty: without it")
    parser.add_argument("--sizes", default="100x4000", help="KxP, comma-separated")
    parser.add_argument("--rules", default="", help="comma-separated; empty: all")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=300, help="seconds a cell may take")
    parser.add_argument("--json", type=Path, default=OUT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
