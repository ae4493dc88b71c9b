"""Every rule of ours at several K and P beside byzfl, Flower and plain torch: time, peak memory, equal results.

    OMP_NUM_THREADS=1 python -m experiments.benchmarks.aggregators --byzfl-python PATH

PATH is the interpreter of an environment with ``byzfl==0.0.11 torch==2.13.0``. The implementations of a rule take
turns, each in a process of its own, and the best of ``--turns`` counts. Rows are written as they come; those that
``aggregators.json`` holds are not measured again, unless ``--again``: then also those that failed are asked again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.aggregators_cells import CLIPPING, IN_PLACE, MAKERS, updates
from experiments.benchmarks.aggregators_exact import distance_to_exact
from experiments.benchmarks.aggregators_readme import update
from experiments.results import ROOT, Row, read_results, write_results

OUT = Path(__file__).with_name("aggregators.json")
KEY = ("rule", "who", "k", "p", "threads")
PEERS = ("byzfl", "flower", "torch")
SIZES = ",".join(f"{k}x{p}" for k in (100, 1000, 10_000) for p in (1000, 4000, 100_000))
LONG_SECONDS = 4.0
"""A cell of this length gets one turn: noise is a small part of it."""
DEFINED_ALIKE = {  # (rule, peer): what both define in the same way, so that results must agree to 1e-5
    *((rule, "byzfl") for rule in ("mean", "median", "trimmed-mean", "mean-of-medians", "krum", "multi-krum")),
    *((rule, "byzfl") for rule in ("geometric-median", "centered-clipping", "mda", "nearest-neighbour-mixing")),
    *((rule + way, "byzfl") for rule in CLIPPING for way in ("", IN_PLACE)),
    *((rule, "flower") for rule in ("mean", "median", "trimmed-mean")),
}
AGREES = 1e-5
"""Where results differ by more, the row of each tells its difference to the definition in float64 too."""
EXPLODES = {("byzfl", "mda")}
"""It lists all subsets: there is no need to fill the memory of the machine to see that they do not fit."""


class Servers:
    """One process for each interpreter, started when first asked; a context manager that ends them."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given, self._stack = given, ExitStack()
        self._running: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    def ask(self, who: str, request: Row) -> Row:
        server = self._server(self._given.byzfl_python if who == "byzfl" else sys.executable)
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps({"who": who, **request}) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    def _server(self, python: str) -> subprocess.Popen[str]:
        if python not in self._running:
            threads = str(self._given.threads)
            started = subprocess.Popen(
                [python, "-m", "experiments.benchmarks.aggregators_server"],
                env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            )  # fmt: skip
            self._running[python] = self._stack.enter_context(started)
            self._stack.callback(_hang_up, started)
        return self._running[python]


def _hang_up(server: subprocess.Popen[str]) -> None:
    if server.stdin is not None:
        server.stdin.close()


def main(arguments: Sequence[str] | None = None) -> None:
    given = _arguments(arguments)
    told: list[Row] = []
    with Servers(given) as servers:
        for size in given.sizes.split(",") if given.sizes else ():
            k, p = map(int, size.split("x"))
            with tempfile.TemporaryDirectory() as folder:
                for rule in given.rules.split(",") if given.rules else all_rules():
                    held = read_results(given.json)["rows"] if given.json.exists() else []
                    asked = [who for who in MAKERS if given.again or not _has(held, rule, who, k, p, given.threads)]
                    asked = [who for who in asked if who != "byzfl" or given.byzfl_python]
                    failed = told if given.again else held
                    rows = list(_compare(servers, given, asked, failed, (rule, k, p), Path(folder)))
                    told += rows
                    if rows:
                        write_results(given.json, rows, headline, KEY)
                    for row in rows:
                        print(_line(row), flush=True)
    if given.json == OUT and OUT.exists():
        update(OUT.with_name("README.md"), OUT)


def _has(held: list[Row], rule: str, who: str, k: int, p: int, threads: int) -> bool:
    return any([row[name] for name in KEY] == [rule, who, k, p, threads] for row in held)


def _compare(
    servers: Servers, given: argparse.Namespace, asked: list[str], held: list[Row], cell: tuple[str, int, int], at: Path
) -> Iterator[Row]:
    """Turns of all implementations. Who failed at a size gets no more turns, and no larger size."""
    rule, k, p = cell
    if "ours" not in asked and asked:
        asked = ["ours", *asked]  # its result is compared with theirs
    best: dict[str, Row] = {who: found for who in asked if (found := failed_at_less(held, rule, who, k, p))}
    for _ in range(given.turns):
        for who in asked:
            before = best.get(who, {"status": "ok"})
            if before["status"] == "ok" and before.get("cpu_seconds", 0) < LONG_SECONDS:
                row = servers.ask(who, _request(given, rule, k, p, who, at))
                if who not in best or row.get("cpu_seconds", 0) < best[who].get("cpu_seconds", 0):
                    best[who] = row
    done = {who for who, row in best.items() if row["status"] == "ok"}
    alike = [who for who in sorted(done) if (rule, who) in DEFINED_ALIKE and "ours" in done]
    same = {who: gap for who in alike if (gap := _difference(at, who)) is not None}
    exact = _to_exact(cell, at, ["ours", *same]) if any(gap > AGREES for gap in same.values()) else {}
    for who, row in best.items():
        found = {"relative_difference": same.get(who), "float64_difference": exact.get(who)}
        found = {name: gap for name, gap in found.items() if gap is not None}
        yield {"rule": rule, "who": who, "k": k, "p": p, "threads": given.threads, **row, **found,
               "load": round(os.getloadavg()[0], 1)}  # fmt: skip


