"""A whole federation in this process: what ``fedquilt simulate`` runs, with an untrained cloud model.

    python -m experiments.benchmarks.throughput_federation --users 10000 --cohort 1000

Rounds are those that it takes to draw as many users as there are, five at least. Users per second are of rounds alone:
orders, subgraphs, MAML, clipping, personal patches to disk, validation, aggregation, checkpoint. The final evaluation
of every user on both parts of their held-out clicks, and the memory it needs, stand beside it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace

import numpy as np

from client.app import app
from experiments.benchmarks.throughput_common import Row, config_for, peak_gb, report
from fedquilt.runs import RunFolder
from server.in_process import InProcessGrid
from server.loop import run_federation
from server.simulate import finish, hooks, prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--cohort", type=int, default=1_000)
    parser.add_argument("--supernodes", type=int, default=1)
    given = parser.parse_args()
    report(measure(given.users, given.cohort, given.supernodes))


def measure(users: int, cohort: int, supernodes: int = 1) -> Row:
    cohort = min(cohort, users)
    rounds = max(5, users // cohort)
    config = config_for(users, rounds=rounds, cohort_size=cohort, num_supernodes=supernodes)
    peaks = [0.0]
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(folder, config)
        started = time.perf_counter()
        deployment = prepare(config, run)
        prepared = time.perf_counter()
        with_peaks = replace(hooks(config, run), on_round=lambda record: peaks.append(peak_gb()))
        result = run_federation(InProcessGrid(app, supernodes), config, deployment, run, with_peaks)
        finish(config, run, result)
        whole_s = time.perf_counter() - prepared
        seconds = np.array([record["seconds"] for record in run.records("round")])
    return {
        "step": "federation",
        "users": users,
        "supernodes": supernodes,
        "cohort": cohort,
        "rounds": rounds,
        "users_per_s": round(cohort / float(np.median(seconds)), 1),
        "users_per_s_best_round": round(cohort / float(seconds.min()), 1),
        "rounds_s": round(float(seconds.sum()), 2),
        "evaluation_s": round(whole_s - float(seconds.sum()), 2),
        "prepare_s": round(prepared - started, 2),
        "peak_gb_rounds": peaks[-1],
        "peak_gb": peak_gb(),
    }


if __name__ == "__main__":
    main()
