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

import numpy as np

from client.app import app
from experiments.benchmarks.throughput_common import config_for, peak_gb, report
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
    cohort = min(given.cohort, given.users)
    rounds = max(5, given.users // cohort)
    config = config_for(given.users, rounds=rounds, cohort_size=cohort, num_supernodes=given.supernodes)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(folder, config)
        started = time.perf_counter()
        deployment = prepare(config, run)
        prepared = time.perf_counter()
        grid = InProcessGrid(app, config.federation.num_supernodes)
        peak_of_rounds = 0.0

        def on_round(record: object) -> None:
            nonlocal peak_of_rounds
            peak_of_rounds = peak_gb()

        given_hooks = hooks(config, run)
        result = run_federation(grid, config, deployment, run, type(given_hooks)(given_hooks.on_evaluation, on_round))
        finish(config, run, result)
        whole = time.perf_counter() - prepared
        records = run.records("round")
    seconds = np.array([record["seconds"] for record in records])
    report(
        {
            "step": "federation",
            "users": given.users,
            "supernodes": given.supernodes,
            "cohort": cohort,
            "rounds": rounds,
            "users_per_s": round(cohort / float(np.median(seconds)), 1),
            "users_per_s_best_round": round(cohort / float(seconds.min()), 1),
            "rounds_s": round(float(seconds.sum()), 2),
            "evaluation_s": round(whole - float(seconds.sum()), 2),
            "prepare_s": round(prepared - started, 2),
            "peak_gb_rounds": peak_of_rounds,
            "peak_gb": peak_gb(),
        }
    )


if __name__ == "__main__":
    main()