def failed_at_less(held: list[Row], rule: str, who: str, k: int, p: int) -> Row | None:
    for row in held:
        failed = row["status"] in ("too slow", "out of memory")
        if failed and (row["rule"], row["who"]) == (rule, who) and row["k"] <= k and row["p"] <= p:
            at = row.get("at") or f"{row['k']}x{row['p']}"
            return {"status": row["status"], "detail": row["detail"], "at": at}
    return None


def _request(given: argparse.Namespace, rule: str, k: int, p: int, who: str, folder: Path) -> Row:
    f, data, saved = k // 10, _data(folder, k, p), folder / f"{who}.npy"
    if not data.exists():
        np.save(data, updates(k, p, f).numpy())
    saved.unlink(missing_ok=True)
    memory_gb = min(given.memory_gb, 2.0) if (who, rule) in EXPLODES else given.memory_gb
    limits = {"seconds": given.seconds, "memory_gb": memory_gb, "threads": given.threads}
    return {"rule": rule, "f": f, "data": str(data), "save": str(saved), **limits}


def _difference(folder: Path, who: str) -> float | None:
    """Largest difference to ours, in units of the largest value; None where one of them has no result."""
    ours, theirs = folder / "ours.npy", folder / f"{who}.npy"
    if not (ours.exists() and theirs.exists()):
        return None
    a, b = np.load(ours), np.load(theirs)
    return float(f"{np.abs(a - b).max() / np.abs(b).max():.2e}") if a.shape == b.shape else None


def _to_exact(cell: tuple[str, int, int], folder: Path, who: list[str]) -> dict[str, float]:
    rule, k, p = cell
    gaps = distance_to_exact(rule, _data(folder, k, p), k // 10, [folder / f"{one}.npy" for one in who])
    return dict(zip(who, gaps, strict=True)) if gaps else {}


def _data(folder: Path, k: int, p: int) -> Path:
    return folder / f"{k}x{p}.npy"


def headline(rows: list[Row]) -> dict[str, float]:
    """Of processor seconds, as the machine may be shared, over cells where the peer finished; 0 where ours did not.

    ``median_speedup_vs_best`` and ``trimmed_mean_speedup_vs_best``: the fastest of the three at 1,000 x 100,000 against
    ours. ``largest_difference``: relative, to byzfl and Flower where definitions agree; ``peak_gb_10000x4000``: of the
    rule that needs most. ``largest_float64_difference``: of ours to the definition in float64, in the
    cells where a peer differs from us by more than 1e-5.
    """
    cells = {(row["rule"], row["k"], row["p"], row["who"]): row for row in rows}

    def speedup(peer: Row) -> float:
        mine = cells.get((peer["rule"], peer["k"], peer["p"], "ours"), {})
        return peer["cpu_seconds"] / max(mine["cpu_seconds"], 1e-7) if mine.get("status") == "ok" else 0.0

    done = [row for row in rows if row["status"] == "ok"]
    figures: dict[str, float] = {}
    for peer in PEERS:
        if found := [speedup(row) for row in done if row["who"] == peer]:
            figures[f"min_speedup_vs_{peer}"] = min(found)
    for rule in ("median", "trimmed-mean"):
        found = [
            speedup(row)
            for row in done
            if (row["rule"], row["k"], row["p"]) == (rule, 1000, 100_000) and row["who"] in PEERS
        ]
        if found:
            figures[f"{rule.replace('-', '_')}_speedup_vs_best"] = min(found)
    mine = {key[:3]: row for key, row in cells.items() if key[3] == "ours" and row["status"] == "ok"}
    if mixing := mine.get(("nearest-neighbour-mixing", 1000, 100_000)):
        figures["mixing_peak_gb"] = mixing["peak_gb"]
    if peaks := [row["peak_gb"] for (_, k, p), row in mine.items() if (k, p) == (10_000, 4000)]:
        figures["peak_gb_10000x4000"] = max(peaks)
    if gaps := [row["relative_difference"] for row in rows if "relative_difference" in row]:
        figures["largest_difference"] = max(gaps)
    if gaps := [row["float64_difference"] for row in mine.values() if "float64_difference" in row]:
        figures["largest_float64_difference"] = max(gaps)
    return {name: float(f"{value:.4g}") for name, value in figures.items()}


def all_rules() -> list[str]:
    from strategies.rules import AGGREGATORS, PRE_RULES

    in_place = (name + IN_PLACE for name in CLIPPING)
    return [*AGGREGATORS, *PRE_RULES, *in_place]


def _line(row: Row) -> str:
    size = f"{row['k']}x{row['p']}"
    if row["status"] != "ok":
        return f"{size:>12} {row['rule']:26} {row['who']:7} {row['status']} {row.get('detail', '')} {row.get('at', '')}"
    same = f" differs by {row['relative_difference']:.0e}" if "relative_difference" in row else ""
    times = f"{1000 * row['seconds']:10.3f} ms {1000 * row['cpu_seconds']:10.3f} ms cpu"
    return f"{size:>12} {row['rule']:26} {row['who']:7} {times} {row['peak_gb']:6.2f} GB{same}"


def _arguments(arguments: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.aggregators", description=__doc__)
    parser.add_argument("--byzfl-python", default="", help="an interpreter that has byzfl; empty: without it")
    parser.add_argument("--sizes", default=SIZES, help="KxP, comma-separated; empty: only write the README's tables")
    parser.add_argument("--rules", default="", help="comma-separated; empty: all")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60, help="of the processor that a call may take")
    parser.add_argument("--memory-gb", type=float, default=10, help="of data that a cell may hold")
    parser.add_argument("--again", action="store_true", help="measure also what the file holds, and what failed in it")
    parser.add_argument("--json", type=Path, default=OUT)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
